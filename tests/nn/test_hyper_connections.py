from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from scstate_lora.nn import (
    MHCTransformerLayer,
    apply_mhc_to_transformer,
    mhc_diagnostics,
    mhc_off,
    mhc_parameters,
    remove_mhc,
    restore_mhc,
)
from scstate_lora.nn.backbones import BackboneConfig, make_backbone
from scstate_lora.nn.layers import TransformerEncoder
from scstate_lora.nn.lora import add_lora
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

HIDDEN = 16
KINDS = [(kind, dynamic) for kind in ("streams", "features") for dynamic in (False, True)]
every_kind = pytest.mark.parametrize(("kind", "dynamic"), KINDS)
every_network = pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "se"])


class Plain(nn.Module):
    """A stack of layers ``x + linear(norm(x))`` that return tuples."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(HIDDEN)
            self.linear = nn.Linear(HIDDEN, HIDDEN)

        def forward(self, x, scale=1.0):
            return x + scale * self.linear(self.norm(x)), "weights"

    def __init__(self, n_layers):
        super().__init__()
        self.layers = nn.ModuleList(Plain.Layer() for _ in range(n_layers))

    def forward(self, x):
        for layer in self.layers:
            x, rest = layer(x, scale=0.5)
            assert rest == "weights"
        return x


def _network(name, n_layers=3):
    torch.manual_seed(0)
    if name == "se":
        network = TransformerEncoder(HIDDEN, n_layers, 2, 32)
    elif name == "plain":
        network = Plain(n_layers)
    else:
        network = make_backbone(BackboneConfig(name, HIDDEN, n_layers, n_heads=2, intermediate=32))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)  # branches that matter
    return network.eval()


def _cells(n_sets=3, n_cells=7):
    return torch.randn(n_sets, n_cells, HIDDEN, generator=torch.Generator().manual_seed(1))


def _train(network, steps, *, lr=1e-2, watch=None):
    cells, target = _cells(), torch.randn(3, 7, HIDDEN, generator=torch.Generator().manual_seed(2))
    optimiser = torch.optim.Adam(network.parameters(), lr=lr)
    for step in range(steps):
        optimiser.zero_grad()
        (network(cells) - target).square().mean().backward()
        if watch is not None:
            watch(step)
        optimiser.step()


def _trained(name, kind, dynamic, steps=3, **kwargs):
    network = apply_mhc_to_transformer(_network(name), kind=kind, dynamic=dynamic, **kwargs)
    _train(network, steps)
    return network


@every_kind
@every_network
def test_wrapped_computes_what_the_unwrapped_did(name, kind, dynamic):
    network, cells = _network(name), _cells()
    expected = network(cells)
    assert apply_mhc_to_transformer(network, kind=kind, dynamic=dynamic) is network
    assert not torch.equal(network(2 * cells), expected)
    assert (network(cells) - expected).abs().max() < 1e-5


@every_kind
@every_network
def test_all_connections_have_gradient_by_the_second_step_and_move(name, kind, dynamic):
    network = apply_mhc_to_transformer(_network(name), kind=kind, dynamic=dynamic)
    parameters = mhc_parameters(network)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    second, moved = {}, dict.fromkeys(parameters, 0.0)

    def watch(step):
        for name, parameter in parameters.items():
            # The most so far: a gate that is best shut goes to and fro about zero.
            moved[name] = max(moved[name], (parameter - before[name]).abs().max().item())
            if step == 1:
                second[name] = parameter.grad.abs().max().item()

    _train(network, 21, watch=watch)
    assert len(parameters) >= 3 * 3
    for name in parameters:
        assert second[name] > 1e-9, name
        assert moved[name] > 1e-3, name


@every_kind
def test_gradient_reaches_every_residual_mixing_of_some_layers(kind, dynamic):
    # A run of one layer is both the first and the last of its streams.
    network = apply_mhc_to_transformer(_network("gpt2", 4), kind=kind, dynamic=dynamic, layer_indices=[0, 2, 3])
    moved = {name: p.detach().clone() for name, p in mhc_parameters(network).items() if "res_logits" in name}
    _train(network, 20)
    assert len(moved) == 3
    for name, before in moved.items():
        assert (network.get_parameter(name) - before).abs().max() > 1e-3, name


@every_kind
def test_sums_stay_one_through_training(kind, dynamic):
    network = _trained("gpt2", kind, dynamic, steps=30)
    diagnoses = mhc_diagnostics(network, lambda: network(_cells()))
    assert len(diagnoses) == 3
    for diagnosis in diagnoses:
        assert diagnosis.distance_from_identity > 1e-3
        assert diagnosis.matrix.min() >= 0
        assert (diagnosis.matrix.sum(0) - 1).abs().max() < 1e-3
        assert diagnosis.row_error < 1e-3
        assert diagnosis.column_error < 1e-3
        assert diagnosis.pre.min() >= 0
        assert diagnosis.post.min() >= 0


@every_kind
@pytest.mark.parametrize("indices", [[0], [1], [-1], [0, 2], [1, 2], (3, 0, 1)])
def test_some_layers_can_be_wrapped(kind, dynamic, indices):
    network, cells = _network("gpt2", 4), _cells()
    expected = network(cells)
    apply_mhc_to_transformer(network, kind=kind, dynamic=dynamic, layer_indices=indices)
    wrapped = [i for i, block in enumerate(network.h) if isinstance(block, MHCTransformerLayer)]
    assert wrapped == sorted(i % 4 for i in indices)
    assert (network(cells) - expected).abs().max() < 1e-5


@every_kind
@every_network
def test_trained_networks_stay_equivariant_to_the_order_of_cells(name, kind, dynamic):
    network, cells, order = _trained(name, kind, dynamic), _cells(), torch.tensor([4, 0, 6, 2, 1, 5, 3])
    assert torch.allclose(network(cells)[:, order], network(cells[:, order]), atol=1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_streams_are_the_equation_of_the_paper(dynamic):
    inner = nn.Linear(HIDDEN, HIDDEN)

    class Layer(nn.Module):
        def forward(self, x):
            return x + inner(x)

    torch.manual_seed(0)
    sizes = {"hidden": HIDDEN, "n_streams": 3}
    layer = MHCTransformerLayer(Layer(), kind="streams", **sizes, dynamic=dynamic, expands=False, contracts=False)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, 3, HIDDEN)
    out = layer(x)
    assert out.shape == x.shape
    mixing = layer.mixing(x)
    for set_, cell in itertools.product(range(2), range(5)):
        pre, post, res = (part[set_, cell] if dynamic else part for part in mixing)
        assert torch.allclose(res.sum(0), torch.ones(3), atol=1e-5)
        branch = inner(pre @ x[set_, cell])  # without a skip connection of its own
        assert torch.allclose(out[set_, cell], res @ x[set_, cell] + post[:, None] * branch, atol=1e-5)


def test_features_are_the_equation_of_the_paper():
    inner = nn.Linear(HIDDEN, HIDDEN)

    class Layer(nn.Module):
        def forward(self, x):
            return x + inner(x)

    torch.manual_seed(0)
    layer = MHCTransformerLayer(Layer(), hidden=HIDDEN, kind="features")
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, HIDDEN)
    (diagnosis,) = mhc_diagnostics(layer)
    expected = x @ diagnosis.matrix.T + diagnosis.post * inner(diagnosis.pre * x)
    assert diagnosis.distance_from_identity > 0.1
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_one_step_by_hand_has_no_doubled_skip():
    class Layer(nn.Module):
        def forward(self, x):
            return x + 3 * x  # the branch is 3 x

    layer = MHCTransformerLayer(Layer(), hidden=1, kind="streams", n_streams=2)
    # The streams are 0.7 * 2 and 1.3 * 2; the branch reads their mean 2 and writes 0.7 * 6 and 1.3 * 6; of the mean of
    # the streams, 0.5 * (2.6 + 1.4) + 6 = 8. A doubled skip would give 10.
    assert layer(torch.tensor([[[2.0]]])).item() == pytest.approx(8, abs=1e-5)


def test_tuples_stay_tuples():
    network, cells = _network("plain"), _cells()
    expected = network(cells)
    apply_mhc_to_transformer(network)
    assert (network(cells) - expected).abs().max() < 1e-5


@every_kind
@pytest.mark.parametrize("checkpointing", [False, True])
def test_se_encoder_computes_only_the_kept_positions(kind, dynamic, checkpointing):
    network, cells = _network("se"), _cells()
    keep, mask = torch.tensor([0, -1]), torch.arange(7) < torch.tensor([[7], [5], [6]])
    apply_mhc_to_transformer(network, kind=kind, dynamic=dynamic)
    _train(network, 5)
    network.gradient_checkpointing = checkpointing
    kept = network(cells, keep=keep, mask=mask)
    assert kept.shape == (3, 2, HIDDEN)
    assert torch.allclose(kept, network(cells, mask=mask)[:, keep], atol=1e-5)


def test_se_encoder_can_be_given_whole():
    torch.manual_seed(0)
    config = SEConfig(token_dim=8, d_model=HIDDEN, n_layers=2, n_heads=2, d_hid=32, output_dim=6, n_tokens=5)
    encoder = SEEncoder(config, torch.randn(20, 8)).eval()
    genes, values = torch.arange(12).view(3, 4), torch.rand(3, 5)
    expected = encoder(genes, values)
    apply_mhc_to_transformer(encoder)
    assert all(name.startswith("transformer_encoder.layers.") for name in mhc_parameters(encoder))
    assert (encoder(genes, values) - expected).abs().max() < 1e-5


@every_kind
@pytest.mark.parametrize("adapters_first", [True, False])
def test_connections_and_adapters_train_together(kind, dynamic, adapters_first):
    torch.manual_seed(0)
    config = SEConfig(token_dim=8, d_model=HIDDEN, n_layers=2, n_heads=2, d_hid=32, output_dim=6, n_tokens=5)
    encoder = SEEncoder(config, torch.randn(20, 8)).eval()
    genes, values, target = torch.arange(12).view(3, 4), torch.rand(3, 5), torch.randn(3, 6)
    expected = encoder(genes, values)
    steps = [
        lambda: add_lora(encoder, r=2, alpha=4, dropout=0.0, targets=("q", "v", "linear2")),
        lambda: apply_mhc_to_transformer(encoder, kind=kind, dynamic=dynamic),
    ]
    for step in steps if adapters_first else reversed(steps):
        step()
    for parameter in mhc_parameters(encoder).values():
        parameter.requires_grad_()  # adapters freeze all there is
    assert sum("lora_" in name for name, _ in encoder.named_parameters()) == 2 * 2 * 3
    assert (encoder(genes, values) - expected).abs().max() < 1e-5
    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    assert {name for name in trained if "lora_" not in name} == set(mhc_parameters(encoder))
    optimiser = torch.optim.Adam(trained.values(), lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        (encoder(genes, values) - target).square().mean().backward()
        optimiser.step()
    for name, parameter in trained.items():
        assert parameter.grad.abs().max() > 0, name


@every_kind
def test_checkpointing_gives_the_same_gradient(kind, dynamic):
    network = apply_mhc_to_transformer(_network("gpt2"), kind=kind, dynamic=dynamic)
    _train(network, 3)
    gradients = []
    for network.gradient_checkpointing in (False, True):
        network.zero_grad()
        network(_cells()).square().mean().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@every_kind
def test_autocast_leaves_the_connections_in_float32(kind, dynamic):
    network = _trained("gpt2", kind, dynamic)
    seen = []
    for layer in network.h:
        layer.mixing.sinkhorn.register_forward_hook(lambda _, __, matrix: seen.append(matrix))
    expected = network(_cells())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(_cells())
    assert len(seen) == 6
    for matrix in seen:
        assert matrix.dtype == torch.float32
        assert (matrix.sum(-1) - 1).abs().max() < 1e-5
        assert (matrix.sum(-2) - 1).abs().max() < 1e-5
    assert (out - expected).norm() < 0.05 * expected.norm()


def test_half_precision_weights_keep_their_residual_type():
    network = apply_mhc_to_transformer(_network("gpt2")).bfloat16()
    assert network(_cells().bfloat16()).dtype == torch.bfloat16


def test_streams_add_under_half_a_per_cent():
    network = make_backbone(BackboneConfig("gpt2", 128, 2, 4))
    before = sum(p.numel() for p in network.parameters())
    apply_mhc_to_transformer(network)
    added = sum(p.numel() for p in mhc_parameters(network).values())
    assert added == 2 * (4 * 4 + 2 * 4) + 4
    assert sum(p.numel() for p in network.parameters()) == before + added
    assert added < 0.005 * before


@every_kind
def test_state_dict_goes_back_and_forth(kind, dynamic):
    network = _trained("gpt2", kind, dynamic, layer_indices=[0, 1])
    other = apply_mhc_to_transformer(_network("gpt2"), kind=kind, dynamic=dynamic, layer_indices=[0, 1])
    assert not torch.allclose(other(_cells()), network(_cells()))
    other.load_state_dict(copy.deepcopy(network.state_dict()))
    assert torch.equal(other(_cells()), network(_cells()))
    assert set(mhc_parameters(network)) == {name for name in network.state_dict() if ".mixing." in name}


@every_network
@pytest.mark.parametrize("indices", [None, [0, 2]])
def test_taken_off_it_is_what_it_was_and_put_back_what_it_became(name, indices):
    network, cells = _network(name), _cells()
    names, before = list(network.state_dict()), network(cells)
    apply_mhc_to_transformer(network, layer_indices=indices)
    _train(network, 3)
    after, weights = network(cells), {name: p.detach().clone() for name, p in mhc_parameters(network).items()}
    layers = {id(layer) for layer in network.modules() if isinstance(layer, MHCTransformerLayer)}
    with mhc_off(network):
        assert list(network.state_dict()) == names
        with mhc_off(network):  # nothing to take off
            plain = network(cells)
    assert not torch.allclose(plain, after)
    assert not torch.allclose(plain, before)  # its own weights were trained as well
    assert torch.equal(network(cells), after)
    removed = remove_mhc(network)
    assert list(removed) == (indices or [0, 1, 2])
    assert remove_mhc(network) == {}
    assert not mhc_parameters(network)
    restore_mhc(network, removed)
    assert {id(layer) for layer in network.modules() if isinstance(layer, MHCTransformerLayer)} == layers
    assert all(torch.equal(p, weights[name]) for name, p in mhc_parameters(network).items())
    assert torch.equal(network(cells), after)


def test_an_untrained_network_is_exactly_itself_without_them():
    network, cells = _network("gpt2"), _cells()
    expected = network(cells)
    apply_mhc_to_transformer(network)
    with mhc_off(network):
        assert torch.equal(network(cells), expected)
    with pytest.raises(RuntimeError, match="shape"), mhc_off(network):
        network(cells[..., 1:])
    assert len(mhc_diagnostics(network)) == 3


def test_connections_of_another_network_raise():
    network = apply_mhc_to_transformer(_network("gpt2"))
    removed = remove_mhc(network)
    for other in (_network("gpt2"), _network("gpt2", 2), apply_mhc_to_transformer(_network("gpt2"))):
        found = mhc_parameters(other)
        with pytest.raises(ValueError, match="belong to other layers"):
            restore_mhc(other, removed)
        assert list(mhc_parameters(other)) == list(found)
    restore_mhc(network, removed)
    with pytest.raises(ValueError, match="belong to other layers"):
        restore_mhc(network, removed)  # they are on


def test_wrapped_layers_keep_device_mode_and_what_is_frozen():
    network = _network("gpt2").requires_grad_(requires_grad=False).to("meta")
    network.h[0].train()
    apply_mhc_to_transformer(network)
    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert network.h[0].training
    assert not network.h[1].training
    assert not network.h[1].mixing.training
    assert {name for name, p in network.named_parameters() if p.requires_grad} == set(mhc_parameters(network))


def test_diagnostics_begin_near_the_identity():
    diagnoses = mhc_diagnostics(apply_mhc_to_transformer(_network("gpt2")))
    assert [d.layer for d in diagnoses] == ["h.0", "h.1", "h.2"]
    for diagnosis in diagnoses:
        assert diagnosis.matrix.diagonal().min() == pytest.approx(0.948, abs=1e-3)
        assert diagnosis.distance_from_identity == pytest.approx(0.06, abs=0.005)
        gains = diagnosis.forward_gain, diagnosis.backward_gain, diagnosis.composite_forward_gain
        assert gains == pytest.approx((1, 1, 1), abs=1e-5)
    assert mhc_diagnostics(_network("gpt2")) == []


def test_composite_gain_is_that_of_the_product_within_a_run(monkeypatch):
    network = apply_mhc_to_transformer(_network("gpt2", 4), layer_indices=[0, 1, 3], n_streams=2)
    growing = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    for i in (0, 1, 3):
        monkeypatch.setattr(network.h[i].mixing.sinkhorn, "forward", lambda _: growing)
    first, second, last = mhc_diagnostics(network)
    assert (first.forward_gain, first.backward_gain) == (3, 2)
    assert first.row_error == 2
    assert (second.composite_forward_gain, second.composite_backward_gain) == (7, 4)
    assert (last.composite_forward_gain, last.composite_backward_gain) == (3, 2)


def test_diagnostics_show_what_the_input_does():
    network = _trained("gpt2", "streams", dynamic=True)
    fixed, seen = mhc_diagnostics(network)[1], mhc_diagnostics(network, lambda: network(_cells()))[1]
    assert (fixed.matrix - seen.matrix).abs().max() > 1e-5


def test_diagnostics_of_a_run_without_the_network_raise():
    with pytest.raises(ValueError, match=r"did not run the layer h\.0"):
        mhc_diagnostics(apply_mhc_to_transformer(_network("gpt2")), lambda: None)


def test_unknown_kind_raises():
    network = _network("gpt2")
    with pytest.raises(ValueError, match="Did you mean 'streams'"):
        apply_mhc_to_transformer(network, kind="stream")
    assert not mhc_parameters(network)


@pytest.mark.parametrize("index", [3, -4])
def test_layer_beyond_the_depth_raises(index):
    network = _network("gpt2")
    with pytest.raises(IndexError, match=rf"\[{index}\], but the transformer has 3 layers"):
        apply_mhc_to_transformer(network, layer_indices=[0, index])
    assert not mhc_parameters(network)


def test_no_layers_raise():
    with pytest.raises(ValueError, match="layer_indices is empty"):
        apply_mhc_to_transformer(_network("gpt2"), layer_indices=[])


def test_wrapping_twice_raises():
    network = apply_mhc_to_transformer(_network("gpt2"), layer_indices=[0])
    with pytest.raises(ValueError, match="wrapped in hyper-connections already"):
        apply_mhc_to_transformer(network, layer_indices=[1])


def test_module_without_known_layers_raises():
    with pytest.raises(TypeError, match=r"Linear has no list of layers in \.h"):
        apply_mhc_to_transformer(nn.Linear(2, 2))


def test_layers_of_unknown_width_raise():
    network = nn.Module()
    network.layers = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(TypeError, match="Linear has no norm"):
        apply_mhc_to_transformer(network)


@pytest.mark.parametrize(
    ("option", "found"), [({"n_streams": 1}, "n_streams is 1"), ({"sinkhorn_iters": 0}, "n_iters")]
)
def test_sizes_that_are_too_small_raise(option, found):
    network = _network("gpt2")
    with pytest.raises(ValueError, match=found):
        apply_mhc_to_transformer(network, **option)
    assert not mhc_parameters(network)


def test_another_number_of_streams_raises():
    layer = MHCTransformerLayer(nn.Identity(), hidden=HIDDEN, kind="streams", expands=False)
    with pytest.raises(ValueError, match=r"Found \(3, 7, 16\), but this layer takes 4 streams"):
        layer(_cells())


def test_layer_of_another_shape_raises():
    layer = MHCTransformerLayer(nn.Linear(HIDDEN, 1), hidden=HIDDEN, kind="features")
    with pytest.raises(ValueError, match=r"no residual branch"):
        layer(_cells())
