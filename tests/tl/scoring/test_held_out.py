"""The held-out cells of one experiment are scored as by `evaluate_perturbation`, from the same arrays."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scstate_lora as ssl
from scstate_lora import tl
from scstate_lora.data import Registry, log_expression
from scstate_lora.data.bound import BoundData
from scstate_lora.data.results import PREDICT, Prediction, write_result
from scstate_lora.metrics.baselines import reference_names
from scstate_lora.tl.scoring.held_out import HeldOutCells

HELD_OUT = [{"type": "B", "arm": "drug"}]


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """120 control and 120 drug cells of three types; the drug cells of one type are held out. Not to be changed."""
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"arm": np.repeat(["none", "drug"], 120), "type": np.tile(["A", "B", "C"], 80)})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    rate = np.full((len(obs), 60), 4.0)
    rate[120:, :10] += 8
    adata = ad.AnnData(rng.poisson(rate).astype(np.float32), obs=obs)
    ssl.STTransition.setup_anndata(
        adata, pert_key="arm", control="none", cell_type_key="type", holdout=HELD_OUT, val_size=0.0
    )
    return adata


@pytest.fixture(scope="module")
def predicted(cells) -> ad.AnnData:
    """A prediction from all controls: more of each of the first genes. Not to be changed."""
    controls = cells[cells.obs["arm"] == "none"]
    x = log_expression(controls).toarray()
    x[:, :8] += 0.9
    pred = ad.AnnData(x, obs=controls.obs[["type"]].copy(), var=controls.var[[]])
    pred.obs["control_cell"], pred.obs["arm"] = controls.obs_names, "drug"
    pred.obs_names = [f"{name}|drug" for name in pred.obs_names]
    write_result(pred, PREDICT, Prediction("log1p_cp10k", "arm", "none", ["drug"], "genes").record())
    return pred


@pytest.fixture
def held_out(cells) -> HeldOutCells:
    bound = BoundData(Registry.from_adata(cells), cells)
    return HeldOutCells(bound, genes=list(cells.var_names), context_keys=["type"])


def reader(predicted):
    """Read the one prediction, whatever the target."""
    return lambda _: predicted


def test_the_table_is_that_of_evaluate_perturbation(cells, predicted, held_out):
    table = held_out.score_all(["drug"], reader(predicted), name="mine", n_boot=20)
    split, arm = cells.obs["scstate_split"], cells.obs["arm"]
    part = predicted[predicted.obs["type"] == "B"].copy()
    expected = tl.evaluate_perturbation(
        part, cells[(split == "test") & (arm == "drug")], cells[arm == "none"],
        context_key="type", train=cells[split == "train"], name="mine", n_boot=20,
    )  # fmt: skip
    pd.testing.assert_frame_equal(table, expected, check_exact=True)
    assert set(table["context"]) == {"B", "all"}


def test_model_and_baselines_are_scored_apart(predicted, held_out):
    both = held_out.score_all(["drug"], reader(predicted), name="mine")
    alone = held_out.score_all(["drug"], reader(predicted), name="mine", with_baselines=False)
    baselines = held_out.score_all(["drug"], None)
    assert set(alone["model"]) == {"mine"}
    assert alone["skill"].isna().all()
    assert set(baselines["model"]) <= set(reference_names())
    relative = ["skill", "skill_reason", "yardstick", "dynamic_range", "baseline_saturation"]
    apart = pd.concat([alone, baselines], ignore_index=True).drop(columns=relative)
    pd.testing.assert_frame_equal(apart, both.drop(columns=relative), check_exact=True)


def test_what_cannot_be_scored_raises(cells, predicted, held_out):
    with pytest.raises(ValueError, match="no cell of it was held out"):
        held_out.score_all(["dye"], reader(predicted))
    with pytest.raises(ValueError, match="name of a baseline"):
        held_out.score_all(["drug"], reader(predicted), name="linear")
    other = HeldOutCells(held_out.bound, genes=["0", "G9"], context_keys=["type"])
    with pytest.raises(KeyError, match=r"1 of the 2 genes of pred are not in adata, the first is 'G9'"):
        other.score_all(["drug"], reader(predicted))
