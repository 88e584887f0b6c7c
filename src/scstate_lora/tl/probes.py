"""Linear probes of embeddings as they are, and what they owe to the cell type: `linear_probe`, `disentanglement`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora.data import Registry
from scstate_lora.data.fields import obs_column
from scstate_lora.data.results import DISENTANGLEMENT, write_result
from scstate_lora.metrics import (
    HeldOutScore,
    categorical_probe,
    continuous_probe,
    held_out_continuous_probe,
    held_out_knn_accuracy,
    knn_accuracy,
    majority_share,
)
from scstate_lora.metrics.beyond_cell_type import Entanglement, entanglement
from scstate_lora.metrics.embedding import checked_embedding, cross_validated_labels
from scstate_lora.metrics.held_out import balanced_accuracy, held_out_labels
from scstate_lora.metrics.registry import METRICS
from scstate_lora.tl.embedded import (
    embedding_keys,
    embedding_matrices,
    labels_with_missing,
    may_miss,
    probe_target,
    scored_cells,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scstate_lora.metrics.probed_labels import ProbedLabels

_DESCRIPTION = ["direction", "lowest", "highest"]
_OF_LABELS = ("accuracy", "macro_f1", "calibration_error", "knn", "majority")


def linear_probe(
    adata: AnnData,
    embeddings: str | Sequence[str] | None = None,
    *,
    key: str,
    held_out: np.ndarray | None = None,
    cells: np.ndarray | None = None,
    n_folds: int = 5,
    level: float = 0.95,
    n_pcs: int = 50,
    seed: int = 0,
) -> pd.DataFrame:
    """Predict a column of ``obs`` linearly from embeddings as they are, beside a PCA.

    A logistic regression for labels, a ridge regression for numbers, on standardised dimensions; the embedding is not
    trained. With `held_out` the probe is fitted to the other cells and scored on these, with a bootstrap interval:
    ``probe_balanced_accuracy`` or ``probe_r2``. Without, it is cross-validated on random folds: ``probe_accuracy`` or
    ``probe_r2``, as in :func:`evaluate`. Random folds share donors and batches: hold out whole ones to learn how a
    probe does on new ones. Of labels, the same probe's accuracy, macro F1 and calibration error stand in columns of
    their own, beside the 10 nearest neighbours and the commonest label.

    Parameters
    ----------
    adata
        Annotated data that was set up with :func:`scstate_lora.setup_anndata`.
    embeddings
        Keys of ``adata.obsm``, as in :func:`evaluate`. The PCA is always added.
    key
        Column of ``adata.obs`` to predict.
    held_out
        Cells to score with a probe that was fitted to the others, a mask of shape ``(n_cells,)``.
    cells
        Cells to use at all, a mask of shape ``(n_cells,)``; all by default.
    n_folds
        Stratified folds, without `held_out`.
    level
        Share of the bootstrap samples that lie between ``low`` and ``high``.
    n_pcs
        Components of the PCA.
    seed
        Seed of folds, samples and PCA.

    Returns
    -------
    One row per embedding: ``embedding``, ``metric``, ``key``, ``value``, ``low`` and ``high`` (NaN without `held_out`),
    ``baseline`` (the commonest class, one over the number of classes for balanced accuracy, 0 for R²), ``direction``,
    ``lowest`` and ``highest`` possible value, ``n_cells`` that were scored, ``reason`` why a value is NaN, else empty.
    Of labels also ``accuracy``, ``macro_f1`` (of classes with 5 scored cells or more) and ``calibration_error`` of the
    probe, ``knn``, the accuracy of the 10 nearest training cells' vote, and ``majority``, that of the commonest label.

    Raises
    ------
    KeyError
        If `adata` was not set up, or a key is not in ``adata.obsm`` or ``adata.obs``.
    ValueError
        If values are missing in a column that was not declared so, or a mask is not one bool per cell.
    """
    registry = Registry.from_adata(adata)
    names = embedding_keys(adata, embeddings)
    target, is_number = probe_target(adata, key, registry)
    used = scored_cells(adata, cells) & ~pd.isna(target)
    test = used if held_out is None else used & scored_cells(adata, held_out)
    train = used if held_out is None else used & ~test
    metric = "probe_r2" if is_number else "probe_accuracy" if held_out is None else "probe_balanced_accuracy"
    rows = []
    for name, x in embedding_matrices(adata, names, n_pcs=n_pcs, seed=seed).items():
        score, reason = HeldOutScore(np.nan, np.nan, np.nan, np.nan), ""
        further: dict[str, float] = {} if is_number else dict.fromkeys(_OF_LABELS, np.nan)
        try:
            if held_out is None and is_number:
                value, baseline = continuous_probe(x[used], target[used], n_folds=n_folds, seed=seed)
                score = HeldOutScore(value, np.nan, np.nan, baseline)
            elif held_out is None:
                score, further = _cross_validated(x[used], target[used], n_folds=n_folds, seed=seed)
            else:
                pair = x[train], target[train], x[test], target[test]
                fitted = _held_out_numbers if is_number else _held_out_labels
                score, further = fitted(*pair, level=level, seed=seed)
        except (ValueError, np.linalg.LinAlgError) as error:  # the other embeddings go on
            reason = str(error)
        rows.append({"embedding": name, "metric": metric, "key": key, **score._asdict(), **further, "reason": reason})
    table = pd.DataFrame(rows).assign(n_cells=int(test.sum()), **METRICS[metric].columns())
    order = ["embedding", "metric", "key", "value", "low", "high", "baseline", *_DESCRIPTION, "n_cells", "reason"]
    return table[order if is_number else [*order[:-1], *_OF_LABELS, "reason"]]


def _cross_validated(
    x: np.ndarray, labels: np.ndarray, *, n_folds: int, seed: int
) -> tuple[HeldOutScore, dict[str, float]]:
    """Score a probe of labels, and what stands beside it, on random folds."""
    found = cross_validated_labels(x, labels, n_folds=n_folds, seed=seed)
    majority = majority_share(labels, n_folds=n_folds)
    n_voters = len(found.true) - -(-len(found.true) // n_folds)
    knn = knn_accuracy(x, labels, n_neighbors=min(10, n_voters), n_folds=n_folds, seed=seed)
    return HeldOutScore(found.accuracy, np.nan, np.nan, majority), _of_labels(found, knn, majority)


def _held_out_labels(
    x: np.ndarray, labels: np.ndarray, x_test: np.ndarray, labels_test: np.ndarray, *, level: float, seed: int
) -> tuple[HeldOutScore, dict[str, float]]:
    """Score a probe of labels, and what stands beside it, on held-out cells."""
    found = held_out_labels(x, labels, x_test, labels_test, seed=seed)
    knn = held_out_knn_accuracy(x, labels, x_test, labels_test, level=level, seed=seed)
    return balanced_accuracy(found, level=level, seed=seed), _of_labels(found, knn.value, knn.baseline)


def _held_out_numbers(
    x: np.ndarray, values: np.ndarray, x_test: np.ndarray, values_test: np.ndarray, *, level: float, seed: int
) -> tuple[HeldOutScore, dict[str, float]]:
    return held_out_continuous_probe(x, values, x_test, values_test, level=level, seed=seed), {}


def _of_labels(found: ProbedLabels, knn: float, majority: float) -> dict[str, float]:
    values = (found.accuracy, found.macro_f1, found.calibration_error, knn, majority)
    return dict(zip(_OF_LABELS, values, strict=True))


def disentanglement(
    adata: AnnData,
    embeddings: str | Sequence[str] | None = None,
    *,
    covariate_keys: str | Sequence[str] | None = None,
    label_key: str | None = None,
    cells: np.ndarray | None = None,
    n_folds: int = 5,
    n_pcs: int = 50,
    seed: int = 0,
) -> pd.DataFrame:
    """Score how much of a covariate an embedding shows beyond the cell type, beside a PCA.

    A covariate can be read from the composition of types alone, if one condition has more of one type. Information is
    the score of a cross-validated linear probe, scaled: 0 for ignoring the embedding, 1 for a perfect probe.

    * ``covariate_information``: from the embedding;
    * ``covariate_information_of_cell_type``: from the cell type and nothing else;
    * ``covariate_information_beyond_cell_type``: how much of what the type leaves open a probe of both gets right;
    * ``disentanglement``: the third over the first, 0 to 1. 1: the embedding shows the covariate itself, in the same
      way in all types; 0: all that the probe read was the type.

    :func:`covariate_information` asks another question of a trained model: whether a covariate is in the expression.

    Parameters
    ----------
    adata
        Annotated data that was set up with :func:`scstate_lora.setup_anndata`.
    embeddings
        Keys of ``adata.obsm``, as in :func:`evaluate`. The PCA is always added.
    covariate_keys
        Columns of ``adata.obs``; by default the registered covariates.
    label_key
        Column with the cell type; by default the registered one.
    cells
        Cells to use, a mask of shape ``(n_cells,)``; all by default.
    n_folds
        Folds of the probes.
    n_pcs
        Components of the PCA.
    seed
        Seed of folds and PCA.

    Returns
    -------
    One row per embedding, covariate and metric, with the columns of :func:`evaluate`. Cells without a type or a value
    are left out.

    Adds ``adata.uns["scstate_lora"]["disentanglement"]``, the same table.

    Raises
    ------
    KeyError
        If `adata` was not set up, or a key is not in ``adata.obsm`` or ``adata.obs``.
    ValueError
        If there is no cell type or no covariate, or values are missing in a column that was not declared so.
    """
    registry = Registry.from_adata(adata)
    names = embedding_keys(adata, embeddings)
    label_key = registry.cell_type_key if label_key is None else label_key
    registered = [covariate.name for covariate in registry.covariates]
    given = registered if covariate_keys is None else covariate_keys
    keys = [k for k in dict.fromkeys([given] if isinstance(given, str) else given) if k != label_key]
    if label_key is None or not keys:
        missing = "No cell type is registered: give label_key=" if label_key is None else "No covariate other than the "
        missing += (
            ", a column of adata.obs." if label_key is None else "cell type is given: name some in covariate_keys=."
        )
        raise ValueError(missing)
    for key in keys:  # all are checked before any work is done
        obs_column(adata, key, allow_missing=may_miss(registry, key))
    labels = labels_with_missing(adata, label_key)
    used = scored_cells(adata, cells) & ~pd.isna(labels)
    targets = {key: probe_target(adata, key, registry) for key in keys}
    rows = []
    for name, x in embedding_matrices(adata, names, n_pcs=n_pcs, seed=seed).items():
        for key, (target, is_number) in targets.items():
            here = used & ~pd.isna(target)
            scores, reason = Entanglement(np.nan, np.nan, np.nan, np.nan), ""
            try:
                embedded = checked_embedding(x[here], int(here.sum()))
                types = labels[here].astype(str)
                probe = continuous_probe if is_number else categorical_probe
                scores = entanglement(embedded, target[here], types, probe=probe, n_folds=n_folds, seed=seed)
            except (ValueError, np.linalg.LinAlgError) as error:  # the others go on
                reason = str(error)
            unread = "the embedding shows nothing of it" if not reason and np.isnan(scores.disentanglement) else reason
            rows += [
                {"embedding": name, "metric": metric, "key": key, "value": value, "n_cells": int(here.sum())}
                | {"baseline": 0.0 if metric != "disentanglement" else np.nan}
                | {"reason": unread if metric == "disentanglement" else reason}
                for metric, value in scores._asdict().items()
            ]
    table = pd.DataFrame(rows)
    table = table.join(pd.DataFrame([METRICS[metric].columns() for metric in table["metric"]]))
    table = table[["embedding", "metric", "key", "value", "baseline", *_DESCRIPTION, "n_cells", "reason"]]
    write_result(adata, DISENTANGLEMENT, table)
    return table
