"""Apply a RankEncoder to cells in batches of like length, without gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device

from scstate_lora._tensors import in_float32
from scstate_lora.config import ComputeOptions
from scstate_lora.inference.arrays import take, to_tensors
from scstate_lora.inference.devices import autocast, choose_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scstate_lora.nn.rank_encoder import RankEncoder

# Cells that are tokenised at a time.
_BLOCK = 1024
# Activations per batch, of the widest layer.
_ACTIVATIONS = {"cpu": 2**20, "cuda": 2**27}


def embed_rank_cells(
    encoder: RankEncoder,
    tokens: Callable[[np.ndarray], dict[str, np.ndarray]],
    n_cells: int,
    *,
    options: ComputeOptions | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Embed cells, block by block.

    Parameters
    ----------
    encoder
        The network; it is moved to the device and stays there.
    tokens
        Gives the arguments of the network for some rows, int64 ``(n,)``; padding comes after the genes.
    n_cells
        Number of rows.
    options
        Device, precision and batch size.

    Yields
    ------
    Index of a block's first cell, and the block's embedding, float32 ``(n_block, embedding_dim)``.
    """
    options = options or ComputeOptions()
    device = choose_device(options.device)
    encoder.eval().to(device)
    for first in range(0, n_cells, _BLOCK):
        inputs = tokens(np.arange(first, min(first + _BLOCK, n_cells)))
        lengths = inputs["mask"].sum(axis=1)
        embedding = np.empty((len(lengths), encoder.embedding_dim), dtype=np.float32)
        order = np.argsort(lengths, kind="stable")
        done = 0
        while done < len(order):
            batch = order[done : done + _batch_size(encoder, lengths[order[done:]], device, options)]
            longest = int(lengths[batch].max())
            part = {name: array[:, :longest] for name, array in take(inputs, batch).items()}
            embedding[batch] = _run(encoder, part, device, options)
            done += len(batch)
        yield first, embedding


@in_float32()
def _run(
    encoder: RankEncoder, batch: dict[str, np.ndarray], device: torch.device, options: ComputeOptions
) -> np.ndarray:
    with torch.inference_mode(), autocast(options, device):
        return encoder(**move_data_to_device(to_tensors(batch), device)).float().cpu().numpy()


def _batch_size(encoder: RankEncoder, lengths: np.ndarray, device: torch.device, options: ComputeOptions) -> int:
    """Choose the number of cells, whose lengths ascend, that fit together with the longest of them."""
    if options.batch_size is not None:
        return options.batch_size
    width = encoder.config.d_model + encoder.config.d_hid
    budget = _ACTIVATIONS.get(device.type, _ACTIVATIONS["cpu"])
    fits = np.arange(1, len(lengths) + 1) * lengths * width <= budget
    return max(1, int(fits.sum()))
