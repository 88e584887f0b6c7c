"""Gene decoder: from cell embeddings that an ST network predicts to the expression of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence


class GeneDecoder(nn.Module):
    """Hidden layers of Linear, LayerNorm, GELU and Dropout, then a Linear and a ReLU.

    With ``residual``, the second, fourth, ... hidden layer adds the output of the preceding layer to its own. Both
    forms name their tensors as in published checkpoints: ``decoder.i``, or ``blocks.i`` and ``final_layer``.

    Parameters
    ----------
    n_inputs
        Width of an embedding.
    n_genes
        Number of genes.
    hidden_dims
        Widths of the hidden layers; empty for a linear decoder.
    dropout
        Dropout after each hidden layer, in training.
    residual
        Whether every second hidden layer adds the preceding one, which must have the same width.

    Raises
    ------
    ValueError
        If layers that are added differ in width.
    """

    def __init__(
        self, n_inputs: int, n_genes: int, hidden_dims: Sequence[int], *, dropout: float = 0.1, residual: bool = False
    ) -> None:
        super().__init__()
        self.n_inputs, self.n_genes, self.residual = n_inputs, n_genes, residual
        if residual:
            unequal = [pair for pair in zip(hidden_dims[::2], hidden_dims[1::2], strict=False) if pair[0] != pair[1]]
            if unequal:
                msg = (
                    f"hidden_dims={tuple(hidden_dims)}: a residual decoder adds its first hidden layer to its second, "
                    f"the third to the fourth and so on; {unequal[0][0]} and {unequal[0][1]} cannot be added. Give the "
                    "two of a pair one width, or residual=False."
                )
                raise ValueError(msg)
        widths = [n_inputs, *hidden_dims]
        layers = [_layer(n_in, n_out, dropout) for n_in, n_out in zip(widths, hidden_dims, strict=False)]
        last = (nn.Linear(widths[-1], n_genes), nn.ReLU())
        if residual:
            self.blocks = nn.ModuleList(nn.Sequential(*layer) for layer in layers)
            self.final_layer = nn.Sequential(*last)
        else:
            self.decoder = nn.Sequential(*(part for layer in layers for part in layer), *last)

    def forward(self, x: Tensor) -> Tensor:
        """Decode embeddings ``(..., n_inputs)`` to expression ``(..., n_genes)``, never negative."""
        if not self.residual:
            return self.decoder(x)
        previous = x
        for i, block in enumerate(self.blocks):
            output = block(x)
            x, previous = (output + previous if i % 2 else output), output
        return self.final_layer(x)


def _layer(n_in: int, n_out: int, dropout: float) -> tuple[nn.Module, ...]:
    return nn.Linear(n_in, n_out), nn.LayerNorm(n_out), nn.GELU(), nn.Dropout(dropout)
