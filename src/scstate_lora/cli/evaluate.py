"""The commands that score files: predicted cells of any model, embeddings, or what a file of results has recorded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scstate_lora._utils import did_you_mean
from scstate_lora.cli.shared import (
    Overwrite,
    Traceback,
    check_folder,
    column_values,
    read_cells,
    refuse_existing,
    takes,
)
from scstate_lora.config import EvaluateEmbeddingsOptions, EvaluateOptions
from scstate_lora.config.evaluate import SHARED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd
    from anndata import AnnData

_DIFFERENT = 1
"""Exit status of a repetition that gave other numbers."""
_Out = Annotated[Path | None, typer.Option(help="Folder of the results; <file>_scores beside the file by default.")]


@takes(EvaluateOptions, into="options", several=("context_key", "holdout"))
def evaluate(
    pred: Annotated[
        Path | None,
        typer.Argument(metavar="PRED", help="Predicted cells of any model, an .h5ad, of one target or many."),
    ] = None,
    real: Annotated[
        Path | None, typer.Argument(metavar="REAL", help="Measured cells, perturbed and control, an .h5ad.")
    ] = None,
    *,
    train: Annotated[
        Path | None,
        typer.Option(help="Training cells, perturbed and control, an .h5ad, from which the baselines learn."),
    ] = None,
    options: dict[str, Any],
    out: _Out = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            help="Instead: repeat the scores of a results.json, of this command or of run, and say whether the numbers "
            "are the same (exit status 0) or what differs (1). PRED and REAL then say where these files are now."
        ),
    ] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write report.html, too.")] = True,
    overwrite: Overwrite = False,
    traceback: Traceback = False,
) -> None:
    """Score predicted cells of any model against measured ones, beside naive baselines and a replicate.

    Both files have the columns of the perturbation and of the context in obs. The scores of changes are the more
    reliable the more is known: obs['control_cell'] of PRED names the control cell that each was predicted from.

    All files are read into memory whole: 6 GB for 100,000 cells x 2,000 genes in either, half of the values above zero.
    """
    if replay is not None:
        if options or out is not None:
            given = [*options, *(["out"] if out is not None else [])]
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            msg = f"--replay repeats with the recorded options. Leave out {flags}."
            raise ValueError(msg)
        _repeat(replay, {"pred": pred, "cells": pred, "real": real, "train": train})
        return
    if pred is None or real is None:
        msg = (
            "Name two files: predicted cells, then measured ones. Or repeat what was computed by --replay results.json."
        )
        raise ValueError(msg)
    if "holdout" in options:
        options["holdout"] = [column_values(text, option="--holdout") for text in options["holdout"]]
    chosen = EvaluateOptions.parse(options, name="evaluate")
    written = ("tables/perturbation.csv", "tables/audit.csv", *(("report.html",) if report else ()))
    folder = _folder(out, pred, written, overwrite=overwrite)
    cells = {"pred": read_cells(pred, formats=(".h5ad",)), "real": read_cells(real, formats=(".h5ad",))}
    if train is not None:
        cells["train"] = read_cells(train, formats=(".h5ad",))
    paths = {"pred": pred, "real": real, "train": train}
    chosen = _with_roles(chosen, cells["pred"])
    _check_columns(cells, {name: str(path) for name, path in paths.items()}, chosen)

    from scstate_lora.cli.verdict import audit_lines, score_lines
    from scstate_lora.workflow.evaluation import evaluate_cells, read_genes
    from scstate_lora.workflow.features import read_features

    features = None if chosen.pert_features is None else read_features(chosen.pert_features)
    of_file = chosen.genes not in (None, SHARED)
    evaluated = evaluate_cells(
        cells["pred"],
        cells["real"],
        cells.get("train"),
        chosen,
        pert_features=features,
        genes=read_genes(Path(str(chosen.genes))) if of_file else None,
    )
    files = {
        **paths,
        "genes": Path(str(chosen.genes)) if of_file else None,
        "pert_features": None if chosen.pert_features is None else Path(chosen.pert_features),
    }
    _write(folder, "evaluate", chosen, files, evaluated.tables, evaluated.split)
    scores = evaluated.tables["perturbation"]
    if report:
        from scstate_lora.workflow.evaluation_report import write_evaluation_report

        page, title = folder / "report.html", f"{pred.name}: {chosen.name}"
        n_train = cells["train"].n_obs if train is not None else 0
        write_evaluation_report(page, evaluated, cells["real"], chosen, n_train=n_train, title=title)
    _say(score_lines(scores, name=chosen.name), audit_lines(evaluated.tables["audit"]))
    typer.echo(f"Results in {folder}: {', '.join(sorted(written))}, results.json.")


@takes(EvaluateEmbeddingsOptions, into="options", several=("embedding", "covariate", "metrics"))
def evaluate_embeddings(
    file: Annotated[Path, typer.Argument(help="Cells with embeddings in obsm, an .h5ad.")],
    *,
    options: dict[str, Any],
    out: _Out = None,
    overwrite: Overwrite = False,
    traceback: Traceback = False,
) -> None:
    """Score the embeddings in a file, each beside a PCA of the same cells; evaluate --replay repeats it."""
    chosen = EvaluateEmbeddingsOptions.parse(options, name="evaluate-embeddings")
    folder = _folder(out, file, ("tables/embeddings.csv",), overwrite=overwrite)
    cells = read_cells(file, formats=(".h5ad",))
    for key in chosen.embedding:
        if key not in cells.obsm:
            msg = f"{file} has no embedding {key!r} in obsm. {did_you_mean(key, cells.obsm)}"
            raise KeyError(msg)
    _check_obs(cells, file, (chosen.label_key, chosen.batch_key, *chosen.covariate))

    from scstate_lora.cli.verdict import embedding_lines
    from scstate_lora.workflow import evaluation

    evaluated = evaluation.evaluate_embeddings(cells, chosen)
    _write(folder, "evaluate-embeddings", chosen, {"cells": file}, evaluated.tables, evaluated.split)
    _say(embedding_lines(evaluated.tables["embeddings"]))
    typer.echo(f"Results in {folder}: tables/embeddings.csv, results.json.")


def _repeat(path: Path, places: Mapping[str, Path | None]) -> None:
    """Repeat what a file of results has recorded, and say what differs."""
    from scstate_lora.cli.verdict import replay_lines
    from scstate_lora.workflow.repetition import replay

    moved = {role: place for role, place in places.items() if place is not None}
    outcome = replay(path, read=lambda file: read_cells(file, formats=(".h5ad",)), moved=moved)
    _say(replay_lines(outcome))
    if not outcome.numbers.is_same:
        raise typer.Exit(_DIFFERENT)


def _folder(out: Path | None, file: Path, names: Iterable[str], *, overwrite: bool) -> Path:
    """Folder of the results; refuse one that cannot be used."""
    folder = file.with_name(f"{file.stem}_scores") if out is None else out
    check_folder(folder)
    if (folder / "config.yaml").exists():
        msg = f"{folder} is the folder of a run, which has tables and results of its own. Name another one by --out."
        raise FileExistsError(msg)
    for name in ("results.json", *names):
        refuse_existing(folder / name, overwrite=overwrite)
    return folder


def _with_roles(options: EvaluateOptions, pred: AnnData) -> EvaluateOptions:
    """Take the perturbation and its control level from the prediction, where they are not given."""
    from scstate_lora.data.results import is_predicted, read_prediction

    if is_predicted(pred):
        known = read_prediction(pred)._asdict()
        unnamed = {name: known[name] for name in ("pert_key", "control") if getattr(options, name) is None}
        options = options.model_copy(update=unnamed)
    if options.pert_key is None or options.control is None:
        msg = (
            "PRED does not say which column of obs holds the perturbation, and which level is the control. Name both, "
            "by --pert-key and --control."
        )
        raise ValueError(msg)
    return options


def _check_columns(cells: Mapping[str, AnnData], paths: Mapping[str, str], options: EvaluateOptions) -> None:
    """Refuse columns that do not exist, and a control level that does not, before torch is loaded."""
    from scstate_lora.data.registry import check_columns

    shared = [options.pert_key, *options.context_key]
    held_out = [key for condition in options.holdout or () for key in condition]
    further = {"pred": [], "real": [options.batch_key, options.split_key, *held_out], "train": [options.batch_key]}
    for name, adata in cells.items():
        _check_obs(adata, paths[name], [*shared, *further[name]])
    check_columns(cells["real"], options.data())


def _check_obs(cells: AnnData, file: str | Path, keys: Iterable[str | None]) -> None:
    for key in keys:
        if key is not None and key not in cells.obs:
            msg = f"{file} has no column {key!r} in obs. {did_you_mean(key, cells.obs.columns)}"
            raise KeyError(msg)


def _write(
    folder: Path,
    command: str,
    options: EvaluateOptions | EvaluateEmbeddingsOptions,
    files: Mapping[str, Path | None],
    tables: dict[str, pd.DataFrame],
    split: dict[str, Any],
) -> None:
    """Write the tables, and the file of results last."""
    from scstate_lora.io.atomic import in_place
    from scstate_lora.workflow.results_file import FILE_NAME, Results, describe_file, package_versions

    for name, table in tables.items():
        with in_place(folder / "tables" / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    Results(
        command=command,
        settings=options.model_dump(mode="json"),
        files={role: describe_file(path, folder) for role, path in files.items() if path is not None},
        split=split,
        versions=package_versions(),
        tables=tables,
    ).write(folder / FILE_NAME)


def _say(*parts: list[str]) -> None:
    for lines in parts:
        typer.echo("\n" + "\n".join(lines))
