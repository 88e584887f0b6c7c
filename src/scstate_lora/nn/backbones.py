"""Transformer backbones over a set of cells: no positions, no causal mask, no token table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, GPT2Config, LlamaConfig
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

from scstate_lora._utils import did_you_mean

_STD = 0.02
"""Standard deviation of new weights, in all three architectures."""


class Backbone(nn.Module, ABC):
    """Transformer blocks made bidirectional, so that the output is equivariant to the cells' order.

    Parameters carry the names that they have in the model of ``transformers``, whose weights therefore load.

    Parameters
    ----------
    hidden, n_heads
        Width and heads, of which the first must be a multiple of the second.

    Attributes
    ----------
    gradient_checkpointing
        Keep only each block's input for the gradient and compute the block again: less memory, more time.

    Raises
    ------
    ValueError
        The heads do not divide the width.
    """

    def __init__(self, hidden: int, n_heads: int) -> None:
        super().__init__()
        if n_heads < 1 or hidden % n_heads:
            msg = (
                f"hidden={hidden} is not a multiple of n_heads={n_heads}. Choose a number of heads that divides the "
                "width, or a width that the heads divide."
            )
            raise ValueError(msg)
        self.gradient_checkpointing = False

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The blocks, in the order they compute. One that is assigned in its place is called as it was."""

    def forward(self, cells: Tensor) -> Tensor:
        """Mix the cells of each set, ``(n_sets, n_cells, hidden)`` to the same shape."""
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            mixed = checkpoint(block, cells, use_reentrant=False) if again else block(cells)
            # Some layers return what else they computed beside it.
            cells = mixed if isinstance(mixed, Tensor) else mixed[0]
        return self._finish(cells)

    def _finish(self, cells: Tensor) -> Tensor:
        """Compute what follows the last block."""
        return cells

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                nn.init.normal_(parameter, std=self._std(name))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _std(self, name: str) -> float:
        """Say with what standard deviation a new matrix of this name starts."""
        return _STD


class GPT2Backbone(Backbone):
    """The blocks of GPT-2 (Radford et al. 2019): ``h`` and ``ln_f``.

    Parameters
    ----------
    hidden, n_layers, n_heads
        Width, depth and heads.
    dropout
        Of attention weights and residual branches, while training.
    intermediate
        Width of the feed-forward; None for four times ``hidden``.
    """

    def __init__(
        self, hidden: int, n_layers: int, n_heads: int, dropout: float = 0.0, *, intermediate: int | None = None
    ) -> None:
        super().__init__(hidden, n_heads)
        config = GPT2Config(
            n_embd=hidden,
            n_layer=n_layers,
            n_head=n_heads,
            n_inner=intermediate,
            attn_pdrop=dropout,
            resid_pdrop=dropout,
            attn_implementation="sdpa",
        )
        blocks = [GPT2Block(config, layer_idx=i) for i in range(n_layers)]
        for block in blocks:
            block.attn.is_causal = False
        self.h = nn.ModuleList(blocks)
        self.ln_f = nn.LayerNorm(hidden, eps=config.layer_norm_epsilon)
        # The projections that end a residual branch are scaled down by depth, as GPT-2 has it.
        self._branch_std = _STD / (2 * n_layers) ** 0.5
        self._initialise()

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, ``h``."""
        return self.h

    def _finish(self, cells: Tensor) -> Tensor:
        return self.ln_f(cells)

    def _std(self, name: str) -> float:
        return self._branch_std if "c_proj" in name else _STD


class _SetAttention(LlamaAttention):
    """LLaMA's attention without its rotation, for a set has no positions: every cell attends to every other."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (p(hidden_states).view(heads).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # (n_sets, n_heads, n_cells, head_dim)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2)), None


