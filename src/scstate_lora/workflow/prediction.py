"""Predict many targets into a file, one at a time, so that memory holds one of them."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from scstate_lora._utils import progress_bar
from scstate_lora.data.results import PREDICT, as_uns, joined, read_prediction
from scstate_lora.io.atomic import in_place

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
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
    _write(out, first, (st.predict(cells, target=target, **options) for target in bar), targets)
    return first.n_obs * len(targets), first.n_vars


def _write(out: Path, first: AnnData, others: Iterator[AnnData], targets: list[str]) -> None:
    import h5py
    from anndata.io import sparse_dataset, write_elem

    tables, described = [], []
    with in_place(out) as temporary, h5py.File(temporary, "w") as file:
        write_elem(file, "/", ad.AnnData(var=first.var))
        for name, values in _arrays(first).items():
            if sparse.issparse(values):
                write_elem(file, name, values[:0], dataset_kwargs={"compression": "gzip"})
            else:
                _make(file, name, (first.n_obs * len(targets), values.shape[1]))
        for i, predicted in enumerate(chain([first], others)):
            for name, values in _arrays(predicted).items():
                if sparse.issparse(values):
                    sparse_dataset(file[name]).append(values)
                else:
                    file[name][i * first.n_obs : (i + 1) * first.n_obs] = values
            tables.append(predicted.obs)
            described.append(read_prediction(predicted))
        cells = ad.AnnData(obs=pd.concat(tables))
        cells.strings_to_categoricals()
        write_elem(file, "obs", cells.obs)
        write_elem(file, "uns", as_uns(PREDICT, joined(described).record()))


def _arrays(predicted: AnnData) -> dict[str, np.ndarray | sparse.csr_matrix]:
    """Matrices of predicted cells by their path in the file."""
    genes = {} if predicted.X is None else {"X": predicted.X}
    return {**genes, **{f"obsm/{key}": values for key, values in predicted.obsm.items()}}


def _make(file: Any, name: str, shape: tuple[int, int]) -> None:
    """Allocate a matrix; anndata writes its description, without rows."""
    from anndata.io import write_elem

    chunks = (max(1, min(shape[0], _CHUNK_BYTES // (4 * shape[1]))), shape[1])
    options = {"chunks": chunks, "maxshape": (None, shape[1]), "compression": "gzip"}
    group, _, key = name.rpartition("/")
    write_elem(file[group or "/"], key, np.zeros((0, shape[1]), dtype=np.float32), dataset_kwargs=options)
    file[name].resize(shape)
