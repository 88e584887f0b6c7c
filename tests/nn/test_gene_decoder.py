from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scstate_lora.io.pickle.reader import load_torch
from scstate_lora.nn.gene_decoder import GeneDecoder

ARC = Path(__file__).parents[1] / "data" / "arc_st"
"""Small models that arc-state wrote, and what it makes of some cells."""


@pytest.mark.parametrize(
    ("form", "sizes"),
    [
        ("decoder", {"n_genes": 12, "hidden_dims": (12, 10)}),
        ("residual_decoder", {"n_genes": 30, "hidden_dims": (12, 12, 12, 12), "residual": True}),
    ],
)
def test_published_decoders_load_and_agree(form: str, sizes: dict) -> None:
    decoder = GeneDecoder(16, **sizes).eval()
    stored = load_torch(ARC / form / "checkpoints" / "final.ckpt")["state_dict"]
    prefix = "gene_decoder."
    decoder.load_state_dict({n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)})
    expected = np.load(ARC / form / "expected.npz")
    for i in (0, 1):
        with torch.no_grad():
            genes = decoder(torch.from_numpy(expected[f"preds_{i}"]))
        np.testing.assert_allclose(genes.numpy(), expected[f"genes_{i}"], atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_sets_of_cells_are_decoded_cell_by_cell_and_never_below_zero(residual: bool) -> None:
    torch.manual_seed(0)
    decoder = GeneDecoder(6, 9, (8, 8, 5), residual=residual).eval()
    cells = torch.randn(2, 4, 6)
    genes = decoder(cells)
    assert genes.shape == (2, 4, 9)
    assert (genes >= 0).all()
    assert (genes > 0).any()
    torch.testing.assert_close(genes[1, 2], decoder(cells[1, 2]))


def test_every_tensor_gets_gradient() -> None:
    torch.manual_seed(0)
    for residual in (False, True):
        decoder = GeneDecoder(6, 9, (8, 8), residual=residual)
        (decoder(torch.randn(20, 6)) - 1).square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_the_residual_form_adds_the_first_of_two_layers_to_the_second() -> None:
    torch.manual_seed(0)
    decoder = GeneDecoder(6, 9, (8, 8), residual=True).eval()
    cells = torch.randn(3, 6)
    first = decoder.blocks[0](cells)
    torch.testing.assert_close(decoder(cells), decoder.final_layer(decoder.blocks[1](first) + first))


def test_without_hidden_layers_it_is_linear_up_to_the_rectifier() -> None:
    decoder = GeneDecoder(3, 4, ())
    assert [tuple(p.shape) for p in decoder.parameters()] == [(4, 3), (4,)]


def test_layers_that_cannot_be_added_raises() -> None:
    with pytest.raises(ValueError, match="7 and 5 cannot be added"):
        GeneDecoder(6, 9, (8, 8, 7, 5), residual=True)
    GeneDecoder(6, 9, (8, 8, 7), residual=True)  # the third is added to nothing
