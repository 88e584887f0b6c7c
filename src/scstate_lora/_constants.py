"""Keys under which the package writes into an AnnData object."""

from __future__ import annotations

UNS_KEY = "scstate_lora"
"""Everything the package keeps in ``adata.uns`` lies under this key."""

OBSM_SE = "X_scstate_lora"
"""Conditioned cell embedding of :class:`scstate_lora.LoRACovariateSE`."""

OBSM_ST = "X_scstate_st"
"""Cell representation of :class:`scstate_lora.STTransition`."""

OBSM_BASE = "X_scstate_base"
"""Plain embedding of a model's own base: before adaptation."""

OBSM_STATE = "X_state"
"""Plain embedding of a base as :func:`scstate_lora.tl.embed` writes it, under the name it is known by."""

OBS_SPLIT = "scstate_split"
"""Which split a cell belongs to: ``train``, ``val`` or ``test``."""

TARGET_SUM = 1e4
"""Counts per cell after library-size normalisation, before log1p."""
