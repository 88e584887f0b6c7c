"""What tests of several folders are built from: quick trainings, small networks, simulated cells."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anndata as ad
import lightning as L
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scstate_lora as ssl
from scstate_lora.model.st.published import load_network, st_config
from scstate_lora.nn.transition import StateTransition

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scstate_lora.io.published.st_checkpoint import STCheckpoint
    from scstate_lora.nn.covariates import CovariateSpec

NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")

QUICK = {"accelerator": "cpu", "progress_bar": False, "logger": False}
"""Options of a training that shows and writes nothing."""

SMALL_SE = {"n_steps": 20, "d_model": 16, "d_hid": 32, "n_layers": 1, "n_heads": 2, "output_dim": 16, "n_tokens": 33}
"""A compact SE base."""

SMALL_ST = {"hidden": 16, "n_layers": 1, "n_heads": 2}
"""An ST network."""

NO_DROPOUT = {"dropout": 0.0, "r": 4}
"""Adapters that give the same twice, also where the work is shared out differently."""


LABEL_TREE = {"T cell": ["CD4", "CD8"], "B": None, "monocyte": None}
"""Tree of the types of `labelled_cells`."""


class Stop(L.Callback):
    """End a training by an error after a number of steps."""

    def __init__(self, step: int, error: BaseException | None = None) -> None:
        self.step, self.error = step, error or RuntimeError("stopped here")

    def on_train_batch_end(self, trainer: L.Trainer, *_args: object) -> None:
        if trainer.global_step == self.step:
            raise self.error


def wound(
    n_cells: int,
    *,
    seed: int = 0,
    obs: Sequence[str] = ("condition", "timepoint", "time_days", "cell_type", "mouse_id"),
) -> ad.AnnData:
    """Simulated wound of 200 genes as a user would bring it: counts, some columns, and nothing of the truth."""
    simulated = ssl.datasets.wound_healing(n_cells, n_genes=200, seed=seed)
    return ad.AnnData(simulated.X, obs=simulated.obs[list(obs)], var=pd.DataFrame(index=simulated.var_names))


def expression(n_cells: int, *, n_genes: int = 30, seed: int = 0) -> ad.AnnData:
    """Counts without any structure, and no columns: for scores of what stands in `obsm`."""
    counts = np.random.default_rng(seed).poisson(2.0, (n_cells, n_genes)).astype(np.float32)
    return ad.AnnData(counts, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))


def labelled_cells(
    n_cells: int, *, seed: int = 0, n_genes: int = 60, n_batches: int = 3, depth: float = 120.0
) -> ad.AnnData:
    """Counts of four types in batches, two of the types hard to tell apart, with their lineage and a day in `obs`."""
    rng = np.random.default_rng(7)  # the same biology for every seed
    rates = rng.lognormal(0, 1, (4, n_genes))
    rates[1] = rates[0] * rng.lognormal(0, 0.5, n_genes)
    batches = rng.lognormal(0, 0.3, (n_batches, n_genes))
    slope = np.where(np.arange(n_genes) % 6 == 0, 0.15, 0.0)
    rng = np.random.default_rng([seed, 1])
    kind, batch, day = rng.integers(0, 4, n_cells), rng.integers(0, n_batches, n_cells), rng.uniform(0, 10, n_cells)
    expected = rates[kind] * batches[batch] * np.exp(slope * day[:, None])
    counts = rng.poisson(depth * expected / expected.sum(axis=1, keepdims=True)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "cell_type": np.array(["CD4", "CD8", "B", "monocyte"])[kind],
            "lineage": np.array(["T cell", "T cell", "B", "monocyte"])[kind],
            "donor": [f"d{i}" for i in batch],
            "day": day,
        },
        index=[f"cell{seed}-{i}" for i in range(n_cells)],
    )
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)]))


def latent(model: ssl.LoRACovariateSE, adata: ad.AnnData | None = None, **kwargs: object) -> np.ndarray:
    """Embed cells without writing the embedding anywhere."""
    return model.get_latent_representation(adata, key_added=None, **kwargs)


def st_network(checkpoint: STCheckpoint, specs: Mapping[str, CovariateSpec] | None = None) -> StateTransition:
    """Network of a published ST model, in ``eval``, with covariates in addition if `specs` are given."""
    network = StateTransition(st_config(checkpoint.sizes), specs or {})
    load_network(network, checkpoint)
    return network.eval()
