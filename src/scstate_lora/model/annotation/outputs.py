"""Outputs of a classifier for cells, chunk by chunk where they are many or in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scstate_lora.data.bound import BoundData
from scstate_lora.model.annotation.encoders import embed
from scstate_lora.model.base import check_anndata
from scstate_lora.training.annotation.heads import added_by

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from scstate_lora.data.registry import Registry
    from scstate_lora.model.annotation.target_model import TargetModel
    from scstate_lora.nn.classifier import ClassifierNetwork

_CHUNK = 20_000


def compute_outputs(
    registry: Registry,
    adata: AnnData,
    base: Any,
    network: ClassifierNetwork | None,
    targets: dict[str, TargetModel],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Compute logits (or numbers) and distances of cells by target, ``(n_cells, n_outputs)`` and ``(n_cells,)``.

    Parameters
    ----------
    registry
        Of the model.
    adata
        The cells, in memory or in a file.
    base, network, targets
        Of the model. Cells are embedded only if the heads of a target count.
    """
    assert network is not None  # the caller requires a trained model
    adata = check_anndata(adata)
    embedded = any(model.is_used for model in targets.values())
    heads = network.heads_by_target()
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {key: [] for key in targets}
    for chunk in _chunks(adata):
        cells = BoundData(registry, chunk)
        x, measured = cells.logged, cells.measured
        embedding = embed(base, network.encoder, cells) if embedded else None
        for key, model in targets.items():
            outputs, distance = model.start(x, None if measured.all() else measured)
            if embedding is not None and model.is_used:
                outputs = outputs + added_by(heads[key], embedding)
            parts[key].append((outputs, distance))
    return {key: tuple(map(np.concatenate, zip(*found, strict=True))) for key, found in parts.items()}  # type: ignore[misc]  # two arrays


def _chunks(adata: AnnData) -> Iterator[AnnData]:
    if not adata.isbacked and adata.n_obs <= _CHUNK:
        yield adata
        return
    for start in range(0, adata.n_obs, _CHUNK):
        chunk = adata[start : start + _CHUNK]
        yield chunk.to_memory() if adata.isbacked else chunk
