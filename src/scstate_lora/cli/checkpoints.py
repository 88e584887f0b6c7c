"""The commands that look into checkpoints and convert them."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import Annotated

import typer

from scstate_lora.cli.shared import BaseConfig, Overwrite, Proteins, Traceback, check_base, refuse_existing


def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint, its folder, a saved model, or the folder of a run.")],
    *,
    traceback: Traceback = False,
) -> None:
    """Describe a model file or folder: its kind, sizes, genes and licence, and what it can be used for."""
    from scstate_lora.io.published.inspect import inspect_path
    from scstate_lora.io.save_load import holds_save
    from scstate_lora.model.annotation.rank_base import rank_tensors
    from scstate_lora.model.se.pretrained import se_tensors
    from scstate_lora.model.st.published import st_tensors

    saved = [path / "models" / part for part in ("se", "st") if holds_save(path / "models" / part)]
    for i, model in enumerate(saved or [path]):
        report = inspect_path(model, se_tensors=se_tensors, st_tensors=st_tensors, rank_tensors=rank_tensors)
        typer.echo("\n" * (i > 0) + report.text())


def convert(
    base: Annotated[str, typer.Argument(help="A published SE checkpoint: folder, .ckpt, model.safetensors or hub id.")],
    *,
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    config: BaseConfig = None,
    protein_embeddings: Proteins = None,
    overwrite: Overwrite = False,
    traceback: Traceback = False,
) -> None:
    """Convert a published SE checkpoint to safetensors and JSON, which contain no code and load fastest."""
    check_base(base)
    refuse_existing(out, overwrite=overwrite)
    from scstate_lora.model import SEBase

    SEBase.load(base, config=config, protein_embeddings=protein_embeddings).save(out)
    typer.echo(f"Wrote {out}: use it as base={str(out)!r}.")
