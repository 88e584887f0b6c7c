from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scstate_lora.io.published.st_checkpoint import backbone_state, read_st_folder
from scstate_lora.model.st.published import (
    backbone_config,
    load_backbone,
    published_perturbations,
    st_tensors,
)
from scstate_lora.nn.covariates import CovariateSpec
from scstate_lora.nn.transition import StateTransition, STConfig
from tests.builders import st_network

ARC = Path(__file__).parents[2] / "data" / "arc_st"
"""Small models that arc-state wrote, and what it makes of some cells."""
FORMS = sorted(path.name for path in ARC.iterdir() if path.is_dir())
# float32 on other kernels in another order: the largest difference found is 2e-6.
TOLERANCE = 1e-5


def _predict(network, model, expected, i, **covariates):
    control = torch.from_numpy(expected[f"control_{i}"])[None]
    pert = model.perturbations[str(expected[f"pert_{i}"])][None]
    batch = torch.from_numpy(expected[f"batch_{i}"])[None]
    with torch.no_grad():
        return network(control, pert, covariates, batch)


@pytest.mark.parametrize("form", FORMS)
def test_predictions_are_those_of_arc_state(form):
    model, expected = read_st_folder(ARC / form, st_tensors), np.load(ARC / form / "expected.npz")
    network = st_network(model)
    assert not network.training
    for i in (0, 1):
        made = _predict(network, model, expected, i)
        np.testing.assert_allclose(made.cells[0].numpy(), expected[f"preds_{i}"], atol=TOLERANCE)
        assert np.abs(expected[f"preds_{i}"]).max() > 0.5
        if model.sizes["decoder_dims"] is not None:
            genes = network.decode(made.cells)[0].detach().numpy()
            np.testing.assert_allclose(genes, expected[f"genes_{i}"], atol=TOLERANCE)
        assert (made.confidence is not None) == (f"confidence_{i}" in expected)
        if made.confidence is not None:
            assert made.confidence.item() > 0
            np.testing.assert_allclose(made.confidence.numpy(), expected[f"confidence_{i}"][:, 0], atol=TOLERANCE)


@pytest.mark.parametrize("form", FORMS)
def test_order_of_cells_does_not_matter_and_the_others_in_a_set_do(form):
    model, expected = read_st_folder(ARC / form, st_tensors), np.load(ARC / form / "expected.npz")
    network = st_network(model)
    cells = _predict(network, model, expected, 1).cells[0]
    backwards = {name: expected[name][::-1].copy() if name[0] in "cb" else expected[name] for name in expected}
    torch.testing.assert_close(_predict(network, model, backwards, 1).cells[0].flip(0), cells, atol=1e-5, rtol=0)
    fewer = {name: expected[name][:2] if name[0] in "cb" else expected[name] for name in expected}
    assert (_predict(network, model, fewer, 1).cells[0] - cells[:2]).abs().max() > 1e-4


def test_sets_side_by_side_do_not_see_each_other():
    model, expected = read_st_folder(ARC / "tokens", st_tensors), np.load(ARC / "tokens" / "expected.npz")
    network = st_network(model)
    control = torch.from_numpy(expected["control_1"])[:6].reshape(2, 3, -1)
    pert = torch.stack([model.perturbations[name] for name in ("TP53", "IFNG")])
    with torch.no_grad():
        both = network(control, pert, {})
        first = network(control[:1], pert[:1], {})
    torch.testing.assert_close(both.cells[:1], first.cells, atol=1e-5, rtol=0)
    assert both.batch_scores.shape == (2, 3)
    assert both.confidence.shape == (2,)


def test_covariates_can_be_added_and_say_nothing_before_training():
    model, expected = read_st_folder(ARC / "trained", st_tensors), np.load(ARC / "trained" / "expected.npz")
    network = st_network(model, {"day": CovariateSpec(n_categories=3, embed_dim=8)})
    day = torch.arange(len(expected["control_0"]))[None] % 3
    made = _predict(network, model, expected, 0, day=day)
    np.testing.assert_allclose(made.cells[0].numpy(), expected["preds_0"], atol=TOLERANCE)
    control, pert = torch.from_numpy(expected["control_0"])[None], model.perturbations["TP53"][None]
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        network(control, pert, {"day": day}).cells.square().sum().backward()
        optimiser.step()
    assert all(p.grad.abs().sum() > 0 for p in network.covariate_encoder.combination.parameters())


def test_reading_does_not_tie_the_network_to_the_file(tmp_path):
    folder = Path(shutil.copytree(ARC / "trained", tmp_path / "st"))
    model = read_st_folder(folder, st_tensors)
    network = st_network(model)
    before = model.state["project_out.0.weight"].clone()
    with torch.no_grad():
        network.project_out[0].weight.add_(1)
    assert torch.equal(model.state["project_out.0.weight"], before)
    assert torch.equal(read_st_folder(folder, st_tensors).state["project_out.0.weight"], before)


@pytest.mark.parametrize("form", ["trained", "gpt2"])
def test_a_backbone_alone_goes_into_a_network_of_other_sizes(form):
    model = read_st_folder(ARC / form / "checkpoints" / "final.ckpt", st_tensors, reuse="backbone")
    network = StateTransition(STConfig(n_inputs=50, pert_dim=2, **backbone_config(model.sizes)), {})
    head = network.project_out[0].weight.clone()
    load_backbone(network, model)
    loaded = network.transformer_backbone.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in backbone_state(model).items())
    assert torch.equal(network.project_out[0].weight, head)
    control = torch.randn(1, 3, 50)
    with torch.no_grad():
        cells = network.eval()(control.clamp(min=0), torch.ones(1, 2), {}).cells
    torch.testing.assert_close(cells, control.clamp(min=0))  # a new head says "no change"


def test_a_backbone_of_other_sizes_raises():
    model = read_st_folder(ARC / "trained", st_tensors, reuse="backbone")
    sizes = {**backbone_config(model.sizes), "intermediate": 20}
    with pytest.raises(ValueError, match=r"shape: layers\.0\.mlp\.gate_proj\.weight is \(16, 16\)"):
        load_backbone(StateTransition(STConfig(n_inputs=50, pert_dim=2, **sizes), {}), model)


def test_perturbations_keep_their_vectors_and_the_control_gets_the_name_of_the_data():
    model = read_st_folder(ARC / "trained", st_tensors)
    table = published_perturbations(model, "sham")
    assert table.names == ("sham", "IFNG", "MYC+KRAS", "TP53")
    np.testing.assert_array_equal(table.encode(["sham"])[0], model.perturbations["non-targeting"])
    np.testing.assert_array_equal(table.encode(["MYC+KRAS"])[0], model.perturbations["MYC+KRAS"])
    with pytest.raises(ValueError, match="'TP54' was not seen in training"):
        table.encode(["TP54"])


def test_a_control_that_the_model_does_not_know_as_one_raises():
    model = read_st_folder(ARC / "trained", st_tensors)
    with pytest.raises(ValueError, match=r"control='TP53' is a perturbation of .* whose control is 'non-targeting'"):
        published_perturbations(model, "TP53")
    with pytest.raises(ValueError, match="no vector for its own control 'DMSO'"):
        published_perturbations(replace(model, control="DMSO"), "sham")
