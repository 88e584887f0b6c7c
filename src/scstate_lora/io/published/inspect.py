"""Describe a file or folder of weights: its kind, its contents and its uses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal

from scstate_lora._utils import listed
from scstate_lora.io.published.contents import Contents, find_se_file, open_contents
from scstate_lora.io.published.inspect_labels import classifier_rows, classifier_uses, rank_rows, rank_uses
from scstate_lora.io.published.proteins import find_proteins
from scstate_lora.io.published.scmodelforge import find_rank_file, is_rank_checkpoint, read_rank_checkpoint
from scstate_lora.io.published.se_checkpoint import complete_sizes, find_config, licence_beside, name_of
from scstate_lora.io.published.se_tensors import N_DATASET, take_arc_state
from scstate_lora.io.published.st_checkpoint import STCheckpoint, input_meaning, read_st_file, st_licence
from scstate_lora.io.published.st_files import find_st_file
from scstate_lora.io.save_load import holds_save, load_directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from scstate_lora._tensors import ExpectedTensors

_WIDTH = 110
_MOST_LISTED = 50
_COLUMN_ROWS = (("cell type", "cell_type_key"), ("batch", "batch_key"), ("embedding", "embed_key"))
_BASE_ROWS = (("base", "name"), ("base from", "source"), ("licence of the base", "licence"))


@dataclass(frozen=True)
class Report:
    """Description of the model at a path.

    Parameters
    ----------
    kind
        ``se``, ``st``, ``rank`` (of scModelForge), ``proteins`` or ``saved`` (a model that this package saved).
    title
        Summary in one line.
    rows
        Labels and values, in display order.
    uses
        Calls in which the model can be used.
    problems
        Reasons why it cannot be used.
    """

    kind: str
    title: str
    rows: list[tuple[str, str]] = field(default_factory=list)
    uses: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Render the report as plain text, with aligned values."""
        label_width = max((len(label) for label, _ in self.rows), default=0) + 2
        lines = [self.title, ""]
        for label, value in self.rows:
            # Paths and calls are not broken across lines.
            parts = wrap(value, _WIDTH - label_width, break_long_words=False, break_on_hyphens=False) or [""]
            lines += [f"  {label:<{label_width}}{parts[0]}", *(" " * (label_width + 2) + part for part in parts[1:])]
        for heading, entries in (("Problems", self.problems), ("Use", self.uses)):
            if entries:
                lines += ["", f"{heading}:", *(f"  {line}" for entry in entries for line in entry.splitlines())]
        return "\n".join(lines)


def inspect_path(
    path: str | Path, *, se_tensors: ExpectedTensors, st_tensors: ExpectedTensors, rank_tensors: ExpectedTensors
) -> Report:
    """Recognise a published SE or ST model, an encoder of scModelForge, protein embeddings, or a model saved here.

    Tensors are mapped from the disk and only their names and shapes read, so a large file takes a moment.

    Parameters
    ----------
    path
        File or folder.
    se_tensors, st_tensors, rank_tensors
        State dicts of an SE, an ST and a rank network of given sizes, with which the tensors are compared.

    Raises
    ------
    FileNotFoundError
        If nothing is there, or a folder without a model.
    ValueError
        If it is none of these, is damaged, or holds more than data.
    """
    path = Path(path).expanduser()
    if path.name == "model.json":
        path = path.parent
    if holds_save(path):
        return _saved(path)
    if path.exists() and is_rank_checkpoint(path):
        return _rank(path, rank_tensors)
    contents = open_contents(_file(path))
    if contents.kind == "se":
        return _se(path, contents, se_tensors)
    if contents.kind == "st":
        return _st(path, contents, st_tensors)
    if contents.kind == "proteins":
        return _proteins(contents)
    held = _examples(list(contents.state)) if contents.state else "no tensors by name"
    msg = (
        f"{contents.file} is none of these: an SE or ST checkpoint, an encoder of scModelForge, protein embeddings, or "
        f"a model saved by scstate_lora. It holds {held}."
    )
    raise ValueError(msg)


