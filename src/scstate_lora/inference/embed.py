"""Run cells through an SE network in blocks, without gradient; the next block is read while one is computed."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from scstate_lora._logging import logger
from scstate_lora._utils import did_you_mean, progress_bar
from scstate_lora.inference.arrays import take, to_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from scstate_lora.data.tokens import Sentences
    from scstate_lora.nn.conditioned_se import ConditionedSE
    from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Numbers between two layers of a batch on the CPU: what fits its caches, and what the C library does not give back to
# the system after every use.
_CPU_NUMBERS = 2**20
# Tokens in a block, the unit of reading and of what is kept after an interruption.
_BLOCK_TOKENS = 2**17
_MAX_BATCH = 512
# Numbers alive at a time in the expression head.
_PAIR_NUMBERS = 2**25
_CONDITIONED_AT_ONCE = 4096


class CellReader(Protocol):
    """Sentences of consecutive cells."""

    def __len__(self) -> int: ...

    def __call__(self, start: int, stop: int) -> Sentences:
        """Tokenise cells ``start`` to ``stop``."""


@dataclass(frozen=True)
class ComputeOptions:
    """How an embedding is computed. None of it changes the result by more than rounding.

    Parameters
    ----------
    batch_size
        Cells at a time; None: as many as suit the caches of a CPU or the free memory of a GPU.
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; None: CUDA where there is one, else the CPU.
    precision
        ``"fp32"``, ``"bf16"`` or ``"fp16"``; None: ``"bf16"`` on CUDA, ``"fp32"`` elsewhere.
    n_workers
        Threads that read and tokenise.
    compile
        Compile the transformer by ``torch.compile``: slow to start, for many cells.

    Raises
    ------
    ValueError
        A number is out of range, a precision is unknown, or the device is absent.
    """

    batch_size: int | None = None
    device: str | None = None
    precision: str | None = None
    n_workers: int = 1
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "n_workers"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | np.integer) or value < 1):
                msg = f"{name}={value!r} must be a whole number, at least 1."
                raise ValueError(msg)
        if self.precision is not None and self.precision not in _DTYPES:
            msg = f"precision={self.precision!r} is unknown. {did_you_mean(self.precision, _DTYPES)}"
            raise ValueError(msg)
        if self.device is not None:
            _check_device(self.device)

    def resolved_device(self) -> torch.device:
        """Choose the device."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def resolved_precision(self, device: torch.device) -> str:
        """Choose the precision."""
        return self.precision or ("bf16" if device.type == "cuda" else "fp32")

    def autocast(self, device: torch.device) -> torch.autocast:
        """Context of the precision."""
        precision = self.resolved_precision(device)
        return torch.autocast(device.type, dtype=_DTYPES[precision], enabled=precision != "fp32")

    def resolved_batch_size(self, config: SEConfig, device: torch.device, n_tokens: int) -> int:
        """Choose the number of cells in a batch."""
        if self.batch_size is not None:
            return int(self.batch_size)
        if device.type != "cuda":
            return max(1, _CPU_NUMBERS // (n_tokens * (config.d_model + config.d_hid)))
        free, _ = torch.cuda.mem_get_info(device)
        a_cell = 32 * n_tokens * (config.d_model + config.d_hid)  # bytes of all that is alive within a layer
        return int(min(_MAX_BATCH, max(1, 0.8 * free // a_cell)))


def _check_device(device: str) -> None:
    """Raise a ValueError when a device is unknown or absent."""
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdigit()):
        msg = f"device={device!r} is unknown. Use 'cpu', 'cuda', 'cuda:1' or 'mps'."
        raise ValueError(msg)
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(number or 0) >= there:
        msg = f"device={device!r}, but PyTorch sees {there or 'no'} {kind} device(s) here. Leave it out, or use 'cpu'."
        raise ValueError(msg)


def embed_cells(
    encoder: SEEncoder,
    read: CellReader,
    *,
    options: ComputeOptions | None = None,
    start: int = 0,
    by_length: bool = False,
    progress: str | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Plain embedding of cells, block by block.

    Parameters
    ----------
    encoder
        SE network. It is moved to the device, and stays there.
    read
        Gives the sentences of consecutive cells.
    options
        Device, precision and batch size.
    start
        First cell.
    by_length
        The sentences are not padded: cells of similar length go together.
    progress
        Title of a progress bar; None for none.

    Yields
    ------
    First cell of a block, and its embedding, float32 ``(n_block, embedding_dim)``.

    Raises
    ------
    MemoryError
        Even one cell does not fit into the GPU's memory, or not as many as were asked for.
    """

    def forward(batch: dict[str, Any]) -> Tensor:
        return encoder(batch["genes"], batch["values"], batch.get("lengths"))

    yield from _in_blocks(
        encoder, forward, encoder, read, {}, options or ComputeOptions(), start, by_length=by_length, progress=progress
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
    """Conditioned embedding of cells, ``(n_cells, output_dim)``; covariates are encoded, ``(n_cells,)`` each."""

    def forward(batch: dict[str, Any]) -> Tensor:
        return network(batch["genes"], batch["values"], batch["covariates"])[1]

    extra = {"covariates": dict(covariates)}
    blocks = _in_blocks(network, forward, encoder, read, extra, options or ComputeOptions(), 0, progress=progress)
    return np.concatenate([block for _, block in blocks])


def condition_cells(
    network: ConditionedSE,
    base: np.ndarray,
    covariates: Mapping[str, np.ndarray],
    *,
    options: ComputeOptions | None = None,
) -> np.ndarray:
    """Conditioned embedding of cells from their base embedding.

    Parameters
    ----------
    network
        Of its parts only the conditioning is used. It is moved to the device, and stays there.
    base
        ``(n_cells, embedding_dim)``.
    covariates
        Encoded, ``(n_cells,)`` each.
    options
        Device and precision.

    Returns
    -------
    float32 ``(n_cells, output_dim)``, rows of unit length.
    """
    options = options or ComputeOptions()
    device = options.resolved_device()
    network.eval().to(device)
    conditioned = []
    with torch.inference_mode(), options.autocast(device):
        for start in range(0, len(base), _CONDITIONED_AT_ONCE):
            here = slice(start, start + _CONDITIONED_AT_ONCE)
            batch = to_tensors({"base": base[here], "covariates": {k: v[here] for k, v in covariates.items()}})
            batch = _to_device(batch, device)
            conditioned.append(network.condition(batch["base"], batch["covariates"]).float().cpu().numpy())
    return np.concatenate(conditioned)


def decode_cells(
    encoder: SEEncoder,
    embedding: np.ndarray,
    genes: np.ndarray,
    read_depth: float,
    *,
    options: ComputeOptions | None = None,
    progress: str | None = None,
) -> np.ndarray:
    """Expression of genes from embeddings, by the network's own head.

    Parameters
    ----------
    encoder
        SE network. It is moved to the device, and stays there.
    embedding
        ``(n_cells, embedding_dim)``.
    genes
        Vocabulary indices, ``(n_genes,)``.
    read_depth
        Mean of the non-zero targets, the same for all cells.
    options
        Device and precision.
    progress
        Title of a progress bar; None for none.

    Returns
    -------
    float32 ``(n_cells, n_genes)``.
    """
    options = options or ComputeOptions()
    device = options.resolved_device()
    encoder.eval().to(device)
    decoded = np.empty((len(embedding), len(genes)), dtype=np.float32)
    n_pairs = max(1, _PAIR_NUMBERS // (3 * encoder.config.decoder_dim))  # cells x genes at a time
    n_genes = min(len(genes), n_pairs)
    n_cells = max(1, n_pairs // n_genes)
    bar = progress_bar(total=len(embedding), desc=progress, unit=" cells", disable=progress is None)
    with bar, torch.inference_mode(), options.autocast(device):
        for start in range(0, len(embedding), n_cells):
            cells = torch.from_numpy(embedding[start : start + n_cells]).to(device)
            depth = torch.full((len(cells),), read_depth, device=device)
            for first in range(0, len(genes), n_genes):
                asked = torch.from_numpy(genes[first : first + n_genes]).to(device)
                predicted = encoder.predict_expression(cells, asked, depth)
                decoded[start : start + len(cells), first : first + len(asked)] = predicted.float().cpu().numpy()
            bar.update(len(cells))
    return decoded


def _in_blocks(
    network: nn.Module,
    forward: Callable[[dict[str, Any]], Tensor],
    encoder: SEEncoder,
    read: CellReader,
    extra: dict[str, Any],
    options: ComputeOptions,
    start: int,
    *,
    by_length: bool = False,
    progress: str | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    network.eval()
    device = options.resolved_device()
    network.to(device)
    n_cells = len(read)
    n_tokens = read(0, 1).values.shape[1]
    batch_size = options.resolved_batch_size(encoder.config, device, n_tokens)
    block = batch_size * -(-max(batch_size, _BLOCK_TOKENS // n_tokens) // batch_size)
    bar = progress_bar(total=n_cells, initial=start, desc=progress, unit=" cells", disable=progress is None)
    with bar, _compiled(encoder, compile=options.compile):
        for first, sentences in _ahead(read, range(start, n_cells, block), n_cells, block, options.n_workers):
            rows = np.arange(first, first + len(sentences.genes))
            arrays = {"genes": sentences.genes, "values": sentences.values, **take(extra, rows)}
            order = np.arange(len(rows))
            if by_length:
                arrays["lengths"] = sentences.lengths
                order = np.argsort(sentences.lengths, kind="stable")
            parts: list[np.ndarray] = []
            done = 0
            while done < len(rows):
                chosen = order[done : done + batch_size]
                try:
                    parts.append(_run(forward, take(arrays, chosen), device, options))
                except torch.OutOfMemoryError as error:
                    batch_size = _smaller(batch_size, options, error)
                    continue
                done += len(chosen)
                bar.update(len(chosen))
            joined = np.concatenate(parts)
            result = np.empty_like(joined)
            result[order] = joined
            yield first, result


def _run(
    forward: Callable[[dict[str, Any]], Tensor], batch: dict[str, Any], device: torch.device, options: ComputeOptions
) -> np.ndarray:
    if "lengths" in batch:
        longest = int(batch["lengths"].max())
        batch = {**batch, "genes": batch["genes"][:, :longest], "values": batch["values"][:, : longest + 1]}
    with torch.inference_mode(), options.autocast(device):
        return forward(_to_device(to_tensors(batch), device)).float().cpu().numpy()


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, dict):
        return {key: _to_device(value, device) for key, value in batch.items()}
    return batch.to(device, non_blocking=True)


def _ahead(
    read: CellReader, starts: range, n_cells: int, block: int, n_workers: int
) -> Iterator[tuple[int, Sentences]]:
    """Read blocks in order, as many ahead of use as there are workers."""
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
        finally:  # also when the one who asks stops, or an error ends it
            for _, future in waiting:
                future.cancel()


def _smaller(batch_size: int, options: ComputeOptions, error: torch.OutOfMemoryError) -> int:
    """Halve the batch size that was chosen automatically."""
    if options.batch_size is not None or batch_size == 1:
        msg = f"{batch_size} cells at a time do not fit into the GPU's memory. "
        fix = "Leave batch_size out, or make it smaller." if batch_size > 1 else "Use n_tokens='expressed', or the CPU."
        raise MemoryError(msg + fix) from error
    torch.cuda.empty_cache()
    logger.warning("%d cells at a time do not fit into the GPU's memory; trying half.", batch_size)
    return batch_size // 2


@contextmanager
def _compiled(encoder: SEEncoder, *, compile: bool) -> Iterator[None]:
    """Within this context the transformer's layers run compiled."""
    layers = list(encoder.transformer_encoder.layers) if compile else []
    for layer in layers:
        layer.compile(dynamic=False)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
