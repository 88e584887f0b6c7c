"""Tables as `tl.evaluate` and `tl.evaluate_perturbation` write them, with values to choose."""

from __future__ import annotations

import numpy as np
import pandas as pd

DIFFICULTY = {"B": -0.2, "T": 0.2, "NK": -0.1, "Mono": 0.1, "all": 0.0}


def perturbation_table(*, model: float, mean_shift: float = 0.8, spread: float = 0.02) -> pd.DataFrame:
    """Four contexts of different difficulty; the model's lead varies between them by ``spread`` either way."""
    lead = {"B": spread, "T": -spread, "NK": spread, "Mono": -spread, "all": 0.0}
    rows = []
    for name, value in {"model": model, "mean shift": mean_shift, "no change": np.nan, "ceiling": 0.95}.items():
        for context, offset in DIFFICULTY.items():
            score = value + offset + (lead[context] if name == "model" else 0.0)
            rows.append(
                {
                    "model": name, "context": context, "metric": "pearson_delta", "value": score, "skill": 0.6,
                    "ci_low": value - 0.15 if context == "all" else np.nan,
                    "ci_high": value + 0.15 if context == "all" else np.nan,
                    "direction": "higher", "lowest": -1.0, "highest": 1.0, "n_measured": 40, "n_control": 60,
                    "reason": "" if np.isfinite(value) else "The predicted delta is the same in all genes.",
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def with_baseline(table: pd.DataFrame, name: str, value: float) -> pd.DataFrame:
    """Add a baseline that differs from the mean shift by as much in every context."""
    rows = table[table["model"] == "mean shift"]
    average = rows.loc[rows["context"] == "all", "value"].iloc[0]
    return pd.concat([table, rows.assign(model=name, value=rows["value"] + value - average)], ignore_index=True)


def evaluate_table(**values: float) -> pd.DataFrame:
    """Two scores of some embeddings, which have the same value in both."""
    return pd.DataFrame(
        [
            {
                "embedding": name, "metric": metric, "key": key, "value": value, "baseline": 0.5,
                "direction": "higher", "lowest": 0.0, "highest": 1.0, "n_cells": 60,
                "reason": "" if np.isfinite(value) else "too few",
            }
            for name, value in values.items()
            for metric, key in (("knn_accuracy", "cell_type"), ("probe_accuracy", "condition"))
        ]
    )  # fmt: skip
