"""A compact base, trained on the training cells of a registered experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scstate_lora.data.tokens import cell_seeds
from scstate_lora.model.se.pretrained import SEBase
from scstate_lora.training.se.compact_base import fit_compact_base

if TYPE_CHECKING:
    import pandas as pd

    from scstate_lora.config import CompactBaseConfig, TrainerOptions
    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.model_split import ModelSplit

COMPACT = "compact SE, trained on these cells"
"""Name of such a base."""
_LICENCE = "that of the data it was trained on"


def train_compact_base(
    cells: BoundData, split: ModelSplit | None, *, config: CompactBaseConfig, options: TrainerOptions, seed: int
) -> tuple[SEBase, pd.DataFrame]:
    """Train a compact base on the training cells, without labels; return it with its history.

    Parameters
    ----------
    cells
        The experiment.
    split
        Its split as the model keeps it.
    config, options, seed
        As in :func:`~scstate_lora.training.se.compact_base.fit_compact_base`, with its ValueError.
    """
    encoder, history = fit_compact_base(
        cells.log_counts,
        cells.logged,
        cell_seeds(cells.names, seed),
        cells.rows("train"),
        cells.rows("val"),
        config=config,
        options=options,
        seed=seed,
        cells="" if split is None else split.fingerprint,
    )
    trained_on = None if split is None else split.training_cells()
    genes = cells.registry.var_names
    return SEBase(encoder, genes, COMPACT, _LICENCE, seed=seed, trained_on=trained_on), history
