"""The STATE embedding (SE) network: from a cell's most expressed genes to a cell embedding, and back to expression."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scstate_lora.nn.layers import SkipBlock, TransformerEncoder


@dataclass(frozen=True)
class SEConfig:
    """Sizes of an SE network.

    Parameters
    ----------
    token_dim
        Width of a gene's token vector (5120 for ESM2 protein embeddings).
    d_model, n_layers, n_heads, d_hid
        Width, depth, heads and feed-forward width of the transformer.
    output_dim
        Width of the cell embedding.
    n_tokens
        Length of a cell's sentence: the CLS token and ``n_tokens - 1`` genes.
    dropout
        In the transformer, while training.
    """

    token_dim: int
    d_model: int
    n_layers: int
    n_heads: int
    d_hid: int
    output_dim: int
    n_tokens: int
    dropout: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-able form."""
        return asdict(self)


class SEEncoder(nn.Module):
    """STATE embedding network (Adduri et al. 2025, STATE, doi:10.1101/2025.06.26.661135).

    Module names follow the published checkpoints, but for the attention: there queries, keys and values are stored as
    one stacked ``qkv_proj`` (see :mod:`scstate_lora.io.arc`).

    Parameters
    ----------
    config
        Sizes.
    gene_tokens
        Token vector of every gene, ``(n_genes, token_dim)``: a constant of the model, not a parameter.
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
        self.count_encoder = nn.Sequential(nn.Linear(1, 512), nn.LeakyReLU(0.01), nn.Linear(512, 10))
        self.bin_encoder = nn.Embedding(10, d)
        self.transformer_encoder = TransformerEncoder(d, config.n_layers, config.n_heads, config.d_hid, config.dropout)
        self.decoder = nn.Sequential(SkipBlock(d), nn.Linear(d, out))
        width = out + d + 1  # cell embedding, gene, read depth
        self.binary_decoder = nn.Sequential(SkipBlock(width), SkipBlock(width), nn.Linear(width, 1))

    def forward(self, genes: Tensor, values: Tensor) -> Tensor:
        """Embed cells.

        Parameters
        ----------
        genes
            Gene indices of every cell's sentence, int64 ``(n, T - 1)``.
        values
            Count values of CLS and the genes, 100 x share of the cell's total, float32 ``(n, T)``.

        Returns
        -------
        Unit-length embeddings, ``(n, output_dim)``.
        """
        d = self.config.d_model
        # Every gene's token is encoded once, then looked up: the vocabulary is shorter than a batch of sentences.
        table = self.encoder(F.normalize(self.gene_tokens, dim=1))  # (n_genes, d)
        cls = self.encoder(self.cls_token)  # (1, d)
        h = torch.cat([cls.expand(len(genes), 1, d), F.embedding(genes, table)], dim=1) * d**0.5  # (n, T, d)
        h = h + self.count_encoder(values.unsqueeze(-1)).softmax(-1) @ self.bin_encoder.weight
        # Only the CLS position is read, so the last layer computes only that one.
        h = self.transformer_encoder(h, keep=torch.zeros(1, dtype=torch.long, device=h.device))  # (n, 1, d)
        return F.normalize(self.decoder(h[:, 0]), dim=1)

    def predict_expression(self, embedding: Tensor, genes: Tensor, read_depth: Tensor) -> Tensor:
        """Expression of genes from cell embeddings.

        Parameters
        ----------
        embedding
            ``(n, output_dim)``.
        genes
            Gene indices, the same for all cells, int64 ``(g,)``.
        read_depth
            Mean of the cell's non-zero targets, ``(n,)``.

        Returns
        -------
        Predicted log1p expression, ``(n, g)``.
        """
        tokens = self.encoder(self.gene_tokens[genes])  # (g, d); not normalised here, as in the published model
        n, g = len(embedding), len(genes)
        pairs = torch.cat(
            [
                tokens.expand(n, g, -1),
                embedding.unsqueeze(1).expand(n, g, -1),
                read_depth.view(n, 1, 1).expand(n, g, 1),
            ],
            dim=2,
        )  # (n, g, d + output_dim + 1)
        return self.binary_decoder(pairs).squeeze(-1)
