"""The commands together, and what an error looks like."""

from __future__ import annotations

import sys

import typer

from scstate_lora.cli._checkpoints import convert, inspect
from scstate_lora.cli._embed import embed
from scstate_lora.cli._experiment import demo, run, train

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Adapt pretrained STATE models of single-cell biology to your own experiment.",
)
for _command in (run, train, embed, inspect, convert, demo):
    app.command()(_command)


def main() -> None:
    """Run the command line; an error of the input is one message, not a traceback."""
    try:
        app()
    except (ValueError, KeyError, TypeError, OSError) as error:
        if "--traceback" in sys.argv:
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
        typer.secho(f"Error: {message}", err=True, fg=typer.colors.RED)
        typer.echo("(--traceback shows where it was raised.)", err=True)
        raise SystemExit(2) from error
