"""The command that predicts perturbed cells from the control cells of a file, by a trained model."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import Annotated

import typer

from scstate_lora.cli.shared import (
    Overwrite,
    Traceback,
    column_values,
    covariate_values,
    load_model,
    read_cells,
    refuse_existing,
)


def predict(
    file: Annotated[
        Path,
        typer.Argument(
            help="Cells x genes, an .h5ad file or a .zarr directory; its control cells are used, or all cells if it "
            "lacks the column of the perturbation."
        ),
    ],
    *,
    model: Annotated[
        Path, typer.Option(help="Directory of a saved STTransition, or the folder of results of the run that made it.")
    ],
    target: Annotated[
        list[str], typer.Option(help="Perturbation to predict; repeatable. Combinations are written A+B.")
    ],
    context: Annotated[
        list[str] | None,
        typer.Option(
            help="Use only control cells with this value, e.g. cell_type=B cells; repeatable, cells with any of the "
            "values of one column are used."
        ),
    ] = None,
    covariate: Annotated[
        list[str] | None,
        typer.Option(help="Another value for all cells, e.g. timepoint=day19; timepoint= withholds it; repeatable."),
    ] = None,
    output: Annotated[
        str,
        typer.Option(help="mean: expected log1p expression; counts: whole numbers drawn like measured ones, sparse."),
    ] = "mean",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The .h5ad of predicted cells; <file>_predicted.h5ad by default."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; CUDA if available.")] = None,
    overwrite: Overwrite = False,
    pretrained: Annotated[
        str | None,
        typer.Option(help="New location of the pretrained model this one was trained on, if it has moved."),
    ] = None,
    traceback: Traceback = False,
) -> None:
    """Predict the perturbed cells of a file's control cells, for one target or several."""
    path = file.with_name(f"{file.stem}_predicted.h5ad") if out is None else out
    _check_out(path, file, overwrite=overwrite)
    contexts = _contexts(context or [])
    from scstate_lora.model import STTransition

    st = load_model(STTransition, model, part="st", keyword="pretrained", moved_to=pretrained)
    moved = None if covariate is None else covariate_values(covariate, st.registry, option="--covariate")
    cells = read_cells(file, formats=(".h5ad", ".zarr"))

    from scstate_lora.workflow import predict_to_file

    n_cells, n_genes = predict_to_file(
        st, cells, path, targets=target, contexts=contexts, covariates=moved, output=output, device=device
    )
    size = f"{n_cells:,} predicted cells x {n_genes:,} genes"
    typer.echo(f"Wrote {path}: {size}, {st.registry.pert_key} = {', '.join(dict.fromkeys(target))}.")


def _check_out(out: Path, file: Path, *, overwrite: bool) -> None:
    if out.suffix != ".h5ad":
        msg = f"The output, {out}, must end in .h5ad."
        raise ValueError(msg)
    if out.is_dir() or out.absolute() == file.absolute() or (out.exists() and file.exists() and out.samefile(file)):
        fault = "is a folder" if out.is_dir() else "is the file of the cells itself"
        msg = f"The output, {out}, {fault}. Name another file by --out."
        raise ValueError(msg)
    refuse_existing(out, overwrite=overwrite)


def _contexts(texts: list[str]) -> dict[str, list[str]] | None:
    """Collect values by column; of a column named several times, all values."""
    contexts: dict[str, list[str]] = {}
    for text in texts:
        for column, value in column_values(text, option="--context").items():
            contexts.setdefault(column, []).append(value)
    return contexts or None
