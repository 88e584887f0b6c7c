"""Layouts of cells in two dimensions."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures.process import BrokenProcessPool
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora._logging import logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

_KEPT = 8
_known: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
"""The latest layouts, by the content of the embedding: another colour does not need another layout."""
_begun: dict[bytes, Iterator[dict[bytes, NDArray[np.float32]]]] = {}
"""Layouts that another process works on, together with others."""


def umap_layout(array: NDArray[np.floating]) -> NDArray[np.float32]:
    """Lay out cells by UMAP: 15 neighbours, a fixed seed, the same picture every time.

    The latest eight layouts are kept, so that drawing the same cells again takes no time.

    Parameters
    ----------
    array
        Embedding, ``(n_cells, n_dimensions)``.

    Returns
    -------
    Two coordinates per cell, ``(n_cells, 2)``.
    """
    key = _content(array)
    if key in _begun:
        _collect(_begun[key])
    if key not in _known:
        _known[key] = _compute(array)
    _known.move_to_end(key)
    while len(_known) > _KEPT:
        _known.popitem(last=False)
    return _known[key].copy()


def begin_umap_layouts(arrays: Sequence[NDArray[np.floating]]) -> None:
    """Begin to lay out embeddings in a process beside this one; :func:`umap_layout` takes what is done there.

    UMAP runs on one core, half of its time to compile itself: worth it where this process has other work on one core.

    Parameters
    ----------
    arrays
        Embeddings, ``(n_cells, n_dimensions)`` each.
    """
    from joblib import Parallel, delayed

    new = {key: array for array in arrays if (key := _content(array)) not in _known and key not in _begun}
    if new:
        # One job for all, which compiles once. Two workers are the fewest that joblib starts beside this process.
        work = Parallel(n_jobs=2, return_as="generator")(delayed(_compute_all)(arrays) for arrays in [new])
        _begun.update(dict.fromkeys(new, work))


def _compute_all(arrays: Mapping[bytes, NDArray[np.floating]]) -> dict[bytes, NDArray[np.float32]]:
    return {key: _compute(array) for key, array in arrays.items()}


def _collect(work: Iterator[dict[bytes, NDArray[np.float32]]]) -> None:
    """Wait for the layouts of another process; none if it died, so that they are computed here."""
    for key in [key for key, begun in _begun.items() if begun is work]:
        del _begun[key]
    try:
        _known.update(next(work))
    except BrokenProcessPool as error:
        logger.info("The layouts are computed again, as the process that computed them ended: %s", error)


def _content(array: NDArray[np.floating]) -> bytes:
    array = np.ascontiguousarray(array, dtype=np.float32)
    return blake2b(array.tobytes() + str(array.shape).encode()).digest()


def _compute(array: NDArray[np.floating]) -> NDArray[np.float32]:
    import anndata
    import scanpy as sc

    array = np.ascontiguousarray(array, dtype=np.float32)
    bare = anndata.AnnData(obs=pd.DataFrame(index=pd.RangeIndex(len(array)).astype(str)), obsm={"X_basis": array})
    sc.pp.neighbors(bare, n_neighbors=min(15, len(array) - 1), use_rep="X_basis", random_state=0)
    # Spectral initialisation needs many more cells than dimensions; for fewer, a seeded random one does as well.
    # 200 rounds converge; the default of 500 for small data only takes longer.
    sc.tl.umap(bare, random_state=0, init_pos="spectral" if len(array) > 50 else "random", maxiter=200)
    return np.asarray(bare.obsm["X_umap"], dtype=np.float32)
