"""The audit of the data behind the scores, for the card and the section on the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scstate_lora import tl
from scstate_lora._constants import OBS_SPLIT
from scstate_lora.data.bound import BoundData
from scstate_lora.reporting.gene_changes import context_keys_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scstate_lora.data import Registry

MOST_CELLS = 200_000
"""Of more cells, expression is not compared cell by cell while a page is written: `tl.audit` does it."""


def audit_of(adata: AnnData, registry: Registry, pred: AnnData | None) -> pd.DataFrame | None:
    """Audit the split of an experiment, and one of its predictions; None where there is nothing to audit, or too much.

    Parameters
    ----------
    adata, registry
        The cells, and how they were set up.
    pred
        Predicted cells.
    """
    if registry.pert_key is None or OBS_SPLIT not in adata.obs or adata.n_obs > MOST_CELLS:
        return None
    cells = BoundData(registry, adata)
    is_test = (cells.split == "test") & ~cells.is_control
    if not is_test.any():
        return None
    is_train = cells.split == "train"
    keys = context_keys_of(registry)
    if pred is not None and not (pred.n_vars and all(key in pred.obs for key in keys)):
        pred = None
    return tl.audit(
        adata[is_train] if is_train.any() else None,
        adata[is_test | cells.is_control],
        pred=pred,
        context_key=keys,
    )
