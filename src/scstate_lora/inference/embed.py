"""Apply an SE network to cells in blocks, without gradients; the next block is read while one is computed."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device

from scstate_lora._logging import logger
from scstate_lora._tensors import in_float32
from scstate_lora._utils import progress_bar
from scstate_lora.config import ComputeOptions
from scstate_lora.inference.arrays import take, to_tensors
from scstate_lora.inference.devices import autocast, choose_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from scstate_lora.data.tokens import Sentences
    from scstate_lora.nn.conditioned_se import ConditionedSE
    from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

# Activations per batch on CPU: fits in cache, and stays below malloc's threshold for returning memory to the OS.
_CPU_ACTIVATIONS = 2**20
# Tokens per block, the unit of reading and of resuming after an interruption.
_BLOCK_TOKENS = 2**17
_MAX_BATCH = 512
# Activations held at a time by the expression head.
_PAIR_ACTIVATIONS = 2**25
# Cells per batch when only the conditioning is computed.
_CONDITIONING_BATCH = 4096


class CellReader(Protocol):
    """Sentences of consecutive cells."""

    def __len__(self) -> int: ...

    def __call__(self, start: int, stop: int) -> Sentences:
        """Tokenise cells ``start`` to ``stop``."""


def embed_cells(
    encoder: SEEncoder,
    read: CellReader,
    *,
    options: ComputeOptions | None = None,
    start: int = 0,
    by_length: bool = False,
    progress: str | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Compute the plain embedding of cells, block by block.

    Parameters
    ----------
    encoder
        SE network; it is moved to the device and stays there.
    read
        Reader of the cells' sentences.
    options
        Device, precision and batch size.
    start
        First cell.
    by_length
        Process cells with similar sentence lengths together, for sentences without padding.
    progress
        Title of a progress bar; None shows no bar.

    Yields
    ------
    Index of a block's first cell, and the block's embedding, float32 ``(n_block, embedding_dim)``.

    Raises
    ------
    MemoryError
        If not even one cell, or not the requested number, fits into the GPU's memory.
    """

    def forward(batch: dict[str, Any]) -> Tensor:
        return encoder(batch["genes"], batch["values"], batch.get("lengths"))

    yield from _in_blocks(
        read,
        forward,
        network=encoder,
        encoder=encoder,
        options=options,
        start=start,
        by_length=by_length,
        progress=progress,
    )


def embed_conditioned(
    network: nn.Module,
    encoder: SEEncoder,
    read: CellReader,
    covariates: Mapping[str, np.ndarray],
    *,
    options: ComputeOptions | None = None,
    progress: str | None = None,
) -> np.ndarray:
    """Compute the conditioned embedding of cells.

    Parameters
    ----------
    network
        Conditioned network; it is moved to the device and stays there.
    encoder
        SE network inside it.
    read
        Reader of the cells' sentences.
    covariates
        Encoded covariates, each ``(n_cells,)``.
    options
        Device, precision and batch size.
    progress
        Title of a progress bar; None shows no bar.

    Returns
    -------
    float32 ``(n_cells, output_dim)``, rows of unit length.
    """

    def forward(batch: dict[str, Any]) -> Tensor:
        return network(batch["genes"], batch["values"], batch["covariates"])[1]

    blocks = _in_blocks(
        read,
        forward,
        network=network,
        encoder=encoder,
        options=options,
        arrays={"covariates": dict(covariates)},
        progress=progress,
    )
    return np.concatenate([block for _, block in blocks])


def condition_cells(
    network: ConditionedSE,
    base: np.ndarray,
    covariates: Mapping[str, np.ndarray],
    *,
    options: ComputeOptions | None = None,
) -> np.ndarray:
    """Compute the conditioned embedding of cells from their base embedding.

    Parameters
    ----------
    network
        Conditioned network, of which only the conditioning is used; it is moved to the device and stays there.
    base
        Base embedding, ``(n_cells, embedding_dim)``.
    covariates
        Encoded covariates, each ``(n_cells,)``.
    options
        Device and precision.

    Returns
    -------
    float32 ``(n_cells, output_dim)``, rows of unit length.
    """
    options = options or ComputeOptions()
    device = choose_device(options.device)
    network.eval().to(device)
    conditioned = []
    with torch.inference_mode(), autocast(options, device):
        for start in range(0, len(base), _CONDITIONING_BATCH):
            rows = slice(start, start + _CONDITIONING_BATCH)
            batch = to_tensors({"base": base[rows], "covariates": {k: v[rows] for k, v in covariates.items()}})
            batch = move_data_to_device(batch, device)
            conditioned.append(network.condition(batch["base"], batch["covariates"]).float().cpu().numpy())
    return np.concatenate(conditioned)


