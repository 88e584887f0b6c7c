from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel
from transformers.models.bert.modeling_bert import BertEncoder

from scstate_lora.nn.backbones import Backbone, BackboneConfig, BertBackbone, GPT2Backbone, LlamaBackbone, make_backbone

KINDS = ["gpt2", "llama", "bert"]
HIDDEN, N_LAYERS, N_HEADS, INTERMEDIATE = 16, 3, 4, 24


def _moved(module: nn.Module) -> Any:
    """Weights away from where they start, so that every part of them shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def _backbone(kind: Any, **options: Any) -> Backbone:
    torch.manual_seed(0)
    sizes = {"n_layers": N_LAYERS, "n_heads": N_HEADS, "intermediate": INTERMEDIATE}
    return _moved(make_backbone(BackboneConfig(kind, HIDDEN, **{**sizes, **options})))


def _cells(n_sets: int = 2, n_cells: int = 7) -> torch.Tensor:
    return torch.randn(n_sets, n_cells, HIDDEN, generator=torch.Generator().manual_seed(2))


def _loss(cells: torch.Tensor) -> torch.Tensor:
    """Sum with weights of its own everywhere: a norm makes a plain one constant."""
    return (cells * torch.randn(cells.shape, generator=torch.Generator().manual_seed(3))).sum()


@torch.no_grad()
def _of_the_library(kind: str) -> tuple[nn.Module, set[str], dict[str, Any]]:
    """Model of transformers as a backbone computes, its tables of tokens and positions, and what to call it with."""
    torch.manual_seed(4)
    if kind == "gpt2":
        gpt2 = GPT2Config(vocab_size=5, n_embd=HIDDEN, n_layer=N_LAYERS, n_head=N_HEADS, n_inner=INTERMEDIATE)
        model = _moved(GPT2Model(gpt2))
        model.wpe.weight.zero_()
        return model, {"wte.weight", "wpe.weight"}, {}
    if kind == "llama":
        llama = LlamaConfig(
            vocab_size=5,
            hidden_size=HIDDEN,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=N_HEADS,
            head_dim=6,
            intermediate_size=INTERMEDIATE,
        )
        # All cells in the first position: there the rotation is by no angle.
        positions = torch.zeros(2, 7, dtype=torch.long)
        return _moved(LlamaModel(llama)), {"embed_tokens.weight"}, {"position_ids": positions}
    bert = BertConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        intermediate_size=INTERMEDIATE,
        attn_implementation="sdpa",
    )
    return _moved(BertEncoder(bert)), set(), {}


@pytest.fixture
def _unmasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the library's models attend to all cells, whatever mask they make."""
    attention = F.scaled_dot_product_attention

    def attend(*qkv: torch.Tensor, dropout_p: float = 0.0, scale: float | None = None, **_: Any) -> torch.Tensor:
        return attention(*qkv, dropout_p=dropout_p, scale=scale)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)


@pytest.mark.usefixtures("_unmasked")
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_the_library_load_and_compute_the_same(kind: str) -> None:
    model, tables, arguments = _of_the_library(kind)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tables}
    backbone = _backbone(kind, head_dim=6 if kind == "llama" else None)
    assert {name for name, _ in backbone.named_parameters()} == state.keys()
    backbone.load_state_dict(state)  # strict
    cells = _cells()
    with torch.no_grad():
        expected = model(**arguments, **{"hidden_states" if kind == "bert" else "inputs_embeds": cells})[0]
        mixed = backbone(cells)
    assert (mixed - cells).abs().max() > 0.5
    assert (mixed - expected).abs().max() <= 1e-5


