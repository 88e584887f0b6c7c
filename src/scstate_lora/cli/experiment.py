"""The commands that work on an experiment: the whole job, its training alone, and the demonstration."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scstate_lora.cli.shared import BASE, Traceback, check_base, check_folder, column_values, read_cells

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scstate_lora.config import RunConfig

_SHOWN = {
    "report.html": "all of it on one page: open it in a browser",
    "adata.h5ad": "the cells with their embeddings and the split",
    "predictions.h5ad": "the predicted cells",
    "tables": "scores and losses, CSV",
    "models/se": "the embedding model: ssl.LoRACovariateSE.load('{path}')",
    "models/st": "the perturbation model: ssl.STTransition.load('{path}')",
    "logs": "the losses while training: tensorboard --logdir {path}",
    "config.yaml": "every option of this run; --config takes it",
    "wound_healing": "the simulated wound: cells, predictions, tables, models, logs",
    "pbmc68k": "the blood cells: the same without predictions",
}
_INTERRUPTED = 130  # as shells report Ctrl-C
_Config = Annotated[
    Path | None, typer.Option(help="Options in a YAML file, such as those in configs/; what is given here goes first.")
]
_Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="OPTION=VALUE",
        help="Any option as section.key=value, with a value in YAML, e.g. se.train.max_epochs=5 seed=1 "
        "'data.covariates=[{name: day, type: continuous}]'; config.yaml of a run shows them all.",
    ),
]
_Out = Annotated[Path | None, typer.Option(help="Folder of the results; runs/<file> by default.")]
_Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with the run in this folder, interrupted or with a larger max_epochs now. Without one, start it.",
    ),
]


def run(
    file: Annotated[
        str | None, typer.Argument(help="Cells x genes, an .h5ad (or an .h5mu with --modality).", show_default=False)
    ] = None,
    overrides: _Overrides = None,
    *,
    config: _Config = None,
    covariates: Annotated[
        str | None,
        typer.Option(help="Columns of obs, comma-separated; name:continuous or name:categorical to decide."),
    ] = None,
    pert_key: Annotated[str | None, typer.Option(help="Column of the perturbation.")] = None,
    control: Annotated[str | None, typer.Option(help="Its unperturbed level.")] = None,
    cell_type_key: Annotated[str | None, typer.Option(help="Column of the cell type.")] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of the batch.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the expression; X by default.")] = None,
    input_scale: Annotated[
        str | None, typer.Option(help="counts or log1p; decided from the values by default.")
    ] = None,
    gene_key: Annotated[str | None, typer.Option(help="Column of var with gene names.")] = None,
    embed_key: Annotated[
        str | None, typer.Option(help="Embedding in obsm to work from, in place of a base model.")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="Modality of an .h5mu.")] = None,
    holdout: Annotated[
        list[str] | None,
        typer.Option(help="Hold these cells out, e.g. 'cell_type=B cells,condition=stim'; repeatable."),
    ] = None,
    base: Annotated[str | None, typer.Option(help=BASE)] = None,
    out: _Out = None,
    resume: _Resume = False,
    traceback: Traceback = False,
) -> None:
    """Set up, train, embed, predict, evaluate and report: the main job on one file."""
    from scstate_lora.config import load_run

    data = {
        "covariate_keys": None if covariates is None else _covariates(covariates),
        "pert_key": pert_key,
        "control": control,
        "cell_type_key": cell_type_key,
        "batch_key": batch_key,
        "layer": layer,
        "input_scale": input_scale,
        "gene_key": gene_key,
        "embed_key": embed_key,
        "modality": modality,
        "holdout": [column_values(text, option="--holdout") for text in holdout] if holdout else None,
    }
    given_file, overrides = _split(file, overrides)
    given = {"file": given_file, "base": base, **{f"data.{name}": value for name, value in data.items()}}
    options = load_run(config, given=_without_none(given), overrides=overrides, absent={"data": {}})
    if not options.data.covariate_keys and options.data.batch_key is None:
        msg = "Name the columns of obs that describe the cells, by --covariates or as data.covariates in a --config."
        raise ValueError(msg)
    path, folder = _places(options, out)
    cells = read_cells(path, options.data.modality)

    from scstate_lora import workflow
    from scstate_lora.reporting import report

    with _resumable(folder):
        done = workflow.run(cells, options, folder, resume=resume)
    if workflow.is_first_process():
        report(done.adata, done.models, folder / "report.html", predictions=done.predictions, title=path.name)
        _say_where(folder)


def train(
    file: Annotated[
        str | None,
        typer.Argument(
            help="Cells x genes, an .h5ad or .h5mu; may be left out where the configuration names it.",
            show_default=False,
        ),
    ] = None,
    overrides: _Overrides = None,
    *,
    config: Annotated[Path, typer.Option(help="Options in a YAML file, such as those in configs/.")],
    out: _Out = None,
    resume: _Resume = False,
    traceback: Traceback = False,
) -> None:
    """Train the models that a configuration has sections for (se, st), and save them and the cells' embeddings."""
    from scstate_lora.config import load_run

    given_file, overrides = _split(file, overrides)
    given = {} if given_file is None else {"file": given_file}
    options = load_run(config, absent={"se": None, "st": None}, given=given, overrides=overrides)
    if options.se is None and options.st is None:
        msg = f"{config} has neither a section se nor a section st: nothing to train. Write se: {{}} for the defaults."
        raise ValueError(msg)
    path, folder = _places(options, out)
    cells = read_cells(path, options.data.modality)

    from scstate_lora import workflow

    with _resumable(folder):
        workflow.train(cells, options, folder, resume=resume)
    if workflow.is_first_process():
        _say_where(folder)


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("demo"),
    traceback: Traceback = False,
) -> None:
    """Run the main job on a simulated wound and on real blood cells, both embedded in the package."""
    check_folder(out)
    from scstate_lora.demo import run_demo

    run_demo(out)
    _say_where(out)


