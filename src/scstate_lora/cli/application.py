"""The commands together, and what an error looks like."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from scstate_lora.cli.checkpoints import convert, inspect
from scstate_lora.cli.compare import compare
from scstate_lora.cli.embed import embed
from scstate_lora.cli.experiment import demo, run, train
from scstate_lora.cli.predict import predict

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Adapt pretrained STATE models of single-cell biology to your own experiment.",
)
for _command in (run, train, embed, predict, compare, inspect, convert, demo):
    app.command()(_command)


def main() -> None:
    """Run the command line; an error of the input is one message, not a traceback."""
    try:
        with plain_warnings():
            app()
    except (ValueError, KeyError, TypeError, OSError) as error:
        if "--traceback" in sys.argv:
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
        typer.secho(f"Error: {message}", err=True, fg=typer.colors.RED)
        typer.echo("(--traceback shows where it was raised.)", err=True)
        raise SystemExit(2) from error


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Within this context a warning to the user is its message, without a line of code."""
    default = warnings.formatwarning

    def plain(message: Any, category: Any, *where: Any, **line: Any) -> str:
        return f"Warning: {message}\n" if category is UserWarning else default(message, category, *where, **line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = default
