"""The commands that work on an experiment: the whole job, its training alone, and the demonstration."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scstate_lora._termination import Terminated
from scstate_lora.cli.shared import (
    BASE,
    RESULTS,
    Config,
    Out,
    Overrides,
    Overwrite,
    Traceback,
    check_folder,
    check_paths,
    column_kinds,
    column_values,
    read_cells,
    split_file,
    takes,
)
from scstate_lora.config import DataConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scstate_lora.config import RunConfig

_INTERRUPTED = 130  # as shells report Ctrl-C
_Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the run in this folder, interrupted or with a larger max_epochs now, or start one.",
    ),
]


@takes(DataConfig, into="data", flags={"covariate_keys": "--covariates"}, several=("holdout",))
def run(
    file: Annotated[
        str | None, typer.Argument(help="Cells x genes, an .h5ad (or an .h5mu with --modality).", show_default=False)
    ] = None,
    overrides: Overrides = None,
    *,
    config: Config = None,
    data: dict[str, Any],
    base: Annotated[str | None, typer.Option(help=BASE)] = None,
    out: Out = None,
    resume: _Resume = False,
    overwrite: Overwrite = False,
    traceback: Traceback = False,
) -> None:
    """Set up, train, embed, predict, evaluate and report: the main job on one file.

    Columns of --covariates are separated by commas, with a kind where needed: condition,day:continuous. --holdout, as
    in 'cell_type=B cells,condition=stim', may be repeated.
    """
    from scstate_lora.config import load_run

    for name, read in _READ.items():
        if name in data:
            data[name] = read(data[name])
    file, overrides = split_file(file, overrides)
    top = {name: value for name, value in (("file", file), ("base", base)) if value is not None}
    options = load_run(
        config,
        arguments=top | {f"data.{name}": value for name, value in data.items()},
        overrides=overrides,
        defaults={"data": {}},
    )
    if not options.data.covariate_keys and options.data.batch_key is None:
        options = _conditioned_on_perturbation(options)
    path, folder = check_paths(options, out)
    cells = _read_checked(path, options.data)

    from scstate_lora import workflow

    with _resumable(folder):
        workflow.run(cells, options, folder, resume=resume, overwrite=overwrite, title=path.name)
    if workflow.is_first_process():
        _list_results(folder)


def _conditioned_on_perturbation(options: RunConfig) -> RunConfig:
    """Take the perturbation as the only covariate, which the embedding model needs one of."""
    if options.data.pert_key is None:
        msg = (
            "Name the columns of obs that describe the cells, by --covariates or as data.covariates in a --config, or "
            "that of the perturbation, by --pert-key."
        )
        raise ValueError(msg)
    data = options.data.model_copy(update={"covariate_keys": [options.data.pert_key]})
    return options.model_copy(update={"data": data})


def train(
    file: Annotated[
        str | None,
        typer.Argument(
            help="Cells x genes, an .h5ad or .h5mu; may be left out if the configuration names it.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    *,
    config: Annotated[Path, typer.Option(help="Options in a YAML file; scstate-lora config has files to start from.")],
    out: Out = None,
    resume: _Resume = False,
    overwrite: Overwrite = False,
    traceback: Traceback = False,
) -> None:
    """Train the models whose sections (se, st) a configuration has, and save them and the cells' embeddings."""
    from scstate_lora.config import load_run

    file, overrides = split_file(file, overrides)
    arguments = {} if file is None else {"file": file}
    options = load_run(config, defaults={"se": None, "st": None}, arguments=arguments, overrides=overrides)
    if options.se is None and options.st is None:
        msg = f"{config} has neither a section se nor a section st: nothing to train. Write se: {{}} for the defaults."
        raise ValueError(msg)
    path, folder = check_paths(options, out)
    cells = _read_checked(path, options.data)

    from scstate_lora import workflow

    with _resumable(folder):
        workflow.train(cells, options, folder, resume=resume, overwrite=overwrite)
    if workflow.is_first_process():
        _list_results(folder)


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("demo"),
    traceback: Traceback = False,
) -> None:
    """Run the main job on a simulated wound and on real blood cells, both part of the package."""
    check_folder(out)
    from scstate_lora.demo import run_demo

    run_demo(out)
    _list_results(out)


_READ: dict[str, Callable[[Any], Any]] = {
    "covariate_keys": lambda text: column_kinds(text, option="--covariates"),
    "context_keys": lambda text: [key.strip() for key in text.split(",")],
    "holdout": lambda texts: [column_values(text, option="--holdout") for text in texts],
}
"""Options of the data that are not text."""


def _read_checked(path: Path, data: DataConfig) -> Any:
    """Read cells, and check the columns that the options name, before torch is loaded."""
    from scstate_lora.data.registry import check_columns

    cells = read_cells(path, data.modality)
    if data.modality is None:  # columns of a MuData may lie in several tables, and are found at set-up
        check_columns(cells, data)
    return cells


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Within this context Ctrl-C and SIGTERM end with a hint how to continue."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as stopped:
        typer.echo(f"\nStopped. The same command with --resume continues the run in {folder}.", err=True)
        raise SystemExit(stopped.code if isinstance(stopped, Terminated) else _INTERRUPTED) from None


def _list_results(folder: Path) -> None:
    typer.echo(f"\nResults in {folder}:")
    for name, description in RESULTS.items():
        if (folder / name).exists():
            typer.echo(f"  {name:<16}  {description.format(path=folder / name)}")
