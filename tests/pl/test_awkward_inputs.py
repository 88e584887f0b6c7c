"""Plots of tables and models on what real data bring: one category, 30 with long names, one epoch, missing scores."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from scstate_lora import pl
from scstate_lora.pl.comparison import KINDS
from tests.pl.conftest import LONG, assert_well_made
from tests.pl.test_comparison import COSTS
from tests.pl.test_covariates import make_table
from tests.pl.test_mhc import Connected

MANY = [f"{LONG}{i}" for i in range(30)]

pytestmark = pytest.mark.usefixtures("style")


def comparison(models, *, n_epochs=1, value=0.5):
    """What `tl.compare` returns of some variants."""
    rows = [
        {"model": m, "target": "burn", "context": c, "metric": "pearson_delta", "value": value, "skill": value,
         "ci_low": np.nan, "ci_high": np.nan, "direction": "higher", "lowest": -1.0, "highest": 1.0, "reason": "why"}
        for m in ["mean shift", *models] for c in ("all", "B")
    ]  # fmt: skip
    training = pd.DataFrame([{"model": m, "seed": 0, "trained": 10, "share": 0.1, "reason": ""} for m in models])
    training = training.assign(**{column: value for column in COSTS.values() if column != "trained"})
    step = np.arange(1, 5 * n_epochs + 1)
    train = pd.DataFrame({"phase": "train", "epoch": (step - 1) // 5, "step": step, "loss": 1 / step, "grad_norm": 1.0})
    val = pd.DataFrame({"phase": "val", "epoch": range(n_epochs), "step": 5 * np.arange(1, n_epochs + 1), "loss": 0.5})
    history = pd.concat([train, val])
    criteria = pd.DataFrame(
        [(m, "pearson_delta", value, "above", 0.5, "no", "", "") for m in models],
        columns=["model", "criterion", "value", "side", "threshold", "met", "level", "reason"],
    )
    histories = pd.concat([history.assign(model=m, seed=0) for m in models], ignore_index=True)
    return SimpleNamespace(scores=pd.DataFrame(rows), training=training, criteria=criteria, histories=histories)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("models", "value"), [(["ST"], 0.5), (["ST", "ST with LoRA"], np.nan), (MANY, 0.5)], ids=["one", "unscored", "many"]
)
def test_comparison(kind, models, value):
    assert_well_made(pl.compare(comparison(models, value=value), kind=kind))


@pytest.mark.parametrize("covariates", [["condition"], MANY[:8]], ids=["one", "long"])
@pytest.mark.parametrize("value", [0.5, np.nan])
def test_covariate_effects(covariates, value):
    table = make_table(covariates)
    if np.isnan(value):
        table = table.assign(
            value=value, low=value, high=value, reason="one value in all cells", verdict="not computed"
        )
    assert_well_made(pl.covariate_effects(table))


@pytest.mark.parametrize(("n_layers", "size"), [(1, 2), (3, 4), (30, 32)])
def test_mhc_mixing(n_layers, size):
    assert_well_made(pl.mhc_mixing(Connected(layers=tuple(range(n_layers)), size=size, spread=0.01)))


@pytest.mark.parametrize("groups", [["B"], MANY], ids=["one", "many"])
def test_velocity_alignment(groups):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"group": np.tile(groups, 60 // len(groups)), "confidence": np.nan})
    table["cosine"] = rng.uniform(-1, 1, 60)
    for name in ("x", "y", "shift_x", "shift_y", "velocity_x", "velocity_y"):
        table[name] = rng.normal(size=60)
    assert_well_made(pl.velocity_alignment(table))
    assert_well_made(pl.velocity_alignment(table, group_key="group"))
    assert_well_made(pl.velocity_alignment(table, kind="arrows"))
    assert_well_made(pl.velocity_alignment(table.iloc[:1], kind="arrows"))
