"""A base model: an SE network with its vocabulary and its origin."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scstate_lora._logging import logger
from scstate_lora._tensors import aligned, in_float32
from scstate_lora.data.genes import GeneMatch, match_registered, match_vocabulary
from scstate_lora.data.reader import SentenceReader
from scstate_lora.data.tokens import Tokenizer, cell_seeds
from scstate_lora.inference.embed import embed_cells
from scstate_lora.io.published.hub import fetch_snapshot, is_hub_id
from scstate_lora.io.published.se_checkpoint import files_to_fetch, read_se_checkpoint
from scstate_lora.io.published.se_tensors import from_arc_names, to_arc_names
from scstate_lora.io.save_load import check_state, holds_save, load_directory, save_directory
from scstate_lora.nn.hyper_connections import mhc_off
from scstate_lora.nn.lora import adapters_off, split_adapters
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from anndata import AnnData
    from scipy import sparse
    from torch import Tensor

    from scstate_lora.config import ComputeOptions
    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.registry import Registry

_TOKENS = "gene_tokens"
CELLS = "base_cells"
"""File of the hashes of the cells that a base was trained on."""


@dataclass(frozen=True)
class SEBase:
    """An SE network and its vocabulary of genes.

    Parameters
    ----------
    encoder
        The network. A model may put adapters and hyper-connections on it; the embedding, the tensors and the hash of
        the base are computed without them.
    genes
        Names of the genes, in the order of ``encoder.gene_tokens``.
    name
        Name for display.
    licence
        Licence of its weights.
    seed
        Seed of the sentences of cells.
    source
        Path or hub id from which it can be loaded again; None if it was trained with a model.
    trained_on
        Hashes of the names of the cells that it was trained on, uint64 ``(n,)``; None where that is not known.
    """

    encoder: SEEncoder
    genes: list[str]
    name: str
    licence: str
    seed: int = 0
    source: str | None = None
    trained_on: np.ndarray | None = field(default=None, compare=False)

    @property
    def dim(self) -> int:
        """Number of columns of the embedding that is conditioned."""
        return self.encoder.config.output_dim

    def note(self) -> str:
        """Describe the base for the summary of a model."""
        c = self.encoder.config
        return f"{self.name}: {c.n_layers} layers x {c.d_model}, {c.n_tokens} tokens, {len(self.genes)} genes"

    def seeded(self, seed: int) -> SEBase:
        """Give the same base with another seed of the sentences."""
        return replace(self, seed=seed)

    def owned(self) -> SEBase:
        """Give the same base without a source, so that a model saves it along."""
        return replace(self, source=None)

    def tokenizer(self, match: GeneMatch, *, n_tokens: int | None = None, pad: bool = True) -> Tokenizer:
        """Make the tokenizer for data with matched genes; by default with the sentence length of the network."""
        vocabulary = np.full(match.n_data, -1, dtype=np.int64)
        vocabulary[match.columns] = match.vocabulary
        config = self.encoder.config
        return Tokenizer(vocabulary, n_tokens or config.n_tokens, cls_gene=config.cls_gene, pad=pad)

    def match(self, registry: Registry) -> GeneMatch:
        """Match the genes of a registered experiment to the vocabulary; a ValueError if hardly any match."""
        return match_vocabulary(registry.var_names, self.genes)

    def inputs(self, cells: BoundData) -> tuple[sparse.csr_matrix, np.ndarray, Tokenizer]:
        """Read the input of the network.

        Returns
        -------
        log1p expression without library-size scaling, CSR ``(n_cells, n_genes)`` in the order of the registry; the seed
        of each cell, ``(n_cells,)``; and the tokenizer for these genes.
        """
        return cells.log_counts, cell_seeds(cells.names, self.seed), self.tokenizer(self.match(cells.registry))

    def reader(self, cells: BoundData) -> SentenceReader:
        """Make a reader of the cells of an experiment."""
        x, seeds, tokenizer = self.inputs(cells)
        return SentenceReader.of_matrix(x, tokenizer, seeds)

    def embed(self, cells: BoundData, *, progress: str | None = None) -> np.ndarray:
        """Embed cells without any adapter, float32 ``(n_cells, embedding_dim)``."""
        return self.embed_all(self.reader(cells), progress=progress)

    def embed_all(self, read: SentenceReader, *, progress: str | None = None) -> np.ndarray:
        """Embed all cells of a reader without any adapter, float32 ``(n_cells, embedding_dim)``."""
        return np.concatenate([block for _, block in self.embed_blocks(read, progress=progress)])

    def embed_blocks(
        self,
        read: SentenceReader,
        *,
        options: ComputeOptions | None = None,
        start: int = 0,
        progress: str | None = None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Embed cells without any adapter, block by block."""
        by_length = not read.tokenizer.pad
        with mhc_off(self.encoder), adapters_off(self.encoder):
            yield from embed_cells(
                self.encoder, read, options=options, start=start, by_length=by_length, progress=progress
            )

    @in_float32()
    def copy(self) -> SEBase:
        """Make a base without adapters that shares the weights, which training never changes."""
        encoder = _encoder(self.encoder.config, self.encoder.gene_tokens, self._state(), source="the base")
        return replace(self, encoder=encoder)

    def tensors(self) -> dict[str, Tensor]:
        """Give the tensors of the base in the published layout, and its gene tokens."""
        return {**to_arc_names(self._state()), _TOKENS: self.encoder.gene_tokens}

    def cells(self) -> dict[str, dict[str, Tensor]]:
        """Give the hashes of the cells that it was trained on as a file of tensors; none where they are not known."""
        return {} if self.trained_on is None else {CELLS: {"names": torch.from_numpy(self.trained_on.view(np.int64))}}

    def _state(self) -> dict[str, Tensor]:
        with mhc_off(self.encoder):
            return split_adapters(self.encoder.state_dict())[0]

    def sha256(self) -> str:
        """Hash over names, shapes and values of all tensors: the identity of the base."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data.cast("B"))
        return digest.hexdigest()

    def metadata(self) -> dict[str, Any]:
        """JSON-able description."""
        return {
            "config": self.encoder.config.to_dict(),
            "genes": self.genes,
            "name": self.name,
            "licence": self.licence,
            "seed": self.seed,
            "source": self.source,
            "sha256": self.sha256(),
        }

    def save(self, path: str | Path) -> None:
        """Save the base as a directory of JSON and safetensors.

        Raises
        ------
        FileExistsError
            If ``path`` holds something else.
        OSError
            If writing fails; an older save is intact.
        """
        description = self.metadata()
        notice = (
            f"Base: {self.name}\nSHA-256 of the base: {description['sha256']}\nLicence of the base: {self.licence}\n"
            "An adaptation of it is a derivative work.\n"
        )
        metadata = {"model": type(self).__name__, "base": description}
        save_directory(
            path, metadata=metadata, tensors={"base": self.tensors(), **self.cells()}, texts={"NOTICE": notice}
        )

    @classmethod
    @in_float32()
    def restore(
        cls, metadata: dict[str, Any], tensors: dict[str, Tensor], cells: dict[str, Tensor] | None = None
    ) -> SEBase:
        """Rebuild a base from :meth:`metadata`, :meth:`tensors`, each checked by name and shape, and :meth:`cells`."""
        tensors = {name: aligned(tensor) for name, tensor in tensors.items()}
        gene_tokens = tensors.pop(_TOKENS)
        encoder = _encoder(SEConfig(**metadata["config"]), gene_tokens, from_arc_names(tensors), source="the base")
        fields = {key: metadata[key] for key in ("name", "licence", "seed")}
        trained_on = None if cells is None else cells["names"].numpy().view(np.uint64)
        return cls(encoder, list(metadata["genes"]), **fields, source=metadata.get("source"), trained_on=trained_on)

    @classmethod
    @in_float32()
    def load(
        cls,
        path: str | Path,
        *,
        config: str | Path | None = None,
        protein_embeddings: str | Path | None = None,
        offline: bool | None = None,
    ) -> SEBase:
        """Load a base.

        Parameters
        ----------
        path
            A published SE checkpoint: a folder, a ``.ckpt``, a ``model.safetensors``, or the id of a repository on the
            Hugging Face hub, ``owner/name`` or ``owner/name@revision``. Or a directory that ``SEBase.save`` or
            ``LoRACovariateSE.save`` wrote.
        config, protein_embeddings
            Files that take precedence over those in or beside the checkpoint.
        offline
            Look for a hub id on this machine only; None: as the settings of the hub say.

        Raises
        ------
        FileNotFoundError
            If nothing is at the path, or a part of the checkpoint is missing.
        ValueError
            If the checkpoint is damaged, holds code, or is of another model, or a tensor is missing, unexpected or of
            another shape.
        OSError
            If the hub cannot be reached.
        """
        source = str(path)
        if is_hub_id(path):
            path = fetch_snapshot(source, choose=files_to_fetch, offline=offline)
        else:
            source = str(Path(path).expanduser().resolve())
        if not holds_save(path):
            stored = read_se_checkpoint(path, se_tensors, config=config, protein_embeddings=protein_embeddings)
            encoder = _encoder(SEConfig(**stored.sizes), stored.gene_tokens, stored.state, source=str(stored.path))
            return cls(encoder, stored.genes, stored.name, stored.licence, source=source)
        metadata, tensors = load_directory(path)
        if "base" not in metadata:
            msg = f"{path} holds a {metadata.get('model')} without a base. Give the directory of a LoRACovariateSE."
            raise ValueError(msg)
        if "base" not in tensors:  # adapters only: the base is loaded from its own source
            return cls.load_again(metadata["base"], path)
        base = cls.restore(metadata["base"], tensors["base"], tensors.get(CELLS))
        if base.source is not None:
            return replace(base, source=source)  # it can be loaded from here again
        return base  # trained with a model, which saves it along

    @classmethod
    @in_float32()
    def load_again(cls, metadata: dict[str, Any], path: str | Path) -> SEBase:
        """Load the base of the model saved at `path` from its own source; it must be the same."""
        source = metadata["source"]
        try:
            base = cls.load(source)
        except FileNotFoundError as error:
            msg = (
                f"{path} holds adapters only; their base {metadata['name']!r} was at {source}, but no longer is. "
                f"Say where it is: load(..., base=...). ({error})"
            )
            raise FileNotFoundError(msg) from error
        base.check_is(metadata, path)
        return base

    def check_is(self, metadata: dict[str, Any], path: str | Path) -> None:
        """Raise a ValueError unless this is the base that the model saved at `path` was trained on."""
        sha256 = self.sha256()
        if sha256 != metadata["sha256"]:
            msg = (
                f"The model at {path} was trained on another base: {metadata['name']}, with SHA-256 "
                f"{metadata['sha256'][:12]}…; this one is {self.name}, {sha256[:12]}…. "
                "Adapters fit their own base only."
            )
            raise ValueError(msg)


def load_base(base: Any, registry: Registry, adata: AnnData | None = None) -> SEBase:
    """Load a base, or copy one, and check that its vocabulary holds the genes.

    Parameters
    ----------
    base
        A path, a hub id or a base.
    registry
        The experiment.
    adata
        Its data, in whose ``var`` other gene names are looked for if those registered do not match.

    Raises
    ------
    TypeError
        If `base` is neither a path, a hub id nor an ``SEBase``.
    ValueError
        If the vocabulary does not hold the genes; other names in ``adata.var`` that match are suggested.
    """
    if not isinstance(base, (str, Path, SEBase)):
        msg = f"base must be a path, a hub id or an SEBase (such as model.base), found {type(base).__name__}."
        raise TypeError(msg)
    base = base.copy() if isinstance(base, SEBase) else SEBase.load(base)
    match = match_registered(registry.var_names, base.genes, adata=adata if registry.gene_key is None else None)
    logger.info("%s.", match)
    return base


def se_tensors(sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    """State dict, on the meta device, of an SE network.

    Parameters
    ----------
    sizes
        Sizes as :func:`~scstate_lora.io.published.se_tensors.arc_sizes` reads them.
    """
    config = SEConfig(**sizes, n_heads=1, n_tokens=2)  # no tensor depends on these two
    with torch.device("meta"):
        return SEEncoder(config, torch.empty(0, config.token_dim)).state_dict()


def _encoder(config: SEConfig, gene_tokens: Tensor, state: dict[str, Tensor], *, source: str) -> SEEncoder:
    """Make a network around existing tensors, without a copy, each checked by name and shape."""
    with torch.device("meta"):  # nothing is allocated or drawn
        encoder = SEEncoder(config, gene_tokens)
    check_state(encoder.state_dict(), state, source=source)
    encoder.load_state_dict(state, assign=True)
    return encoder.requires_grad_(requires_grad=False).eval()
