"""The report of an evaluation of files: the page of a run, for predictions of any model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scstate_lora.data import Registry
from scstate_lora.data.log_scale import scale_name
from scstate_lora.data.perturbations import respelled
from scstate_lora.data.results import (
    EVALUATE_PERTURBATION,
    LIBRARY_SIZE,
    PREDICT,
    Prediction,
    is_predicted,
    read_prediction,
    write_result,
)
from scstate_lora.data.stream import read_matrix
from scstate_lora.reporting.page import experiment, write_page

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

    from scstate_lora.config import EvaluateOptions
    from scstate_lora.workflow.evaluation import Evaluated


def write_evaluation_report(
    path: Path, evaluated: Evaluated, real: AnnData, options: EvaluateOptions, *, n_train: int = 0, title: str
) -> Path:
    """Write the page of :func:`scstate_lora.report` on predicted cells that were scored.

    Parameters
    ----------
    path
        File to write.
    evaluated
        What :func:`scstate_lora.workflow.evaluate_cells` found: the scores, the audit, and the cells that were scored.
    real
        Measured cells, as it has set them up; the context is registered there.
    options
        All options, the perturbation and its control level among them.
    n_train
        Training cells that are not in `real`, but in a file of their own.
    title
        Heading of the page.

    Returns
    -------
    The path written.
    """
    keys = options.context_key
    single = keys[0] if len(keys) == 1 else None
    registry = replace(Registry.from_adata(real), context_keys=list(keys), cell_type_key=single)
    registry.write(real)
    predictions = _ByTarget(evaluated.scored, registry, evaluated.tables["perturbation"])
    return write_page(
        path, [experiment(real, None, predictions, audit=evaluated.tables["audit"], n_train=n_train)], title=title
    )


class _ByTarget(Sequence["AnnData"]):
    """Predicted cells of single targets with their scores, each taken when it is asked for.

    Parameters
    ----------
    pred
        Predicted cells of all targets.
    registry
        That of the measured cells.
    scores
        Scores of all targets.
    """

    def __init__(self, pred: AnnData, registry: Registry, scores: pd.DataFrame) -> None:
        self._pred = pred
        self._prediction = read_prediction(pred) if is_predicted(pred) else _described(pred, registry)
        labels = pred.obs[self._prediction.pert_key].astype(str).to_numpy(dtype=object)
        self._labels = respelled(labels, names=scores["perturbation"].unique(), control=self._prediction.control)
        self._scores = {str(target): part for target, part in scores.groupby("perturbation", sort=False)}
        self._targets = [target for target in self._scores if target in set(self._labels)]

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        target = self._targets[index]
        predicted = self._pred[np.asarray(self._labels == target)].copy()
        predicted.obs[self._prediction.pert_key] = target
        write_result(predicted, PREDICT, self._prediction._replace(targets=[target]).record())
        write_result(predicted, EVALUATE_PERTURBATION, self._scores[target])
        return predicted


def _described(pred: AnnData, registry: Registry) -> Prediction:
    """Describe cells that another model predicted; of counts over all genes, note their sum."""
    matrix = read_matrix(pred)
    is_counts = matrix.nnz > 0 and bool((matrix.data == np.round(matrix.data)).all())
    if is_counts and LIBRARY_SIZE not in pred.obs:
        pred.obs[LIBRARY_SIZE] = np.asarray(matrix.sum(axis=1)).ravel()
    scale = "counts" if is_counts else scale_name(registry.target_sum)
    pert_key, control = str(registry.pert_key), str(registry.control)
    return Prediction(scale, pert_key, control, [], "genes", registry.target_sum)
