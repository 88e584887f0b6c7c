"""Transformer backbones over a set of cells: no positions, no causal mask, no token table."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Block


class GPT2Backbone(nn.Module):
    """The blocks of GPT-2 (Radford et al. 2019) made bidirectional, so the output is equivariant to the cells' order.

    Parameters
    ----------
    hidden, n_layers, n_heads
        Width, depth and heads.
    dropout
        Of attention weights and residual branches, while training.

    Attributes
    ----------
    gradient_checkpointing
        Keep only each block's input for the gradient and compute the block again: less memory, more time.
    """

    def __init__(self, hidden: int, n_layers: int, n_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        config = GPT2Config(
            n_embd=hidden,
            n_layer=n_layers,
            n_head=n_heads,
            attn_pdrop=dropout,
            resid_pdrop=dropout,
            attn_implementation="sdpa",
        )
        blocks = [GPT2Block(config, layer_idx=i) for i in range(n_layers)]
        for block in blocks:
            block.attn.is_causal = False
        self.h = nn.ModuleList(blocks)
        self.gradient_checkpointing = False
        self.ln_f = nn.LayerNorm(hidden, eps=config.layer_norm_epsilon)
        self._initialise(config.initializer_range, n_layers)

    def _initialise(self, std: float, n_layers: int) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                # The projections that end a residual branch are scaled down by depth, as GPT-2 has it.
                nn.init.normal_(parameter, std=std / (2 * n_layers) ** 0.5 if "c_proj" in name else std)

    def forward(self, cells: Tensor) -> Tensor:
        """Mix the cells of each set, ``(n_sets, n_cells, hidden)`` to the same shape."""
        again = self.gradient_checkpointing and torch.is_grad_enabled()
        for block in self.h:
            cells = checkpoint(block, cells, use_reentrant=False) if again else block(cells)
        return self.ln_f(cells)
