"""Sections on the data, the split and the models, read from the AnnData and the models."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pandas as pd

from scstate_lora import pl
from scstate_lora._constants import OBS_SPLIT
from scstate_lora.data.bound import BoundData
from scstate_lora.data.splits import split_table
from scstate_lora.reporting.audits import MOST_CELLS
from scstate_lora.reporting.overview import groups_in_words, held_out_whole
from scstate_lora.reporting.parts import Section, table, text
from scstate_lora.reporting.pictures import Picture, picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scstate_lora.data import Registry

_PACKAGES = ("scstate-lora", "anndata", "scanpy", "numpy", "pandas", "scikit-learn", "torch", "lightning", "peft")
_MOST_NAMED = 12


def data_section(adata: AnnData, registry: Registry, audit: pd.DataFrame | None) -> Section:
    """Describe the cells as `setup_anndata` registered them, and what the audit found."""
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
    blocks = [table(pd.DataFrame(rows, columns=["property", "value"]), "Data as set up.")]
    if covariates:
        blocks.append(table(pd.DataFrame(covariates), "Covariates, as registered."))
    section = Section("Data", "data", blocks=[*blocks], folded=True)
    if audit is not None and len(audit):
        section.blocks.append(table(audit, "Findings of the audit, errors first.", save_as="audit"))
    elif audit is not None:
        section.paragraphs.append("The audit found nothing.")
    elif registry.pert_key is not None and adata.n_obs > MOST_CELLS:
        section.paragraphs.append(f"Above {MOST_CELLS:,} cells the page has no audit: call scstate_lora.tl.audit(...).")
    return section


def split_section(adata: AnnData, registry: Registry, models: Sequence[Any], *, n_train: int = 0) -> Section:
    """Describe the split: groups that are held out whole, those held out in part, and models that keep another one.

    Parameters
    ----------
    adata, registry
        The cells, and how they were set up.
    models
        Those that the page is about.
    n_train
        Training cells that are not in `adata`, but in a file of their own.
    """
    section = Section("Split", "split", folded=True)
    if OBS_SPLIT not in adata.obs:
        section.paragraphs.append(
            f"No split is stored in adata.obs[{OBS_SPLIT!r}]: no model was trained on these cells."
        )
        return section
    cells = BoundData(registry, adata)
    counts = split_table(cells)
    totals = {name: int(counts[name].sum()) for name in ("train", "val", "test")}
    section.paragraphs.append(
        f"{totals['train']:,} cells train, {totals['val']:,} validate and {totals['test']:,} are held out for testing, "
        f"as stored in adata.obs[{OBS_SPLIT!r}]. Groups are {' x '.join(registry.context_keys) or 'all cells'}"
        + (f" x {registry.pert_key}." if registry.pert_key else ".")
    )
    if n_train:
        section.paragraphs.append(f"{n_train:,} other cells train, of a file of their own; the table is without them.")
    for model in (m for m in models if hasattr(m, "split_of")):
        n = int((model.split_of(cells) != cells.split).sum())
        if n:
            section.paragraphs.append(
                f"{type(model).__name__} keeps another split, that of its set-up: {n:,} cells are not in the part that "
                "is shown here, and its scores may be of cells that it was trained on."
            )
    whole = held_out_whole(counts)
    n_partly = int(((counts["test"] > 0) & (counts["train"] + counts["val"] > 0)).sum())
    if whole and not n_train:
        names = groups_in_words(whole, _MOST_NAMED)
        section.paragraphs.append(f"Held out whole, so that training saw none of their cells: {names}.")
    if n_partly:
        section.paragraphs.append(
            f"In {n_partly} of {len(counts)} groups a part of the cells is held out: their scores show how well new "
            "cells of known groups are predicted, not new groups."
        )
    section.blocks.append(table(counts, "Cells by group and split.", save_as="split"))
    return section


def model_sections(models: Sequence[Any]) -> list[Section]:
    """Summary, training and loss curves of each model."""
    sections = []
    for i, model in enumerate(models):
        name = type(model).__name__
        section = Section(f"Model: {name}", f"model-{i + 1}", folded=True)
        histories = [("base, trained on these cells", getattr(model, "base_history", None)), (name, model.history)]
        histories = [(title, h) for title, h in histories if isinstance(h, pd.DataFrame) and len(h)]
        if histories:
            runs = pd.DataFrame([{"training": title, **_run(history)} for title, history in histories])
            section.blocks.append(table(runs, "Training."))
            section.blocks.append(_loss_curves(dict(histories)))
        else:
            section.paragraphs.append("Not trained.")
        parts = pd.DataFrame(model.summary())
        if "share" in parts:
            parts = parts.assign(share=[f"{share:.1%}" for share in parts["share"]])
        section.blocks.append(table(parts, "Parts and parameters; the share is that of trained parameters."))
        sections.append(section)
    return sections


def _loss_curves(histories: dict[str, pd.DataFrame]) -> Picture:
    caption = "Losses: every step faint, running mean solid, validation dashed. Their terms: pl.loss_curves."
    alt = f"Curves of the training and validation losses of {' and of '.join(histories)}."
    return picture(lambda: pl.loss_curves(histories, terms=[]), caption, alt=alt)


def _run(history: pd.DataFrame) -> dict[str, Any]:
    """Summarise a training run in a few numbers."""
    train, val = history[history["phase"] == "train"], history[history["phase"] == "val"]
    run: dict[str, Any] = {"steps": len(train), "epochs": int(history["epoch"].nunique())}
    run["seconds"] = float(history["seconds"].max()) if "seconds" in history else float("nan")
    run["peak memory (MB)"] = float(history["peak_memory_mb"].max()) if "peak_memory_mb" in history else float("nan")
    losses = val["loss"].dropna() if len(val) else train["loss"].dropna()
    run["loss is of"] = "validation" if len(val) else "training"
    return run | {"first": float(losses.iloc[0]), "best": float(losses.min()), "last": float(losses.iloc[-1])}


def versions_section() -> Section:
    """List the versions of the packages."""
    rows = [("python", platform.python_version()), *[(name, version(name)) for name in _PACKAGES]]
    return Section(
        "Versions", "versions", blocks=[table(pd.DataFrame(rows, columns=["package", "version"]), "")], folded=True
    )
