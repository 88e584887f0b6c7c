"""Cells that a classifier's parts were not fitted to: what its confidence, its promises and its "unknown" rest on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import softmax

from scstate_lora.metrics.calibration import LabelSets, fit_label_sets, fit_temperature
from scstate_lora.metrics.confidence import Reliability, reliability
from scstate_lora.metrics.novelty import NoveltyScale, fit_novelty_scale

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scstate_lora.data.label_tree import LabelTree

_REJECTED = 0.05


@dataclass(frozen=True)
class LeftOutCells:
    """What was computed of cells while they were left out.

    Parameters
    ----------
    logits
        float32 ``(n_cells, n_classes)``, before any shift.
    allowed
        Classes that their labels leave open, bool ``(n_cells, n_classes)``.
    fold
        With which others a cell was left out, int64 ``(n_cells,)``.
    offsets
        Shift of each fold's logits, as of a new batch, ``(n_folds, n_classes)``.
    energy, distance
        Signals of novelty, ``(n_cells,)``.
    """

    logits: np.ndarray
    allowed: np.ndarray
    fold: np.ndarray
    offsets: np.ndarray
    energy: np.ndarray
    distance: np.ndarray

    def __len__(self) -> int:
        return len(self.logits)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name, ready to be saved as tensors."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> LeftOutCells:
        """Rebuild from what :meth:`arrays` returned."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    @property
    def most(self) -> float:
        """Largest probability that so few cells can promise (split conformal)."""
        return len(self) / (len(self) + 1)

    @cached_property
    def shifted(self) -> np.ndarray:
        """Logits after the shift of their fold."""
        return self.logits - self.offsets[self.fold]

    @cached_property
    def temperature(self) -> float:
        """By which logits are divided before the softmax."""
        return fit_temperature(self.shifted, self.allowed)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Calibrated, ``(n_cells, n_classes)``."""
        return softmax(self.shifted / self.temperature, axis=1)

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether the likeliest class is one that the label leaves open, ``(n_cells,)``."""
        return self.allowed[np.arange(len(self)), self.shifted.argmax(axis=1)]

    @cached_property
    def reliability(self) -> Reliability:
        """Confidence against accuracy; of a temperature fitted to these very cells."""
        return reliability(self.probabilities.max(axis=1), self.correct)

    def threshold(self, tree: LabelTree, max_error: float, *, mask: np.ndarray | None = None) -> float:
        """Find the smallest probability of a label that is given, so that at most `max_error` of these are wrong.

        Parameters
        ----------
        tree
            The labels; its leaves are the classes.
        max_error
            Largest share of wrong labels.
        mask
            Classes that may be given.
        """
        return tree.threshold(tree.probabilities(self.probabilities, mask=mask), self.allowed, max_error=max_error)

    def label_sets(self, coverage: float) -> LabelSets:
        """Fit sets of labels that hold the true one with a probability of `coverage`."""
        return fit_label_sets(self.probabilities, self.allowed, coverage=coverage)

    def novelty(self, *, rejected: float | None = None) -> NoveltyScale:
        """Fit the scale of novelty, and the threshold above which a share of `rejected` of known cells lies.

        By default 0.05, or the smallest share that so few cells can promise.
        """
        share = max(_REJECTED, 1 - self.most) if rejected is None else rejected
        return fit_novelty_scale(self.energy, self.distance, rejected=share)

    def sample(self, n: int, *, seed: int = 0) -> LeftOutCells:
        """Draw cells, all where there are no more than `n`."""
        if len(self) <= n:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False))
        rest: dict[str, Any] = {k: v if k == "offsets" else v[rows] for k, v in self.arrays().items()}
        return type(self)(**rest)


@dataclass(frozen=True)
class LeftOutNumbers:
    """Errors of a regression on cells that were left out.

    Parameters
    ----------
    errors
        Absolute, in the units of the target, ``(n_cells,)``.
    """

    errors: np.ndarray

    def half_width(self, coverage: float) -> float:
        """Half the width of intervals that hold the true number with a probability of `coverage` (split conformal)."""
        rank = min(len(self.errors), int(np.ceil((len(self.errors) + 1) * coverage)))
        return float(np.sort(self.errors)[rank - 1])
