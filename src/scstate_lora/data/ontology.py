"""A part of the Cell Ontology, from a file that the user gives, as a tree of labels."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scstate_lora._utils import did_you_mean, listed
from scstate_lora.data.label_tree import LabelTree

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_CELL = "CL:0000000"
_EXACT = re.compile(r'"((?:[^"\\]|\\.)*)" EXACT')
_OWL, _RDF, _RDFS = (
    "{http://www.w3.org/2002/07/owl#}",
    "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}",
    "{http://www.w3.org/2000/01/rdf-schema#}",
)
_EXACT_SYNONYM = "{http://www.geneontology.org/formats/oboInOwl#}hasExactSynonym"
_REPLACED_BY = "{http://purl.obolibrary.org/obo/}IAO_0100001"


@dataclass
class _Term:
    """What a file says of one term."""

    name: str
    parents: list[str]
    """Ids of the terms that it is a kind of."""
    synonyms: list[str] = field(default_factory=list)
    """Exact ones."""
    obsolete: bool = False
    replaced_by: list[str] = field(default_factory=list)


def tree_from_ontology(
    path: str | Path, terms: Sequence[str], *, root: str = _CELL, as_given: bool = False
) -> LabelTree:
    """Make a tree of terms of an ontology: below each, the given terms that are kinds of it.

    An ontology is no tree: a CD8 T cell is a T cell, a lymphocyte and much more at once. So the terms say which of its
    nodes count: labels of cells, and coarser ones to summarise them by. What is directly below what follows from ``is
    a``, over any number of terms that were not given.

    Parameters
    ----------
    path
        File of the ontology: ``.obo`` (also compressed), or ``.owl`` in RDF/XML, such as ``cl.obo`` or ``cl.owl`` from
        obofoundry.org.
    terms
        Ids (``"CL:0000236"``), names (``"B cell"``), or exact synonyms that are of one term only.
    root
        The term above all, ``cell`` by default.
    as_given
        Name nodes as they were given, synonyms too, unless that was by id.

    Returns
    -------
    Tree with the terms' names, and their ids.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file holds no terms; or a term is not in the ontology, obsolete, given twice, not below the root, or
        directly below two of the others of which neither is a kind of the other.
    """
    ontology, file = _read(Path(path)), Path(path).name
    by_name = _ids_by_name(ontology)
    top = _find(ontology, by_name, root, file)
    chosen: list[str] = []
    given_as: dict[str, str] = {}
    for given in terms:
        term = _find(ontology, by_name, given, file)
        if term in chosen:
            msg = f"{ontology[term].name!r} ({term}) is among the terms twice. Leave one of the two out."
            raise ValueError(msg)
        if term != top:
            chosen.append(term)
            given_as |= {term: given} if as_given and given != term else {}
    above = {term: _ancestors(ontology, term) for term in chosen}
    outside = [f"{ontology[term].name!r} ({term})" for term in chosen if top not in above[term]]
    if outside:
        msg = f"{listed(outside, form=str)} is not below {ontology[top].name!r} ({top}). Give another root=."
        raise ValueError(msg)
    name_of = {term: given_as.get(term, ontology[term].name) for term in [top, *chosen]}
    parents = {name_of[term]: name_of[_parent(term, above, ontology, top)] for term in chosen}
    ids = {name: term for term, name in name_of.items()}
    if len(ids) < len(name_of):
        msg = f"Two of the terms have one name in {file}: {listed(sorted(name_of.values()), limit=20)}. Leave one out."
        raise ValueError(msg)
    return LabelTree.from_parents(parents, ids=ids, root=name_of[top])


def _parent(term: str, above: dict[str, set[str]], ontology: dict[str, _Term], top: str) -> str:
    """Return the closest chosen term that this one is a kind of."""
    over = [other for other in above if other in above[term] and other != term]
    closest = [other for other in over if not any(other in above[nearer] for nearer in over if nearer != other)]
    if over and not closest:
        msg = f"The ontology has a cycle: {listed(over)} are kinds of each other. Take a release without this error."
        raise ValueError(msg)
    if len(closest) > 1:
        places = " and ".join(f"{ontology[other].name!r} ({other})" for other in closest)
        msg = (
            f"{ontology[term].name!r} ({term}) is a kind of {places}, neither of them a kind of the other. In a "
            "tree it has one place: leave one of them out of the terms."
        )
        raise ValueError(msg)
    return closest[0] if closest else top


def _ancestors(ontology: dict[str, _Term], term: str) -> set[str]:
    """Ids of all terms that this one is a kind of."""
    found: set[str] = set()
    waiting = list(ontology[term].parents)
    while waiting:
        parent = waiting.pop()
        if parent in ontology and parent not in found:  # terms of other ontologies may stand in another file
            found.add(parent)
            waiting += ontology[parent].parents
    return found


def _ids_by_name(ontology: dict[str, _Term]) -> dict[str, set[str]]:
    """Ids by name and exact synonym of the terms that are in use."""
    found: dict[str, set[str]] = {}
    in_use = {i: term for i, term in ontology.items() if not term.obsolete}
    for i, term in in_use.items():
        for name in term.synonyms:
            found.setdefault(name, set()).add(i)
    return {**found, **{term.name: {i} for i, term in in_use.items()}}  # names count more than synonyms of others


def _find(ontology: dict[str, _Term], by_name: dict[str, set[str]], given: str, file: str) -> str:
    """Find the id of a term by id, name or synonym."""
    if given in ontology:
        term = ontology[given]
        if term.obsolete:
            instead = [f"{i} ({ontology[i].name})" if i in ontology else i for i in term.replaced_by]
            msg = f"{given!r} is obsolete in {file}; replaced by: {listed(instead, form=str) or 'nothing'}."
            raise ValueError(msg)
        return given
    ids = by_name.get(given, set())
    if len(ids) != 1:
        what = f"stands for {listed(sorted(ids))}" if ids else "is neither an id nor a name"
        msg = f"{given!r} {what} in {file}. {'Give the id.' if ids else did_you_mean(given, [*by_name, *ontology])}"
        raise ValueError(msg)
    return next(iter(ids))


def _read(path: Path) -> dict[str, _Term]:
    if not path.is_file():
        msg = f"There is no ontology at {path}. Download one, such as cl.obo from https://obofoundry.org/ontology/cl."
        raise FileNotFoundError(msg)
    terms = dict(_owl_terms(path) if path.suffix == ".owl" else _obo_terms(path))
    if not terms:
        msg = f"{path} holds no terms: .obo is read, and .owl in RDF/XML, as on https://obofoundry.org."
        raise ValueError(msg)
    return terms


def _obo_terms(path: Path) -> Iterable[tuple[str, _Term]]:
    import obonet

    graph = obonet.read_obo(path, ignore_obsolete=False)
    for i, data in graph.nodes(data=True):
        if "name" not in data:  # named in a relation only: a term of another ontology
            continue
        parents = [parent for _, parent, relation in graph.out_edges(i, keys=True) if relation == "is_a"]
        synonyms = [match[1] for match in map(_EXACT.match, data.get("synonym", [])) if match]
        obsolete = data.get("is_obsolete") == "true"
        yield i, _Term(data["name"], parents, synonyms, obsolete, list(data.get("replaced_by", [])))


def _owl_terms(path: Path) -> Iterable[tuple[str, _Term]]:
    """Read classes that have a name; of their relations only those to named classes, which are "is a"."""
    from xml.etree import ElementTree

    depth = 0  # classes stand within classes, as parts of definitions
    for event, element in ElementTree.iterparse(path, events=("start", "end")):
        if element.tag != f"{_OWL}Class":
            continue
        depth += 1 if event == "start" else -1
        if event == "start" or depth:
            continue
        i, name = _id(element.get(f"{_RDF}about")), element.findtext(f"{_RDFS}label")
        if i and name:
            parents = [_id(e.get(f"{_RDF}resource")) for e in element.findall(f"{_RDFS}subClassOf")]
            replaced = [_id(e.get(f"{_RDF}resource") or e.text) for e in element.findall(_REPLACED_BY)]
            synonyms = [e.text for e in element.findall(_EXACT_SYNONYM) if e.text]
            obsolete = element.findtext(f"{_OWL}deprecated") == "true"
            yield i, _Term(name, [p for p in parents if p], synonyms, obsolete, [r for r in replaced if r])
        element.clear()


def _id(iri: Any) -> str | None:
    """``CL:0000236`` of ``http://purl.obolibrary.org/obo/CL_0000236``."""
    return re.sub(r"^([A-Za-z]+)_(\w+)$", r"\1:\2", str(iri).rpartition("/")[2]) if iri else None
