"""The sections of the page, read from the AnnData, the models and the predictions."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pandas as pd

from scstate_lora import pl
from scstate_lora._constants import OBS_SPLIT, OBSM_BASE, OBSM_SE, OBSM_ST
from scstate_lora._utils import listed
from scstate_lora.data.bound import BoundData
from scstate_lora.data.log_scale import describe_scale
from scstate_lora.data.results import EVALUATE, EVALUATE_PERTURBATION, read_prediction, read_result
from scstate_lora.data.splits import split_table
from scstate_lora.metrics.baselines import CEILING
from scstate_lora.metrics.embedding import PCA
from scstate_lora.metrics.registry import metric_label
from scstate_lora.reporting.parts import Section, Table, figure, skill_text, table, text
from scstate_lora.reporting.verdicts import (
    ALL_CONTEXTS,
    average_of,
    baseline_names,
    embedding_verdicts,
    model_names,
    perturbation_verdicts,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scstate_lora.data import Registry

MAX_DRAWN_CELLS = 4_000
EMBEDDINGS = (OBSM_SE, OBSM_BASE, OBSM_ST)
_PACKAGES = ("scstate-lora", "anndata", "scanpy", "numpy", "pandas", "scikit-learn", "torch", "lightning", "peft")
_MOST_NAMED = 12
# Metrics of the table to draw context by context; the averages of all are drawn.
_BY_CONTEXT = ("pearson_delta", "e_distance", "mae")


def data_section(adata: AnnData, registry: Registry) -> Section:
    """Describe the cells as `setup_anndata` registered them."""
    matrix = f"adata.layers[{registry.layer!r}]" if registry.layer is not None else "adata.X"
    scale = {"counts": "counts", "log1p": "log1p values"}[registry.scale]
    rows = [
        ("cells x genes", f"{adata.n_obs:,} x {len(registry.var_names):,}"),
        ("expression", f"{matrix}, read as {scale}: {registry.scale_reason}"),
        ("perturbation", f"{registry.pert_key}, control {registry.control!r}" if registry.pert_key else "none"),
        ("cell type", registry.cell_type_key or "none"),
        ("batch", registry.batch_key or "none"),
        ("context", " x ".join(registry.context_keys) or "all cells are one context"),
    ]
    covariates = [
        {
            "covariate": c.name,
            "kind": c.kind,
            "values": ", ".join(c.categories)
            if c.kind == "categorical"
            else f"mean {text(c.mean)}, standard deviation {text(c.std)}",
        }
        for c in registry.covariates
    ]
    section = Section(
        "Data", "data", blocks=[table(pd.DataFrame(rows, columns=["property", "value"]), "Data as set up.")]
    )
    if covariates:
        section.blocks.append(table(pd.DataFrame(covariates), "Covariates, as registered."))
    return section


def split_section(adata: AnnData, registry: Registry, models: Sequence[Any]) -> Section:
    """Describe the split: groups that are held out whole, those held out in part, and models that keep another one."""
    section = Section("Split", "split")
    if OBS_SPLIT not in adata.obs:
        section.paragraphs.append(
            f"No split is stored in adata.obs[{OBS_SPLIT!r}]: no model was trained on these cells."
        )
        return section
    cells = BoundData(registry, adata)
    counts = split_table(cells)
    totals = {name: int(counts[name].sum()) for name in ("train", "val", "test")}
    groups = [c for c in counts.columns if c not in totals]
    section.paragraphs.append(
        f"{totals['train']:,} cells train, {totals['val']:,} validate and {totals['test']:,} are held out for testing, "
        f"as stored in adata.obs[{OBS_SPLIT!r}]. Groups are {' x '.join(registry.context_keys) or 'all cells'}"
        + (f" x {registry.pert_key}." if registry.pert_key else ".")
    )
    for model in (m for m in models if hasattr(m, "split_of")):
        n = int((model.split_of(cells) != cells.split).sum())
        if n:
            section.paragraphs.append(
                f"{type(model).__name__} keeps another split, that of its set-up: {n:,} cells are not in the part that "
                "is shown here, and its scores may be of cells that it was trained on."
            )
    whole = counts[(counts["test"] > 0) & (counts["train"] + counts["val"] == 0)]
    partly = counts[(counts["test"] > 0) & (counts["train"] + counts["val"] > 0)]
    if len(whole):
        rows = [" / ".join(str(v) for v in row) for row in whole[groups].itertuples(index=False, name=None)]
        names = listed(rows, limit=_MOST_NAMED, joined_by="; ", form=str)
        section.paragraphs.append(f"Held out whole, so that training saw none of their cells: {names}.")
    if len(partly):
        section.paragraphs.append(
            f"In {len(partly)} of {len(counts)} groups a part of the cells is held out: their scores show how well new "
            "cells of known groups are predicted, not new groups."
        )
    section.blocks.append(table(counts, "Cells by group and split.", folded=len(counts) > 12))
    return section


def model_sections(models: Sequence[Any]) -> list[Section]:
    """Summary, training and loss curves of each model."""
    sections = []
    for i, model in enumerate(models):
        name = type(model).__name__
        section = Section(name, f"model-{i + 1}")
        histories = [("base, trained on these cells", getattr(model, "base_history", None)), (name, model.history)]
        histories = [(title, h) for title, h in histories if isinstance(h, pd.DataFrame) and len(h)]
        if histories:
            runs = pd.DataFrame([{"training": title, **_run(history)} for title, history in histories])
            section.blocks.append(table(runs, "Training."))
        else:
            section.paragraphs.append("Not trained.")
        for title, history in histories:
            caption = f"Loss of {title}: every step faint, running mean solid, validation dashed."
            section.blocks.append(figure(pl.loss_curves(history), caption))
        parts = pd.DataFrame(model.summary())
        if "share" in parts:
            parts = parts.assign(share=[f"{share:.1%}" for share in parts["share"]])
        section.blocks.append(table(parts, "Parts and parameters; the share is that of trained parameters."))
        sections.append(section)
    return sections


def _run(history: pd.DataFrame) -> dict[str, Any]:
    """Summarise a training run in a few numbers."""
    train, val = history[history["phase"] == "train"], history[history["phase"] == "val"]
    run: dict[str, Any] = {"steps": len(train), "epochs": int(history["epoch"].nunique())}
    run["seconds"] = float(history["seconds"].max()) if "seconds" in history else float("nan")
    run["peak memory (MB)"] = float(history["peak_memory_mb"].max()) if "peak_memory_mb" in history else float("nan")
    losses = val["loss"].dropna() if len(val) else train["loss"].dropna()
    kind = "validation" if len(val) else "training"
    run |= {
        "loss is of": kind,
        "first": float(losses.iloc[0]),
        "best": float(losses.min()),
        "last": float(losses.iloc[-1]),
    }
    return run


def embedding_section(adata: AnnData, registry: Registry) -> Section:
    """Draw the embeddings and show their scores."""
    section = Section("Embeddings", "embeddings")
    keys = [c.name for c in registry.covariates]
    keys += [k for k in (registry.cell_type_key, registry.batch_key) if k is not None and k not in keys]
    keys = [k for k in keys if k in adata.obs] or ([registry.pert_key] if registry.pert_key else [])
    present = [k for k in EMBEDDINGS if k in adata.obsm]
    if not present:
        section.paragraphs.append("No embedding is stored in adata.obsm: call `get_latent_representation()` first.")
    elif keys:
        basis, compare = present[0], OBSM_BASE if OBSM_BASE in present else None
        axes = pl.embedding(adata, basis, color=keys, compare=compare, n_cells=MAX_DRAWN_CELLS)
        before = f" (right) beside the plain base {OBSM_BASE} (left)" if compare not in (None, basis) else ""
        section.blocks.append(figure(axes, f"UMAP of {basis}{before}. Positions between clusters mean little."))
        if OBSM_ST in present and basis != OBSM_ST:
            axes = pl.embedding(adata, OBSM_ST, color=keys, compare=None, n_cells=MAX_DRAWN_CELLS)
            section.blocks.append(
                figure(axes, f"UMAP of {OBSM_ST}, the transition model's representation of the cells.")
            )
    scores = read_result(adata, EVALUATE)
    if scores is None:
        section.paragraphs.append("The embeddings were not scored: call `scstate_lora.tl.evaluate(adata)` first.")
        return section
    if "n_cells" in scores:
        n_cells = int(scores["n_cells"].iloc[0])
        n_unseen = int((adata.obs[OBS_SPLIT] != "train").sum()) if OBS_SPLIT in adata.obs else 0
        which = ", on none of which a model was trained" if n_cells == n_unseen else ", including training cells"
        section.paragraphs.append(f"Scores are of {n_cells:,} cells{which}.")
    # The transition model reads cells in sets of one context and perturbation.
    shared = [*registry.context_keys, *([registry.pert_key] if registry.pert_key is not None else [])]
    section.verdicts = embedding_verdicts(scores, covariates=[c.name for c in registry.covariates], context_keys=shared)
    section.blocks.append(figure(pl.metrics(scores), "Scores of the embeddings beside the PCA and the baseline."))
    section.blocks.append(
        table(_wide_embeddings(scores), "Scores; the baseline ignores the embedding. Higher is better throughout.")
    )
    section.blocks += _remarks(scores, "embedding")
    return section


def perturbation_section(predictions: AnnData, *, brief: bool = False) -> Section:
    """Compare predicted with measured cells, naive baselines first; in brief, contexts are not drawn one by one."""
    prediction = read_prediction(predictions)
    target, control = ", ".join(prediction.targets), prediction.control
    section = Section(f"Predicted cells: {target}", "predictions")
    section.paragraphs.append(
        f"{predictions.n_obs:,} cells were predicted, from measured {control!r} cells to {target!r}. "
        f"Expression is {'drawn counts' if prediction.scale == 'counts' else describe_scale(prediction.target_sum)}."
    )
    scores = read_result(predictions, EVALUATE_PERTURBATION)
    if scores is None:
        section.paragraphs.append("They were not scored: call `scstate_lora.tl.evaluate_perturbation(...)` first.")
        return section
    section.verdicts = perturbation_verdicts(scores, target=target)
    average = average_of(scores)
    contexts = [c for c in dict.fromkeys(scores["context"]) if c != ALL_CONTEXTS]
    scope = "average over contexts" if len(contexts) > 1 else "".join(contexts) or "all cells"
    skill = (
        "Skill: 0 is the baseline that was best on training cells which were left out, 1 the replicate ceiling; under "
        "0 is worse than that baseline. Clipped to -1 and 1; n/a where the ceiling is not above the baseline by more "
        "than twice the noise of both."
    )
    section.blocks += [
        table(
            _wide(average, "value"),
            f"Scores, {scope}: naive baselines first, replicate ceiling last. {_scored_with(average)}",
        ),
        table(_wide(average.assign(skill=average["skill"].map(skill_text)), "skill"), skill),
        figure(
            pl.metrics(average), f"Scores, {scope}" + (", with 95 % bootstrap intervals." if len(contexts) > 1 else ".")
        ),
    ]
    if len(contexts) > 1:
        each = scores[scores["metric"].isin(_BY_CONTEXT)]
        if len(each) and not brief:
            section.blocks.append(figure(pl.metrics(each), "Context by context."))
        by_context = scores[scores["context"] != ALL_CONTEXTS]
        wide = pd.concat([_wide(part, "value").assign(context=c) for c, part in by_context.groupby("context")])
        section.blocks.append(
            table(wide[["context", *wide.columns.drop("context")]], "Scores by context.", folded=True)
        )
    section.blocks += _remarks(scores, "model")
    return section


def _scored_with(average: pd.DataFrame) -> str:
    """Say how many control and measured cells the scores are of."""
    if "n_control" not in average:
        return ""
    n_control, n_measured = (int(average[column].max()) for column in ("n_control", "n_measured"))
    return f"All are of the same {n_control:,} control cells, beside {n_measured:,} measured cells."


def _wide_embeddings(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per score, with its baseline, and one column per embedding, PCA first."""
    by_score = scores.groupby(["metric", "key"], sort=False)
    wide = scores.pivot(index=["metric", "key"], columns="embedding", values="value")
    wide = wide.loc[by_score.size().index, sorted(dict.fromkeys(scores["embedding"]), key=lambda name: name != PCA)]
    wide.insert(0, "baseline", by_score["baseline"].first())
    wide.columns.name = None
    wide = wide.reset_index()
    return wide.assign(metric=[metric_label(m) for m in wide["metric"]])


