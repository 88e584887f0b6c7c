"""What LoRACovariateSE reads of cells besides expression: covariates with the batch among them, labels, groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scstate_lora.data.fields import HANDFUL, CategoricalCovariate, Covariate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from scstate_lora.config import SEObjectiveConfig
    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.registry import Registry

# A number with more values than a handful is cut into this many groups of equal size to find cells to compare.
_BINS = 4


def extra_batch(registry: Registry) -> CategoricalCovariate | None:
    """Return the batch where it is not among the covariates: an input that no user asks counterfactuals of."""
    named = {c.name for c in registry.covariates}
    return None if registry.batch is None or registry.batch.name in named else registry.batch


def inputs_of(registry: Registry) -> list[Covariate]:
    """All inputs of the conditioning: the covariates, and the batch."""
    batch = extra_batch(registry)
    return [*registry.covariates, *([] if batch is None else [batch])]


def encode_inputs(cells: BoundData, *, with_batch: bool = True) -> dict[str, np.ndarray]:
    """Encode the inputs of cells, under their own covariates or others; a batch never seen is "unknown".

    Parameters
    ----------
    cells
        Cells of an experiment.
    with_batch
        Whether the batch is given to the network; otherwise it is withheld.

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
    """Give every value a number where there are few, else cut them into groups; unknown ones are a group too."""
    known = values[~np.isnan(values)]
    levels = np.unique(known)
    if len(levels) > HANDFUL:
        levels = np.unique(np.quantile(known, np.linspace(0, 1, _BINS + 1)[:-1]))
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
        ``"cell_type"``, ``"covariates"``, or ``"auto"``: the first where there is one.

    Raises
    ------
    ValueError
        The cell type is asked for, and there is none.
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
    """Describe cells to :class:`~scstate_lora.training.se.batches.SECells`, but for what the base makes of them."""
    registry = cells.registry
    covariates = encode_inputs(cells)
    combinations = conditions(registry, covariates)
    batch = extra_batch(registry)
    return {
        "covariates": covariates,
        "unknown": {c.name: c.unknown for c in inputs_of(registry)},
        "kept": frozenset() if batch is None else frozenset({batch.name}),
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
        What is asked for.
    registry
        The experiment.
    reads
        Whether the base reads expression, and can predict it.

    Raises
    ------
    ValueError
        None of the terms asked for can be computed.
    """
    absent = [] if reads else ["reconstruction"]
    if not registry.covariates:
        absent += ["covariates", "counterfactual"]
    if registry.batch is None:
        absent.append("batch")
    weights = {name: w for name, w in objective.weights.items() if w and name not in absent}
    if not weights:
        asked = ", ".join(name for name, w in objective.weights.items() if w)
        msg = f"The objective asks for {asked} only, and this experiment has nothing to compute it from."
        raise ValueError(msg)
    return weights
