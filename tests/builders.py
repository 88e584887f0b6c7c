"""What tests of several folders are built from: quick trainings, small networks, simulated cells."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anndata as ad
import lightning as L
import numpy as np
import pandas as pd
import pytest

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


def latent(model: ssl.LoRACovariateSE, adata: ad.AnnData | None = None, **kwargs: object) -> np.ndarray:
    """Embed cells without writing the embedding anywhere."""
    return model.get_latent_representation(adata, key_added=None, **kwargs)


def st_network(checkpoint: STCheckpoint, specs: Mapping[str, CovariateSpec] | None = None) -> StateTransition:
    """Network of a published ST model, in ``eval``, with covariates in addition if `specs` are given."""
    network = StateTransition(st_config(checkpoint.sizes), specs or {})
    load_network(network, checkpoint)
    return network.eval()
