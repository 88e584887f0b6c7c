"""Checks of the arguments that tools on a trained LoRACovariateSE share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData


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
