"""A small experiment: two cell types, a perturbation that raises two genes, and a prediction of held-out cells."""

from __future__ import annotations

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from scstate_lora.config import DataConfig
from scstate_lora.data import Registry, log_expression
from scstate_lora.reporting import embeddings, pictures, sections
from scstate_lora.reporting import predictions as predictions_of_page
from tests.reporting.tables import perturbation_table

mpl.use("agg")


class LoRACovariateSE:
    """Stands in for a trained model: the report needs its history and summary only."""

    def __init__(self, history: pd.DataFrame) -> None:
        self.history = history
        self.base_history = history.assign(loss=history["loss"] * 2)

    def summary(self) -> pd.DataFrame:
        return pd.DataFrame({"part": ["encoder", "adapters <A&B>"], "parameters": [1_000_000, 16_384]})


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Leave the pictures of pages out, as drawing them takes most of the time."""
    blank = "data:image/png;base64,"
    for module in (embeddings, predictions_of_page, sections):
        monkeypatch.setattr(
            module,
            "picture",
            lambda draw, caption, *, alt, tight=False: pictures.Picture(caption, alt, blank, blank, 1, 1),
        )


@pytest.fixture
def model() -> LoRACovariateSE:
    return make_model()


@pytest.fixture
def untrained() -> LoRACovariateSE:
    return LoRACovariateSE(make_model().history.iloc[:0])


@pytest.fixture
def adata() -> ad.AnnData:
    return make_cells()


@pytest.fixture
def predictions(adata) -> ad.AnnData:
    return make_predictions(adata)


def make_model() -> LoRACovariateSE:
    n = 12
    train = pd.DataFrame(
        {
            "phase": "train", "epoch": np.arange(n) // 4, "step": np.arange(n), "loss": np.linspace(4, 1, n),
            "grad_norm": 1.0, "lr": 1e-3, "seconds": np.arange(n) * 0.5, "peak_memory_mb": 2048.0,
        }
    )  # fmt: skip
    val = train.groupby("epoch", as_index=False).last().assign(phase="val")
    return LoRACovariateSE(pd.concat([train, val[train.columns]], ignore_index=True))


def make_cells() -> ad.AnnData:
    """80 cells, of which the 20 stimulated T cells are held out; stimulation raises g0 and g1 and lowers g2."""
    rng = np.random.default_rng(0)
    n = 80
    is_stim = np.arange(n) % 2 == 1
    counts = rng.poisson(6, (n, 12)).astype(np.float32)
    counts[is_stim, :2] *= 5
    counts[is_stim, 2] = 0
    a = ad.AnnData(
        X=counts,
        obs=pd.DataFrame(
            {
                "condition": pd.Categorical(np.where(is_stim, "stim", "ctrl")),
                "cell_type": pd.Categorical(np.where(np.arange(n) < 40, "B", "T")),
                "scstate_split": pd.Categorical(np.where((np.arange(n) >= 40) & is_stim, "test", "train")),
            },
            index=[f"c{i}" for i in range(n)],
        ),
        var=pd.DataFrame(index=[f"g{i}" for i in range(12)]),
        obsm={"X_scstate_base": rng.normal(size=(n, 2)), "X_scstate_lora": rng.normal(size=(n, 2))},
    )
    registry = Registry.create(
        a, DataConfig(covariate_keys=["condition"], pert_key="condition", control="ctrl", cell_type_key="cell_type")
    )
    registry.write(a)
    return a


def make_predictions(adata: ad.AnnData) -> ad.AnnData:
    """T cells predicted from the control ones: g0 and g2 as measured, g1 unchanged, g3 raised instead."""
    controls = adata[(adata.obs["cell_type"] == "T") & (adata.obs["condition"] == "ctrl")]
    pred = ad.AnnData(np.asarray(log_expression(controls).todense()), obs=controls.obs.copy(), var=adata.var.copy())
    pred.X[:, 0] += 1.4
    pred.X[:, 3] += 1.5
    pred.X[:, 2] = 0
    pred.obs["condition"] = "stim"
    pred.obs["control_cell"] = controls.obs_names
    pred.uns["scstate_lora"] = {
        "predict": {
            "scale": "log1p_cp10k", "pert_key": "condition", "control": "ctrl", "target": "stim", "space": "genes",
            "target_sum": 10_000.0,
        },
        "evaluate_perturbation": perturbation_table(model=0.9).assign(yardstick="mean shift"),
    }  # fmt: skip
    return pred
