"""How a classifier reads a base, whichever it is: tokens to train on, embeddings of all cells, and copies to change."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from scstate_lora._tensors import in_float32
from scstate_lora.inference.embed import embed_cells
from scstate_lora.inference.embed_ranks import embed_rank_cells
from scstate_lora.io.published.scmodelforge import is_rank_checkpoint
from scstate_lora.model.annotation.rank_base import RankBase, load_rank_base
from scstate_lora.model.se.bases import restore_base
from scstate_lora.model.se.obsm_embedding import ObsmBase
from scstate_lora.model.se.pretrained import SEBase, load_base

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from torch import Tensor

    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.registry import Registry
    from scstate_lora.nn.rank_encoder import RankEncoder
    from scstate_lora.nn.se_encoder import SEEncoder

AnyBase = SEBase | ObsmBase | RankBase
"""What a classifier stands on."""


def choose_base(base: str | Path | SEBase | RankBase, registry: Registry, adata: AnnData) -> SEBase | RankBase:
    """Load a base of either kind, and check that it knows the genes; errors as in ``LoRACovariateSE``."""
    if isinstance(base, RankBase):
        return load_rank_base(base, registry, adata)
    if isinstance(base, (str, Path)) and Path(base).exists() and is_rank_checkpoint(base):
        return load_rank_base(base, registry, adata)
    return load_base(base, registry, adata)


def find_base(
    metadata: dict[str, Any],
    tensors: dict[str, dict[str, Tensor]],
    *,
    path: str | Path,
    replacement: str | Path | SEBase | RankBase | None,
    registry: Registry,
    adata: AnnData | None,
) -> AnyBase:
    """Find the base of a saved classifier again, as :func:`~scstate_lora.model.se.bases.restore_base` does."""
    if metadata.get("format") != "scmodelforge":
        found = restore_base(
            metadata, tensors, path=path, replacement=cast("SEBase", replacement), registry=registry, adata=adata
        )
        return cast("SEBase | ObsmBase", found)
    if replacement is not None:
        base = load_rank_base(cast("RankBase", replacement), registry, adata)
        base.check_is(metadata, path)
        return base
    if "base" in tensors:
        return RankBase.restore(metadata, tensors["base"]).owned()
    return RankBase.load_again(metadata, path)


def token_reader(base: AnyBase, cells: BoundData) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Make a function that returns the encoder's input for some of the cells, ``(n, ...)`` each by name."""
    if isinstance(base, RankBase):
        return lambda rows: base.tokens(cells, rows)
    assert isinstance(base, SEBase)  # an embedding has no encoder to train
    x, seeds, tokenizer = base.inputs(cells)

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        sentences = tokenizer(x[rows], seeds[rows])
        return {"genes": sentences.genes, "values": sentences.values}

    return read


@in_float32()
def embed(base: AnyBase, encoder: SEEncoder | RankEncoder | None, cells: BoundData) -> np.ndarray:
    """Embed cells by an encoder in the place of the base's, with its adapters; float32 ``(n_cells, dim)``."""
    if encoder is None or encoder is base.encoder:
        embedding = base.embed(cells)
    elif isinstance(base, RankBase):
        blocks = embed_rank_cells(cast("RankEncoder", encoder), token_reader(base, cells), len(cells))
        embedding = np.concatenate([block for _, block in blocks])
    else:
        assert isinstance(base, SEBase)  # an embedding has no encoder
        parts = embed_cells(cast("SEEncoder", encoder), base.reader(cells))
        embedding = np.concatenate([block for _, block in parts])
    return np.ascontiguousarray(embedding[:, : base.dim], dtype=np.float32)


def own_encoder(base: AnyBase) -> SEEncoder | RankEncoder:
    """Copy the encoder of a base, weights and all, so that training leaves the base as it is."""
    assert base.encoder is not None  # the strategies of an embedding train none
    return copy.deepcopy(base.encoder)
