"""The STATE embedding (SE) network: from a cell's most expressed genes to a cell embedding, and back to expression."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scstate_lora.nn.layers import SkipBlock, TransformerEncoder

_N_BINS = 10
_N_DATASET = 10
# Genes whose tokens are encoded at a time: the vectors of 20,000 proteins are wide.
_CHUNK = 2048


@dataclass(frozen=True)
class SEConfig:
    """Sizes of an SE network, and its optional parts.

    Parameters
    ----------
    token_dim
        Width of the token vector of a gene (5120 for ESM2 protein embeddings).
    d_model, n_layers, n_heads, d_hid
        Width, depth, heads and feed-forward width of the transformer.
    output_dim
        Width of the cell embedding.
    n_tokens
        Length of a cell's sentence: the CLS token and ``n_tokens - 1`` genes.
    dropout
        Dropout of the transformer in training.
    counts
        Whether tokens encode the expression of their gene.
    rda
        Whether the expression head is conditioned on the read depth.
    dataset_correction
        Whether a token for the data set follows the genes; it adds ten entries to the embedding.
    cls_gene
        Index, among the genes of a cell, of the one whose count value the CLS token takes; None: the value is 0.
    """

    token_dim: int
    d_model: int
    n_layers: int
    n_heads: int
    d_hid: int
    output_dim: int
    n_tokens: int
    dropout: float = 0.0
    counts: bool = True
    rda: bool = True
    dataset_correction: bool = False
    cls_gene: int | None = None

    @property
    def embedding_dim(self) -> int:
        """Width of the whole embedding: the entries of the cell, then those of the data set."""
        return self.output_dim + _N_DATASET * self.dataset_correction

    @property
    def decoder_dim(self) -> int:
        """Input width of the expression head: the token of a gene, the embedding and the read depth."""
        return self.d_model + self.embedding_dim + self.rda

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-able form."""
        return asdict(self)


