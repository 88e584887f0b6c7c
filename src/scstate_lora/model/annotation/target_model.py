"""One target of a classifier after its fit: from logits to probabilities, thresholds and novelty, saved as tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import softmax

from scstate_lora.data.label_targets import LabelTarget
from scstate_lora.inference.composition_shift import composition_shift
from scstate_lora.inference.left_out_cells import LeftOutCells, LeftOutNumbers
from scstate_lora.training.annotation.expression_model import ExpressionModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scipy import sparse
    from torch import Tensor

    from scstate_lora.data.label_tree import LabelTree


@dataclass
class TargetModel:
    """What a classifier knows of one target, beside its heads.

    Parameters
    ----------
    target
        The column, with the tree of the labels that training cells have.
    expression
        Linear start and distances; None for a plain head.
    left_out
        Cells that were left out in turn; errors of a regression on them.
    class_logits
        Mean logits of the training cells of each class, ``(n_classes, n_classes)``; None for a regression.
    center, scale
        Mean and standard deviation of a regression's training values.
    choice
        Chosen on the left-out cells: steps and strength of the head, and the losses with and without it.
    folds
        What was left out, in words.
    n_labelled
        Labelled cells of each class; of a regression all.
    """

    target: LabelTarget
    expression: ExpressionModel | None
    left_out: LeftOutCells | LeftOutNumbers
    class_logits: np.ndarray | None
    center: float = 0.0
    scale: float = 1.0
    choice: dict[str, float] = field(default_factory=dict)
    folds: str = ""
    n_labelled: list[int] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Column of the labels."""
        return self.target.key

    @property
    def tree(self) -> LabelTree:
        """The labels; only a classification has them."""
        assert self.target.tree is not None  # the caller has looked at the kind
        return self.target.tree

    @property
    def classes(self) -> list[str]:
        """Names of the leaves, in the order of logits; of a regression, its column."""
        if self.target.tree is None:
            return [self.key]
        return [self.tree.names[leaf] for leaf in self.tree.leaves]

    @property
    def is_used(self) -> bool:
        """Whether the heads add anything to the start."""
        return self.expression is None or self.choice["strength"] > 0

    def start(self, x: sparse.csr_matrix, measured: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Compute the outputs of the linear start, ``(n_cells, n_outputs)``, and distances, ``(n_cells,)``."""
        if self.expression is None:
            return np.zeros((x.shape[0], len(self.classes)), dtype=np.float32), np.zeros(x.shape[0])
        return self.expression(x, measured=measured)

    def shift(self, logits: np.ndarray, batches: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
        """Subtract the shift of every batch from logits; return what was done with each as well.

        Parameters
        ----------
        logits
            ``(n_cells, n_classes)``.
        batches
            Name of each cell's batch, ``(n_cells,)``.
        """
        assert self.class_logits is not None  # of a classification
        shifted, notes = logits.astype(np.float64), {}
        for name in np.unique(batches):
            rows = np.flatnonzero(batches == name)
            found = composition_shift(logits[rows], self.class_logits)
            shifted[rows] -= found.offset
            notes[str(name)] = found.note
        return shifted, notes

    def probabilities(self, shifted: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of the leaves, ``(n_cells, n_classes)``."""
        assert isinstance(self.left_out, LeftOutCells)
        return softmax(shifted / self.left_out.temperature, axis=1)

    def tensors(self) -> dict[str, Tensor]:
        """Arrays as tensors, by name."""
        arrays: dict[str, np.ndarray] = {}
        if self.expression is not None:
            arrays |= {f"expression.{name}": a for name, a in self.expression.arrays().items()}
        if isinstance(self.left_out, LeftOutCells):
            arrays |= {f"left_out.{name}": a for name, a in self.left_out.arrays().items()}
        else:
            arrays["left_out.errors"] = self.left_out.errors
        if self.class_logits is not None:
            arrays["class_logits"] = self.class_logits
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    def metadata(self) -> dict[str, Any]:
        """JSON-able rest."""
        rest = ("center", "scale", "choice", "folds", "n_labelled")
        return {"target": self.target.to_json(), **{name: getattr(self, name) for name in rest}}

    @classmethod
    def restore(cls, metadata: dict[str, Any], tensors: Mapping[str, Tensor]) -> TargetModel:
        """Rebuild from :meth:`metadata` and :meth:`tensors`."""
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        expression = _below("expression.", arrays)
        left_out = _below("left_out.", arrays)
        return cls(
            LabelTarget.from_json(metadata["target"]),
            ExpressionModel.from_arrays(expression) if expression else None,
            LeftOutNumbers(left_out["errors"]) if "errors" in left_out else LeftOutCells.from_arrays(left_out),
            arrays.get("class_logits"),
            **{name: value for name, value in metadata.items() if name != "target"},
        )


def _below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