def _split(file: str | None, overrides: list[str] | None) -> tuple[str | None, list[str]]:
    """Tell a file from a ``key=value`` in its place; a path may hold a ``=`` too."""
    key, equals, _ = (file or "").partition("=")
    if file is None or not equals or not key.replace(".", "").isidentifier() or Path(file).is_file():
        return file, overrides or []
    return None, [file, *(overrides or [])]


def _without_none(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _places(options: RunConfig, out: Path | None) -> tuple[Path, Path]:
    """Give the file of the cells and the folder of the results; both must be usable."""
    if options.file is None:
        msg = "Which cells? Name an .h5ad file as the first argument, or by file: in the configuration."
        raise ValueError(msg)
    file = Path(options.file).expanduser()
    folder = out or Path("runs") / file.stem
    check_folder(folder)
    if file.resolve() in {(folder / name).resolve() for name in _SHOWN}:
        msg = f"{file} would be overwritten by the results. Name another folder by --out."
        raise ValueError(msg)
    if options.base is not None:
        check_base(options.base)
    if options.st is not None and options.st.pretrained is not None:
        _check_pretrained(options.st.pretrained)
    return file, folder


def _check_pretrained(pretrained: str) -> None:
    """Refuse a pretrained model that is neither a path that exists nor looks like a hub id, a folder in it or not."""
    from scstate_lora.io.published.st_files import split_hub_id

    if not Path(pretrained).expanduser().exists() and split_hub_id(pretrained) is None:
        msg = f"st.pretrained: {pretrained} is neither a file or folder nor a hub id such as owner/name."
        raise FileNotFoundError(msg)


def _covariates(text: str) -> list[str] | dict[str, Any]:
    """`a,b:continuous` to ``{"a": None, "b": "continuous"}``; to a list of names when no kind is given."""
    kinds: dict[str, str | None] = {}
    for part in map(str.strip, text.split(",")):
        name, _, kind = part.rpartition(":")
        name, declared = (name, kind) if kind in ("categorical", "continuous") else (part, None)
        if not name or name in kinds:
            what = f"names {name!r} more than once" if name else "names no column in one of its places"
            msg = f"--covariates {text!r} {what}. Write columns of obs, separated by commas, each once."
            raise ValueError(msg)
        kinds[name] = declared
    return kinds if any(kinds.values()) else list(kinds)


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Within this context Ctrl-C ends with the way to go on."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\nStopped. The same command with --resume goes on with the run in {folder}.", err=True)
        raise SystemExit(_INTERRUPTED) from None


def _say_where(folder: Path) -> None:
    typer.echo(f"\nResults in {folder}:")
    for name, what in _SHOWN.items():
        if (folder / name).exists():
            typer.echo(f"  {name:<16}  {what.format(path=folder / name)}")
