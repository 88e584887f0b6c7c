"""The commands together, and what an error looks like."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scstate_lora._logging import logger
from scstate_lora._termination import Terminated, sigterm_raises
from scstate_lora.cli import annotate
from scstate_lora.cli.checkpoints import convert, inspect
from scstate_lora.cli.compare import compare
from scstate_lora.cli.configurations import config
from scstate_lora.cli.embed import embed
from scstate_lora.cli.evaluate import evaluate, evaluate_embeddings
from scstate_lora.cli.experiment import demo, run, train
from scstate_lora.cli.predict import predict
from scstate_lora.config import (
    ClassifierTrainConfig,
    CompactBaseConfig,
    DataConfig,
    HeadConfig,
    LabelledDataConfig,
    LinearStartConfig,
    SELoraConfig,
    TrainConfig,
)
from scstate_lora.config.evaluate import EvaluateEmbeddingsOptions, EvaluateOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scstate_lora.config.options import Options


_SECTIONS: tuple[tuple[str, str, type[Options]], ...] = (
    ("linear_start", "regression that is the start", LinearStartConfig),
    ("head", "heads", HeadConfig),
    ("lora", "adapters", SELoraConfig),
    ("compact", "compact base", CompactBaseConfig),
)
"""Sections of a classifier's options beside its data and its training."""


def _listed(kind: type[Options], *, heading: str) -> str:
    """List the options of a class, a paragraph each, for the end of a command's help."""
    options = [
        f"{name}: {(field.description or '').replace(chr(10), ' ')}" for name, field in kind.model_fields.items()
    ]
    return "\n\n".join([heading, *options])


_TRAINING = _listed(TrainConfig, heading="Options of training, as se.train.NAME=VALUE or st.train.NAME=VALUE:")
_DATA = _listed(DataConfig, heading="Options of the data, as data.NAME=VALUE:")
_LABELLED = "\n\n".join(
    [
        _listed(ClassifierTrainConfig, heading="Options of training, as train.NAME=VALUE:"),
        *(
            _listed(kind, heading=f"Options of the {what}, as {section}.NAME=VALUE:")
            for section, what, kind in _SECTIONS
        ),
        _listed(LabelledDataConfig, heading="Options of the data, as data.NAME=VALUE:"),
    ]
)

_WITHHELD_BY = {"embed": "--covariates", "predict": "--covariate"}
"""Commands that read new cells, and their option for values of covariates."""
_FLAGS: dict[str, type[Options]] = {
    "run": DataConfig,
    "evaluate": EvaluateOptions,
    "evaluate-embeddings": EvaluateEmbeddingsOptions,
}
"""Commands that have an option for each of these; all others take options of the data as ``data.pert_key=``."""
_GROUP = "annotate"
_OF_LABELS = ("max_error", "reject_below", "reject_unknown", "coverage", "allow", "block", "clusters", "base")
"""Arguments of ``CellTypeClassifier.predict`` and ``load`` that are options of ``annotate predict``."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(requested: bool) -> None:  # noqa: FBT001 (typer calls it)
    if requested:
        typer.echo(f"scstate-lora {version('scstate-lora')}")
        raise typer.Exit


@app.callback()
def _common(
    *,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only, no progress.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what other packages log as well.")] = False,
) -> None:
    """Adapt pretrained STATE models of single-cell biology to your own experiment."""
    if quiet and verbose:
        msg = "--quiet and --verbose exclude each other. Give one of them."
        raise ValueError(msg)
    if quiet:
        logger.setLevel(logging.WARNING)
    if verbose:
        logging.basicConfig(level=logging.INFO)


app.command(epilog=_TRAINING)(run)
app.command(epilog=f"{_DATA}\n\n{_TRAINING}")(train)
app.command("evaluate-embeddings")(evaluate_embeddings)
labels = typer.Typer(
    no_args_is_help=True,
    help="Label cells: learn labels from cells that have them (train), and give them to other cells (predict).",
)
labels.command(epilog=_LABELLED)(annotate.train)
labels.command()(annotate.predict)
app.add_typer(labels, name=_GROUP)
for _command in (embed, predict, evaluate, compare, config, inspect, convert, demo):
    app.command()(_command)


def main() -> None:
    """Run the command line; an error of the user is one message, not a traceback."""
    try:
        with plain_warnings(), sigterm_raises():
            app()
    except Terminated as stopped:
        typer.echo(f"\n{stopped}", err=True)
        raise SystemExit(stopped.code) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        if "--traceback" in sys.argv:
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
        words = [word for word in sys.argv[1:] if not word.startswith("-")] or [""]
        command = " ".join(words[: 2 if words[0] == _GROUP else 1])
        message = in_options(str(message), command)
        typer.secho(f"Error: {message}", err=True, fg=typer.colors.RED)
        typer.echo("(--traceback shows where it was raised.)", err=True)
        raise SystemExit(2) from error


def in_options(message: str, command: str) -> str:
    """Write arguments of Python in a message as options of a command: ``pert_key='x'`` as ``--pert-key 'x'``.

    Parameters
    ----------
    message
        A message about the set-up of data, or about the covariates of new cells.
    command
        The command.
    """
    if command in _WITHHELD_BY:
        return _with_covariates(message, _WITHHELD_BY[command])
    if command == f"{_GROUP} predict":
        return _as_flags(message, _OF_LABELS)
    if command == f"{_GROUP} train":
        return _as_flags(message, (*annotate.FLAGS, "strategy"))
    names = "|".join(_FLAGS.get(command, DataConfig).model_fields)

    def option(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"]
        if command not in _FLAGS or value == "[]":  # an option of a command cannot be an empty list
            return f"data.{name}={value or ''}"
        flag = "--covariates" if name == "covariate_keys" else f"--{name.replace('_', '-')}"
        if value is None:
            return flag
        parts = re.findall(r"'([^']*)'", value)
        return f"{flag} {','.join(parts) if value.startswith('[') and parts else value}"

    return re.sub(rf"(?<![\w.-])(?P<name>{names})={_VALUE}?", option, message)


_VALUE = r"(?P<value>\[[^\]]*\]|'[^']*'|[\w.]+(?<!\.))"


def _as_flags(message: str, names: Iterable[str]) -> str:
    """Write arguments of these names as options of a command: ``max_error=0.05`` as ``--max-error 0.05``."""

    def flag(found: re.Match[str]) -> str:
        option = f"--{found['name'].replace('_', '-')}"
        return option if found["value"] is None else f"{option} {found['value']}"

    return re.sub(rf"(?<![\w.-])(?P<name>{'|'.join(names)})={_VALUE}?", flag, message)


def _with_covariates(message: str, option: str) -> str:
    """Write ``covariates=`` in the advice of a model as an option of a command."""
    message = re.sub(r", or only where it is missing: covariates=\S+", "", message)
    message = re.sub(r"covariates=\{'([^']*)': None\}", rf"{option} '\1='", message)
    return re.sub(
        r"give one value for all cells, or None to withhold the covariate: covariates=\{'([^']*)': \.\.\.\}",
        rf"give one value for all cells, {option} '\1=VALUE', or withhold the covariate, {option} '\1='",
        message,
    )


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Within this context a warning to the user is shown as its message alone, without a line of code."""
    default = warnings.formatwarning

    def plain(message: Any, category: Any, *where: Any, **line: Any) -> str:
        return f"Warning: {message}\n" if category is UserWarning else default(message, category, *where, **line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = default