class SEEncoder(nn.Module):
    """STATE embedding network (Adduri et al. 2025, STATE, doi:10.1101/2025.06.26.661135).

    Module names follow the published checkpoints except in the attention, where those store queries, keys and values
    stacked in one ``qkv_proj`` (see :mod:`scstate_lora.io.published.se_tensors`).

    Parameters
    ----------
    config
        Sizes.
    gene_tokens
        Token vector of each gene, ``(n_genes, token_dim)``: a constant of the model, not a parameter.
    """

    gene_tokens: Tensor

    def __init__(self, config: SEConfig, gene_tokens: Tensor) -> None:
        super().__init__()
        if gene_tokens.ndim != 2 or gene_tokens.shape[1] != config.token_dim:
            msg = f"gene_tokens has shape {tuple(gene_tokens.shape)}, expected (n_genes, token_dim={config.token_dim})."
            raise ValueError(msg)
        d, out = config.d_model, config.output_dim
        self.config = config
        self.register_buffer("gene_tokens", gene_tokens, persistent=False)
        self.cls_token = nn.Parameter(torch.randn(1, config.token_dim))
        self.encoder = nn.Sequential(nn.Linear(config.token_dim, d), nn.LayerNorm(d), nn.SiLU())
        if config.counts:
            self.count_encoder = nn.Sequential(nn.Linear(1, 512), nn.LeakyReLU(0.01), nn.Linear(512, _N_BINS))
            self.bin_encoder = nn.Embedding(_N_BINS, d)
        self.transformer_encoder = TransformerEncoder(d, config.n_layers, config.n_heads, config.d_hid, config.dropout)
        self.decoder = nn.Sequential(SkipBlock(d), nn.Linear(d, out))
        if config.dataset_correction:
            self.dataset_token = nn.Parameter(torch.randn(1, config.token_dim))
            self.dataset_embedder = nn.Linear(out, _N_DATASET)
        width = config.decoder_dim
        self.binary_decoder = nn.Sequential(SkipBlock(width), SkipBlock(width), nn.Linear(width, 1))
        self._cached: tuple[Any, Tensor] | None = None

    def forward(self, genes: Tensor, values: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embed cells.

        Parameters
        ----------
        genes
            Gene indices of the sentence of each cell, int64 ``(n, T - 1)``.
        values
            Count values of CLS and the genes, 100 x share of the cell's total, float32 ``(n, T)``.
        lengths
            Number of genes to read from each sentence, ``(n,)``; all by default.

        Returns
        -------
        Embeddings ``(n, output_dim)`` of unit length; with dataset correction ``(n, output_dim + 10)``, of which the
        last ten entries are not normalised.
        """
        config, n_genes = self.config, len(self.gene_tokens)
        # CLS, the genes, and the data set are rows of one table; d is d_model.
        ids = F.pad(genes, (1, 0), value=n_genes)  # (n, T)
        if config.dataset_correction:
            ids = F.pad(ids, (0, 1), value=n_genes + 1)  # (n, T + 1)
        h = F.embedding(ids, self.token_table())  # (n, T [+ 1], d)
        if config.counts:
            counted = self._count_vectors(values)  # (n, T, d)
            # The data set token has no count.
            h = h + (F.pad(counted, (0, 0, 0, 1)) if config.dataset_correction else counted)
        mask = None if lengths is None else _readable(ids.shape[1], genes.shape[1], lengths)
        # Only CLS and the data set token are read, so the last layer computes only those.
        keep = torch.tensor([0, -1] if config.dataset_correction else [0], device=h.device)
        h = self.decoder(self.transformer_encoder(h, keep=keep, mask=mask))  # (n, 1 or 2, output_dim)
        cell = F.normalize(h[:, 0], dim=1)  # (n, output_dim)
        return torch.cat([cell, self.dataset_embedder(h[:, 1])], dim=1) if config.dataset_correction else cell

    def token_table(self) -> Tensor:
        """Encode the tokens of all genes, CLS and, with dataset correction, the data set: ``(n_genes + 1 or 2, d)``.

        The vocabulary is shorter than a batch of sentences, and the same for all cells. The table is cached while the
        token encoder is not trained.
        """
        weights = [self.gene_tokens, *self._extra_tokens(), *self.encoder.parameters()]
        if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
            self._cached = None  # a fused optimiser changes weights without a new version of them
            return self._encode_tokens()
        # A tensor changed in place has a new version, one moved to another device a new address.
        state = [(w.data_ptr(), w._version) for w in weights]
        if self._cached is None or self._cached[0] != state:
            # The cache outlives inference mode and autocast, so it is computed outside of both.
            off = torch.autocast(self.cls_token.device.type, enabled=False)
            with torch.inference_mode(mode=False), torch.no_grad(), off:
                self._cached = state, self._encode_tokens()
        return self._cached[1]

    def _extra_tokens(self) -> list[Tensor]:
        return [self.cls_token, self.dataset_token] if self.config.dataset_correction else [self.cls_token]

    def _encode_tokens(self) -> Tensor:
        encoded = [self.encoder(F.normalize(chunk, dim=1)) for chunk in self.gene_tokens.split(_CHUNK)]
        return torch.cat([*encoded, *map(self.encoder, self._extra_tokens())]) * self.config.d_model**0.5

    def _count_vectors(self, values: Tensor) -> Tensor:
        """Encode count values ``(n, T)`` as ``(n, T, d)``: a mixture of bin vectors, computed once per value."""
        # Most values occur many times: padding is 0, and counts are integers over a common total.
        levels, which = values.unique(return_inverse=True)  # (n_levels,), (n, T)
        bins = self.count_encoder(levels.unsqueeze(-1)).softmax(-1)  # (n_levels, bins)
        return F.embedding(which, bins @ self.bin_encoder.weight)  # (n_levels, d) -> (n, T, d)

    def predict_expression(self, embedding: Tensor, genes: Tensor, read_depth: Tensor) -> Tensor:
        """Predict the expression of genes from cell embeddings.

        Parameters
        ----------
        embedding
            Embeddings from :meth:`forward`, ``(n, embedding_dim)``.
        genes
            Gene indices, the same for all cells, int64 ``(g,)``.
        read_depth
            Mean of the cell's non-zero targets, ``(n,)``; ignored by a model without ``rda``.

        Returns
        -------
        Predicted log1p expression, ``(n, g)``.
        """
        tokens = self.encoder(self.gene_tokens[genes])  # (g, d); as in the published model, not normalised here
        n, g, out = len(embedding), len(genes), self.config.output_dim
        # Each part is expanded to (n, g, width of the part) and joined to (n, g, decoder_dim).
        parts = [tokens.expand(n, g, -1), embedding[:, None, :out].expand(n, g, -1)]
        if self.config.rda:
            parts.append(read_depth.view(n, 1, 1).expand(n, g, 1))
        if self.config.dataset_correction:
            parts.append(embedding[:, None, out:].expand(n, g, -1))
        return self.binary_decoder(torch.cat(parts, dim=2)).squeeze(-1)  # (n, g, 1) -> (n, g)


def _readable(n_tokens: int, n_genes: int, lengths: Tensor) -> Tensor:
    """Mask ``(n, n_tokens)``, true for CLS, the first `lengths` genes, and the data set token after the genes."""
    position = torch.arange(n_tokens, device=lengths.device)
    return (position <= lengths[:, None]) | (position > n_genes)
