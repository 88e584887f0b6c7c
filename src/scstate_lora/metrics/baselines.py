"""Naive predictions of perturbed cells, which a model has to beat, and the one list of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from scstate_lora.metrics.linear_effects import LinearEffects

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_NEEDS_TRAINING = "no training context with the needed cells: give train="


def no_change(control: np.ndarray) -> np.ndarray:
    """Baseline: the perturbation does nothing, so the control cells themselves are the prediction.

    Parameters
    ----------
    control
        Measured control cells, shape ``(n, n_genes)``.
    """
    return control


def mean_shift(control: np.ndarray, deltas: Sequence[np.ndarray]) -> np.ndarray:
    """Baseline: every control cell plus the average change seen in training, clipped at 0.

    Every training context weighs the same, however many cells it has.

    Parameters
    ----------
    control
        Measured control cells, shape ``(n, n_genes)``, log1p scale.
    deltas
        For every training context the mean of its perturbed cells minus the mean of its controls, shape ``(n_genes,)``.

    Raises
    ------
    ValueError
        If there is no training context.
    """
    if not len(deltas):
        msg = "The mean shift needs a training context with control and perturbed cells; there is none."
        raise ValueError(msg)
    return shifted(control, np.asarray(np.mean(deltas, axis=0, dtype=np.float64)))


def shifted(control: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Every control cell plus one change of the mean, clipped at 0.

    Parameters
    ----------
    control
        Measured control cells, shape ``(n, n_genes)``, log1p scale.
    delta
        Change of the mean, shape ``(n_genes,)``.
    """
    return np.maximum(control + delta.astype(control.dtype), 0)


def perturbed_mean(control: np.ndarray, means: Sequence[np.ndarray]) -> np.ndarray:
    """Baseline: the average perturbed profile seen in training for every cell, whatever its context.

    Every training context weighs the same, however many cells it has.

    Parameters
    ----------
    control
        Measured control cells, shape ``(n, n_genes)``; only their number is used.
    means
        For every training context the mean of its perturbed cells, shape ``(n_genes,)``.

    Raises
    ------
    ValueError
        If there is no training context.
    """
    if not len(means):
        msg = "The perturbed mean needs a training context with perturbed cells; there is none."
        raise ValueError(msg)
    return np.tile(np.mean(means, axis=0, dtype=np.float64).astype(control.dtype), (len(control), 1))


def context_mean(control: np.ndarray, mean: np.ndarray | None) -> np.ndarray:
    """Baseline: the average training cell of the context for every cell, whatever the perturbation.

    Parameters
    ----------
    control
        Measured control cells, shape ``(n, n_genes)``; only their number is used.
    mean
        Mean of all training cells of the context, controls among them, shape ``(n_genes,)``; None if there are none.

    Raises
    ------
    ValueError
        If there is no training cell.
    """
    if mean is None:
        msg = "The context mean needs training cells of the context; there is none."
        raise ValueError(msg)
    return np.tile(mean.astype(control.dtype), (len(control), 1))


