"""Attention, transformer layer and skip block of the STATE embedding network, from plain linear layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable


class SelfAttention(nn.Module):
    """Multi-head self-attention without a causal mask or positions.

    Queries, keys and values have separate linear layers, so that each can carry an adapter; a published checkpoint
    stores the three stacked. PyTorch's fused encoder layer is not used: in ``eval`` it reads the frozen weights
    directly and bypasses the adapters.

    Parameters
    ----------
    dim
        Width of the tokens.
    n_heads
        Number of heads; must divide ``dim``.
    dropout
        Dropout of the attention weights, in training only.
    """

    def __init__(self, dim: int, n_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % n_heads:
            msg = f"The width {dim} is not divisible by the number of heads, {n_heads}."
            raise ValueError(msg)
        self.n_heads = n_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from ``queries (n, Q, d)`` to ``tokens (n, T, d)`` where ``mask (n, T)`` is true; ``(n, Q, d)``."""
        attended = F.scaled_dot_product_attention(
            self._heads(self.q_proj(queries)),
            self._heads(self.k_proj(tokens)),
            self._heads(self.v_proj(tokens)),
            attn_mask=None if mask is None else mask[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
        )  # (n, H, Q, d / H)
        return self.out_proj(attended.transpose(1, 2).flatten(2))  # (n, H, Q, d / H) -> (n, Q, H, d / H) -> (n, Q, d)

    def _heads(self, x: Tensor) -> Tensor:
        # (n, T, d) -> (n, T, H, d / H) -> (n, H, T, d / H)
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Post-norm transformer layer: attention, then a GELU feed-forward, each added and normalised.

    Parameters
    ----------
    dim, n_heads, dropout
        As in :class:`SelfAttention`; dropout also follows each branch.
    d_hid
        Width of the feed-forward.
    """

    def __init__(self, dim: int, n_heads: int, d_hid: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, n_heads, dropout)
        self.linear1 = nn.Linear(dim, d_hid)
        self.linear2 = nn.Linear(d_hid, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, keep: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Compute tokens ``(n, T, d)``, or only those at the positions ``keep (K,)``, ``(n, K, d)``.

        Positions where ``mask (n, T)`` is false are not attended to.
        """
        queries = tokens if keep is None else tokens[:, keep]  # (n, K, d)
        h = self.norm1(queries + self.drop(self.self_attn(queries, tokens, mask)))
        return self.norm2(h + self.drop(self.linear2(F.gelu(self.linear1(h)))))


class LayerStack(nn.Module):
    """Transformer layers, the last of which computes only the positions that are read.

    Parameters
    ----------
    layers
        At least one, each called as an :class:`EncoderLayer`.

    Attributes
    ----------
    gradient_checkpointing
        Keep only the input of each layer for the backward pass and recompute the layer (Chen et al. 2016,
        arXiv:1604.06174): less memory for one more forward pass, with the same result.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.gradient_checkpointing = False

    def forward(self, tokens: Tensor, keep: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Encode tokens ``(n, T, d)`` as ``(n, K, d)``; the last layer computes only the positions ``keep (K,)``.

        Positions where ``mask (n, T)`` is false are not attended to.
        """
        for layer in self.layers[:-1]:
            tokens = self._run(layer, tokens, None, mask)
        return self._run(self.layers[-1], tokens, keep, mask)

    def _run(self, layer: nn.Module, tokens: Tensor, keep: Tensor | None, mask: Tensor | None) -> Tensor:
        # Below the lowest adapter nothing requires a gradient, and nothing is stored anyway.
        needs_grad = tokens.requires_grad or any(p.requires_grad for p in layer.parameters())
        if not (self.gradient_checkpointing and needs_grad and torch.is_grad_enabled()):
            return layer(tokens, keep=keep, mask=mask)
        # Not re-entrant: then adapters would get no gradient if the input requires none. The random state is restored,
        # so that both passes apply the same dropout.
        return checkpoint(layer, tokens, keep=keep, mask=mask, use_reentrant=False, preserve_rng_state=True)


class TransformerEncoder(LayerStack):
    """A stack of :class:`EncoderLayer`.

    Parameters
    ----------
    dim, n_heads, d_hid, dropout
        As in :class:`EncoderLayer`.
    n_layers
        Depth, at least one.
    """

    def __init__(self, dim: int, n_layers: int, n_heads: int, d_hid: int, dropout: float = 0.0) -> None:
        super().__init__(EncoderLayer(dim, n_heads, d_hid, dropout) for _ in range(n_layers))


class SkipBlock(nn.Module):
    """``LayerNorm(x + W2 ReLU(W1 x))`` with a hidden width of twice the input's."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(dim, 2 * dim)
        self.dense = nn.Linear(2 * dim, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``(..., dim)`` to the same shape."""
        return self.layer_norm(x + self.dense(torch.relu(self.intermediate_dense(x))))
