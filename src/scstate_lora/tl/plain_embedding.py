"""The plain embedding of a base model: `embed`, and `embed_file` from file to file."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scstate_lora._constants import OBSM_STATE
from scstate_lora._logging import logger
from scstate_lora.config.embed import EXPRESSED, EmbedOptions
from scstate_lora.data.genes import match_vocabulary, unique_names
from scstate_lora.data.log_scale import find_log_scale, noted_base
from scstate_lora.data.matrix import log_raw, resolve_scale, to_natural_log
from scstate_lora.data.raw import raw_advised
from scstate_lora.data.reader import SentenceReader, arc_log
from scstate_lora.data.registry import Registry
from scstate_lora.data.results import EMBED, REGISTRY, as_uns, read_result, write_result
from scstate_lora.data.stream import matrix_name, open_cells, open_source
from scstate_lora.data.tokens import cell_seeds
from scstate_lora.io.cells_file import FORMATS, write_embedding
from scstate_lora.io.partial import PartialMatrix

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from anndata import AnnData
    from scipy import sparse

    from scstate_lora.model import LoRACovariateSE, SEBase


def embed(
    adata: AnnData,
    base: LoRACovariateSE | SEBase | str | Path,
    *,
    key_added: str | None = OBSM_STATE,
    layer: str | None = None,
    input_scale: str | None = None,
    gene_key: str | None = None,
    n_tokens: int | str | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    n_workers: int = 1,
    compile: bool = False,
    arc_per_cell_scale: bool = False,
    resume: str | Path | None = None,
    progress_bar: bool = True,
) -> np.ndarray:
    """Embed cells with a base model as it is: no training, no covariates, no adapters.

    With a published SE checkpoint these are the numbers of Arc's own tool, 2058 of SE-600M, but for two differences:
    ties and padding are drawn from a generator seeded by the cell's name, so that a cell's embedding depends neither on
    the batch nor on the run; and whether the matrix holds counts or log1p values is decided once, from all of it. As
    there, the CLS token carries the count value of the fourth of the known genes, in the order of `adata`.

    Parameters
    ----------
    adata
        Cells x genes, in memory or backed: of a backed one the matrix is read a block at a time.
    base
        A published SE checkpoint (a folder, a ``.ckpt``, a ``model.safetensors`` or a hub id, see
        :meth:`scstate_lora.SEBase.load`), the directory of a saved model, an :class:`~scstate_lora.SEBase`, or a
        :class:`~scstate_lora.LoRACovariateSE` that has a base.
    key_added
        Where the embedding is written in ``adata.obsm``; None to write nothing.
    layer, input_scale
        As in :func:`scstate_lora.setup_anndata`. Where none is given, what was registered holds for cells that were
        set up.
    gene_key
        Column of ``adata.var`` with gene names. By default ``adata.var_names`` or the column that most of the base's
        genes are in, Ensembl ids with or without version.
    n_tokens
        Length of a cell's sentence; the base's own by default. ``"expressed"``: the base's own, without the unexpressed
        genes that fill the sentence of a cell with few expressed ones: faster, but not the same embedding.
    seed
        Seed of ties and padding; the base's own by default, 0 for a checkpoint.
    batch_size, device, precision, n_workers, compile
        How it is computed, see :class:`~scstate_lora.config.ComputeOptions`; none of it changes the result by more than
        rounding. By default on CUDA in bfloat16 if available, else on the CPU in float32.
    arc_per_cell_scale
        Guess for every cell whether it holds counts, as Arc's own tool does. For comparison only: of shallow cells'
        counts it takes most for log1p values.
    resume
        Folder in which finished cells are kept while this runs: after an interruption the same call goes on from
        there. It is deleted at the end.
    progress_bar
        Show a progress bar.

    Returns
    -------
    float32 ``(n_cells, output_dim)``, rows of unit length; with a base that has a token for the data set
    ``(n_cells, output_dim + 10)``, the last ten not normalised.

    Raises
    ------
    TypeError
        If `base` is neither a model, a base nor a path, or `adata` holds no numbers.
    KeyError
        If `layer` or `gene_key` does not exist.
    ValueError
        If the model has no base yet, the checkpoint is damaged, unsafe or of another kind, under 10 % of the genes are
        found, the matrix is unusable, an option makes no sense, or `resume` holds something else.
    FileNotFoundError
        If no file is found at the path.
    MemoryError
        If the GPU's memory is too small.

    Notes
    -----
    Adds ``adata.obsm["X_state"]``, or what `key_added` says, and how it was made to
    ``adata.uns["scstate_lora"]["embed"]["X_state"]``.

    References
    ----------
    Adduri et al. 2025, STATE, doi:10.1101/2025.06.26.661135.
    """
    options = _options(locals(), "embed()")
    is_described = any(value is not None for value in (layer, input_scale, gene_key))
    if not is_described and read_result(adata, REGISTRY) is not None:
        registry = Registry.from_adata(adata)
        registered = {"layer": registry.layer, "input_scale": registry.scale, "gene_key": registry.gene_key}
        options = options.model_copy(update=registered)
        logger.info("Layer, scale and genes are those that were set up.")
    job = _prepare(adata, base, options, progress_bar=progress_bar)
    embedding = np.empty(job.shape, dtype=np.float32)
    if resume is None:
        for first, rows in job.run(progress_bar=progress_bar):
            embedding[first : first + len(rows)] = rows
    else:
        with PartialMatrix(resume, shape=job.shape, made_from=job.made_from()) as partial:
            job.fill(partial, progress_bar=progress_bar)
            for first, rows in partial.blocks():
                embedding[first : first + len(rows)] = rows
            partial.remove()
    if key_added is not None:
        adata.obsm[key_added] = embedding
        write_result(adata, EMBED, job.record, key=key_added)
    return embedding


def embed_file(
    path: str | Path,
    base: SEBase | str | Path,
    *,
    out: str | Path,
    key_added: str = OBSM_STATE,
    layer: str | None = None,
    input_scale: str | None = None,
    gene_key: str | None = None,
    n_tokens: int | str | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    n_workers: int = 1,
    compile: bool = False,
    arc_per_cell_scale: bool = False,
    progress_bar: bool = True,
) -> None:
    """Embed the cells of a file and write a copy of it with the embedding, in the memory of a block of cells.

    What is finished is kept beside `out` in a hidden folder while this runs: after an interruption, even by
    ``kill -9``, the same call goes on from there. `out` itself is written whole or not at all.

    Parameters
    ----------
    path
        An ``.h5ad`` file or a ``.zarr`` directory.
    out
        A path with the same ending, or an ``.npy`` for the embedding alone. May be `path`.
    base, key_added, layer, input_scale, gene_key, n_tokens, seed, arc_per_cell_scale, progress_bar
        As in :func:`embed`.
    batch_size, device, precision, n_workers, compile
        As in :func:`embed`.

    Raises
    ------
    TypeError, KeyError, ValueError, FileNotFoundError, MemoryError
        As in :func:`embed`, or a file is damaged, or of a format that is not known.
    OSError
        If writing failed.

    Notes
    -----
    Adds in `out` what :func:`embed` adds to an AnnData.
    """
    path, out = Path(path).expanduser(), Path(out).expanduser()
    if path.suffix not in FORMATS[:-1]:
        msg = f"{path} must be an .h5ad file or a .zarr directory, to judge by its name."
        raise ValueError(msg)
    if out.suffix not in {path.suffix, ".npy"}:
        msg = f"The output, {out}, must end in {path.suffix}, as the input does, or in .npy for the embedding alone."
        raise ValueError(msg)
    options = _options(locals(), "embed_file()")
    job = _prepare(open_cells(path, layer), base, options, progress_bar=progress_bar)
    with PartialMatrix(out.parent / f".{out.name}.partial", shape=job.shape, made_from=job.made_from()) as partial:
        job.fill(partial, progress_bar=progress_bar)
        uns = as_uns(EMBED, job.record, key=key_added)
        write_embedding(path, out, partial.blocks(), shape=job.shape, key=key_added, uns=uns)
        partial.remove()


@dataclass(frozen=True)
class _Job:
    """Cells and a base that fit each other."""

    base: SEBase
    reader: SentenceReader
    options: EmbedOptions
    device: torch.device
    record: dict[str, Any]
    cells: str
    """Fingerprint of the cells' names and values."""

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.reader), self.base.encoder.config.embedding_dim

    def made_from(self) -> dict[str, Any]:
        """Describe everything the embedding depends on."""
        return {**self.record, "cells and their values": self.cells, "weights": self.base.sha256()[:12]}

    def run(self, *, start: int = 0, progress_bar: bool) -> Iterator[tuple[int, np.ndarray]]:
        logger.info("Embedding %d cells on %s in %s.", self.shape[0], self.device, self.record["precision"])
        title = "Embedding" if progress_bar else None
        return self.base.embed_blocks(self.reader, options=self.options, start=start, progress=title)

    def fill(self, partial: PartialMatrix, *, progress_bar: bool) -> None:
        """Compute the cells that are missing."""
        if partial.done:
            logger.info("Resuming from %s: %s of %s cells are done.", partial.folder, partial.done, self.shape[0])
        if partial.done < self.shape[0]:
            for _, rows in self.run(start=partial.done, progress_bar=progress_bar):
                partial.append(rows)