def _file(path: Path) -> Path:
    """Find the file to inspect: that of an ST folder, protein embeddings alone, or an SE checkpoint."""
    if not path.is_dir():
        return find_se_file(path)
    if any(path.glob("checkpoints/*.ckpt")) or (path / "var_dims.pkl").is_file():
        return find_st_file(path)[1]
    proteins = sorted(path.glob("protein_embeddings*"))
    is_alone = len(proteins) == 1 and not any(path.glob("*.ckpt")) and not (path / "model.safetensors").exists()
    return proteins[0] if is_alone else find_se_file(path)


def _se(path: Path, contents: Contents, expected_tensors: ExpectedTensors) -> Report:
    report = Report("se", f"{name_of(contents.file)}: an SE (state embedding) checkpoint")
    rows = report.rows
    form = "Lightning checkpoint" if "state_dict" in contents.top else "tensors only"
    rows.append(("file", f"{contents.file} ({form}, {_bytes(contents.file.stat().st_size)})"))
    if path.is_dir():
        others = sorted(f.name for f in path.iterdir() if f.suffix in {".ckpt", ".safetensors"} and f != contents.file)
        rows += [("beside it", ", ".join(others))] if others else []
    try:
        sizes, state = take_arc_state(contents.state, expected_tensors, source=str(contents.file))
    except ValueError as error:
        report.problems.append(str(error))
        return report
    rows += _size_rows(sizes, state)
    try:
        config, source = find_config(contents)
        rows.append(("configuration", source))
        sizes = complete_sizes(sizes, contents, config, source)
        rows += [("heads", str(sizes["n_heads"])), ("tokens per cell", f"{sizes['n_tokens']:,}")]
    except (ValueError, FileNotFoundError) as error:
        report.problems.append(str(error))
    try:
        proteins, source = find_proteins(contents)
        rows += [("protein embeddings", source), *_gene_rows(list(proteins))]
        widths = {len(vector) for vector in proteins.values() if hasattr(vector, "__len__")}
        if widths != {sizes["token_dim"]}:
            listed = ", ".join(map(str, sorted(widths)))
            report.problems.append(
                f"The protein embeddings have width {listed}, the network reads {sizes['token_dim']}."
            )
    except (ValueError, FileNotFoundError) as error:
        report.problems.append(str(error))
    rows.append(("licence", licence_beside(contents.file)))
    if not report.problems:
        where = repr(str(path))
        calls = {
            f"ssl.tl.embed(adata, {where})": "its plain embedding, in adata.obsm['X_state']",
            f"ssl.LoRACovariateSE(adata, base={where})": "adapt it to your covariates",
            f"ssl.tl.decode_expression(adata, {where}, genes=[...])": "expression of genes from the embedding",
        }
        width = max(map(len, calls))
        report.uses.extend(f"{call:<{width}}  # {note}" for call, note in calls.items())
    return report


def _size_rows(sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    correction = N_DATASET * sizes["dataset_correction"]
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})
    length = f"{sizes['output_dim'] + correction:,}"
    if correction:
        length += f" ({sizes['output_dim']:,} for the cell, {correction} for the data set)"
    return [
        ("parameters", f"{_millions(state.values())}, {', '.join(kinds)}"),
        ("width (d_model)", f"{sizes['d_model']:,}"),
        ("layers", str(sizes["n_layers"])),
        ("feed-forward (d_hid)", f"{sizes['d_hid']:,}"),
        ("protein embedding width", f"{sizes['token_dim']:,}"),
        ("embedding length", length),
        ("dataset correction", _yes(sizes["dataset_correction"])),
        ("read depth (rda)", _yes(sizes["rda"])),
        ("count encoder", _yes(sizes["counts"])),
    ]


def _proteins(contents: Contents) -> Report:
    genes, vectors = list(contents.proteins), contents.proteins.values()
    widths = sorted({len(vector) for vector in vectors})
    report = Report("proteins", f"{contents.file.name}: protein embeddings, the gene vectors that an SE network reads")
    rows = report.rows
    rows.append(("file", f"{contents.file} ({_bytes(contents.file.stat().st_size)})"))
    rows += [("width", ", ".join(f"{width:,}" for width in widths)), *_gene_rows(genes)]
    if len(widths) > 1:
        report.problems.append("The vectors are not all of one width. Download or copy the file again.")
    else:
        report.uses.append(f"Beside a checkpoint, or as protein_embeddings={str(contents.file)!r}")
    return report


