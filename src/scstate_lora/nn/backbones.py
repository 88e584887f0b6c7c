"""Transformer backbones over a set of cells: no positions, no causal mask, no token table, no dropout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, GPT2Config, LlamaConfig
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention, GPT2Block
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

from scstate_lora._utils import did_you_mean

_RMS_EPS = 1e-6
_STD = 0.02
"""Standard deviation of new weights, in all three architectures."""


@dataclass(frozen=True)
class BackboneConfig:
    """Architecture and sizes of a backbone.

    Parameters
    ----------
    backbone
        Its architecture.
    hidden, n_layers, n_heads
        Width, depth and number of heads; the width must be a multiple of the number of heads.
    intermediate
        Width of the feed-forward. None: four times `hidden` for GPT-2 and BERT. For LLaMA, whose gated feed-forward has
        three matrices in place of two, the first multiple of eight that is at least 8/3 of `hidden`, which makes it as
        large as theirs.
    head_dim
        Width of a head; None for ``hidden / n_heads``. Only LLaMA may have another width, an even one.
    """

    backbone: Literal["gpt2", "llama", "bert"]
    hidden: int
    n_layers: int
    n_heads: int
    intermediate: int | None = None
    head_dim: int | None = None


class Backbone(nn.Module, ABC):
    """Transformer blocks made bidirectional, so that the output is equivariant to the order of the cells.

    Parameters have the same names as in ``transformers``, so that weights from there load. There is no dropout.

    Parameters
    ----------
    config
        Sizes.

    Attributes
    ----------
    gradient_checkpointing
        Keep only the input of each block for the backward pass and recompute the block: less memory, more time.

    Raises
    ------
    ValueError
        If the width is not a multiple of the number of heads.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        if config.n_heads < 1 or config.hidden % config.n_heads:
            msg = (
                f"hidden={config.hidden} is not a multiple of n_heads={config.n_heads}. Choose a number of heads that "
                "divides the width, or a width that the heads divide."
            )
            raise ValueError(msg)
        self.gradient_checkpointing = False

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The blocks, in the order they run. A block may be replaced by a module with the same call."""

    def forward(self, cells: Tensor) -> Tensor:
        """Mix the cells of each set, ``(n_sets, n_cells, hidden)``, to the same shape."""
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            mixed = checkpoint(block, cells, use_reentrant=False) if again else block(cells)
            # Some layers of transformers return a tuple, the hidden states first.
            cells = mixed if isinstance(mixed, Tensor) else mixed[0]
        return self._finish(cells)

    def _finish(self, cells: Tensor) -> Tensor:
        """Apply what follows the last block; by default nothing."""
        return cells

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                nn.init.normal_(parameter, std=self._std(name))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _std(self, name: str) -> float:
        """Give the standard deviation of a new matrix of this name."""
        return _STD


class _UnmaskedAttention(nn.Module):
    """GPT-2's attention without its causal mask, which ``transformers`` 4.50 always applies.

    Parameters
    ----------
    attention
        The block's own attention, whose layers it takes over.
    """

    def __init__(self, attention: GPT2Attention) -> None:
        super().__init__()
        self.n_heads = attention.num_heads
        self.c_attn = attention.c_attn
        self.c_proj = attention.c_proj

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        # B sets, N cells, D hidden, H heads, K head_dim
        parts = self.c_attn(hidden_states).chunk(3, dim=-1)  # (B, N, 3 D) -> 3 x (B, N, D)
        # (B, N, D) -> (B, N, H, K) -> (B, H, N, K)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, H, N, K)
        return self.c_proj(mixed.transpose(1, 2).flatten(-2)), None  # (B, N, H, K) -> (B, N, D)


class GPT2Backbone(Backbone):
    """The blocks of GPT-2 (Radford et al. 2019): ``h`` and ``ln_f``."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        gpt2 = GPT2Config(
            n_embd=config.hidden,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_inner=config.intermediate,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
            attn_implementation="sdpa",
        )
        blocks = [GPT2Block(gpt2, layer_idx=i) for i in range(config.n_layers)]
        for block in blocks:
            block.attn = _UnmaskedAttention(block.attn)
        self.h = nn.ModuleList(blocks)
        self.ln_f = nn.LayerNorm(config.hidden, eps=gpt2.layer_norm_epsilon)
        # The projections that end a residual branch are scaled down by depth, as in GPT-2.
        self._branch_std = _STD / (2 * config.n_layers) ** 0.5
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
    """LLaMA's attention without its rotation, as a set has no positions: every cell attends to every other."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        # B sets, N cells, D hidden, H heads, K head_dim
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)  # (B, N, H, K)
        # (B, N, D) -> (B, N, H, K) -> (B, H, N, K)
        q, k, v = (p(hidden_states).view(heads).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, H, N, K)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2)), None  # (B, N, H, K) -> (B, N, H K) -> (B, N, D)


class _GatedUnit(LlamaMLP):
    """LLaMA's feed-forward, which recomputes the product of gate and up projection in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if not torch.is_grad_enabled():
            return self._down(gate, up)
        # Only elementwise operations are recomputed, so it costs little and saves half of the widest activations.
        return checkpoint(self._down, gate, up, use_reentrant=False, preserve_rng_state=False)

    def _down(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(gate) * up)


