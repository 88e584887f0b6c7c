"""The command that predicts perturbed cells from the control cells of a file, by a trained model."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from scstate_lora.cli.shared import Traceback, column_values, covariate_values, read_cells

if TYPE_CHECKING:
    from scstate_lora.model import STTransition


def predict(
    file: Annotated[
        Path,
        typer.Argument(
            help="Cells x genes, an .h5ad file or a .zarr directory; its control cells are taken, all of its cells "
            "where it lacks the perturbation's column."
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
            help="Take only control cells with this value, e.g. cell_type=B cells; repeatable, values of one column "
            "add up."
        ),
    ] = None,
    covariate: Annotated[
        list[str] | None,
        typer.Option(help="Another value for all cells, e.g. timepoint=day19; timepoint= withholds it; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The .h5ad of predicted cells; <file>_predicted.h5ad by default."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; CUDA where there is one.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output where it exists.")] = False,
    pretrained: Annotated[
        str | None,
        typer.Option(help="Where the pretrained model is now that this one was trained on, if not where it was."),
    ] = None,
    traceback: Traceback = False,
) -> None:
    """Predict the perturbed cells of a file's control cells, for one target or several."""
    path = file.with_name(f"{file.stem}_predicted.h5ad") if out is None else out
    _check_out(path, file, overwrite=overwrite)
    contexts = _contexts(context or [])
    st = _load_model(model, pretrained)
    moved = None if covariate is None else covariate_values(covariate, st.registry, option="--covariate")
    cells = read_cells(file, formats=(".h5ad", ".zarr"))

    from scstate_lora.workflow import predict_to_file

    n_cells, n_genes = predict_to_file(
        st, cells, path, targets=target, contexts=contexts, covariates=moved, device=device
    )
    what = f"{n_cells:,} predicted cells x {n_genes:,} genes"
    typer.echo(f"Wrote {path}: {what}, {st.registry.pert_key} = {', '.join(dict.fromkeys(target))}.")


def _check_out(out: Path, file: Path, *, overwrite: bool) -> None:
    if out.suffix != ".h5ad":
        msg = f"The output, {out}, must end in .h5ad."
        raise ValueError(msg)
    if out.is_dir() or out.absolute() == file.absolute() or (out.exists() and file.exists() and out.samefile(file)):
        what = "is a folder" if out.is_dir() else "is the file of the cells itself"
        msg = f"The output, {out}, {what}. Name another file by --out."
        raise ValueError(msg)
    if out.exists() and not overwrite:
        msg = f"{out} exists. Name another file by --out, or replace it by --overwrite."
        raise FileExistsError(msg)


def _contexts(texts: list[str]) -> dict[str, list[str]] | None:
    """Values by column; of one column named several times, all of them."""
    contexts: dict[str, list[str]] = {}
    for text in texts:
        for column, value in column_values(text, option="--context").items():
            contexts.setdefault(column, []).append(value)
    return contexts or None


def _load_model(model: Path, pretrained: str | None) -> STTransition:
    from scstate_lora.io.save_load import holds_save
    from scstate_lora.model import STTransition

    if not model.is_dir():
        there = "is a file" if model.exists() else "does not exist"
        msg = f"--model {model} {there}; it names the directory of a saved STTransition, such as runs/mine/models/st."
        raise FileNotFoundError(msg)
    of_run = model / "models" / "st"
    if not holds_save(model) and not holds_save(of_run):
        msg = f"--model {model} holds neither a saved STTransition nor, in models/st, that of a run."
        if holds_save(model / "models" / "se"):
            msg += " The run in it trained the embedding model alone: scstate-lora embed takes that."
        raise FileNotFoundError(msg)
    try:
        return STTransition.load(model if holds_save(model) else of_run, pretrained=pretrained)
    except FileNotFoundError as error:
        if pretrained is None and "There is no file or folder" in str(error):
            msg = f"{error} This one was trained on it: say where it is now by --pretrained."
            raise FileNotFoundError(msg) from error
        raise
