"""Cells that pass through a LoRACovariateSE's network once, to be embedded under any number of conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scstate_lora.inference.embed import condition_cells, embed_cells
from scstate_lora.model.se.inputs import encode_inputs
from scstate_lora.model.se.pretrained import SEBase

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from scstate_lora.data.bound import BoundData
    from scstate_lora.model.se.adapters import AdapterSet


class ConditionedCells:
    """Cells as a model's network embeds them before their condition enters.

    Covariates enter behind the network, so one pass over the cells serves all conditions.

    Parameters
    ----------
    adapters
        The adapters on a base, of which the active one embeds.
    cells
        The cells.
    plain
        The base's embedding of these cells, if it is known; it is the network's where the active adapter leaves the
        base as it is.
    """

    def __init__(self, adapters: AdapterSet, cells: BoundData, *, plain: np.ndarray | None = None) -> None:
        self.network, self.cells = adapters.network, cells
        base = adapters.base
        if adapters.active.adapts_base and isinstance(base, SEBase):
            blocks = embed_cells(base.encoder, base.reader(cells))
            self.adapted = np.concatenate([block for _, block in blocks])
        else:
            self.adapted = base.embed(cells) if plain is None else plain

    def under(self, covariates: Mapping[str, Any] | pd.DataFrame | None = None) -> np.ndarray:
        """Embed the cells under covariates as ``get_latent_representation`` takes them, ``(n_cells, output_dim)``."""
        return self.condition(encode_inputs(self.cells.under(covariates)))

    def without_covariates(self) -> np.ndarray:
        """Embed the cells with all covariates withheld, and the batch too, ``(n_cells, output_dim)``."""
        withheld = self.cells.under({c.name: None for c in self.cells.registry.covariates})
        return self.condition(encode_inputs(withheld, with_batch=False))

    def condition(self, encoded: Mapping[str, np.ndarray]) -> np.ndarray:
        """Embed the cells under encoded inputs of the conditioning, ``(n_cells,)`` each."""
        return condition_cells(self.network, self.adapted, encoded)
