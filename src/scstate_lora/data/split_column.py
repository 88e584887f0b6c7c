"""The column of ``adata.obs`` that assigns every cell to a split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from scstate_lora._constants import OBS_SPLIT
from scstate_lora.data.fields import obs_column
from scstate_lora.data.labels import as_labels

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData

SPLITS = ("train", "val", "test")


def read_split(adata: AnnData, split_key: str = OBS_SPLIT) -> np.ndarray:
    """Read the split of every cell from a column of ``adata.obs``, by default the stored one; shape ``(n_cells,)``.

    Raises
    ------
    KeyError
        If the column does not exist.
    ValueError
        If it holds anything but ``train``, ``val`` and ``test``.
    """
    split = as_labels(obs_column(adata, split_key)).to_numpy(dtype=object)
    unknown = sorted(set(split) - set(SPLITS))
    if unknown:
        msg = (
            f"adata.obs[{split_key!r}] holds {', '.join(map(repr, unknown[:5]))}; allowed are "
            f"{', '.join(map(repr, SPLITS))}. Rename the values."
        )
        raise ValueError(msg)
    return split


def write_split(adata: AnnData, split: np.ndarray) -> None:
    """Store the split in ``adata.obs["scstate_split"]``."""
    adata.obs[OBS_SPLIT] = pd.Categorical(split, categories=list(SPLITS))
