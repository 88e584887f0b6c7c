"""Predict many targets into a file, one at a time, so that memory holds one of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from scstate_lora._utils import progress_bar
from scstate_lora.data.results import EVALUATE_PERTURBATION, PREDICT, joined, read_prediction, write_result
from scstate_lora.io.atomic import in_place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from anndata import AnnData

    from scstate_lora.model import STTransition

_CHUNK_BYTES = 2**20


def predict_to_file(
    st: STTransition,
    cells: AnnData,
    out: Path,
    *,
    targets: Sequence[str],
    contexts: Mapping[str, Any] | None = None,
    covariates: Mapping[str, Any] | None = None,
    output: str = "mean",
    device: str | None = None,
) -> tuple[int, int]:
    """Write the results of :meth:`scstate_lora.STTransition.predict` for several targets, completely or not at all.

    Parameters
    ----------
    st
        The model.
    cells
        Cells whose control cells are used.
    out
        An ``.h5ad``; an existing file is replaced.
    targets, contexts, covariates, output, device
        As for ``predict``.

    Returns
    -------
    Number of predicted cells, and of genes.

    Raises
    ------
    ValueError, KeyError
        As ``predict``, before anything is written.
    OSError
        If writing failed; an earlier file at ``out`` is unchanged.
    """
    targets = st.registry.targets_of(targets)
    st.perts.encode(targets)  # refuses the last of them before the first is predicted
    options: dict[str, Any] = {"contexts": contexts, "covariates": covariates, "output": output, "device": device}
    if str(st.registry.control) in targets:
        st.predict(cells, target=targets, **options)  # refuses it
    first = st.predict(cells, target=targets[0], **options)
    shown: dict[str, Any] = {"total": len(targets), "initial": 1, "disable": len(targets) == 1}
    bar = progress_bar(targets[1:], desc="Predicting", unit="target", **shown)
    others = (st.predict(cells, target=target, **options) for target in bar)
    write_predictions(out, chain([first], others), n_targets=len(targets))
    return first.n_obs * len(targets), first.n_vars


def write_predictions(out: Path, predictions: Iterator[AnnData], *, n_targets: int) -> None:
    """Write predictions of single targets for the same control cells as they come, completely or not at all.

    Parameters
    ----------
    out
        An ``.h5ad``; an existing file is replaced.
    predictions
        One AnnData per target.
    n_targets
        Their number.
    """
    import h5py
    from anndata.io import sparse_dataset, write_elem

    tables, described = [], []
    with in_place(out) as temporary, h5py.File(temporary, "w") as file:
        for i, predicted in enumerate(predictions):
            n = predicted.n_obs
            if i == 0:
                write_elem(file, "/", ad.AnnData(var=predicted.var))
            for name, values in _arrays(predicted).items():
                if i == 0 and sparse.issparse(values):
                    write_elem(file, name, values[:0], dataset_kwargs={"compression": "gzip"})
                elif i == 0:
                    _make(file, name, (n * n_targets, values.shape[1]))
                if sparse.issparse(values):
                    sparse_dataset(file[name]).append(values)
                else:
                    file[name][i * n : (i + 1) * n] = values
            tables.append(predicted.obs)
            described.append(read_prediction(predicted))
        cells = ad.AnnData(obs=pd.concat(tables))
        cells.strings_to_categoricals()
        write_elem(file, "obs", cells.obs)
        write_result(cells, PREDICT, joined(described).record())
        write_elem(file, "uns", dict(cells.uns))


class StoredPredictions(Sequence["AnnData"]):
    """Predictions in a file of :func:`write_predictions`, one AnnData per target, each read when it is asked for.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        import h5py
        from anndata.io import read_elem

        self.path = path
        with h5py.File(path) as file:
            self._obs, self._var, self._uns = (read_elem(file[name]) for name in ("obs", "var", "uns"))
        self._description = read_prediction(ad.AnnData(obs=self._obs, uns=self._uns))
        self._scores: dict[Any, pd.DataFrame] = {}

    @property
    def targets(self) -> list[str]:
        """Predicted perturbations, in the order of the predictions."""
        return self._description.targets

    @property
    def genes(self) -> list[str]:
        """Names of the predicted genes; none if embeddings were predicted."""
        return [str(gene) for gene in self._var.index]

    @property
    def n_vars(self) -> int:
        """Number of genes; 0 if embeddings were predicted."""
        return len(self._var)

    def of(self, target: str) -> AnnData:
        """Read the prediction of a perturbation."""
        predicted: AnnData = self[self.targets.index(target)]
        return predicted

    def add_scores(self, table: pd.DataFrame) -> None:
        """Store the scores of all targets in the file, and those of each with its prediction."""
        import h5py
        from anndata.io import write_elem

        cells = ad.AnnData(obs=self._obs, uns=self._uns)
        write_result(cells, EVALUATE_PERTURBATION, table)
        with h5py.File(self.path, "r+") as file:
            write_elem(file, "uns", dict(cells.uns))
        self._scores = dict(iter(table.groupby("perturbation", sort=False)))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        import h5py

        target = self.targets[index]
        n = len(self._obs) // len(self)
        first = range(len(self))[index] * n
        with h5py.File(self.path) as file:
            x = file["X"][first : first + n] if "X" in file else None
            obsm = {key: file["obsm"][key][first : first + n] for key in file.get("obsm", {})}
        predicted = ad.AnnData(x, obs=self._obs.iloc[first : first + n].copy(), var=self._var.copy(), obsm=obsm)
        write_result(predicted, PREDICT, self._description._replace(targets=[target]).record())
        if target in self._scores:
            write_result(predicted, EVALUATE_PERTURBATION, self._scores[target])
        return predicted


def _arrays(predicted: AnnData) -> dict[str, np.ndarray | sparse.csr_matrix]:
    """Matrices of predicted cells by their path in the file."""
    genes = {} if predicted.X is None else {"X": predicted.X}
    return {**genes, **{f"obsm/{key}": values for key, values in predicted.obsm.items()}}


def _make(file: Any, name: str, shape: tuple[int, int]) -> None:
    """Allocate a matrix; anndata writes its description, without rows."""
    from anndata.io import write_elem

    chunks = (max(1, min(shape[0], _CHUNK_BYTES // (4 * shape[1]))), shape[1])
    options = {"chunks": chunks, "maxshape": (None, shape[1])}  # gzip saves a third, and takes longer than predicting
    group, _, key = name.rpartition("/")
    write_elem(file[group or "/"], key, np.zeros((0, shape[1]), dtype=np.float32), dataset_kwargs=options)
    file[name].resize(shape)