@dataclass(frozen=True)
class TrainingMeans:
    """Mean training cells, from which the baselines learn; all empty without training cells.

    Parameters
    ----------
    contexts
        Mean of all cells of every context, controls among them, ``(n_genes,)`` each.
    controls
        Mean of the control cells of every context, ``(n_genes,)`` each.
    perturbed
        Mean of the perturbed cells by perturbation and context, ``(n_genes,)`` each.
    features
        Features of perturbations by their names, ``(n_perturbations, n_features)``, as :class:`LinearEffects` reads
        them; None without.
    linear
        The linear baseline; None without a context that has control and perturbed cells.
    """

    contexts: Mapping[str, np.ndarray]
    controls: Mapping[str, np.ndarray]
    perturbed: Mapping[tuple[str, str], np.ndarray]
    features: Callable[[Sequence[str]], np.ndarray] | None = None
    linear: LinearEffects | None = None

    @classmethod
    def fit(
        cls,
        contexts: Mapping[str, np.ndarray],
        groups: Mapping[tuple[str, str], np.ndarray],
        *,
        control: str,
        features: Callable[[Sequence[str]], np.ndarray] | None = None,
    ) -> Self:
        """Fit the linear baseline to mean cells.

        Parameters
        ----------
        contexts, features
            As above.
        groups
            Mean of the cells by perturbation, controls among them, and context, ``(n_genes,)`` each.
        control
            Name of the controls in `groups`.

        Raises
        ------
        ValueError
            As :meth:`LinearEffects.fit` and `features`.
        """
        controls = {context: mean for (name, context), mean in groups.items() if name == control}
        perturbed = {key: mean for key, mean in groups.items() if key[0] != control}
        return cls(contexts, controls, perturbed, features)._fitted()

    def beside(self, contexts: Mapping[str, np.ndarray | None], controls: Mapping[str, np.ndarray | None]) -> Self:
        """Return the means of the same perturbed cells beside fewer control cells.

        Parameters
        ----------
        contexts, controls
            Means to replace, by context; None where no cell is left.

        Raises
        ------
        ValueError
            As :meth:`LinearEffects.fit`.
        """

        def replaced(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray | None]) -> dict[str, np.ndarray]:
            return {key: mean for key, mean in {**old, **new}.items() if mean is not None}

        means = replace(self, contexts=replaced(self.contexts, contexts), controls=replaced(self.controls, controls))
        # The linear baseline sees the controls of contexts with perturbed cells alone.
        is_same = not {context for _, context in self.deltas} & set(controls)
        return means if is_same else means._fitted()

    def _fitted(self) -> Self:
        """Fit the linear baseline, if there is a context with control and perturbed cells."""
        if not self.deltas:
            return replace(self, linear=None)
        rows = None
        if self.features is not None:
            names = sorted({name for name, _ in self.deltas})
            rows = dict(zip(names, self.features(names).astype(np.float64), strict=True))
        return replace(self, linear=LinearEffects.fit(self.controls, self.deltas, features=rows))

    @cached_property
    def deltas(self) -> dict[tuple[str, str], np.ndarray]:
        """Change of the mean by perturbation and context, where the context has controls."""
        return {
            (name, context): mean - self.controls[context]
            for (name, context), mean in self.perturbed.items()
            if context in self.controls
        }

    @cached_property
    def effects(self) -> dict[str, np.ndarray]:
        """Change of the mean of every perturbation, averaged over its contexts."""
        by_name: dict[str, list[np.ndarray]] = {}
        for (name, _), delta in self.deltas.items():
            by_name.setdefault(name, []).append(delta)
        return {name: np.mean(deltas, axis=0) for name, deltas in by_name.items()}

    @cached_property
    def mean_effect(self) -> np.ndarray:
        """Change of the mean, averaged over all perturbations; a ValueError without training cells."""
        if not self.effects:
            raise ValueError(_NEEDS_TRAINING)
        return np.asarray(np.mean(list(self.effects.values()), axis=0))

    def linear_effect(self, control_mean: np.ndarray, perturbation: str) -> np.ndarray:
        """Predict the change of the mean by the linear baseline, ``(n_genes,)``.

        Raises
        ------
        ValueError
            If it cannot predict this perturbation.
        """
        if self.linear is None:
            raise ValueError(_NEEDS_TRAINING)
        row = None
        if self.features is not None and perturbation not in self.linear.effects:
            row = self.features([perturbation])[0]
        try:
            return self.linear.predict(control_mean, perturbation, features=row)
        except ValueError as error:
            if self.features is None:
                msg = f"{error} Give pert_features=."
                raise ValueError(msg) from error
            raise


NO_TRAINING = TrainingMeans({}, {}, {})


class Case(NamedTuple):
    """What a baseline is to predict: a perturbation in a context, from the control cells of that context."""

    perturbation: str
    context: str
    training: TrainingMeans


