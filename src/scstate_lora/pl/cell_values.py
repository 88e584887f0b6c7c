"""Predicted and measured cells as arrays on one scale, for plots that draw cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scstate_lora._constants import TARGET_SUM
from scstate_lora._utils import did_you_mean
from scstate_lora.data.labels import as_labels
from scstate_lora.data.log_scale import check_scales, find_log_scale, noted_base
from scstate_lora.data.matrix import MatrixStats, log_normalize, resolve_scale, to_natural_log
from scstate_lora.data.results import LIBRARY_SIZE

if TYPE_CHECKING:
    from anndata import AnnData

    from scstate_lora.data.results import Prediction

MISSING = "(missing)"


def labels_of(adata: AnnData, key: str, *, argument: str) -> np.ndarray:
    """Return a column of ``obs`` as strings, ``(n_cells,)``; missing values become ``"(missing)"``.

    Raises
    ------
    KeyError
        If there is no such column.
    """
    if key not in adata.obs:
        msg = f"{argument}.obs has no column {key!r}. {did_you_mean(key, adata.obs.columns)}"
        raise KeyError(msg)
    column = adata.obs[key]
    return as_labels(column).where(column.notna(), MISSING).to_numpy(dtype=object)


def values_of(pred: AnnData, adata: AnnData, prediction: Prediction, *, layer: str | None) -> tuple[Any, Any]:
    """Return what the model predicts, of predicted and of measured cells: an embedding, or log1p expression.

    Parameters
    ----------
    pred, adata
        Predicted and measured cells.
    prediction
        Description of the predicted ones.
    layer
        Layer of `adata` with the expression; None for ``X``.

    Returns
    -------
    Dense or CSR ``(n_cells, n_features)`` of `pred`, and of `adata`.

    Raises
    ------
    KeyError
        If the embedding, the layer or a gene is missing.
    ValueError
        If the matrix of `adata` is neither counts nor log1p, or both are known to be on different scales.
    """
    if prediction.space != "genes":
        for argument, cells in (("pred", pred), ("adata", adata)):
            if prediction.space not in cells.obsm:
                msg = f"{argument}.obsm has no {prediction.space!r}, in which the model predicts."
                raise KeyError(msg)
        return np.asarray(pred.obsm[prediction.space]), np.asarray(adata.obsm[prediction.space])
    target_sum = prediction.target_sum or TARGET_SUM
    own = _csr(pred.X)
    if prediction.scale == "counts":
        own = log_normalize(own, "counts", pred.obs[LIBRARY_SIZE].to_numpy(), target_sum=target_sum)
    columns = adata.var_names.get_indexer(pred.var_names)
    if (columns < 0).any():
        missing = pred.var_names[columns < 0]
        msg = f"{len(missing)} genes of pred are not in adata, the first is {missing[0]!r}. Give the model's own cells."
        raise KeyError(msg)
    return own, _logged(adata, prediction, layer)[:, columns]


def _logged(adata: AnnData, prediction: Prediction, layer: str | None) -> sparse.csr_matrix:
    """Natural log1p expression of measured cells, counts normalised as the prediction is."""
    if layer is not None and layer not in adata.layers:
        msg = f"adata.layers has no {layer!r}. {did_you_mean(layer, adata.layers.keys())}"
        raise KeyError(msg)
    matrix = _csr(adata.X if layer is None else adata.layers[layer])
    stats = MatrixStats.of(matrix)
    scale, _ = resolve_scale(stats, None, "adata.X" if layer is None else f"adata.layers[{layer!r}]")
    if scale == "counts":
        return log_normalize(matrix, scale, target_sum=prediction.target_sum or TARGET_SUM)
    found = find_log_scale(stats, noted_base(adata))
    if found.target_sum is not None and prediction.target_sum is not None:
        check_scales({"pred": prediction.target_sum, "adata": found.target_sum})
    return to_natural_log(matrix, found.base)


def _csr(matrix: Any) -> sparse.csr_matrix:
    """Return a float32 copy without stored zeros."""
    copy = sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
    copy.eliminate_zeros()
    return copy
