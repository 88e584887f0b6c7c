"""The command that trains variants of the perturbation model and puts them side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from scstate_lora.cli.shared import Config, Out, Overrides, Overwrite, Traceback, check_paths, read_cells, split_file

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from scstate_lora.config.compare import CompareRunConfig
    from scstate_lora.tl import Comparison

_FOLDER = "compare"


def compare(
    file: Annotated[
        str | None, typer.Argument(help="Cells x genes, an .h5ad (or an .h5mu).", show_default=False)
    ] = None,
    overrides: Overrides = None,
    *,
    config: Config = None,
    out: Out = None,
    overwrite: Overwrite = False,
    traceback: Traceback = False,
) -> None:
    """Train variants of the perturbation model on one split, score them beside naive baselines, and show what helps.

    The configuration is that of train, with a section compare: seeds, variants, time_key, markers, thresholds.
    """
    from scstate_lora.config.compare import load_compare

    file, overrides = split_file(file, overrides)
    options = load_compare(config, arguments={} if file is None else {"file": file}, overrides=overrides)
    path, folder = check_paths(options, out)
    if options.data.pert_key is None:
        msg = "A comparison needs a perturbation: data.pert_key=... data.control=..., or a section data in a --config."
        raise ValueError(msg)
    cells = read_cells(path, options.data.modality)

    import matplotlib as mpl

    mpl.use("agg")
    from scstate_lora.data.register import register
    from scstate_lora.reporting.comparison import write_comparison
    from scstate_lora.workflow import is_first_process
    from scstate_lora.workflow.results_file import write_comparison_results

    adata = register(cells, options.data, seed=options.seed).adata
    result = _compare(adata, options, folder / _FOLDER, overwrite=overwrite)
    if not is_first_process():  # of several that train together
        return
    _draw(result, folder / _FOLDER)
    write_comparison(result, folder / _FOLDER / "compare.html", title=f"{path.name}: variants compared")
    write_comparison_results(folder / _FOLDER, options, path, adata, result)
    _show(result, folder / _FOLDER)


def _compare(adata: AnnData, options: CompareRunConfig, folder: Path, *, overwrite: bool) -> Comparison:
    """Compare on cells that were set up."""
    from scstate_lora import tl
    from scstate_lora._logging import logger
    from scstate_lora.config import STRunConfig
    from scstate_lora.config.training import SharedTraining
    from scstate_lora.workflow.features import read_features

    st = options.st or STRunConfig()
    if st.finetune is not None or st.train.mhc is not None:
        logger.info("st.finetune and st.train.mhc are not used: the usual variants differ in them.")
    shared = options.model_dump(include=set(SharedTraining.model_fields))
    chosen = options.compare
    return tl.compare(
        adata,
        variants=_plain(chosen.variants),
        seeds=chosen.seeds,
        target=chosen.target,
        context_key=chosen.context_key,
        model=st.model.model_dump(exclude_unset=True),
        objective=st.objective.model_dump(exclude_unset=True),
        lora=st.lora.model_dump(exclude_unset=True),
        pretrained=st.pretrained,
        reuse=st.reuse,
        pert_features=None if st.pert_features is None else read_features(st.pert_features),
        train_kwargs={**shared, **st.train.model_dump(exclude_none=True, exclude={"mhc"})},
        time_key=chosen.time_key,
        markers=chosen.markers,
        thresholds=chosen.thresholds,
        min_cells=chosen.min_cells,
        weights=chosen.weights,
        path=folder,
        overwrite=overwrite,
    )


def _plain(variants: Any) -> Any:
    """Options of the variants as they were given, without defaults, which would look like choices."""
    if not isinstance(variants, dict):
        return variants
    return {name: None if v is None else v.model_dump(exclude_unset=True) for name, v in variants.items()}


def _draw(result: Comparison, folder: Path) -> None:
    import matplotlib.pyplot as plt
    import numpy as np

    from scstate_lora import pl
    from scstate_lora.reporting.comparison import pictures_of

    for kind in pictures_of(result):
        axes = np.ravel(np.asarray(pl.compare(result, kind=kind), dtype=object))
        axes[0].figure.savefig(folder / f"{kind}.png", dpi=120, facecolor="white")
        plt.close(axes[0].figure)


def _show(result: Comparison, folder: Path) -> None:
    """Print the table, the criteria, and where to find the rest."""
    summary = result.summary()
    typer.echo("\n" + summary.drop(columns="reason").to_string(index=False, float_format="{:.3g}".format, na_rep="-"))
    failed = result.training[result.training["parameters"].isna()]
    for model, rows in failed.groupby("model", sort=False):
        typer.echo(f"{model} failed: {rows['reason'].iloc[0]}", err=True)
    shown = result.criteria.assign(
        threshold=[
            f"{side} {limit:g}"
            for side, limit in zip(result.criteria["side"], result.criteria["threshold"], strict=True)
        ],
        met=[
            f"{met} ({level})" if level else met
            for met, level in zip(result.criteria["met"], result.criteria["level"], strict=True)
        ],
    )
    columns = ["model", "criterion", "value", "threshold", "met"]
    typer.echo(
        "\nSuccess criteria:\n" + shown[columns].to_string(index=False, float_format="{:.3g}".format, na_rep="-")
    )
    without = shown[shown["met"] == "not measured"].drop_duplicates(["criterion", "reason"])
    for row in without.to_dict("records"):
        typer.echo(f"  {row['criterion']} is not measured ({row['model']}): {row['reason']}")
    typer.echo(f"\nResults in {folder}: compare.html, results.json, tables as CSV, pictures as PNG, logs.")
