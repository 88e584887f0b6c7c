"""Checks of the arguments that tools on a trained LoRACovariateSE share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData


def require_trained(se: Any, tool: str) -> None:
    """Raise a TypeError for anything but a LoRACovariateSE, and a ValueError for one that is not trained."""
    from scstate_lora.model import LoRACovariateSE

    if not isinstance(se, LoRACovariateSE):
        msg = f"{tool} needs a LoRACovariateSE, found {type(se).__name__}: ssl.tl.{tool}(se, ...)."
        raise TypeError(msg)
    if not se.is_trained:
        msg = f"This LoRACovariateSE is not trained: call .train() before ssl.tl.{tool}(...)."
        raise ValueError(msg)


def chosen_cells(adata: AnnData, cells: np.ndarray | None) -> AnnData:
    """Take the cells of a mask, as a view; all cells without a mask."""
    if cells is None:
        return adata
    mask = np.asarray(cells)
    if mask.dtype != bool or mask.shape != (adata.n_obs,):
        msg = f"cells must be {adata.n_obs} bools, one per cell; found shape {mask.shape} of {mask.dtype}."
        raise ValueError(msg)
    if not mask.any():
        msg = "cells is False for every cell, which leaves none to embed."
        raise ValueError(msg)
    return adata[mask]
