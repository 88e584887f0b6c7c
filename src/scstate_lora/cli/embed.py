"""The command that embeds the cells of a file: by a base as it is, or by a trained model under its covariates."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scstate_lora._constants import OBSM_SE, OBSM_STATE
from scstate_lora.cli.shared import (
    BASE,
    BaseConfig,
    Overwrite,
    Proteins,
    Traceback,
    check_base,
    covariate_values,
    load_model,
    read_cells,
    refuse_existing,
    takes,
)
from scstate_lora.config import EmbedOptions

if TYPE_CHECKING:
    import numpy as np

    from scstate_lora.model import LoRACovariateSE

_COUNTERFACTUAL = "X_scstate_counterfactual"


@takes(EmbedOptions, into="options")
def embed(
    file: Annotated[Path, typer.Argument(help="Cells x genes, an .h5ad file or a .zarr directory.")],
    *,
    base: Annotated[
        str | None,
        typer.Option(help=f"{BASE} It embeds as it is; with --model, the new location of that model's base."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Directory of a saved LoRACovariateSE, or folder of results of its run: it embeds under the cells' "
            "covariates."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The same kind of file with the embedding added, or an .npy of it alone.")],
    covariates: Annotated[
        list[str] | None,
        typer.Option(
            help="With --model: other values for all cells, e.g. condition=stim,day=14; condition= withholds one. "
            "Covariates not named keep the cells' own values."
        ),
    ] = None,
    config: BaseConfig = None,
    protein_embeddings: Proteins = None,
    key_added: Annotated[
        str | None,
        typer.Option(
            help=f"Key of the embedding in obsm; by default {OBSM_STATE} by a base, {OBSM_SE} by a model, and "
            f"{_COUNTERFACTUAL} under --covariates."
        ),
    ] = None,
    options: dict[str, Any],
    overwrite: Overwrite = False,
    traceback: Traceback = False,
) -> None:
    """Embed the cells of a file, by a base model as it is (--base) or by a trained model (--model).

    If interrupted with a base, the same command resumes where it stopped.
    """
    if base is None and model is None:
        msg = "Name the model: a base model by --base, or a saved LoRACovariateSE by --model."
        raise ValueError(msg)
    refuse_existing(out, overwrite=overwrite)
    if base is not None:
        check_base(base)
    if covariates is not None and model is None:
        msg = "--covariates are for a trained model, named by --model; a base model takes none."
        raise ValueError(msg)
    if options and model is not None:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        msg = f"{flags}: not with --model, which reads cells as it did in training. Leave that out."
        raise ValueError(msg)
    if base is None and (config is not None or protein_embeddings is not None):
        msg = "--config and --protein-embeddings belong to a checkpoint, named by --base."
        raise ValueError(msg)

    base_model: Any = base
    if base is not None and (config is not None or protein_embeddings is not None):
        from scstate_lora.model import SEBase

        base_model = SEBase.load(base, config=config, protein_embeddings=protein_embeddings)
    if model is not None:
        from scstate_lora.model import LoRACovariateSE

        trained = load_model(LoRACovariateSE, model, part="se", keyword="base", moved_to=base_model)
        key = _embed_conditioned(file, trained, out, key_added, covariates, source=str(model))
    else:
        from scstate_lora import tl

        key = key_added or OBSM_STATE
        tl.embed_file(file, base_model, out=out, key_added=key, **options)
    content = "the embedding" if out.suffix == ".npy" else f"the cells, with the embedding in obsm[{key!r}]"
    typer.echo(f"Wrote {out}: {content}.")


def _embed_conditioned(
    file: Path, model: LoRACovariateSE, out: Path, key_added: str | None, covariates: list[str] | None, *, source: str
) -> str:
    """Embed under the cells' own covariates or others, and write; return the key."""
    from scstate_lora.data.results import EMBED, as_uns
    from scstate_lora.io.cells_file import write_embedding

    moved = None if covariates is None else covariate_values(covariates, model.registry, option="--covariates")
    key = key_added or (OBSM_SE if moved is None else _COUNTERFACTUAL)
    if out.suffix not in {file.suffix, ".npy"}:
        msg = f"The output, {out}, must end in {file.suffix}, as the input does, or in .npy for the embedding alone."
        raise ValueError(msg)
    cells = read_cells(file, formats=(".h5ad", ".zarr"))
    embedding: np.ndarray = model.get_latent_representation(cells, covariates=moved, key_added=None)
    record = {
        "model": source,
        "covariates": {name: "withheld" if v is None else v for name, v in (moved or {}).items()},
    }
    uns = as_uns(EMBED, record, key=key)
    write_embedding(file, out, [(0, embedding)], shape=embedding.shape, key=key, uns=uns)
    return key