@pytest.mark.usefixtures("_unmasked")
def test_llama_has_the_librarys_gradient_and_keeps_less_for_it() -> None:
    library, _, arguments = _of_the_library("llama")
    backbone = _backbone("llama", head_dim=6)
    backbone.load_state_dict({k: v for k, v in library.state_dict().items() if k != "embed_tokens.weight"})
    kept: dict[str, int] = {}
    for name, run in (
        ("library", lambda: library(inputs_embeds=_cells(), use_cache=False, **arguments).last_hidden_state),
        ("backbone", lambda: backbone(_cells())),
    ):
        storages: dict[int, int] = {}

        def note(saved: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            loss = _loss(run())
        kept[name] = sum(storages.values())
        loss.backward()
    wide = 4 * _cells()[..., 0].numel() * INTERMEDIATE  # bytes of one activation of the feed-forward
    assert kept["library"] - kept["backbone"] >= 2 * N_LAYERS * wide
    for name, parameter in backbone.named_parameters():
        assert torch.allclose(parameter.grad, library.get_parameter(name).grad, atol=1e-4), name


def test_names_are_those_of_the_whole_bert_but_for_its_tables_and_pooler() -> None:
    config = BertConfig(vocab_size=5, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=N_HEADS)
    names = {name for name, _ in BertModel(config).named_parameters()}
    own = {f"encoder.{name}" for name, _ in _backbone("bert", n_layers=2).named_parameters()}
    assert {name.split(".")[0] for name in names - own} == {"embeddings", "pooler"}
    assert own <= names


@pytest.mark.parametrize("kind", KINDS)
def test_cells_in_another_order_are_mixed_the_same(kind: str) -> None:
    backbone, cells = _backbone(kind), _cells(n_cells=60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        mixed = backbone(cells)
        assert (backbone(cells[:, order]) - mixed[:, order]).abs().max() < 1e-5
    assert (mixed[:, order] - mixed).abs().max() > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_reads_every_other_of_its_set_only(kind: str) -> None:
    backbone, cells = _backbone(kind), _cells(n_cells=4)
    for cell in range(4):
        leaf = cells.clone().requires_grad_()
        _loss(backbone(leaf)[0, cell]).backward()
        influence = leaf.grad.abs().amax(-1)
        assert (influence[0] > 1e-5).all()  # the first by the last, too
        assert influence[1].max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_alone_is_mixed_as_among_its_likes(kind: str) -> None:
    backbone, cells = _backbone(kind), _cells(n_cells=1)
    with torch.no_grad():
        alone = backbone(cells)
        assert alone.shape == cells.shape
        assert alone.isfinite().all()
        assert (backbone(cells.expand(-1, 9, -1)) - alone).abs().max() < 1e-5
        assert (backbone(_cells(n_cells=9))[:, :1] - backbone(_cells(n_cells=9)[:, :1])).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_dropped_in_training(kind: str) -> None:
    backbone, cells = _backbone(kind), _cells()
    with torch.no_grad():
        expected = backbone(cells)
        assert torch.equal(backbone.train()(cells), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_all_parameters_get_gradient_and_the_same_where_blocks_are_computed_again(kind: str) -> None:
    backbone = _backbone(kind).train()
    again = copy.deepcopy(backbone)
    again.gradient_checkpointing = True
    calls = dict.fromkeys((backbone, again), 0)
    gradients = []
    for module in (backbone, again):

        def count(*_: Any, module: Backbone = module) -> None:
            calls[module] += 1

        module.blocks[0].register_forward_pre_hook(count)
        leaf = _cells().requires_grad_()
        _loss(module(leaf)).backward()
        gradients.append({"cells": leaf.grad, **{name: p.grad for name, p in module.named_parameters()}})
    assert list(calls.values()) == [1, 2]
    for name, gradient in gradients[0].items():
        if not name.endswith("self.key.bias"):  # adds the same to every score, which the softmax takes away
            assert gradient.abs().max() > 1e-4, name
        assert torch.equal(gradient, gradients[1][name]), name
    with torch.no_grad():
        again(_cells())
    assert calls[again] == 3


def _cells_of(output: Any) -> torch.Tensor:
    """What a block computed, which comes first in the tuples of transformers 4."""
    return output if isinstance(output, torch.Tensor) else output[0]


class _Doubled(nn.Module):
    """Stands in a block's place, as a hyper-connection does, and says what else it computed."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.layer = block

    def forward(self, cells: torch.Tensor, **arguments: Any) -> tuple[torch.Tensor, None]:
        return cells + 2 * (_cells_of(self.layer(cells, **arguments)) - cells), None


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_can_be_replaced_by_one_that_calls_it(kind: str, checkpointing: bool) -> None:
    backbone, cells = _backbone(kind, n_layers=1), _cells()
    inner: list[torch.Tensor] = []
    backbone.blocks[0].register_forward_hook(lambda _module, _in, out: inner.append(_cells_of(out)))
    backbone(cells)
    backbone.blocks[0] = _Doubled(backbone.blocks[0])
    backbone.gradient_checkpointing = checkpointing
    assert len(backbone.blocks) == 1
    last = [child for name, child in backbone.named_children() if name in {"ln_f", "norm"}]
    expected = nn.Sequential(*last)(cells + 2 * (inner[0] - cells))
    assert torch.allclose(backbone(cells), expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_by_weights_or_autocast(kind: str) -> None:
    backbone, cells = _backbone(kind), _cells()
    with torch.no_grad():
        expected = backbone(cells)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = backbone(cells)
        assert 0 < (mixed.float() - expected).abs().max() < 0.2
        lower = backbone.bfloat16()(cells.bfloat16())
        assert lower.dtype == torch.bfloat16
        assert (lower.float() - expected).abs().max() < 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_holds_no_table_and_no_buffer(kind: str) -> None:
    backbone = _backbone(kind)
    assert not [child for child in backbone.modules() if isinstance(child, nn.Embedding)]
    assert not list(backbone.buffers())


def test_feed_forward_and_heads_have_the_sizes_asked_for() -> None:
    assert _backbone("gpt2").blocks[0].mlp.c_fc.weight.shape == (HIDDEN, INTERMEDIATE)
    assert _backbone("bert").blocks[0].intermediate.dense.weight.shape == (INTERMEDIATE, HIDDEN)
    # Heads that are wider together than the cells' representation.
    llama = LlamaBackbone(BackboneConfig("llama", 48, 1, 12, intermediate=92, head_dim=10))
    block = llama.blocks[0]
    assert block.self_attn.q_proj.weight.shape == block.self_attn.k_proj.weight.shape == (120, 48)
    assert block.self_attn.o_proj.weight.shape == (48, 120)
    assert block.mlp.gate_proj.weight.shape == (92, 48)
    assert {block.input_layernorm.variance_epsilon, llama.norm.variance_epsilon} == {1e-6}


def test_all_kinds_are_about_as_large_by_default() -> None:
    sizes = [
        sum(p.numel() for p in make_backbone(BackboneConfig(kind, 96, 2, 4)).parameters())
        for kind in ("gpt2", "llama", "bert")
    ]
    assert max(sizes) < 1.02 * min(sizes)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_starts_as_in_the_library(kind: Any) -> None:
    torch.manual_seed(0)
    backbone = make_backbone(BackboneConfig(kind, 128, 2, 4))
    for name, parameter in backbone.named_parameters():
        if parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name


def test_makes_the_backbone_asked_for() -> None:
    for kind, expected in zip(KINDS, (GPT2Backbone, LlamaBackbone, BertBackbone), strict=True):
        backbone = _backbone(kind)
        assert type(backbone) is expected
        assert len(backbone.blocks) == N_LAYERS
        assert backbone.gradient_checkpointing is False


def test_unknown_kind_suggests_a_near_one_raises() -> None:
    with pytest.raises(ValueError, match=r"no backbone 'lama'\. Did you mean 'llama'"):
        _backbone("lama")


@pytest.mark.parametrize("kind", KINDS)
def test_heads_that_do_not_divide_the_width_raises(kind: str) -> None:
    with pytest.raises(ValueError, match=r"hidden=16 is not a multiple of n_heads=5\. Choose"):
        _backbone(kind, n_heads=5)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_heads_of_another_width_are_llamas_only_raises(kind: str) -> None:
    assert _backbone(kind, head_dim=4)(_cells()).shape == (2, 7, HIDDEN)  # which is hidden / n_heads
    with pytest.raises(ValueError, match=rf"4 heads of 6 do not make hidden=16, as '{kind}' needs.*'llama'"):
        _backbone(kind, head_dim=6)


def test_heads_of_an_odd_width_raises() -> None:
    with pytest.raises(ValueError, match=r"even width, found head_dim=5"):
        _backbone("llama", head_dim=5)
