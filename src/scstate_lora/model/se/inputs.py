"""Inputs of LoRACovariateSE beside expression: covariates including the batch, labels, conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.data.fields import MAX_NUMERIC_LEVELS, CategoricalCovariate, Covariate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from scstate_lora.config import SEObjectiveConfig
    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.registry import Registry

# Continuous covariates are cut into this many groups of equal size to find cells of like condition.
_BINS = 4


def extra_batch(registry: Registry) -> CategoricalCovariate | None:
    """Return the batch if it is an input but not a declared covariate, so that no counterfactual can name it."""
    named = {c.name for c in registry.covariates}
    return None if registry.batch is None or registry.batch.name in named else registry.batch


def inputs_of(registry: Registry) -> list[Covariate]:
    """List the inputs of the conditioning: the covariates and the batch."""
    batch = extra_batch(registry)
    return [*registry.covariates, *([] if batch is None else [batch])]


def encode_inputs(cells: BoundData, *, with_batch: bool = True) -> dict[str, np.ndarray]:
    """Encode the inputs of cells, under their own covariates or others; a batch never seen is "unknown".

    Parameters
    ----------
    cells
        Cells of an experiment.
    with_batch
        Whether the network receives the batch; otherwise it is withheld.

    Returns
    -------
    int64 codes or standardised float32 of every input, ``(n_cells,)`` each.
    """
    encoded = cells.encode()
    batch = extra_batch(cells.registry)
    if batch is not None:
        codes = cells.batch_codes if with_batch else np.full(len(cells), -1)
        encoded[batch.name] = np.where(codes < 0, batch.unknown, codes)
    return encoded


def cell_type_codes(cells: BoundData) -> np.ndarray:
    """Codes of the cell types, int64 ``(n_cells,)``; all 0 without ``cell_type_key``."""
    if cells.cell_types is None:
        return np.zeros(len(cells), dtype=np.int64)
    return np.unique(cells.cell_types, return_inverse=True)[1].astype(np.int64)


def conditions(registry: Registry, encoded: Mapping[str, np.ndarray]) -> np.ndarray:
    """Codes of the combinations of covariates that occur, int64 ``(n_cells,)``; numbers are cut into groups."""
    columns = [
        encoded[c.name] if isinstance(c, CategoricalCovariate) else _bins(encoded[c.name]) for c in registry.covariates
    ]
    if not columns:
        return np.zeros(len(next(iter(encoded.values()))), dtype=np.int64)
    return np.unique(np.stack(columns), axis=1, return_inverse=True)[1].ravel().astype(np.int64)


def _bins(values: np.ndarray) -> np.ndarray:
    """Assign values to groups: one per value if they are few, else quantiles; unknown values form their own."""
    present = values[~np.isnan(values)]
    levels = np.unique(present)
    if len(levels) > MAX_NUMERIC_LEVELS:
        levels = np.unique(np.quantile(present, np.linspace(0, 1, _BINS + 1)[:-1]))
    return np.where(np.isnan(values), -1, np.searchsorted(levels, values, side="right")).astype(np.int64)


def contrastive_labels(cells: BoundData, conditions: np.ndarray, on: str) -> np.ndarray:
    """Labels of the contrastive term, int64 ``(n_cells,)``.

    Parameters
    ----------
    cells
        Cells of an experiment.
    conditions
        From :func:`conditions`.
    on
        ``"cell_type"``, ``"covariates"``, or ``"auto"``: the cell type if one was set up, else the covariates.

    Raises
    ------
    ValueError
        If the cell type is requested and none was set up.
    """
    has_types = cells.cell_types is not None
    if on == "cell_type" and not has_types:
        msg = (
            "contrastive_on='cell_type', but no cell_type_key was set up. Name one, or use contrastive_on='covariates'."
        )
        raise ValueError(msg)
    by_type = on == "cell_type" or (on == "auto" and has_types)
    return cell_type_codes(cells) if by_type else conditions


def describe_cells(cells: BoundData, *, contrastive_on: str) -> dict[str, Any]:
    """Collect fields of :class:`~scstate_lora.training.se.batches.SECells` that do not depend on the base."""
    registry = cells.registry
    covariates = encode_inputs(cells)
    combinations = conditions(registry, covariates)
    batch = extra_batch(registry)
    return {
        "covariates": covariates,
        "unknown": {c.name: c.unknown for c in inputs_of(registry)},
        "fixed": frozenset() if batch is None else frozenset({batch.name}),
        "labels": contrastive_labels(cells, combinations, contrastive_on),
        "types": cell_type_codes(cells),
        "conditions": combinations,
        "batches": None if registry.batch is None else cells.batch_codes,
    }


def active_weights(objective: SEObjectiveConfig, registry: Registry, *, reads: bool) -> dict[str, float]:
    """Weights of the loss terms that an experiment and its base can have.

    Parameters
    ----------
    objective
        The requested terms.
    registry
        The experiment.
    reads
        Whether the base reads expression, and can predict it.

    Raises
    ------
    ValueError
        If none of the requested terms can be computed.
    """
    absent = [] if reads else ["reconstruction"]
    if not registry.covariates:
        absent += ["covariates", "counterfactual"]
    if registry.batch is None:
        absent.append("batch")
    weights = {name: w for name, w in objective.weights.items() if w and name not in absent}
    if not weights:
        requested = ", ".join(name for name, w in objective.weights.items() if w)
        msg = f"The objective has weights for {requested} only, which this experiment has no data for."
        raise ValueError(msg)
    return weights
