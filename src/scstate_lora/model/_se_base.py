"""A base model: an SE network with its vocabulary, and where it came from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from scstate_lora.data.matrix import log_raw
from scstate_lora.data.registry import Registry, match_genes, take_columns
from scstate_lora.data.tokens import cell_seeds
from scstate_lora.io.arc import from_arc_names, to_arc_names
from scstate_lora.io.save_load import check_state, load_directory
from scstate_lora.nn.lora import adapters_off, split_adapters
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder
from scstate_lora.training.embed import embed_cells

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from anndata import AnnData
    from scipy import sparse
    from torch import Tensor

_TOKENS = "gene_tokens"


def se_inputs(adata: AnnData, registry: Registry, genes: list[str], seed: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Read of cells what an SE network reads.

    Parameters
    ----------
    adata, registry
        Cells, and how to read them.
    genes
        The network's vocabulary.
    seed
        Seed of the sentences.

    Returns
    -------
    log1p expression without library-size scaling, CSR ``(n_cells, n_genes)`` in the vocabulary's order, and the seed of
    every cell ``(n_cells,)``.
    """
    x = log_raw(registry.matrix(adata), registry.scale)
    return take_columns(x, match_genes(registry.var_names, genes)), cell_seeds(list(adata.obs_names), seed)


@dataclass
class SEBase:
    """An SE network and the genes it knows.

    Parameters
    ----------
    encoder
        The network. A model may have put adapters on it; the base's own embedding is computed without them.
    genes
        Names, in the order of ``encoder.gene_tokens``.
    name
        What it is, for people.
    licence
        Licence of its weights.
    seed
        Seed of the cells' sentences.
    """

    encoder: SEEncoder
    genes: list[str]
    name: str
    licence: str
    seed: int = 0

    def inputs(self, adata: AnnData, registry: Registry) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Read the network's input, see :func:`se_inputs`."""
        return se_inputs(adata, registry, self.genes, self.seed)

    def copy(self) -> SEBase:
        """Make a base of the same weights, without adapters."""
        return SEBase.restore(self.metadata(), self.tensors())

    def embed(self, adata: AnnData, registry: Registry, *, progress: str | None = None) -> np.ndarray:
        """Embed cells without any adapter, float32 ``(n_cells, output_dim)``, rows of unit length."""
        x, seeds = self.inputs(adata, registry)
        with adapters_off(self.encoder):
            return embed_cells(self.encoder, x, seeds, progress=progress)

    def tensors(self) -> dict[str, Tensor]:
        """Give the base's tensors in the published layout, and its gene tokens."""
        state, _ = split_adapters(self.encoder.state_dict())
        return {**to_arc_names(state), _TOKENS: self.encoder.gene_tokens}

    def sha256(self) -> str:
        """Hash over names, shapes and values of all tensors: the identity of the base."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def metadata(self) -> dict[str, Any]:
        """JSON-able description."""
        return {
            "config": self.encoder.config.to_dict(),
            "genes": self.genes,
            "name": self.name,
            "licence": self.licence,
            "seed": self.seed,
            "sha256": self.sha256(),
        }

    @classmethod
    def restore(cls, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> SEBase:
        """Rebuild a base from copies of :meth:`metadata` and :meth:`tensors`, each checked by name and shape."""
        tensors = dict(tensors)
        # Read from a file, a tensor may start anywhere in memory; a copy is aligned, and rounds as the original does.
        gene_tokens = tensors.pop(_TOKENS).clone(memory_format=torch.contiguous_format)
        with torch.random.fork_rng():  # the random initialisation is overwritten; leave the user's state alone
            encoder = SEEncoder(SEConfig(**metadata["config"]), gene_tokens)
        state = from_arc_names(tensors)
        check_state(encoder.state_dict(), state, what="the base")
        encoder.load_state_dict(state)
        return cls(
            encoder.eval(), list(metadata["genes"]), metadata["name"], metadata["licence"], seed=metadata["seed"]
        )

    @classmethod
    def load(cls, path: str | Path) -> SEBase:
        """Load the base of a saved :class:`~scstate_lora.LoRACovariateSE`.

        Raises
        ------
        FileNotFoundError, ValueError
            The directory is missing, damaged, or of another model.
        """
        metadata, tensors = load_directory(path)
        if "base" not in tensors:
            msg = f"{path} holds a {metadata.get('model')} without a base. Give the directory of a LoRACovariateSE."
            raise ValueError(msg)
        return cls.restore(metadata["base"], tensors["base"])
