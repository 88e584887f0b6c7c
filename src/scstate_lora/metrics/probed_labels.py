"""Labels that a probe gave to cells that it had not seen, and how right they are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scstate_lora.metrics.confidence import expected_calibration_error

_FEWEST_CELLS = 5


class ProbedLabels(NamedTuple):
    """True and predicted labels of held-out cells, and the stated probability of the predicted one."""

    true: np.ndarray
    """``(n_cells,)``."""
    predicted: np.ndarray
    """``(n_cells,)``, of the kind of `true`."""
    confidence: np.ndarray
    """Between 0 and 1, ``(n_cells,)``."""

    @property
    def accuracy(self) -> float:
        """Share of right labels."""
        return float(np.mean(self.true == self.predicted))

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes with 5 cells or more, each counting alike; NaN without such a class."""
        from sklearn.metrics import f1_score

        names, sizes = np.unique(self.true, return_counts=True)
        scored = names[sizes >= _FEWEST_CELLS]
        if not len(scored):
            return float("nan")
        return float(f1_score(self.true, self.predicted, labels=scored, average="macro", zero_division=0))

    @property
    def calibration_error(self) -> float:
        """Mean distance of the stated confidence from the share of right labels, in 10 bins (ECE)."""
        return expected_calibration_error(self.confidence, self.true == self.predicted)
