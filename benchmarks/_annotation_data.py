"""Folds, features and scores that the benchmarks of annotation share; nothing to run.

A data set is named as ``FILE:LABEL[:BATCH[:COLUMN=LEVEL]]``, or ``pbmc68k_reduced`` for the cells that ship with
scanpy. With ``COLUMN=LEVEL`` cells of that level train and all others are one test set; with a batch column alone every
batch is left out in turn; with neither there are five stratified folds, the same for every seed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold

import scstate_lora as ssl

if TYPE_CHECKING:
    from collections.abc import Iterator

BUNDLED = "pbmc68k_reduced"
FEW = 5  # cells of a type, in training and in test, from which on its F1 counts


@dataclass(frozen=True)
class Cells:
    """Cells to label, and the columns that matter."""

    name: str
    adata: ad.AnnData
    label_key: str
    batch_key: str | None = None
    train: str | None = None

    @classmethod
    def read(cls, spec: str) -> Cells:
        """Read what ``FILE:LABEL[:BATCH[:COLUMN=LEVEL]]`` or ``pbmc68k_reduced`` names."""
        if spec == BUNDLED:
            return cls(BUNDLED, ssl.datasets.pbmc68k(), "bulk_labels")
        file, *columns = spec.split(":")
        if not 1 <= len(columns) <= 3:
            msg = f"{spec!r} names no data: write FILE:LABEL[:BATCH[:COLUMN=LEVEL]] or {BUNDLED}."
            raise ValueError(msg)
        return cls(Path(file).stem, ad.read_h5ad(file), *columns)

    def folds(self) -> Iterator[Fold]:
        """Yield every split in training and test cells."""
        obs = self.adata.obs
        labels = obs[self.label_key].astype(str).to_numpy()
        if self.train:
            column, level = self.train.split("=")
            masks = {f"not {level}": (obs[column].astype(str) == level).to_numpy()}
        elif self.batch_key:
            batches = obs[self.batch_key].astype(str).to_numpy()
            masks = {batch: batches != batch for batch in np.unique(batches)}
        else:
            groups = stratified_groups(labels, seed=0)
            masks = {f"fold {k + 1}": groups != k for k in np.unique(groups)}
        for name, train in masks.items():
            test = self.adata[~train].copy()
            del test.obs[self.label_key]
            yield Fold(name, self.adata[train].copy(), test, labels[~train], self.label_key, self.batch_key)


@dataclass(frozen=True)
class Fold:
    """Training cells with labels, and test cells whose labels are kept apart."""

    name: str
    train: ad.AnnData
    test: ad.AnnData
    truth: np.ndarray
    label_key: str
    batch_key: str | None

    @property
    def labels(self) -> np.ndarray:
        """Labels of the training cells."""
        return self.train.obs[self.label_key].astype(str).to_numpy()

    def batches(self, side: ad.AnnData) -> np.ndarray:
        """Batches of training or of test cells; a single one where there is no column of them."""
        if self.batch_key is None:
            return np.full(side.n_obs, "all")
        return side.obs[self.batch_key].astype(str).to_numpy()


def stratified_groups(labels: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the number of every cell's fold, 0 to 4, each label spread evenly."""
    groups = np.empty(len(labels), dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # types of fewer than five cells
        for k, (_, part) in enumerate(StratifiedKFold(5, shuffle=True, random_state=seed).split(labels, labels)):
            groups[part] = k
    return groups


def is_counts(adata: ad.AnnData) -> bool:
    """Tell whether all values are whole numbers."""
    return bool(np.all(adata.X.data == np.round(adata.X.data)))


def log_values(adata: ad.AnnData) -> sparse.csr_matrix:
    """Return log1p of counts per 10,000; values that are no counts are log values already and stay as they are."""
    if not is_counts(adata):
        return adata.X
    cells = ad.AnnData(adata.X.copy())
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    return cells.X


def counts(adata: ad.AnnData) -> sparse.csr_matrix:
    """Return counts; of log values those that they were made of, multiples of a cell's smallest value."""
    if is_counts(adata):
        return adata.X
    x = sparse.csr_matrix(adata.X, copy=True)
    x.data = np.expm1(x.data)
    for start, end in zip(x.indptr[:-1], x.indptr[1:], strict=True):
        x.data[start:end] /= x.data[start:end].min()
    whole = np.round(x.data)
    if np.max(np.abs(x.data - whole)) > 0.25:
        msg = "These log values are no multiples of one count each, so no counts can be told from them."
        raise ValueError(msg)
    x.data = whole
    return x


def standardised(x: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both in standard deviations of `x`, clipped at 10, its 2,000 genes of largest variance of log values."""
    genes = np.argsort(-x.var(axis=0))[:2000]
    mean, sd = x[:, genes].mean(axis=0), x[:, genes].std(axis=0)
    sd[sd == 0] = 1
    z, z_new = (np.clip((part[:, genes] - mean) / sd, -10, 10) for part in (x, new))
    return z, z_new


def scores(truth: np.ndarray, predicted: np.ndarray, trained: np.ndarray) -> dict[str, float]:
    """Return accuracy, and macro F1 over the types with at least 5 training and 5 test cells."""
    counted = [pd.Series(values).value_counts() for values in (truth, trained)]
    types = [name for name in counted[0].index if min(c.get(name, 0) for c in counted) >= FEW]
    f1 = f1_score(truth, predicted, labels=types, average="macro")
    return {"accuracy": float(np.mean(truth == predicted)), "f1": float(f1)}
