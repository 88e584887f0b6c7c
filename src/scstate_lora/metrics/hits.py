"""Whether the perturbations with an effect are found: which to test first, and at what share of false ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def hit_recall_at_budget(scores: ArrayLike, hits: ArrayLike, *, n_tested: int) -> float:
    """Share of all hits among the `n_tested` perturbations with the highest scores.

    For a user who asks which 20 to test. Equal scores share their hits evenly, as if they were in random order.

    Parameters
    ----------
    scores
        Predicted size of the effect of every perturbation, ``(n_perturbations,)``; the largest is tested first.
    hits
        Whether each has a measured effect, bool ``(n_perturbations,)``.
    n_tested
        Perturbations that one can test.

    Raises
    ------
    ValueError
        If shapes differ, a score is NaN, there is no hit, or `n_tested` is not between 1 and their number.

    References
    ----------
    Bereket and Leskovec (2026), PerturbHD, hit prioritization.
    """
    return float(np.nanmean(hits_found_at_budget(scores, hits, n_tested=n_tested)))


def hits_found_at_budget(scores: ArrayLike, hits: ArrayLike, *, n_tested: int) -> np.ndarray:
    """Chance of every hit to be among the `n_tested` perturbations with the highest scores, ``(n_perturbations,)``.

    NaN for those that are no hits. The mean over hits is :func:`hit_recall_at_budget`.

    Parameters
    ----------
    scores, hits, n_tested
        As in :func:`hit_recall_at_budget`, with its errors.
    """
    values, is_hit = _checked(scores, hits)
    if not 1 <= n_tested <= len(values):
        msg = f"n_tested={n_tested} is not between 1 and the {len(values)} perturbations."
        raise ValueError(msg)
    _, group, size = np.unique(-values, return_inverse=True, return_counts=True)
    before = np.cumsum(size) - size
    return np.where(is_hit, np.clip((n_tested - before) / size, 0, 1)[group], np.nan)


def hit_recall_at_fdr(
    scores: ArrayLike, hits: ArrayLike, *, fdr: float = 0.1, n_draws: int = 100, seed: int = 0
) -> float:
    """Largest share of all hits above a threshold on the score, with at most `fdr` of those above it being no hits.

    The best threshold is chosen with the hits known: what the order of the scores allows. 0 where no threshold does.

    Parameters
    ----------
    scores, hits
        As in :func:`hit_recall_at_budget`.
    fdr
        Largest share of perturbations without effect among those chosen.
    n_draws
        Random orders of equal scores to average over.
    seed
        Seed of the orders.

    Raises
    ------
    ValueError
        If shapes differ, a score is NaN, there is no hit, or `fdr` is not between 0 and 1.

    References
    ----------
    Bereket and Leskovec (2026), PerturbHD, hit simulation.
    """
    return float(np.nanmean(hits_found_at_fdr(scores, hits, fdr=fdr, n_draws=n_draws, seed=seed)))


def hits_found_at_fdr(
    scores: ArrayLike, hits: ArrayLike, *, fdr: float = 0.1, n_draws: int = 100, seed: int = 0
) -> np.ndarray:
    """Share of the random orders of equal scores in which each hit is above the best threshold, ``(n_perturbations,)``.

    NaN for those that are no hits. The mean over hits is :func:`hit_recall_at_fdr`.

    Parameters
    ----------
    scores, hits, fdr, n_draws, seed
        As in :func:`hit_recall_at_fdr`, with its errors.
    """
    values, is_hit = _checked(scores, hits)
    _checked_share(fdr)
    rng = np.random.default_rng(seed)
    n_draws = n_draws if len(np.unique(values)) < len(values) else 1
    n_above = np.zeros(len(values))
    depth = np.arange(1, len(values) + 1)
    for _ in range(n_draws):
        order = rng.permutation(len(values))
        order = order[np.argsort(-values[order], kind="stable")]
        n_hits = np.cumsum(is_hit[order])
        best = int(np.argmax(np.where(depth - n_hits <= fdr * depth, n_hits, 0)))
        if depth[best] - n_hits[best] <= fdr * depth[best]:
            n_above[order[: best + 1]] += 1
    return np.where(is_hit, n_above / n_draws, np.nan)


def hit_recall_at_predicted_fdr(q_values: ArrayLike, hits: ArrayLike, *, fdr: float = 0.1) -> tuple[float, float]:
    """Share of all hits among the perturbations whose predicted FDR is at most `fdr`, and the FDR that these have.

    Unlike :func:`hit_recall_at_fdr` no hit is known when choosing: this is what one gets in practice.

    Parameters
    ----------
    q_values
        Predicted FDR of every perturbation: expected share of perturbations without effect among all that have this
        value or a lower one, ``(n_perturbations,)``.
    hits, fdr
        As in :func:`hit_recall_at_fdr`.

    Returns
    -------
    Recall and realized FDR; the latter NaN where nothing is chosen.

    Raises
    ------
    ValueError
        As in :func:`hit_recall_at_fdr`.

    References
    ----------
    Bereket and Leskovec (2026), PerturbHD, prospective hit simulation.
    """
    values, is_hit = _checked(q_values, hits)
    _checked_share(fdr)
    chosen = values <= fdr
    n_hits = is_hit[chosen].sum()
    realized = 1 - n_hits / chosen.sum() if chosen.any() else np.nan
    return float(n_hits / is_hit.sum()), float(realized)


def _checked(scores: ArrayLike, hits: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    values, is_hit = np.asarray(scores, dtype=np.float64), np.asarray(hits)
    if values.ndim != 1 or values.shape != is_hit.shape or is_hit.dtype != bool or np.isnan(values).any():
        msg = (
            "There must be one score, not NaN, and one True or False for each perturbation; found scores of shape "
            f"{values.shape} ({int(np.isnan(values).sum())} NaN) and {is_hit.dtype} of shape {is_hit.shape}."
        )
        raise ValueError(msg)
    if not is_hit.any():
        msg = f"None of the {len(is_hit)} perturbations is a hit: there is nothing to find."
        raise ValueError(msg)
    return values, is_hit


def _checked_share(fdr: float) -> None:
    if not 0 <= fdr <= 1:
        msg = f"fdr={fdr} is not between 0 and 1."
        raise ValueError(msg)
