"""The linear baseline: ridge regression of the change of the mean on context and perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

CANDIDATES = (np.inf, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""Ridge penalties to choose from, relative to the sum of squares of the predictors; infinity for no slope."""
FEWEST_GROUPS = 3  # contexts or perturbations needed to choose a penalty by leaving some out
N_FOLDS = 10


@dataclass(frozen=True)
class LinearEffects:
    """Baseline: ridge regression of the change of the mean on context and perturbation.

    The change in context c under perturbation p is modelled as ``a_p + W z_c``.

    * ``a_p`` is the perturbation's own effect, not penalised. The effect of an unseen perturbation is regressed on
      features of perturbations; without features it is unknown.
    * ``z_c`` are the principal components of the training contexts' control means, one point per context, scaled so
      that the first has variance 1. So even a context without perturbed training cells gets a change of its own, from
      its unperturbed cells.

    Identifiability: C training contexts give at most C - 1 components, and as many slopes per gene, so W describes how
    the change differs along the differences between training contexts, and no more. All perturbations share W: those
    measured in a context determine how strongly it responds overall, not how it reorders the effects. The penalty on W
    is the candidate with the smallest squared error when each context is left out and predicted from the others; the
    penalty on the features, when each perturbation is left out, or each tenth of more than ten. "No slope" is a
    candidate and wins ties. Fewer than three contexts or perturbations cannot choose a penalty, and that slope is zero:
    the prediction is then the mean shift. Nothing is random.

    Parameters
    ----------
    effects
        ``a_p`` of every training perturbation, ``(n_genes,)`` each.
    origin, axes
        Mean of the training contexts' control means, ``(n_genes,)``, and the components, scaled,
        ``(n_components, n_genes)``.
    slopes
        ``W``, ``(n_components, n_genes)``.
    penalty
        Penalty chosen for W; infinity for no slope.
    feature_weights, feature_penalty
        Weights of the regression on features, ``(n_features, n_genes)``, None without features, and their penalty.
    """

    effects: dict[str, NDArray[np.float64]]
    origin: NDArray[np.float64]
    axes: NDArray[np.float64]
    slopes: NDArray[np.float64]
    penalty: float
    feature_weights: NDArray[np.float64] | None = None
    feature_penalty: float = np.inf

    @classmethod
    def fit(
        cls,
        control_means: Mapping[str, np.ndarray],
        deltas: Mapping[tuple[str, str], np.ndarray],
        *,
        features: Mapping[str, np.ndarray] | None = None,
    ) -> Self:
        """Fit the regression.

        Parameters
        ----------
        control_means
            Mean of the control cells of every training context, ``(n_genes,)``.
        deltas
            Mean of the perturbed training cells minus that of the controls, by perturbation and context.
        features
            Features of every training perturbation, ``(n_features,)``. The first multiplies the average effect and is
            not penalised: 1, or 2 for a combination of two if the other features of a combination are the sums of its
            parts. The others should have a similar spread.

        Raises
        ------
        ValueError
            If `deltas` is empty, one is of a context without control mean, or a training perturbation has no features.
        """
        if not deltas:
            msg = "The linear baseline needs a training context with control and perturbed cells."
            raise ValueError(msg)
        pairs = _Pairs.of(control_means, deltas)
        penalty = _choose_context_penalty(pairs)
        origin, axes, slopes, own = _fit_contexts(pairs, [penalty])
        weights, feature_penalty = None, np.inf
        if features is not None:
            missing = [name for name in pairs.names if name not in features]
            if missing:
                msg = f"There are no features of {missing[0]!r}, a perturbation of the training cells."
                raise ValueError(msg)
            x = np.array([features[name] for name in pairs.names], dtype=np.float64)
            feature_penalty = _choose_feature_penalty(x, own[0])
            weights = _ridge_on_features(x, own[0], [feature_penalty])[0]
        effects = dict(zip(pairs.names, own[0], strict=True))
        return cls(effects, origin, axes, slopes[0], penalty, weights, feature_penalty)

    def predict(
        self, control_mean: np.ndarray, perturbation: str, *, features: np.ndarray | None = None
    ) -> NDArray[np.float64]:
        """Predict the change of the mean, ``(n_genes,)``.

        Parameters
        ----------
        control_mean
            Mean of the control cells of the context, ``(n_genes,)``.
        perturbation
            Name; a training perturbation has its own effect.
        features
            Features of the perturbation, as in :meth:`fit`; needed for an unseen perturbation.

        Raises
        ------
        ValueError
            If the perturbation is unseen and has no features to predict it from.
        """
        if perturbation in self.effects:
            effect = self.effects[perturbation]
        elif self.feature_weights is not None and features is not None:
            effect = np.asarray(features, dtype=np.float64) @ self.feature_weights
        else:
            msg = f"{perturbation!r} is not among the training cells, and there are no features to go by."
            raise ValueError(msg)
        return np.asarray(effect + (control_mean - self.origin) @ self.axes.T @ self.slopes)


