"""The command that embeds the cells of a file: by a base as it is, or by a trained model under its covariates."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scstate_lora._constants import OBSM_SE, OBSM_STATE
from scstate_lora.cli.shared import (
    BASE,
    BaseConfig,
    Proteins,
    Traceback,
    check_base,
    covariate_values,
    read_cells,
)

if TYPE_CHECKING:
    import numpy as np

    from scstate_lora.model import LoRACovariateSE

_COUNTERFACTUAL = "X_scstate_counterfactual"


def embed(
    file: Annotated[Path, typer.Argument(help="Cells x genes, an .h5ad file or a .zarr directory.")],
    *,
    base: Annotated[
        str | None,
        typer.Option(help=f"{BASE} It embeds as it is; with --model, this is where the model's base is now."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Directory of a saved LoRACovariateSE: it embeds under the cells' covariates."),
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
    layer: Annotated[str | None, typer.Option(help="Layer of the expression; X by default.")] = None,
    input_scale: Annotated[
        str | None, typer.Option(help="counts or log1p; decided from the values by default.")
    ] = None,
    gene_key: Annotated[
        str | None, typer.Option(help="Column of var with gene names; the best match by default.")
    ] = None,
    n_tokens: Annotated[
        str | None,
        typer.Option(help="Tokens a cell, the model's own by default; 'expressed' leaves unexpressed genes out."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of ties and padding.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Cells at a time; chosen by default.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; CUDA where there is one.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; bf16 on CUDA, else fp32.")] = None,
    n_workers: Annotated[int | None, typer.Option(help="Threads that read and tokenise; 1 by default.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the transformer first.")] = False,
    arc_per_cell_scale: Annotated[
        bool, typer.Option("--arc-per-cell-scale", help="Guess counts or log1p cell by cell, as Arc's tool does.")
    ] = False,
    traceback: Traceback = False,
) -> None:
    """Embed the cells of a file, by a base model as it is (--base) or by a trained model (--model).

    Interrupted with a base, the same command goes on where it was.
    """
    if base is None and model is None:
        msg = "By what? Name a base model by --base, or a saved LoRACovariateSE by --model."
        raise ValueError(msg)
    if base is not None:
        check_base(base)
    of_base = {
        "layer": layer,
        "input_scale": input_scale,
        "gene_key": gene_key,
        "n_tokens": int(n_tokens) if n_tokens is not None and n_tokens.removeprefix("-").isdigit() else n_tokens,
        "seed": seed,
        "batch_size": batch_size,
        "device": device,
        "precision": precision,
        "n_workers": n_workers,
        "compile": compile or None,
        "arc_per_cell_scale": arc_per_cell_scale or None,
    }
    options: dict[str, Any] = {name: value for name, value in of_base.items() if value is not None}
    if covariates is not None and model is None:
        msg = "--covariates are for a trained model, named by --model; a base model knows none."
        raise ValueError(msg)
    if options and model is not None:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        msg = f"{given}: not with --model, which reads cells as it did in training. Leave that out."
        raise ValueError(msg)
    if base is None and (config is not None or protein_embeddings is not None):
        msg = "--config and --protein-embeddings belong to a checkpoint, named by --base."
        raise ValueError(msg)

    base_model: Any = base
    if base is not None and (config is not None or protein_embeddings is not None):
        from scstate_lora.model import SEBase

        base_model = SEBase.load(base, config=config, protein_embeddings=protein_embeddings)
    if model is not None:
        key = _embed_conditioned(file, _load_model(model, base_model), out, key_added, covariates, source=str(model))
    else:
        from scstate_lora import tl

        key = key_added or OBSM_STATE
        tl.embed_file(file, base_model, out=out, key_added=key, **options)
    where = "the embedding" if out.suffix == ".npy" else f"the cells, with the embedding in obsm[{key!r}]"
    typer.echo(f"Wrote {out}: {where}.")


def _load_model(model: Path, base: Any) -> LoRACovariateSE:
    from scstate_lora.model import LoRACovariateSE

    if not model.is_dir():
        there = "is a file" if model.exists() else "does not exist"
        msg = (
            f"--model {model} {there}; it names the directory of a saved LoRACovariateSE, such as runs/mine/models/se."
        )
        raise FileNotFoundError(msg)
    try:
        return LoRACovariateSE.load(model, base=base)
    except FileNotFoundError as error:
        if base is None and "load(..., base=...)" in str(error):
            raise FileNotFoundError(str(error).replace("load(..., base=...)", "--base")) from error
        raise


def _embed_conditioned(
    file: Path, model: LoRACovariateSE, out: Path, key_added: str | None, covariates: list[str] | None, *, source: str
) -> str:
    """Embed under the cells' own covariates or others, and write; gives the key."""
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
