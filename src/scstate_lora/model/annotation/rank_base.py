"""A base model that reads genes by rank: an encoder saved by scModelForge, its vocabulary and its origin."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from scstate_lora._logging import logger
from scstate_lora._tensors import aligned, in_float32
from scstate_lora.data.genes import GeneMatch, match_registered, match_vocabulary
from scstate_lora.data.rank_tokens import RankTokenizer
from scstate_lora.inference.embed_ranks import embed_rank_cells
from scstate_lora.io.published.hub import fetch_snapshot, is_hub_id
from scstate_lora.io.published.scmodelforge import N_SPECIAL, rank_files_to_fetch, read_rank_checkpoint
from scstate_lora.io.save_load import check_state
from scstate_lora.nn.lora import adapters_off, split_adapters
from scstate_lora.nn.rank_encoder import RankConfig, RankEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

    from anndata import AnnData
    from torch import Tensor

    from scstate_lora.config import ComputeOptions
    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.registry import Registry


@dataclass(frozen=True)
class RankBase:
    """An encoder of genes by rank, and its vocabulary.

    Parameters
    ----------
    encoder
        The network. A model may put adapters on it; the embedding, the tensors and the hash of the base are computed
        without them.
    genes
        Names of the genes, in the order of their ids.
    options
        Options of :class:`~scstate_lora.data.rank_tokens.RankTokenizer` beside the vocabulary.
    name
        Name for display.
    licence
        Licence of its weights.
    source
        Path or hub id from which it can be loaded again; None if it is to be saved with a model.
    stated
        Configuration with which it can be loaded again.
    """

    encoder: RankEncoder
    genes: list[str]
    options: dict[str, Any]
    name: str
    licence: str
    source: str | None = None
    stated: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    _tokenizers: MutableMapping[BoundData, RankTokenizer] = field(
        default_factory=WeakKeyDictionary, init=False, compare=False, repr=False
    )

    @property
    def dim(self) -> int:
        """Width of the embedding."""
        return self.encoder.embedding_dim

    def note(self) -> str:
        """Describe the base for the summary of a model."""
        c = self.encoder.config
        return (
            f"{self.name}: {c.n_layers} layers x {c.d_model}, up to {self.options['n_tokens']} genes by rank, "
            f"{c.pooling} pooling, {len(self.genes)} genes"
        )

    def owned(self) -> RankBase:
        """Give the same base without a source, so that a model saves it along."""
        return replace(self, source=None)

    def match(self, registry: Registry) -> GeneMatch:
        """Match the genes of a registered experiment to the vocabulary; a ValueError if hardly any match."""
        return match_vocabulary(registry.var_names, self.genes)

    def tokenizer(self, match: GeneMatch) -> RankTokenizer:
        """Make the tokenizer for data with matched genes."""
        vocabulary = np.full(match.n_data, -1, dtype=np.int64)
        vocabulary[match.columns] = match.vocabulary + N_SPECIAL
        return RankTokenizer(vocabulary, **self.options)

    def tokens(self, cells: BoundData, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Tokenise cells, as arguments of the network.

        Parameters
        ----------
        cells
            Cells of an experiment.
        rows
            Which of them, ``(n,)``.

        Returns
        -------
        ``genes``, int64, ``mask``, bool, and for a network that reads them ``values``, float32; each ``(n, T)``, where
        ``T`` is the length of the longest sentence among these cells.

        Raises
        ------
        ValueError
            If hardly any gene is known, or the network was trained on counts that are not normalised and these are
            log1p values.
        """
        if cells not in self._tokenizers:
            self._check_scale(cells.registry)
            self._tokenizers[cells] = self.tokenizer(self.match(cells.registry))
        x = cells.matrix[rows]
        if cells.registry.scale == "log1p":
            x.data = np.expm1(x.data.astype(np.float64))  # in full precision, so that no two values become one
        tokens = self._tokenizers[cells](x)
        if not self.encoder.config.values:
            del tokens["values"]
        return tokens

    def embed(self, cells: BoundData, *, options: ComputeOptions | None = None) -> np.ndarray:
        """Embed cells without any adapter, float32 ``(n_cells, dim)``."""
        with adapters_off(self.encoder):
            blocks = embed_rank_cells(self.encoder, lambda rows: self.tokens(cells, rows), len(cells), options=options)
            return np.concatenate([block for _, block in blocks])

    @in_float32()
    def copy(self) -> RankBase:
        """Make a base without adapters and with weights of its own, so that training one does not change the other."""
        state = {name: tensor.clone() for name, tensor in self.tensors().items()}
        return replace(self, encoder=_encoder(self.encoder.config, state, source="the base"))

    def tensors(self) -> dict[str, Tensor]:
        """Give the tensors of the base by name, without adapters."""
        return split_adapters(self.encoder.state_dict())[0]

    def sha256(self) -> str:
        """Hash over all that determines the embedding: sizes, genes, options of the tokens, and all tensors."""
        stated = {"config": self.encoder.config.to_dict(), "genes": self.genes, "options": self.options}
        digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data.cast("B"))
        return digest.hexdigest()

    def metadata(self) -> dict[str, Any]:
        """JSON-able description."""
        return {
            "format": "scmodelforge",
            "config": self.encoder.config.to_dict(),
            "genes": self.genes,
            "options": self.options,
            "name": self.name,
            "licence": self.licence,
            "source": self.source,
            "stated": self.stated,
            "sha256": self.sha256(),
        }

    @classmethod
    @in_float32()
    def restore(cls, metadata: dict[str, Any], tensors: Mapping[str, Tensor]) -> RankBase:
        """Rebuild a base from :meth:`metadata` and :meth:`tensors`, each checked by name and shape."""
        state = {name: aligned(tensor) for name, tensor in tensors.items()}
        encoder = _encoder(RankConfig(**metadata["config"]), state, source="the base")
        fields = {key: metadata[key] for key in ("options", "name", "licence", "source", "stated")}
        return cls(encoder, list(metadata["genes"]), **fields)

    @classmethod
    @in_float32()
    def load(
        cls,
        path: str | Path,
        *,
        config: str | Path | Mapping[str, Any] | None = None,
        genes: str | Path | Sequence[str] | Mapping[str, int] | None = None,
        offline: bool | None = None,
    ) -> RankBase:
        """Load an encoder saved by scModelForge.

        Parameters
        ----------
        path
            The folder of its ``save_pretrained`` or ``export``, a Lightning ``.ckpt`` of its training, one file of
            weights, or the id of a repository on the Hugging Face hub, ``owner/name`` or ``owner/name@revision``.
        config
            Its configuration or the file, ``config.json`` or YAML; by default that beside the weights. A ``.ckpt``
            holds none.
        genes
            Its vocabulary or the file: ids by gene, or the genes of its training data in order; by default
            ``gene_vocab.json`` beside the weights. A ``.ckpt`` holds none.
        offline
            Look for a hub id on this machine only; None: as the settings of the hub say.

        Raises
        ------
        FileNotFoundError
            If nothing is at the path, or a part is missing.
        ValueError
            If it is damaged, holds code, is of another model, or contradicts its configuration or vocabulary.
        OSError
            If the hub cannot be reached.
        """
        source = str(path)
        if is_hub_id(path):
            path = fetch_snapshot(source, choose=rank_files_to_fetch, offline=offline)
        else:
            source = str(Path(path).expanduser().resolve())
        stored = read_rank_checkpoint(path, rank_tensors, config=config, genes=genes)
        encoder = _encoder(RankConfig(**stored.sizes), stored.state, source=str(stored.path))
        return cls(encoder, stored.genes, stored.tokens, stored.name, stored.licence, source, stored.config)

    @classmethod
    def load_again(cls, metadata: dict[str, Any], path: str | Path) -> RankBase:
        """Load the base of the model saved at `path` from its own source; it must be the same."""
        source = metadata["source"]
        try:
            base = cls.load(source, config=metadata["stated"], genes=metadata["genes"])
        except FileNotFoundError as error:
            msg = (
                f"{path} was saved without its base; {metadata['name']!r} was at {source}, but no longer is. "
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
                f"{metadata['sha256'][:12]}…; this one is {self.name}, {sha256[:12]}…. Give the base of its training, "
                "with the same configuration and genes."
            )
            raise ValueError(msg)

    def _check_scale(self, registry: Registry) -> None:
        if self.options["target_sum"] is None and self.encoder.config.values and registry.scale == "log1p":
            msg = (
                f"{self.name} was trained on counts that are not normalised, but the cells were set up on log1p "
                "values. Set up the counts: ssl.setup_anndata(adata, layer='counts')."
            )
            raise ValueError(msg)


def load_rank_base(base: str | Path | RankBase, registry: Registry, adata: AnnData | None = None) -> RankBase:
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
    ValueError
        If the vocabulary does not hold a tenth of the genes; other names in ``adata.var`` that match are suggested.
    """
    base = base.copy() if isinstance(base, RankBase) else RankBase.load(base)
    match = match_registered(registry.var_names, base.genes, adata=adata if registry.gene_key is None else None)
    logger.info("%s.", match)
    return base


def rank_tensors(sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    """State dict, on the meta device, of a network of these sizes."""
    with torch.device("meta"):
        return RankEncoder(RankConfig(**sizes)).state_dict()


def _encoder(config: RankConfig, state: Mapping[str, Tensor], *, source: str) -> RankEncoder:
    """Make a network around existing tensors, without a copy, each checked by name and shape."""
    with torch.device("meta"):  # nothing is allocated or drawn
        encoder = RankEncoder(config)
    check_state(encoder.state_dict(), state, source=source)
    encoder.load_state_dict(dict(state), assign=True)
    return encoder.requires_grad_(requires_grad=False).eval()