class _GatedUnit(LlamaMLP):
    """LLaMA's feed-forward, which computes what is between its matrix products again for the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if not torch.is_grad_enabled():
            return self._down(gate, up)
        # Stops before the last product, so it costs little, and half of the widest activations are not kept.
        return checkpoint(self._down, gate, up, use_reentrant=False, preserve_rng_state=False)

    def _down(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(gate) * up)


class LlamaBackbone(Backbone):
    """The blocks of LLaMA (Touvron et al. 2023, arXiv:2302.13971) without its rotation: ``layers`` and ``norm``.

    Parameters
    ----------
    hidden, n_layers, n_heads
        Width, depth and heads; every head has keys and values of its own.
    dropout
        Of attention weights, while training; LLaMA has no other.
    intermediate
        Width of the gated feed-forward; None for the multiple of eight from 8/3 of ``hidden`` on, which gives its
        three matrices the size of two of four times ``hidden``.
    head_dim
        Width of a head, an even number; None for ``hidden / n_heads``.
    eps
        Added to the mean square in the norms.
    """

    def __init__(
        self,
        hidden: int,
        n_layers: int,
        n_heads: int,
        dropout: float = 0.0,
        *,
        intermediate: int | None = None,
        head_dim: int | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(hidden, n_heads)
        self.head_dim = hidden // n_heads if head_dim is None else head_dim
        if self.head_dim % 2:  # the rotation, which is left out here, takes it in halves: weights are to fit both
            msg = f"LLaMA needs heads of an even width, found head_dim={self.head_dim}. Give another, or other n_heads."
            raise ValueError(msg)
        config = LlamaConfig(
            hidden_size=hidden,
            num_hidden_layers=n_layers,
            num_attention_heads=n_heads,
            num_key_value_heads=n_heads,
            head_dim=self.head_dim,
            intermediate_size=-(-hidden // 3) * 8 if intermediate is None else intermediate,
            attention_dropout=dropout,
            rms_norm_eps=eps,
            attn_implementation="sdpa",
        )
        blocks = [LlamaDecoderLayer(config, layer_idx=i) for i in range(n_layers)]
        for i, block in enumerate(blocks):
            block.self_attn = _SetAttention(config, layer_idx=i)
            block.mlp = _GatedUnit(config)
        self.layers = nn.ModuleList(blocks)
        self.norm = LlamaRMSNorm(hidden, eps=eps)
        self._initialise()

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, ``layers``."""
        return self.layers

    def _finish(self, cells: Tensor) -> Tensor:
        return self.norm(cells)


class BertBackbone(Backbone):
    """The blocks of BERT (Devlin et al. 2019, arXiv:1810.04805): ``layer``, as ``BertEncoder`` has them.

    The LayerNorm before them is a part of BERT's embeddings, and goes with those: it would take the size of each
    cell's representation away before the first block reads it. Every block ends with a norm of its own.

    Parameters
    ----------
    hidden, n_layers, n_heads
        Width, depth and heads.
    dropout
        Of attention weights and residual branches, while training.
    intermediate
        Width of the feed-forward; None for four times ``hidden``.
    """

    def __init__(
        self, hidden: int, n_layers: int, n_heads: int, dropout: float = 0.0, *, intermediate: int | None = None
    ) -> None:
        super().__init__(hidden, n_heads)
        config = BertConfig(
            hidden_size=hidden,
            num_hidden_layers=n_layers,
            num_attention_heads=n_heads,
            intermediate_size=4 * hidden if intermediate is None else intermediate,
            attention_probs_dropout_prob=dropout,
            hidden_dropout_prob=dropout,
            attn_implementation="sdpa",
        )
        self.layer = nn.ModuleList(BertLayer(config, layer_idx=i) for i in range(n_layers))
        self._initialise()

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, ``layer``."""
        return self.layer


BACKBONES: dict[str, type[GPT2Backbone | LlamaBackbone | BertBackbone]] = {
    "gpt2": GPT2Backbone,
    "llama": LlamaBackbone,
    "bert": BertBackbone,
}


def make_backbone(
    kind: Literal["gpt2", "llama", "bert"],
    hidden: int,
    *,
    n_layers: int,
    n_heads: int,
    dropout: float = 0.0,
    intermediate: int | None = None,
    head_dim: int | None = None,
) -> Backbone:
    """Make a backbone with new weights.

    Parameters
    ----------
    kind
        Its architecture.
    hidden, n_layers, n_heads, dropout, intermediate
        As in :class:`GPT2Backbone`, :class:`LlamaBackbone` and :class:`BertBackbone`.
    head_dim
        Width of a head. Only LLaMA may have another than ``hidden / n_heads``.

    Raises
    ------
    ValueError
        There is no such architecture, or it cannot have these sizes.
    """
    if kind not in BACKBONES:
        msg = f"There is no backbone {kind!r}. {did_you_mean(kind, BACKBONES)}"
        raise ValueError(msg)
    sizes: dict[str, Any] = {"dropout": dropout, "intermediate": intermediate}
    if kind == "llama":
        sizes["head_dim"] = head_dim
    elif head_dim is not None and head_dim * n_heads != hidden:
        msg = (
            f"{n_heads} heads of {head_dim} do not make hidden={hidden}, as {kind!r} needs. Leave head_dim=None for "
            "hidden / n_heads, or take 'llama', whose heads may have any even width."
        )
        raise ValueError(msg)
    return BACKBONES[kind](hidden, n_layers, n_heads, **sizes)