class _Pairs(NamedTuple):
    """Changes of the mean by perturbation and context."""

    names: list[str]
    points: NDArray[np.float64]  # control means (n_contexts, n_genes)
    name: NDArray[np.intp]  # perturbation of each pair (n_pairs,)
    context: NDArray[np.intp]  # (n_pairs,)
    deltas: NDArray[np.float64]  # (n_pairs, n_genes)

    @classmethod
    def of(cls, control_means: Mapping[str, np.ndarray], deltas: Mapping[tuple[str, str], np.ndarray]) -> Self:
        keys = sorted(deltas)
        names, contexts = sorted({name for name, _ in keys}), sorted({context for _, context in keys})
        for context in contexts:
            if context not in control_means:
                msg = f"There is no control mean of the context {context!r}."
                raise ValueError(msg)
        return cls(
            names=names,
            points=np.array([control_means[context] for context in contexts], dtype=np.float64),
            name=np.array([names.index(name) for name, _ in keys], dtype=np.intp),
            context=np.array([contexts.index(context) for _, context in keys], dtype=np.intp),
            deltas=np.array([deltas[key] for key in keys], dtype=np.float64),
        )

    def without(self, context: int) -> _Pairs:
        """Leave out a context, and the perturbations that no other context has."""
        keep = self.context != context
        left, name = np.unique(self.name[keep], return_inverse=True)
        contexts = self.context[keep]
        points = np.delete(self.points, context, axis=0)
        return _Pairs([self.names[i] for i in left], points, name, contexts - (contexts > context), self.deltas[keep])


def _sums(values: np.ndarray, groups: np.ndarray, n_groups: int) -> np.ndarray:
    """Sum rows by group, ``(n_groups, n_columns)``."""
    total = np.zeros((n_groups, values.shape[1]))
    np.add.at(total, groups, values)
    return total


def _fit_contexts(
    pairs: _Pairs, penalties: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Origin, scaled components, and for every penalty the slopes and the effects of the perturbations."""
    n_names, n_contexts = len(pairs.names), len(pairs.points)
    origin = pairs.points.mean(axis=0)
    _, sizes, axes = np.linalg.svd(pairs.points - origin, full_matrices=False)
    is_large = sizes > 1e-6 * max(float(sizes[0]), 1e-9)
    axes = axes[is_large] * np.sqrt(n_contexts) / max(float(sizes[0]), 1e-9)
    z = (pairs.points - origin) @ axes.T  # (n_contexts, n_components)
    counts = np.bincount(pairs.name, minlength=n_names)[:, None]
    mean_delta = _sums(pairs.deltas, pairs.name, n_names) / counts
    mean_z = _sums(z[pairs.context], pairs.name, n_names) / counts
    # The effects are not penalised, so the slopes follow from the deviations from each perturbation's own means.
    x, y = z[pairs.context] - mean_z[pairs.name], pairs.deltas - mean_delta[pairs.name]
    slopes = [_ridge(x.T @ x, x.T @ y, penalty * len(x)) for penalty in penalties]
    return origin, axes, slopes, [mean_delta - mean_z @ w for w in slopes]


def _ridge(gram: np.ndarray, moments: np.ndarray, penalty: float) -> np.ndarray:
    """Slopes through the origin from ``x.T @ x`` and ``x.T @ y``, ``(n_predictors, n_genes)``; 0 at infinity."""
    if not np.isfinite(penalty) or not len(gram):
        return np.zeros_like(moments)
    return np.asarray(np.linalg.solve(gram + penalty * np.eye(len(gram)), moments))


def _choose_context_penalty(pairs: _Pairs) -> float:
    """Leave each context out in turn; the larger penalty wins ties."""
    n_contexts = len(pairs.points)
    if n_contexts < FEWEST_GROUPS:
        return np.inf
    errors = np.zeros(len(CANDIDATES))
    for left_out in range(n_contexts):
        others = pairs.without(left_out)
        origin, axes, slopes, effects = _fit_contexts(others, CANDIDATES)
        z = (pairs.points[left_out] - origin) @ axes.T
        position = {name: i for i, name in enumerate(others.names)}
        rows = [i for i in np.flatnonzero(pairs.context == left_out) if pairs.names[pairs.name[i]] in position]
        seen = [position[pairs.names[pairs.name[i]]] for i in rows]
        for k in range(len(CANDIDATES)):
            errors[k] += np.square(pairs.deltas[rows] - effects[k][seen] - z @ slopes[k]).sum()
    return CANDIDATES[int(np.argmin(errors))]


def _ridge_on_features(x: np.ndarray, y: np.ndarray, penalties: Sequence[float]) -> list[np.ndarray]:
    """Weights ``(n_features, n_genes)`` for every penalty; the first feature is not penalised."""
    first, rest = x[:, :1], x[:, 1:]
    scale = float(np.square(first).sum())
    if scale == 0:
        msg = "The first feature is 0 for every perturbation; it must be 1, or the number of parts."
        raise ValueError(msg)
    apart, outcome = (values - first @ (first.T @ values) / scale for values in (rest, y))
    gram, moments = apart.T @ apart, apart.T @ outcome
    unit = float(np.trace(gram)) / max(1, len(gram)) or 1.0
    weights = []
    for penalty in penalties:
        slopes = _ridge(gram, moments, penalty * unit)
        weights.append(np.vstack([first.T @ (y - rest @ slopes) / scale, slopes]))
    return weights


def _choose_feature_penalty(x: np.ndarray, y: np.ndarray) -> float:
    """Leave perturbations out in turn; the larger penalty wins ties."""
    if len(x) < FEWEST_GROUPS:
        return np.inf
    fold = np.arange(len(x)) % N_FOLDS
    errors = np.zeros(len(CANDIDATES))
    for left_out in range(fold.max() + 1):
        rest, own = fold != left_out, fold == left_out
        for k, weights in enumerate(_ridge_on_features(x[rest], y[rest], CANDIDATES)):
            errors[k] += np.square(y[own] - x[own] @ weights).sum()
    return CANDIDATES[int(np.argmin(errors))]