@dataclass(frozen=True)
class Baseline:
    """A naive prediction, as it is computed and shown.

    Parameters
    ----------
    name
        Its name in tables, plots and reports.
    marker
        Its marker in plots, one of matplotlib's.
    cells
        Predicts cells from control cells, both ``(n, n_genes)``, for :func:`scstate_lora.tl.evaluate_perturbation`.
        None: it is left out there. A ValueError says why it cannot predict.
    effect
        Predicts the change of the mean from the mean control cell, both ``(n_genes,)``, for
        :func:`scstate_lora.tl.discrimination`. None: it is left out there.
    """

    name: str
    marker: str
    cells: Callable[[np.ndarray, Case], np.ndarray] | None = None
    effect: Callable[[np.ndarray, Case], np.ndarray] | None = None


def _of_perturbation(means: Mapping[tuple[str, str], np.ndarray], perturbation: str) -> list[np.ndarray]:
    """Means of a perturbation, one per context; of an unseen one, the average mean of every other perturbation."""
    own = [mean for (name, _), mean in means.items() if name == perturbation]
    if own:
        return own
    names = sorted({name for name, _ in means})
    averages = [np.mean([mean for (n, _), mean in means.items() if n == name], axis=0) for name in names]
    if not averages:
        raise ValueError(_NEEDS_TRAINING)
    return averages


def _no_effect(control_mean: np.ndarray, _: Case) -> np.ndarray:
    return np.zeros_like(control_mean)


def _mean_shift_cells(control: np.ndarray, case: Case) -> np.ndarray:
    return mean_shift(control, _of_perturbation(case.training.deltas, case.perturbation))


def _mean_shift_effect(_: np.ndarray, case: Case) -> np.ndarray:
    effects = case.training.effects
    if not effects:
        raise ValueError(_NEEDS_TRAINING)
    if case.perturbation not in effects:
        msg = f"train has no cell {case.perturbation!r} in a context with controls"
        raise ValueError(msg)
    return effects[case.perturbation]


def _mean_effect(_: np.ndarray, case: Case) -> np.ndarray:
    return case.training.mean_effect


def _perturbed_mean_cells(control: np.ndarray, case: Case) -> np.ndarray:
    means = _of_perturbation(case.training.perturbed, case.perturbation)
    return _repeated(np.asarray(np.mean(means, axis=0, dtype=np.float64)), control)


def _context_mean_cells(control: np.ndarray, case: Case) -> np.ndarray:
    contexts = case.training.contexts
    if case.context not in contexts:
        raise ValueError(f"train has no cell of {case.context}" if contexts else _NEEDS_TRAINING)
    return _repeated(contexts[case.context], control)


def _repeated(profile: np.ndarray, control: np.ndarray) -> np.ndarray:
    """One profile for every control cell, as a view that takes no memory."""
    return np.broadcast_to(profile.astype(control.dtype), control.shape)


def _linear_cells(control: np.ndarray, case: Case) -> np.ndarray:
    mean = control.mean(axis=0, dtype=np.float64)
    return shifted(control, case.training.linear_effect(mean, case.perturbation))


def _linear_effect(control_mean: np.ndarray, case: Case) -> np.ndarray:
    return case.training.linear_effect(control_mean, case.perturbation)


MEAN_SHIFT = "mean shift"
MEAN_EFFECT = "mean effect"
NO_CHANGE = "no change"

CEILING = "ceiling"
"""A half of the measured cells, with controls of its own, scored against the other: a replicate, whose skill is 1."""

BASELINES = {
    baseline.name: baseline
    for baseline in (
        Baseline(NO_CHANGE, "x", cells=lambda control, _: no_change(control), effect=_no_effect),
        Baseline(MEAN_EFFECT, "s", effect=_mean_effect),
        Baseline(MEAN_SHIFT, "D", cells=_mean_shift_cells, effect=_mean_shift_effect),
        Baseline("perturbed mean", "s", cells=_perturbed_mean_cells),
        Baseline("context mean", "^", cells=_context_mean_cells),
        Baseline("linear", "v", cells=_linear_cells, effect=_linear_effect),
    )
}
"""All baselines by name, in the order of the tables."""


def reference_names() -> list[str]:
    """Names in tables of scores that no model may have: the baselines, then the ceiling."""
    return [*BASELINES, CEILING]