def _st(path: Path, contents: Contents, expected_tensors: ExpectedTensors) -> Report:
    file = contents.file
    folder = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    title = f"{name_of(folder / file.name)}: an ST (state transition) model, which predicts the effect of perturbations"
    report = Report("st", title)
    rows, where = report.rows, repr(str(path))
    rows.append(("file", f"{file} ({_bytes(file.stat().st_size)})"))
    checkpoints = [*folder.glob("*.ckpt"), *folder.glob("checkpoints/*.ckpt")]
    others = sorted(str(f.relative_to(folder)) for f in checkpoints if f != file and f.is_file())
    rows += [("beside it", ", ".join(others))] if others else []
    parts: tuple[Literal["all", "backbone"], ...] = ("all", "backbone")
    for reuse in parts:
        try:
            model = read_st_file(file, folder, expected_tensors, source=str(path), reuse=reuse)
        except (ValueError, FileNotFoundError) as error:
            report.problems.append(str(error))
            continue
        rows += _st_rows(model)
        calls = {
            f"ssl.STTransition(adata, pretrained={where})": "predict with it, or adapt it to your cells",
            f"ssl.STTransition(adata, pretrained={where}, reuse='backbone')": "its transformer, new encoders and head",
        }
        width = max(map(len, calls))
        report.uses.extend(f"{call:<{width}}  # {note}" for call, note in list(calls.items())[reuse == "backbone" :])
        break
    rows.append(("licence", st_licence(folder)))
    return report


def _st_rows(model: STCheckpoint) -> list[tuple[str, str]]:
    sizes = model.sizes
    rows = [
        ("parameters", _millions(model.state.values())),
        ("backbone", f"{sizes['backbone']}, {sizes['n_layers']} layer(s) of {sizes['hidden']:,}"),
        ("heads", f"{sizes['n_heads']} of {sizes['head_dim']}"),
        ("feed-forward", f"{sizes['intermediate']:,}"),
        ("cells per set", str(model.cell_set_len)),
    ]
    if "n_inputs" not in sizes:
        return rows
    forms = {
        "latent": "the cell, from its representation before and after the backbone",
        "none": "the cell, from its representation after the backbone",
        "down_up": "a change, added to the cell and passed through a narrow layer",
    }
    encoder = f"{sizes['n_encoder_layers']}" + ("" if sizes["basal_mlp"] else " (perturbations), 1 (cells)")
    rows += [
        ("reads", input_meaning(model)),
        ("predicts", forms[sizes["residual"]] + ("; never negative" if sizes["non_negative"] else "")),
        ("layers of encoders, head", f"{encoder}; {sizes['n_decoder_layers']}"),
    ]
    if sizes["decoder_dims"] is not None:
        rows.append(("gene decoder", f"to {sizes['n_genes']:,} genes"))
    tokens = [
        name for name, has in (("batch", sizes["batch_classes"]), ("confidence", sizes["confidence_token"])) if has
    ]
    rows += [("tokens beside the cells", ", ".join(tokens))] if tokens else []
    if sizes["n_batches"]:
        names = f": {_examples(list(model.batches))}" if model.batches else ", names not stored"
        rows.append(("batches", f"{sizes['n_batches']:,}{names}"))
    named = list(model.perturbations)
    rows += [
        ("perturbations", f"{len(named):,}, as vectors of width {sizes['pert_dim']:,}: {_examples(named)}"),
        ("control", model.control + ("" if model.control in named else " (not among its perturbations)")),
        *_gene_rows(model.genes),
    ]
    if model.cell_types:
        rows.append(("cell types", f"{len(model.cell_types):,}: {_examples(model.cell_types)}"))
    return rows + [("note", note) for note in model.notes]


def _rank(path: Path, expected_tensors: ExpectedTensors) -> Report:
    file = find_rank_file(path)
    report = Report("rank", f"{name_of(file)}: an encoder of genes by rank, saved by scModelForge")
    report.rows.append(("file", f"{file} ({_bytes(file.stat().st_size)})"))
    try:
        stored = read_rank_checkpoint(path, expected_tensors)
    except (ValueError, FileNotFoundError) as error:
        report.problems.append(str(error))
        return report
    report.rows.extend([*rank_rows(stored), *_gene_rows(stored.genes), ("licence", stored.licence)])
    calls = rank_uses(repr(str(path)))
    width = max(map(len, calls))
    report.uses.extend(f"{call:<{width}}  # {note}" for call, note in calls.items())
    return report


