"""The commands that learn labels of cells from one file and give them to the cells of another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scstate_lora.cli.shared import (
    BASE,
    Config,
    Overwrite,
    Traceback,
    check_base,
    check_folder,
    column_kinds,
    read_cells,
    refuse_existing,
    split_file,
    takes,
)
from scstate_lora.config.classifier import LabelledDataConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

    from scstate_lora.config import AnnotateConfig
    from scstate_lora.model import CellTypeClassifier

FLAGS = (
    *("labels_key", "unlabeled_category", "label_tree", "ontology_terms", "batch_key", "layer", "input_scale"),
    *("gene_key", "embed_key", "modality", "split_key"),
)
"""Options of the data that have an option of the command; the others are given as ``data.NAME=VALUE``."""
_NAME = "scstate_celltype"


@takes(LabelledDataConfig, into="data", only=FLAGS)
def train(
    file: Annotated[
        str | None,
        typer.Argument(help="Cells x genes that have labels, an .h5ad (or an .h5mu with --modality)."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OPTION=VALUE",
            help="Any option as section.key=value, with a value in YAML, e.g. train.max_epochs=5 head.n_members=1 "
            "lora.r=8 linear_start=false 'data.label_tree={T: {CD4 T: null}}'; a model's config.yaml lists them all.",
        ),
    ] = None,
    *,
    config: Config = None,
    data: dict[str, Any],
    base: Annotated[
        str | None,
        typer.Option(
            help=f"{BASE} Or an encoder saved by scModelForge. By default a compact one is trained on the cells."
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="What is trained of the encoder: gradual (the default), full, lora or frozen."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the model to write.")],
    overwrite: Overwrite = False,
    traceback: Traceback = False,
) -> None:
    """Train a classifier of cells, and save it with its scores on left-out cells beside those of simple methods.

    --labels-key takes several columns, separated by commas, with a kind where needed: cell_type,age:continuous.
    --label-tree takes columns from coarse to fine, separated by commas, or the .obo or .owl file of an ontology.
    """
    from scstate_lora.config import load_annotate

    for name, read in _READ.items():
        if name in data:
            data[name] = read(data[name])
    file, overrides = split_file(file, overrides)
    top = {"file": file, "base": base, "strategy": strategy}
    given = {name: value for name, value in top.items() if value is not None}
    options = load_annotate(
        config, arguments=given | {f"data.{name}": value for name, value in data.items()}, overrides=overrides
    )
    path = _check_places(options, out, overwrite=overwrite)
    cells = _read_labelled(path, options.data)

    from scstate_lora.workflow import is_first_process, save_classifier, train_classifier

    model = train_classifier(cells, options)
    if not is_first_process():  # of several that train together
        return
    save_classifier(model, out, options, path)
    from scstate_lora.cli.verdict import classifier_lines

    typer.echo("\n" + "\n".join(classifier_lines(model)))
    typer.echo(
        f"\nWrote {out}: the classifier (scstate-lora annotate predict {out} CELLS.h5ad --out LABELLED.h5ad, or "
        f"ssl.CellTypeClassifier.load({str(out)!r})), config.yaml and results.json."
    )


def predict(
    model: Annotated[Path, typer.Argument(help="Directory of a saved CellTypeClassifier.")],
    file: Annotated[Path, typer.Argument(help="Cells x genes to label, an .h5ad file or a .zarr directory.")],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A copy of the file with the labels; <file>_labelled beside it by default."),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="A table of the labels to write as well, one row a cell.")] = None,
    max_error: Annotated[
        float | None,
        typer.Option(help="Largest share of wrong labels among those given, e.g. 0.05; other cells get none."),
    ] = None,
    reject_below: Annotated[
        float | None,
        typer.Option(help="Smallest probability of a label that is given; in a tree, of the deepest that reaches it."),
    ] = None,
    reject_unknown: Annotated[
        float | None,
        typer.Option(help="Share of cells of known types that may be rejected as unlike all of them, e.g. 0.05."),
    ] = None,
    sets: Annotated[bool, typer.Option("--sets", help="Add sets of labels that hold the true one.")] = False,
    coverage: Annotated[
        float | None,
        typer.Option(help="Probability with which a set, or the interval of a number, holds the true one; 0.95."),
    ] = None,
    adapt: Annotated[
        bool, typer.Option("--adapt/--no-adapt", help="Subtract the shift of each batch, where it can be told.")
    ] = True,
    allow: Annotated[
        list[str] | None, typer.Option(help="Label, of any level, that may be given; repeatable. By default all.")
    ] = None,
    block: Annotated[list[str] | None, typer.Option(help="Label that may not be given; repeatable.")] = None,
    clusters: Annotated[
        str | None, typer.Option(help="Column of clusters in obs: each is labelled as a whole as well.")
    ] = None,
    key_added: Annotated[str, typer.Option(help="Start of the names that are written.")] = _NAME,
    base: Annotated[
        str | None, typer.Option(help="New location of the base that the model was trained on, if it has moved.")
    ] = None,
    overwrite: Overwrite = False,
    traceback: Traceback = False,
) -> None:
    """Label the cells of a file by a trained classifier; the matrix is read in blocks and only copied.

    Probabilities of all labels go into obsm, all else into obs; how the labels were chosen stands in uns.
    """
    path = file.with_name(f"{file.stem}_labelled{file.suffix}") if out is None else out
    _check_outputs(file, path, csv, overwrite=overwrite)
    trained = _load(model, base)

    from scstate_lora.workflow import label_file

    labelled = label_file(
        trained,
        file,
        path,
        key_added=key_added,
        max_error=max_error,
        reject_below=reject_below,
        reject_unknown=reject_unknown,
        sets=sets if coverage is None else coverage,
        adapt=adapt,
        allow=allow or None,
        block=block or (),
        clusters=clusters,
    )
    if csv is not None:
        from scstate_lora.io.atomic import in_place

        with in_place(csv) as temporary:
            labelled.table.to_csv(temporary, index_label="cell")
    from scstate_lora.cli.verdict import label_lines

    typer.echo("\n" + "\n".join(label_lines(labelled.table, key_added)))
    written = f"obs[{key_added!r}]" + (f" and obsm[{labelled.added[0]!r}]" if labelled.added else "")
    typer.echo(f"\nWrote {path}: the cells, with {written}." + ("" if csv is None else f" And {csv}, the table."))


def _label_tree(text: str) -> str | list[str]:
    """`main,fine` to columns; the file of an ontology stays as it is."""
    if Path(text).suffix in _ONTOLOGIES:
        return text
    return [key.strip() for key in text.split(",")]


_ONTOLOGIES = (".obo", ".owl")
_READ: dict[str, Callable[[str], Any]] = {
    "labels_key": lambda text: column_kinds(text, option="--labels-key"),
    "label_tree": _label_tree,
    "ontology_terms": lambda text: [term.strip() for term in text.split(",")],
}
"""Options of the data that are not text."""


def _check_places(options: AnnotateConfig, out: Path, *, overwrite: bool) -> Path:
    """Return the file of the cells; refuse what cannot be read, written or used as a base."""
    if options.file is None:
        msg = "Which cells? Name an .h5ad file as the first argument, or by file: in the configuration."
        raise ValueError(msg)
    check_folder(out)
    refuse_existing(out, overwrite=overwrite)
    if options.base is not None:
        check_base(options.base)
    return Path(options.file).expanduser()


def _read_labelled(path: Path, data: LabelledDataConfig) -> AnnData:
    """Read cells, and check the columns that the options name, before torch is loaded."""
    from scstate_lora.data.fields import obs_column
    from scstate_lora.data.registry import check_columns

    cells = read_cells(path, data.modality)
    if data.modality is None:  # columns of a MuData may lie in several tables, and are found at set-up
        check_columns(cells, data)
        for key in (*data.label_kinds, *(data.label_tree if isinstance(data.label_tree, list) else ())):
            obs_column(cells, key, allow_missing=True)
    return cells


def _check_outputs(file: Path, out: Path, csv: Path | None, *, overwrite: bool) -> None:
    """Refuse outputs of the wrong kind, and to replace a file without being asked to."""
    if not file.exists():
        msg = f"There is no file {file}."
        raise FileNotFoundError(msg)
    if file.suffix not in (".h5ad", ".zarr"):
        msg = f"{file} must be an .h5ad file or a .zarr directory, to judge by its name."
        raise ValueError(msg)
    if out.suffix != file.suffix:
        msg = f"The output, {out}, must end in {file.suffix}, as the input does. A table is written by --csv."
        raise ValueError(msg)
    for path in (out, csv):
        if path is not None:
            check_folder(path.parent)
            refuse_existing(path, overwrite=overwrite)


def _load(path: Path, base: str | None) -> CellTypeClassifier:
    """Load a saved classifier, with messages that name the option of a base that has moved."""
    from scstate_lora.model import CellTypeClassifier

    try:
        return CellTypeClassifier.load(path, base=base)
    except FileNotFoundError as error:
        msg = str(error).replace("load(..., base=...)", "--base").replace("the path given to load()", "MODEL")
        raise FileNotFoundError(msg.replace("the directory that save() was called with", _WANTED)) from error


_WANTED = "the directory that scstate-lora annotate train, or save(), has written"