def _wide(scores: pd.DataFrame, column: str) -> pd.DataFrame:
    """One row per metric with its direction, and one column per model, baselines first and the ceiling last."""
    order = [*baseline_names(), *model_names(scores), CEILING]
    arrows = {"higher": "↑", "lower": "↓", "one": "→ 1"}
    headed = scores.assign(
        metric=[
            f"{metric_label(m)} {arrows.get(d, '') if column == 'value' else ''}".strip()
            for m, d in zip(scores["metric"], scores["direction"], strict=True)
        ]
    )
    wide = headed.pivot(index="metric", columns="model", values=column)
    wide = wide.loc[list(dict.fromkeys(headed["metric"])), [m for m in order if m in wide.columns]]
    wide.columns.name = None
    return wide.reset_index()


def _remarks(scores: pd.DataFrame, series: str) -> list[Table]:
    """List why scores were not computed, or not on all cells: one row per metric and reason."""
    noted = scores[scores["reason"] != ""]
    if noted.empty:
        return []
    rows = [
        {
            "metric": metric_label(str(metric)),
            series: ", ".join(dict.fromkeys(part[series])),
            "scores": len(part),
            "why": reason,
        }
        for (metric, reason), part in noted.groupby(["metric", "reason"], sort=False)
    ]
    return [table(pd.DataFrame(rows), "Remarks: scores missing, or not on all cells.", folded=len(rows) > 5)]


def versions_section() -> Section:
    """List the versions of the packages."""
    rows = [("python", platform.python_version()), *[(name, version(name)) for name in _PACKAGES]]
    return Section("Versions", "versions", blocks=[table(pd.DataFrame(rows, columns=["package", "version"]), "")])
