"""Describe what labels cells, or may: a saved classifier, and an encoder of scModelForge."""

from __future__ import annotations

import csv
from functools import partial
from typing import TYPE_CHECKING, Any

from scstate_lora._utils import listed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scstate_lora.io.published.scmodelforge import RankCheckpoint

_MOST_LISTED = 50


def classifier_rows(metadata: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Describe what a saved classifier has learned, and how it does on cells that were left out.

    Parameters
    ----------
    metadata
        Content of its ``model.json``.
    folder
        Its directory, with ``scores.csv``.
    """
    shown = partial(listed, limit=_MOST_LISTED, form=str)
    state = "trained" if metadata["adapts_encoder"] else "left as it was"
    rows = [("strategy", f"{metadata['strategy']}; the encoder is {state}")]
    scores = _scores(folder / "scores.csv")
    for saved in metadata["targets"]:
        target = saved["target"]
        key, tree = target["key"], target["tree"]
        if tree is None:
            rows.append((f"learned of obs[{key!r}]", f"a number, of {saved['n_labelled'][0]:,} cells"))
        else:
            names = _leaves(tree)
            rows.append(
                (
                    f"labels of obs[{key!r}]",
                    f"{len(names):,}, of {sum(saved['n_labelled']):,} cells: {shown(names)}",
                )
            )
        if key in scores:
            rows.append((f"on {saved['folds']}", scores[key]))
    return rows


def _leaves(tree: Mapping[str, Any]) -> list[str]:
    """Names of the finest labels of a tree as it is saved: those that are above none."""
    above = set(tree["parents"])
    return [name for number, name in enumerate(tree["names"]) if number not in above]


def _scores(file: Path) -> dict[str, str]:
    """Accuracy, or mean error, of the model by target, beside the best of the simple methods."""
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    by_target = {}
    for target in dict.fromkeys(row["target"] for row in rows):
        metric = next((m for m in ("accuracy", "mean_error") if rows[0].get(m)), None)
        values = {
            row["method"]: float(row[str(metric)]) for row in rows if row["target"] == target and row.get(str(metric))
        }
        own = values.pop("CellTypeClassifier", None)
        if own is None or not values:
            continue
        best = (max if metric == "accuracy" else min)(values, key=lambda name: values[name])
        by_target[target] = f"{str(metric).replace('_', ' ')} {own:.3g}; {best}: {values[best]:.3g}"
    return by_target


def classifier_uses(where: str) -> list[str]:
    """List calls that use a saved classifier; `where` is its path in quotes."""
    return [
        f"ssl.CellTypeClassifier.load({where}).predict(adata)",
        f"scstate-lora annotate predict {where} cells.h5ad --out labelled.h5ad",
    ]


def rank_rows(stored: RankCheckpoint) -> list[tuple[str, str]]:
    """Describe an encoder of scModelForge: how it reads cells, and its sizes."""
    sizes, tokens = stored.sizes, stored.tokens
    total = tokens["target_sum"]
    values = f"counts brought to {total:,.0f} per cell" if total is not None else "counts as they are"
    values += ", then log1p" if tokens["log"] else ""
    return [
        ("parameters", f"{sum(tensor.numel() for tensor in stored.state.values()) / 1e6:,.2f} M"),
        ("width (d_model)", f"{sizes['d_model']:,}"),
        ("layers", str(sizes["n_layers"])),
        ("heads", str(sizes["n_heads"])),
        ("feed-forward (d_hid)", f"{sizes['d_hid']:,}"),
        (
            "tokens per cell",
            f"up to {tokens['n_tokens']:,}, genes by rank" + ", CLS first" * (tokens["cls_id"] is not None),
        ),
        ("reads values too", values if sizes["values"] else "no"),
        ("a cell is", "the CLS token" if sizes["pooling"] == "cls" else "the mean of its tokens"),
    ]


def rank_uses(where: str) -> dict[str, str]:
    """List calls that use an encoder of scModelForge, with what they are for; `where` is its path in quotes."""
    return {
        f"ssl.CellTypeClassifier(adata, base={where})": "label cells by it, after setup_anndata(adata, labels_key=...)",
        f"scstate-lora annotate train cells.h5ad --labels-key cell_type --base {where} --out model": "the same",
        f"ssl.RankBase.load({where})": "the encoder alone",
    }
