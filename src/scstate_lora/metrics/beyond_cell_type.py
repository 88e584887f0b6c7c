"""How much of what a linear probe reads of a covariate is the cell type."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from scstate_lora.metrics.embedding import Score

_LEAST_INFORMATION = 0.01


class Entanglement(NamedTuple):
    """Information of an embedding on a covariate: in all, of the type alone, beyond the type, and third over first."""

    covariate_information: float
    covariate_information_of_cell_type: float
    covariate_information_beyond_cell_type: float
    disentanglement: float


def entanglement(
    x: np.ndarray,
    values: np.ndarray,
    labels: np.ndarray,
    *,
    probe: Callable[..., Score],
    n_folds: int = 5,
    seed: int = 0,
) -> Entanglement:
    """Compare what is read of a covariate from an embedding, from the cell type, and from both.

    Parameters
    ----------
    x
        Embedding of shape ``(n_cells, n_dims)``, finite.
    values
        The covariate, ``(n_cells,)``: labels or numbers, as `probe` takes them.
    labels
        Cell type of every cell, ``(n_cells,)``.
    probe
        :func:`categorical_probe` or :func:`continuous_probe`.
    n_folds, seed
        Folds of the probe, and their seed.

    Returns
    -------
    Information is ``(score - baseline) / (1 - baseline)`` of the probe, and beyond the type
    ``(score of both - score of the type) / (1 - score of the type)``, 0 where the type tells everything. The
    disentanglement is clipped to 0 and 1, and NaN if the embedding has under 0.01 of information.

    Raises
    ------
    ValueError
        As `probe` does.
    """
    codes = np.unique(labels, return_inverse=True)[1]
    is_type = np.eye(codes.max() + 1, dtype=np.float32)[codes]
    (whole, baseline), (of_type, _), (of_both, _) = (
        probe(features, values, n_folds=n_folds, seed=seed) for features in (x, is_type, np.hstack([x, is_type]))
    )
    information = (whole - baseline) / (1 - baseline)
    beyond = (of_both - of_type) / (1 - of_type) if of_type < 1 else 0.0
    kept = float(np.clip(beyond / information, 0, 1)) if information >= _LEAST_INFORMATION else np.nan
    return Entanglement(information, (of_type - baseline) / (1 - baseline), beyond, kept)
