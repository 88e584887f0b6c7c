"""Cells that go through a LoRACovariateSE's network once, to be embedded under as many conditions as wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData

    from scstate_lora.model import LoRACovariateSE


class ConditionedCells:
    """Cells as a trained model's network reads them, before they are told a condition.

    What the network makes of the expression does not depend on the covariates, which enter behind it. So one pass over
    the cells is enough for all conditions that are asked for.

    Parameters
    ----------
    se
        A trained model.
    adata
        The cells.
    plain
        The base's embedding of these cells, if it is known: where the active adapter leaves the base as it is, it
        stands for the network's.
    """

    def __init__(self, se: LoRACovariateSE, adata: AnnData, *, plain: np.ndarray | None = None) -> None:
        from scstate_lora.inference.embed import embed_cells
        from scstate_lora.model import SEBase

        base, network = se.base, se.network
        assert base is not None  # a trained model has both
        assert network is not None
        self.registry, self.network, self.obs = se.registry, network, adata.obs
        if isinstance(base, SEBase) and se.adapts_base:
            read = base.reader(adata, se.registry)
            self.adapted = np.concatenate([block for _, block in embed_cells(base.encoder, read)])
        else:
            self.adapted = base.embed(adata, se.registry) if plain is None else plain

    def under(self, covariates: Mapping[str, Any] | pd.DataFrame | None = None) -> np.ndarray:
        """Embed the cells under covariates as ``get_latent_representation`` takes them, ``(n_cells, output_dim)``."""
        return self._under(self.obs, covariates)

    def untold(self) -> np.ndarray:
        """Embed the cells with all covariates withheld, and the batch too, ``(n_cells, output_dim)``."""
        batch = self.registry.batch_key
        obs = self.obs if batch is None else self.obs.drop(columns=batch, errors="ignore")
        return self._under(obs, {c.name: None for c in self.registry.covariates})

    def _under(self, obs: pd.DataFrame, covariates: Mapping[str, Any] | pd.DataFrame | None) -> np.ndarray:
        from scstate_lora.inference.embed import condition_cells
        from scstate_lora.model.se.inputs import encode_inputs

        return condition_cells(self.network, self.adapted, encode_inputs(self.registry, obs, covariates))


def require_trained(se: Any, what: str) -> None:
    """Raise a TypeError for anything but a LoRACovariateSE, and a ValueError for one that is not trained."""
    from scstate_lora.model import LoRACovariateSE

    if not isinstance(se, LoRACovariateSE):
        msg = f"{what} needs a LoRACovariateSE, found {type(se).__name__}: ssl.tl.{what}(se, ...)."
        raise TypeError(msg)
    if not se.is_trained:
        msg = f"This LoRACovariateSE is not trained: call .train() before ssl.tl.{what}(...)."
        raise ValueError(msg)


def chosen_cells(adata: AnnData, cells: np.ndarray | None) -> AnnData:
    """Take the cells of a mask, a view; all of them without one."""
    if cells is None:
        return adata
    mask = np.asarray(cells)
    if mask.dtype != bool or mask.shape != (adata.n_obs,):
        msg = f"cells must be {adata.n_obs} bools, one a cell; found shape {mask.shape} of {mask.dtype}."
        raise ValueError(msg)
    if not mask.any():
        msg_0 = "cells is False for every cell: there is none to embed."
        raise ValueError(msg_0)
    return adata[mask]
