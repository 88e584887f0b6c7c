"""Agreement of a model's shift of cells with their RNA velocity: `velocity_alignment`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scstate_lora.config import STObjectiveConfig
from scstate_lora.data import Registry, log_expression
from scstate_lora.data.bound import BoundData
from scstate_lora.data.log_scale import check_scales
from scstate_lora.data.results import VELOCITY_ALIGNMENT, read_prediction, write_result
from scstate_lora.model.st.inputs import read_velocity

if TYPE_CHECKING:
    from anndata import AnnData


_CHUNK = 4096  # cells at a time: velocities are dense


def velocity_alignment(adata: AnnData, predicted: AnnData, *, velocity_key: str = "velocity") -> pd.DataFrame:
    """Compare a model's shift of every control cell, predicted - control, with the cell's RNA velocity.

    Both are in the space of the model: log1p expression, for which a layer's velocity of counts per 10,000 is divided
    by 1 + s to be that of log1p; or an embedding, whose velocity is in ``obsm``. A gene without a velocity is left out
    of the shift as well. A velocity points to a cell's own near future, a perturbation need not: a cosine near 0 means
    that the two are unrelated, not that either is wrong.

    Parameters
    ----------
    adata
        Set up by :func:`scstate_lora.setup_anndata`; it holds the control cells and their velocity.
    predicted
        From :meth:`scstate_lora.STTransition.predict`; ``obs["control_cell"]`` names the rows of `adata`.
    velocity_key
        Key of ``adata.layers``, or of ``adata.obsm`` for a prediction in an embedding. Its confidence is taken from
        ``adata.obs["<key>_confidence"]`` if that exists.

    Returns
    -------
    One row per predicted cell, in order: ``control_cell``, ``target``, ``cell_type`` (if one was set up), ``cosine``
    (NaN where the shift or the velocity is zero or unknown), ``magnitude_shift``, ``magnitude_velocity``,
    ``confidence`` (NaN where unknown). In an embedding of two columns also ``x``, ``y``, ``shift_x``, ``shift_y``,
    ``velocity_x``, ``velocity_y``.

    Adds ``predicted.uns["scstate_lora"]["velocity_alignment"]``, the same table.

    Raises
    ------
    KeyError
        If `adata` was not set up, has no such velocity, or lacks control cells.
    ValueError
        If `predicted` is not a prediction, has neither genes nor an embedding with a velocity, or is on another scale
        than `adata`.
    """
    prediction = read_prediction(predicted)
    bound = BoundData(Registry.from_adata(adata), adata)
    if prediction.space == "genes":
        check_scales({"predicted": prediction.target_sum, "adata": bound.registry.target_sum})
    rows = adata.obs_names.get_indexer(predicted.obs["control_cell"])
    if (rows < 0).any():
        name = predicted.obs["control_cell"].iloc[int(np.flatnonzero(rows < 0)[0])]
        msg = (
            f"{int((rows < 0).sum())} of the {len(rows)} control cells of predicted are not in adata.obs_names, the "
            f"first is {name!r}. Give the cells that the prediction started from."
        )
        raise KeyError(msg)
    parts = [
        _align(bound, predicted, rows, slice(start, start + _CHUNK), prediction.space, velocity_key)
        for start in range(0, len(rows), _CHUNK)
    ]
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "control_cell", predicted.obs["control_cell"].astype(str).to_numpy())
    table.insert(1, "target", predicted.obs[prediction.pert_key].astype(str).to_numpy())
    if bound.cell_types is not None:
        table.insert(2, "cell_type", bound.cell_types.astype(str)[rows])
    write_result(predicted, VELOCITY_ALIGNMENT, table)
    return table


def _align(bound: BoundData, predicted: AnnData, rows: np.ndarray, part: slice, space: str, key: str) -> pd.DataFrame:
    """Compare some of the cells."""
    cells, after_cells = bound.take(rows[part]), predicted[part]
    objective = STObjectiveConfig(velocity_key=key)
    if space == "genes":
        genes = [str(name) for name in after_cells.var_names]
        velocity, confidence = read_velocity(cells, objective, genes=genes)
        control, after = cells.logged_genes(genes).toarray(), log_expression(after_cells).toarray()
    else:
        velocity, confidence = read_velocity(cells, objective, genes=None)
        control, after = cells.embedding, np.asarray(after_cells.obsm[space], dtype=np.float32)
    return _compared(control, after - control, velocity, confidence)


def _compared(
    position: np.ndarray, shift: np.ndarray, velocity: np.ndarray, confidence: np.ndarray | None
) -> pd.DataFrame:
    """Cosine and lengths of each row, over the columns with a velocity."""
    has_velocity = np.isfinite(velocity)
    v = np.where(has_velocity, velocity, 0.0).astype(np.float64)
    dz = np.where(has_velocity, shift, 0.0).astype(np.float64)
    lengths = np.linalg.norm(dz, axis=1), np.linalg.norm(v, axis=1)
    product = lengths[0] * lengths[1]
    cosine = np.divide((dz * v).sum(axis=1), product, out=np.full(len(v), np.nan), where=product > 0)
    columns: dict[str, Any] = {
        "cosine": cosine,
        "magnitude_shift": lengths[0],
        "magnitude_velocity": np.where(has_velocity.any(axis=1), lengths[1], np.nan),
        "confidence": np.full(len(v), np.nan) if confidence is None else confidence.astype(np.float64),
    }
    if position.shape[1] == 2:
        for name, values in (("", position), ("shift_", shift), ("velocity_", velocity)):
            columns |= {f"{name}x": values[:, 0].astype(np.float64), f"{name}y": values[:, 1].astype(np.float64)}
    return pd.DataFrame(columns)
