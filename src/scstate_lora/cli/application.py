"""The commands together, and what an error looks like."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from scstate_lora._termination import Terminated, sigterm_raises
from scstate_lora.cli.checkpoints import convert, inspect
from scstate_lora.cli.compare import compare
from scstate_lora.cli.configurations import config
from scstate_lora.cli.embed import embed
from scstate_lora.cli.experiment import demo, run, train
from scstate_lora.cli.predict import predict
from scstate_lora.config import DataConfig, TrainConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scstate_lora.config.options import Options


def _listed(kind: type[Options], *, heading: str) -> str:
    """List the options of a class, a paragraph each, for the end of a command's help."""
    options = [
        f"{name}: {(field.description or '').replace(chr(10), ' ')}" for name, field in kind.model_fields.items()
    ]
    return "\n\n".join([heading, *options])


_TRAINING = _listed(TrainConfig, heading="Options of training, as se.train.NAME=VALUE or st.train.NAME=VALUE:")
_DATA = _listed(DataConfig, heading="Options of the data, as data.NAME=VALUE:")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Adapt pretrained STATE models of single-cell biology to your own experiment.",
)
app.command(epilog=_TRAINING)(run)
app.command(epilog=f"{_DATA}\n\n{_TRAINING}")(train)
for _command in (embed, predict, compare, config, inspect, convert, demo):
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
        typer.secho(f"Error: {message}", err=True, fg=typer.colors.RED)
        typer.echo("(--traceback shows where it was raised.)", err=True)
        raise SystemExit(2) from error


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
