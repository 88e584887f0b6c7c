from __future__ import annotations

import pytest
import torch

from scstate_lora.io.published.scmodelforge_tensors import (
    encoder_sizes,
    from_scmodelforge_names,
    to_scmodelforge_names,
)
from scstate_lora.nn.lora import adapters_off, add_lora, merge
from scstate_lora.nn.rank_encoder import RankConfig, RankEncoder
from tests.scmodelforge_files import TorchEncoder, torch_encoder


def _ours(theirs: TorchEncoder, **further: object) -> RankEncoder:
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("head.")}
    model = theirs.model
    variants = {"n_heads": model["num_heads"], "pooling": model["pooling"], "activation": model["activation"]}
    encoder = RankEncoder(RankConfig(**encoder_sizes(state, source="theirs"), **variants, **further))
    encoder.load_state_dict(from_scmodelforge_names(state))
    return encoder.eval()


def _cells(n_tokens: int = 10) -> dict[str, torch.Tensor]:
    """Sentences of different lengths, the first of them full."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([n_tokens, 7, 1, 4])
    mask = torch.arange(n_tokens) < lengths[:, None]
    genes = torch.where(mask, torch.randint(4, 24, (4, n_tokens), generator=generator), 0)
    genes[:, 0] = 3
    return {"genes": genes, "mask": mask, "values": 3 * torch.rand(4, n_tokens, generator=generator) * mask}


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("changes", [{}, {"activation": "relu"}, {"use_expression_values": False}, {"num_layers": 1}])
def test_computes_what_torchs_own_layers_compute(pooling: str, changes: dict[str, object]) -> None:
    theirs = torch_encoder(pooling=pooling, **changes)
    ours, cells = _ours(theirs), _cells()
    with torch.no_grad():
        expected, found = theirs(**cells), ours(**cells)
    assert found.shape == (4, ours.embedding_dim)
    assert expected.abs().mean() > 0.5
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_torchs_own_layers() -> None:
    theirs, cells = torch_encoder(pooling="mean"), _cells()
    ours = _ours(theirs)
    for encoder in (theirs, ours):
        encoder(**cells).square().sum().backward()
    expected = {name: p.grad for name, p in theirs.named_parameters() if not name.startswith("head.")}
    found = to_scmodelforge_names({name: p.grad for name, p in ours.named_parameters()})
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-3, rtol=1e-4, msg=name)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_changes_nothing(pooling: str) -> None:
    encoder, cells = _ours(torch_encoder(pooling=pooling)), _cells()
    longer = {name: torch.nn.functional.pad(tensor, (0, 4)) for name, tensor in cells.items()}
    longer["genes"][:, -4:], longer["values"][:, -4:] = 9, 5.0  # whatever stands there
    with torch.no_grad():
        torch.testing.assert_close(encoder(**longer), encoder(**cells), atol=1e-6, rtol=1e-6)


def test_names_there_and_back() -> None:
    encoder = _ours(torch_encoder())
    stored = to_scmodelforge_names(encoder.state_dict())
    assert stored["encoder.layers.1.self_attn.in_proj_weight"].shape == (48, 16)
    back = from_scmodelforge_names(stored)
    assert back.keys() == encoder.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_adapters_take_part_in_eval_and_get_gradients(pooling: str) -> None:
    encoder, cells = _ours(torch_encoder(pooling=pooling)), _cells()
    with torch.no_grad():
        before = encoder(**cells)
    add_lora(encoder, r=2, alpha=4, dropout=0.0, targets=("q", "k", "v", "out", "linear1", "linear2"))
    adapters = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert len(adapters) == 2 * 2 * 6
    assert all("lora_" in name for name in adapters)
    with torch.no_grad():
        assert torch.equal(encoder(**cells), before)
        for name, parameter in adapters.items():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    encoder(**cells).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters.values())
    with torch.no_grad():
        adapted = encoder(**cells)
        assert (adapted - before).abs().max() > 0.1
        with adapters_off(encoder):
            assert torch.equal(encoder(**cells), before)
        merge(encoder)
        torch.testing.assert_close(encoder(**cells), adapted, atol=1e-5, rtol=1e-5)


def test_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        encoder = _ours(torch_encoder())
        encoder.transformer_encoder.gradient_checkpointing = recompute
        encoder(**_cells()).square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_dropout_acts_in_training_only() -> None:
    encoder, cells = _ours(torch_encoder(), dropout=0.5), _cells()
    assert torch.equal(encoder(**cells), encoder(**cells))
    encoder.train()
    assert not torch.equal(encoder(**cells), encoder(**cells))


def test_sentences_beyond_the_positions_raise() -> None:
    encoder = _ours(torch_encoder())
    with pytest.raises(ValueError, match="15 tokens per cell, but the network has 14 positions"):
        encoder(**_cells(15))


def test_missing_values_raise() -> None:
    cells = _cells()
    del cells["values"]
    with pytest.raises(ValueError, match="Give values"):
        _ours(torch_encoder())(**cells)


@pytest.mark.parametrize("wrong", [{"pooling": "max"}, {"activation": "silu"}])
def test_an_unknown_variant_raises(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"is unknown\. Choose one of"):
        RankConfig(n_ids=9, n_positions=5, d_model=8, n_layers=1, n_heads=2, d_hid=8, **wrong)
