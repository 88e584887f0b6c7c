from __future__ import annotations

import pytest

from scstate_lora.data.ontology import tree_from_ontology

TERMS = {
    "CL:0000000": ("cell", []),
    "CL:0000988": ("hematopoietic cell", ["CL:0000000"]),
    "CL:0000738": ("leukocyte", ["CL:0000988"]),
    "CL:0000542": ("lymphocyte", ["CL:0000738"]),
    "CL:0000842": ("mononuclear leukocyte", ["CL:0000738"]),
    "CL:0000236": ("B cell", ["CL:0000542", "CL:0000842"]),
    "CL:0000084": ("T cell", ["CL:0000542", "CL:0000842"]),
    "CL:0000624": ("CD4-positive, alpha-beta T cell", ["CL:0000084"]),
    "CL:0000625": ("CD8-positive, alpha-beta T cell", ["CL:0000084"]),
    "CL:0000576": ("monocyte", ["CL:0000842"]),
    "UBERON:1": ("blood", []),
}
SYNONYMS = {"CL:0000236": ["B lymphocyte", "lymphoid"], "CL:0000084": ["T lymphocyte", "lymphoid"]}


def _obo(path):
    lines = ["format-version: 1.2", "ontology: cl", "import: http://purl.obolibrary.org/obo/never_read.obo", ""]
    for i, (name, parents) in TERMS.items():
        lines += ["[Term]", f"id: {i}", f"name: {name}"]
        lines += [f'synonym: "{text}" EXACT []' for text in SYNONYMS.get(i, [])]
        lines += [f"is_a: {parent}" for parent in parents] + [""]
    lines += [
        "[Term]",
        "id: CL:0000001",
        "name: obsolete lymphocyte",
        "is_obsolete: true",
        "replaced_by: CL:0000542",
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _owl(path):
    def iri(i):
        return f"http://purl.obolibrary.org/obo/{i.replace(':', '_')}"

    classes = "".join(
        f'<owl:Class rdf:about="{iri(i)}"><rdfs:label>{name}</rdfs:label>'
        + "".join(f'<rdfs:subClassOf rdf:resource="{iri(p)}"/>' for p in parents)
        + "</owl:Class>"
        for i, (name, parents) in TERMS.items()
    )
    path.write_text(
        '<?xml version="1.0"?><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
        'xmlns:owl="http://www.w3.org/2002/07/owl#" xmlns:rdfs="http://www.w3.org/2000/01/rdf-schema#">'
        f'<owl:Ontology rdf:about="http://purl.obolibrary.org/obo/cl.owl"/>{classes}</rdf:RDF>',
        encoding="utf-8",
    )
    return path


@pytest.fixture
def obo(tmp_path):
    return _obo(tmp_path / "cl.obo")


GIVEN = ["CL:0000624", "CD8-positive, alpha-beta T cell", "T lymphocyte", "CL:0000236", "monocyte", "lymphocyte"]


@pytest.mark.parametrize("write", [_obo, _owl])
def test_a_part_of_the_ontology_with_its_ids(tmp_path, write):
    terms = [term if write is _obo else term.replace("T lymphocyte", "T cell") for term in GIVEN]
    tree = tree_from_ontology(write(tmp_path / f"cl.{write.__name__[1:]}"), terms)
    path = {name: tree.names[parent] for name, parent in zip(tree.names, tree.parents, strict=True) if parent >= 0}
    assert path == {
        "lymphocyte": "cell",
        "monocyte": "cell",
        "B cell": "lymphocyte",
        "T cell": "lymphocyte",
        "CD4-positive, alpha-beta T cell": "T cell",
        "CD8-positive, alpha-beta T cell": "T cell",
    }
    assert dict(zip(tree.names, tree.ids, strict=True))["T cell"] == "CL:0000084"
    # Labels of cells may be names or ids.
    assert (tree.allowed(["CL:0000542"]) == tree.allowed(["lymphocyte"])).all()
    assert tree.allowed(["CL:0000542"]).sum() == 3


def test_another_root(obo):
    tree = tree_from_ontology(obo, ["B cell", "T cell"], root="leukocyte")
    assert (tree.names[0], tree.ids[0]) == ("leukocyte", "CL:0000738")


@pytest.mark.parametrize(
    ("terms", "match"),
    [
        (["T cel"], r"'T cel' is neither an id nor a name in cl.obo\. Did you mean 'T cell'"),
        (["lymphoid"], r"'lymphoid' stands for 'CL:0000084', 'CL:0000236' in cl.obo\. Give the id"),
        (["CL:0000001"], r"obsolete in cl.obo; replaced by: CL:0000542 \(lymphocyte\)"),
        (["T cell", "CL:0000084"], r"'T cell' \(CL:0000084\) is among the terms twice"),
        (["T cell", "UBERON:1"], r"'blood' \(UBERON:1\) is not below 'cell'"),
        (
            ["T cell", "lymphocyte", "mononuclear leukocyte"],
            "is a kind of 'lymphocyte' .* neither",
        ),
    ],
)
def test_terms_that_make_no_tree_raise(obo, terms, match):
    with pytest.raises(ValueError, match=match):
        tree_from_ontology(obo, terms)


def test_a_cycle_raises(tmp_path):
    path = _obo(tmp_path / "cl.obo")
    path.write_text(path.read_text().replace("name: lymphocyte\n", "name: lymphocyte\nis_a: CL:0000084\n"))
    with pytest.raises(ValueError, match="cycle"):
        tree_from_ontology(path, ["lymphocyte", "T cell", "B cell"])


def test_obsolete_and_synonyms_in_owl(tmp_path):
    path = _owl(tmp_path / "cl.owl")
    more = (
        '<owl:Class rdf:about="http://purl.obolibrary.org/obo/CL_0000001"><rdfs:label>old lymphocyte</rdfs:label>'
        "<owl:deprecated>true</owl:deprecated><i:IAO_0100001 xmlns:i='http://purl.obolibrary.org/obo/' "
        "rdf:resource='http://purl.obolibrary.org/obo/CL_0000542'/></owl:Class>"
        '<owl:Class rdf:about="http://purl.obolibrary.org/obo/CL_0000623"><rdfs:label>natural killer cell</rdfs:label>'
        "<rdfs:subClassOf><owl:Restriction><owl:someValuesFrom><owl:Class><rdfs:label>no term</rdfs:label></owl:Class>"
        "</owl:someValuesFrom></owl:Restriction></rdfs:subClassOf>"
        '<rdfs:subClassOf rdf:resource="http://purl.obolibrary.org/obo/CL_0000542"/>'
        "<o:hasExactSynonym xmlns:o='http://www.geneontology.org/formats/oboInOwl#'>NK cell</o:hasExactSynonym>"
        "</owl:Class></rdf:RDF>"
    )
    path.write_text(path.read_text().replace("</rdf:RDF>", more))
    tree = tree_from_ontology(path, ["NK cell", "B cell", "lymphocyte"])
    assert tree.ids[tree.names.index("natural killer cell")] == "CL:0000623"
    assert tree.allowed(["lymphocyte"]).sum() == 2
    with pytest.raises(ValueError, match=r"obsolete in cl.owl; replaced by: CL:0000542 \(lymphocyte\)"):
        tree_from_ontology(path, ["CL:0000001"])


def test_absent_or_foreign_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no ontology at"):
        tree_from_ontology(tmp_path / "absent.obo", ["T cell"])
    (tmp_path / "other.obo").write_text("format-version: 1.2\nontology: cl\n")
    with pytest.raises(ValueError, match=r"holds no terms: \.obo is read"):
        tree_from_ontology(tmp_path / "other.obo", ["T cell"])