def _prepare(cells: AnnData, base: Any, options: EmbedOptions, *, progress_bar: bool) -> _Job:
    """Match genes, check the whole matrix, decide its scale: everything that can fail before the work starts."""
    from scstate_lora.inference.devices import choose_device, choose_precision

    device = choose_device(options.device)
    base = base_of(base)
    source = open_source(cells, options.layer)
    names = unique_names(cells.obs_names, "adata.obs_names", "adata.obs_names_make_unique()")
    match = match_vocabulary(cells, base.genes, gene_key=options.gene_key)
    logger.info("%s.", match)
    with raw_advised(cells):
        stats = source.scan(checksum=True, progress=progress_bar)
        scale, reason = resolve_scale(stats, options.input_scale, matrix_name(options.layer))
    log_base = find_log_scale(stats, noted_base(cells)).base if scale == "log1p" else math.e
    if log_base != math.e:
        reason += f"; logarithms to the base {log_base:g} are read as natural ones"
    if options.arc_per_cell_scale:
        logger.warning("Whether values are counts is guessed for every cell, as Arc's tool does: for comparison only.")
    else:
        logger.info("%s holds %s: %s.", source.name, scale, reason)

    def read(start: int, stop: int) -> sparse.csr_matrix:
        matrix = source.read(start, stop)
        return arc_log(matrix) if options.arc_per_cell_scale else to_natural_log(log_raw(matrix, scale), log_base)

    pad = options.n_tokens != EXPRESSED
    tokenizer = base.tokenizer(match, n_tokens=options.n_tokens if isinstance(options.n_tokens, int) else None, pad=pad)
    seed = base.seed if options.seed is None else options.seed
    record = {
        "base": base.name,
        "licence": base.licence,
        "genes": str(match),
        "matrix": source.name,
        "scale": "guessed for every cell" if options.arc_per_cell_scale else scale,
        "n_tokens": tokenizer.n_tokens if pad else EXPRESSED,
        "seed": seed,
        "precision": choose_precision(options, device),
    }
    digest = hashlib.sha256("\x00".join(names).encode())
    digest.update(f"{stats.n_stored} {stats.checksum}".encode())
    digest.update(match.columns.tobytes() + match.vocabulary.tobytes())
    reader = SentenceReader(read, tokenizer, cell_seeds(names, seed))
    return _Job(base, reader, options, device, record, digest.hexdigest()[:12])


def base_of(base: Any) -> SEBase:
    """Take the base of a model, or load it."""
    from scstate_lora.model import LoRACovariateSE, SEBase

    if isinstance(base, LoRACovariateSE):
        if base.base is None:
            msg = "This LoRACovariateSE has no base yet: call .train() or .train_base() first."
            raise ValueError(msg)
        if not isinstance(base.base, SEBase):
            msg = f"This LoRACovariateSE is built on {base.base.name}, which is no SE model. Name one by base=."
            raise ValueError(msg)
        return base.base
    if isinstance(base, (str, Path)):
        return SEBase.load(base)
    if not isinstance(base, SEBase):
        msg = f"base must be a LoRACovariateSE, an SEBase, a path or a hub id, found {type(base).__name__}."
        raise TypeError(msg)
    return base


def _options(arguments: Mapping[str, Any], function: str) -> EmbedOptions:
    """Take the options among the arguments of a call."""
    return EmbedOptions.of_call({name: arguments[name] for name in EmbedOptions.model_fields}, function=function)
