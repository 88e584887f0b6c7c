"""A transformer that reads a cell as its genes in the order of their expression, as scModelForge trains it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scstate_lora.nn.layers import LayerStack, SelfAttention

if TYPE_CHECKING:
    from collections.abc import Callable

Pooling = Literal["cls", "mean"]
Activation = Literal["gelu", "relu"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True)
class RankConfig:
    """Sizes of a :class:`RankEncoder`, and its variants.

    Parameters
    ----------
    n_ids
        Rows of the gene table: the special tokens, then the genes.
    n_positions
        Length of the longest sentence, including the CLS token.
    d_model, n_layers, n_heads, d_hid
        Width, depth, heads and feed-forward width of the transformer.
    pooling
        The cell is the first token (``"cls"``), or the mean of all tokens (``"mean"``).
    activation
        Activation of the feed-forward.
    values
        Whether the value of a gene is added to its token.
    dropout
        Dropout in training.
    norm_eps
        Added to the variance in layer norms.

    Raises
    ------
    ValueError
        If ``pooling`` or ``activation`` is unknown.
    """

    n_ids: int
    n_positions: int
    d_model: int
    n_layers: int
    n_heads: int
    d_hid: int
    pooling: Pooling = "cls"
    activation: Activation = "gelu"
    values: bool = True
    dropout: float = 0.0
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        for name, allowed in (("pooling", get_args(Pooling)), ("activation", get_args(Activation))):
            if getattr(self, name) not in allowed:
                msg = f"{name}={getattr(self, name)!r} is unknown. Choose one of {list(allowed)}."
                raise ValueError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-able form."""
        return asdict(self)


class PreNormLayer(nn.Module):
    """Pre-norm transformer layer: attention, then a feed-forward, each of the normalised tokens and added to them.

    Parameters
    ----------
    config
        Sizes.
    """

    def __init__(self, config: RankConfig) -> None:
        super().__init__()
        d = config.d_model
        self.self_attn = SelfAttention(d, config.n_heads, config.dropout)
        self.linear1 = nn.Linear(d, config.d_hid)
        self.linear2 = nn.Linear(config.d_hid, d)
        self.norm1 = nn.LayerNorm(d, eps=config.norm_eps)
        self.norm2 = nn.LayerNorm(d, eps=config.norm_eps)
        self.drop = nn.Dropout(config.dropout)
        self.activation = config.activation

    def forward(self, tokens: Tensor, keep: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Compute tokens ``(n, T, d)``, or only those at the positions ``keep (K,)``, ``(n, K, d)``.

        Positions where ``mask (n, T)`` is false are not attended to.
        """
        normed = self.norm1(tokens)  # (n, T, d)
        queries, kept = (normed, tokens) if keep is None else (normed[:, keep], tokens[:, keep])  # (n, K, d)
        h = kept + self.drop(self.self_attn(queries, normed, mask))
        inner = self.drop(_ACTIVATIONS[self.activation](self.linear1(self.norm2(h))))  # (n, K, d_hid)
        return h + self.drop(self.linear2(inner))


class RankEncoder(nn.Module):
    """From the genes of a cell, highest expression first, to a cell embedding (Theodoris et al. 2023, Geneformer).

    Computes what the encoders of scModelForge compute (github.com/EhsanRS/scModelForge). They use torch's fused encoder
    layer, which stacks queries, keys and values in one weight; here they are three linear layers, so that each can
    carry an adapter (see :mod:`scstate_lora.io.published.scmodelforge_tensors`).

    Parameters
    ----------
    config
        Sizes.
    """

    def __init__(self, config: RankConfig) -> None:
        super().__init__()
        d = config.d_model
        self.config = config
        self.gene_embedding = nn.Embedding(config.n_ids, d, padding_idx=0)
        self.position_embedding = nn.Embedding(config.n_positions, d)
        if config.values:
            self.value_proj = nn.Linear(1, d)
        self.norm = nn.LayerNorm(d, eps=config.norm_eps)
        self.drop = nn.Dropout(config.dropout)
        self.transformer_encoder = LayerStack(PreNormLayer(config) for _ in range(config.n_layers))

    @property
    def embedding_dim(self) -> int:
        """Width of the cell embedding."""
        return self.config.d_model

    def forward(self, genes: Tensor, mask: Tensor, values: Tensor | None = None) -> Tensor:
        """Embed cells.

        Parameters
        ----------
        genes
            Ids of the tokens of each cell, int64 ``(n, T)``, with ``T`` at most ``n_positions``.
        mask
            Whether a position is read, not padding, bool ``(n, T)``; at least one of each cell.
        values
            Normalised expression of the genes, 0 for CLS and padding, float32 ``(n, T)``. Only a network without
            ``values`` can do without.

        Returns
        -------
        Embeddings ``(n, d_model)``.

        Raises
        ------
        ValueError
            If the sentences are too long, or the values are missing.
        """
        n_tokens = genes.shape[1]
        if n_tokens > self.config.n_positions:
            msg = f"genes has {n_tokens} tokens per cell, but the network has {self.config.n_positions} positions."
            raise ValueError(msg)
        h = self.gene_embedding(genes) + self.position_embedding.weight[:n_tokens]  # (n, T, d)
        if self.config.values:
            if values is None:
                msg = "This network adds the expression of the genes to their tokens. Give values."
                raise ValueError(msg)
            h = h + self.value_proj(values.unsqueeze(-1))  # (n, T, 1) -> (n, T, d)
        h = self.drop(self.norm(h))
        if self.config.pooling == "cls":
            first = torch.zeros(1, dtype=torch.int64, device=h.device)
            return self.transformer_encoder(h, keep=first, mask=mask)[:, 0]  # (n, 1, d) -> (n, d)
        h = self.transformer_encoder(h, mask=mask)
        read = mask.unsqueeze(-1).to(h.dtype)  # (n, T, 1)
        return (h * read).sum(1) / read.sum(1)