@in_float32()
def decode_cells(
    encoder: SEEncoder,
    embedding: np.ndarray,
    genes: np.ndarray,
    read_depth: float,
    *,
    options: ComputeOptions | None = None,
    progress: str | None = None,
) -> np.ndarray:
    """Predict the expression of genes from embeddings with the network's expression head.

    Parameters
    ----------
    encoder
        SE network; it is moved to the device and stays there.
    embedding
        Embedding of the cells, ``(n_cells, embedding_dim)``.
    genes
        Vocabulary indices of the genes, ``(n_genes,)``.
    read_depth
        Mean of the non-zero target values, the same for all cells.
    options
        Device and precision.
    progress
        Title of a progress bar; None shows no bar.

    Returns
    -------
    Predicted expression, float32 ``(n_cells, n_genes)``.
    """
    options = options or ComputeOptions()
    device = choose_device(options.device)
    encoder.eval().to(device)
    decoded = np.empty((len(embedding), len(genes)), dtype=np.float32)
    n_pairs = max(1, _PAIR_ACTIVATIONS // (3 * encoder.config.decoder_dim))  # cells x genes per batch
    n_genes = min(len(genes), n_pairs)
    n_cells = max(1, n_pairs // n_genes)
    bar = progress_bar(total=len(embedding), desc=progress, unit=" cells", disable=progress is None)
    with bar, torch.inference_mode(), autocast(options, device):
        for start in range(0, len(embedding), n_cells):
            # A copy, as pandas 3 gives read-only arrays.
            cells = torch.tensor(embedding[start : start + n_cells]).to(device)
            depth = torch.full((len(cells),), read_depth, device=device)
            for first in range(0, len(genes), n_genes):
                targets = torch.from_numpy(genes[first : first + n_genes]).to(device)
                predicted = encoder.predict_expression(cells, targets, depth)
                decoded[start : start + len(cells), first : first + len(targets)] = predicted.float().cpu().numpy()
            bar.update(len(cells))
    return decoded


def _in_blocks(
    read: CellReader,
    forward: Callable[[dict[str, Any]], Tensor],
    *,
    network: nn.Module,
    encoder: SEEncoder,
    options: ComputeOptions | None,
    arrays: Mapping[str, Any] | None = None,
    start: int = 0,
    by_length: bool = False,
    progress: str | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Apply `forward`, a pass through `network`, to sentences and to the rows of further `arrays` of all cells."""
    network.eval()
    options = options or ComputeOptions()
    device = choose_device(options.device)
    network.to(device)
    n_cells = len(read)
    n_tokens = read(0, 1).values.shape[1]
    batch_size = _batch_size(options, encoder.config, device, n_tokens)
    block = batch_size * -(-max(batch_size, _BLOCK_TOKENS // n_tokens) // batch_size)
    bar = progress_bar(total=n_cells, initial=start, desc=progress, unit=" cells", disable=progress is None)
    with bar, _compiled(encoder, compile=options.compile):
        for first, sentences in _prefetched(read, range(start, n_cells, block), n_cells, block, options.n_workers):
            rows = np.arange(first, first + len(sentences.genes))
            inputs = {"genes": sentences.genes, "values": sentences.values, **take(arrays or {}, rows)}
            order = np.arange(len(rows))
            if by_length:
                inputs["lengths"] = sentences.lengths
                order = np.argsort(sentences.lengths, kind="stable")
            parts: list[np.ndarray] = []
            done = 0
            while done < len(rows):
                batch = order[done : done + batch_size]
                try:
                    parts.append(_run(forward, take(inputs, batch), device, options))
                except torch.OutOfMemoryError as error:
                    batch_size = _halved(batch_size, options, error)
                    continue
                done += len(batch)
                bar.update(len(batch))
            joined = np.concatenate(parts)
            result = np.empty_like(joined)
            result[order] = joined
            yield first, result


@in_float32()
def _run(
    forward: Callable[[dict[str, Any]], Tensor], batch: dict[str, Any], device: torch.device, options: ComputeOptions
) -> np.ndarray:
    if "lengths" in batch:
        longest = int(batch["lengths"].max())
        batch = {**batch, "genes": batch["genes"][:, :longest], "values": batch["values"][:, : longest + 1]}
    with torch.inference_mode(), autocast(options, device):
        return forward(move_data_to_device(to_tensors(batch), device)).float().cpu().numpy()


def _batch_size(options: ComputeOptions, config: SEConfig, device: torch.device, n_tokens: int) -> int:
    """Choose the number of cells per batch."""
    if options.batch_size is not None:
        return options.batch_size
    if device.type != "cuda":
        return max(1, _CPU_ACTIVATIONS // (n_tokens * (config.d_model + config.d_hid)))
    free, _ = torch.cuda.mem_get_info(device)
    per_cell = 32 * n_tokens * (config.d_model + config.d_hid)  # bytes of all activations within a layer
    return int(min(_MAX_BATCH, max(1, 0.8 * free // per_cell)))


def _prefetched(
    read: CellReader, starts: range, n_cells: int, block: int, n_workers: int
) -> Iterator[tuple[int, Sentences]]:
    """Yield blocks in order while each worker reads one block ahead."""
    with ThreadPoolExecutor(n_workers) as pool:
        waiting: deque[tuple[int, Any]] = deque()
        try:
            for first in starts:
                waiting.append((first, pool.submit(read, first, min(first + block, n_cells))))
                if len(waiting) > n_workers:
                    ready, future = waiting.popleft()
                    yield ready, future.result()
            while waiting:
                ready, future = waiting.popleft()
                yield ready, future.result()
        finally:  # also if the consumer stops early or an error occurs
            for _, future in waiting:
                future.cancel()


def _halved(batch_size: int, options: ComputeOptions, error: torch.OutOfMemoryError) -> int:
    """Halve a batch size that was chosen automatically."""
    if options.batch_size is not None or batch_size == 1:
        msg = f"{batch_size} cells per batch do not fit into the GPU's memory. "
        remedy = "Leave batch_size out, or reduce it." if batch_size > 1 else "Use n_tokens='expressed', or the CPU."
        raise MemoryError(msg + remedy) from error
    torch.cuda.empty_cache()
    logger.warning("%d cells per batch do not fit into the GPU's memory; trying half as many.", batch_size)
    return batch_size // 2


@contextmanager
def _compiled(encoder: SEEncoder, *, compile: bool) -> Iterator[None]:
    """Run the transformer's layers compiled within this context."""
    layers = list(encoder.transformer_encoder.layers) if compile else []
    for layer in layers:
        layer.compile(dynamic=False)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
