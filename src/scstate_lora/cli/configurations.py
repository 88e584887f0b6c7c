"""The command that lists, shows and copies the configurations that come with the package."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import Annotated

import typer

from scstate_lora.cli.shared import Traceback  # noqa: TC001  # typer reads the annotations


def config(
    name: Annotated[str | None, typer.Argument(help="Which one, such as st_lora; without it, all are listed.")] = None,
    *,
    out: Annotated[Path | None, typer.Option(help="File to write; printed by default.")] = None,
    traceback: Traceback = False,
) -> None:
    """List the configurations to start from, or show or copy one, to fill in your own columns."""
    from scstate_lora.config.load import shipped

    files = shipped()
    if name is None:
        for key, file in files.items():
            first = file.read_text(encoding="utf-8").splitlines()[0]
            typer.echo(f"{key:<16}  {first.removeprefix('# ')}")
        return
    if name not in files:
        from scstate_lora._utils import did_you_mean

        msg = f"There is no configuration {name!r}. {did_you_mean(name, files)}"
        raise ValueError(msg)
    text = files[name].read_text(encoding="utf-8")
    if out is None:
        typer.echo(text, nl=False)
        return
    if out.exists():
        msg = f"{out} exists. Name another file by --out."
        raise FileExistsError(msg)
    out.write_text(text, encoding="utf-8")
    typer.echo(f"Wrote {out}.")