class LlamaBackbone(Backbone):
    """The blocks of LLaMA (Touvron et al. 2023, arXiv:2302.13971) without its rotation: ``layers`` and ``norm``.

    Every head has its own keys and values.

    Raises
    ------
    ValueError
        If the width is not a multiple of the number of heads, or the width of a head is odd.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        hidden, n_heads = config.hidden, config.n_heads
        head_dim = hidden // n_heads if config.head_dim is None else config.head_dim
        if head_dim % 2:  # the rotation, left out here, splits heads in halves: weights should fit LLaMA itself, too
            msg = f"LLaMA needs heads of an even width, found head_dim={head_dim}. Give another, or other n_heads."
            raise ValueError(msg)
        llama = LlamaConfig(
            hidden_size=hidden,
            num_hidden_layers=config.n_layers,
            num_attention_heads=n_heads,
            num_key_value_heads=n_heads,
            head_dim=head_dim,
            intermediate_size=-(-hidden // 3) * 8 if config.intermediate is None else config.intermediate,
            rms_norm_eps=_RMS_EPS,
            attn_implementation="sdpa",
        )
        blocks = [LlamaDecoderLayer(llama, layer_idx=i) for i in range(config.n_layers)]
        for i, block in enumerate(blocks):
            block.self_attn = _SetAttention(llama, layer_idx=i)
            block.mlp = _GatedUnit(llama)
        self.layers = nn.ModuleList(blocks)
        self.norm = LlamaRMSNorm(hidden, eps=_RMS_EPS)
        self._initialise()

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, ``layers``."""
        return self.layers

    def _finish(self, cells: Tensor) -> Tensor:
        return self.norm(cells)


class BertBackbone(Backbone):
    """The blocks of BERT (Devlin et al. 2019, arXiv:1810.04805): ``layer``, as in ``BertEncoder``.

    The LayerNorm in front of the blocks belongs to BERT's embeddings and is left out with them: it would erase the
    norm of each cell's representation before the first block reads it. Every block ends with its own norm.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config)
        bert = BertConfig(
            hidden_size=config.hidden,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            intermediate_size=4 * config.hidden if config.intermediate is None else config.intermediate,
            attention_probs_dropout_prob=0.0,
            hidden_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
        self.layer = nn.ModuleList(BertLayer(bert) for _ in range(config.n_layers))
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


def make_backbone(config: BackboneConfig) -> Backbone:
    """Make a backbone with new weights.

    Parameters
    ----------
    config
        Architecture and sizes.

    Raises
    ------
    ValueError
        If the architecture is unknown, or cannot have these sizes.
    """
    kind, head_dim = config.backbone, config.head_dim
    if kind not in BACKBONES:
        msg = f"There is no backbone {kind!r}. {did_you_mean(kind, BACKBONES)}"
        raise ValueError(msg)
    if kind != "llama" and head_dim is not None and head_dim * config.n_heads != config.hidden:
        msg = (
            f"{config.n_heads} heads of {head_dim} do not make hidden={config.hidden}, as {kind!r} needs. Leave "
            "head_dim=None for hidden / n_heads, or choose 'llama', whose heads may have any even width."
        )
        raise ValueError(msg)
    return BACKBONES[kind](config)