def _saved(folder: Path) -> Report:
    """Describe a model saved by this package, with what it was set up on."""
    metadata, tensors = load_directory(folder)
    name = str(metadata.get("model"))
    base = metadata.get("base")
    base = base if isinstance(base, Mapping) else {}
    report = Report(
        "saved", f"{folder.absolute().name}: {'an' if name == 'SEBase' else 'a'} {name} saved by scstate_lora"
    )
    rows = report.rows
    rows += [
        ("folder", str(folder)),
        ("format version", str(metadata["format_version"])),
        ("package version", str(metadata.get("package_version", "unknown"))),
        *((f"parameters in {part}", _millions(state.values())) for part, state in tensors.items()),
    ]
    rows += [(label, str(base[key])) for label, key in _BASE_ROWS if base.get(key) is not None]
    rows += _gene_rows(_names(base.get("genes"), metadata.get("genes")))
    if "registry" in metadata:
        rows += _set_up_rows(json.loads(str(metadata["registry"])))
    where = repr(str(folder))
    if name == "CellTypeClassifier":
        rows += classifier_rows(metadata, folder)
        report.uses.extend(classifier_uses(where))
    elif name != "SEBase":
        report.uses.append(f"ssl.{name}.load({where})")
    if base and base.get("format") != "scmodelforge" and "obsm" not in base:
        report.uses.append(f"ssl.tl.embed(adata, {where})")
        report.uses.append(f"ssl.LoRACovariateSE(adata, base={where})")
        report.uses.append(f"ssl.tl.decode_expression(adata, {where}, genes=[...])")
    return report


def _set_up_rows(registry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Describe the data that a model was set up on: what may be asked of it."""
    shown = partial(listed, limit=_MOST_LISTED, form=str)
    rows = [("expression", f"{registry['scale']}: {registry['scale_reason']}")]
    if registry.get("pert_key") is not None:
        targets = [name for name in registry["perturbations"] if name != registry["control"]]
        rows += [
            (
                "targets",
                f"{len(targets):,} of obs[{registry['pert_key']!r}]: {shown(targets)}",
            ),
            ("control", str(registry["control"])),
            ("contexts", " x ".join(registry["context_keys"]) or "all cells are one context"),
        ]
    rows += [(label, str(registry[key])) for label, key in _COLUMN_ROWS if registry.get(key) is not None]
    for covariate in registry["covariates"]:
        levels = covariate.get("categories")
        values = f"{covariate['low']:g} to {covariate['high']:g}" if levels is None else shown(levels)
        rows.append((f"covariate {covariate['name']}", f"{covariate['kind']}: {values}"))
    return rows


def _gene_rows(genes: Sequence[Any]) -> list[tuple[str, str]]:
    return [("genes", f"{len(genes):,}: {_examples(genes)} ({_identifiers(genes)})")] if genes else []


def _identifiers(genes: Iterable[Any]) -> str:
    """Kind of names that most genes have."""
    named = [str(gene) for gene in genes]
    kinds = (
        ("Ensembl ids, human", r"ENSG\d{6,}"),
        ("Ensembl ids, mouse", r"ENSMUSG\d{6,}"),
        ("Ensembl ids, another species", r"ENS[A-Z]+G\d{6,}"),
        ("symbols, written as in mouse", r"[A-Z][a-z0-9]*[a-z][a-z0-9]*(-.+)?$"),
    )
    for kind, pattern in kinds:
        if sum(re.match(pattern, name) is not None for name in named) > len(named) / 2:
            return kind
    return "symbols"


def _names(*candidates: Any) -> list[str]:
    """First of the candidates that is a sequence of names, as text."""
    for names in candidates:
        if hasattr(names, "__len__") and hasattr(names, "__iter__") and not isinstance(names, (str, bytes, Mapping)):
            return [str(name) for name in names]
    return []


def _examples(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:3])) + (", …" if len(names) > 3 else "")


def _millions(tensors: Iterable[Tensor]) -> str:
    return f"{sum(tensor.numel() for tensor in tensors) / 1e6:,.2f} M"


def _bytes(n: int) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.2f} MB"


def _yes(value: bool) -> str:  # noqa: FBT001  # the shown value of a switch
    return "yes" if value else "no"
