"""Perturbations and contexts with too few training cells: left out by name, never predicted as "no change"."""

from __future__ import annotations

import logging
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scstate_lora as ssl
from scstate_lora import workflow
from scstate_lora.config import RunConfig
from tests.builders import QUICK, SMALL_ST

ALL_TRAIN = {"pert_key": "guide", "control": "none", "cell_type_key": "type", "test_size": 0.0, "val_size": 0.0}


def _cells(counts, *, n_genes=40, seed=0):
    """Cells by (guide, type): each guide raises four genes of its own, named by its letters."""
    rng = np.random.default_rng(seed)
    guides = [guide for (guide, _), n in counts.items() for _ in range(n)]
    types = [kind for (_, kind), n in counts.items() for _ in range(n)]
    rates = np.tile(np.exp(rng.normal(0.5, 0.5, n_genes)), (len(guides), 1))
    for i, guide in enumerate(guides):
        for part in guide.split("+"):
            start = 4 * (sum(map(ord, part)) % 9)
            rates[i, start : start + 4] *= 1 if part == "none" else 5
    obs = pd.DataFrame({"guide": guides, "type": types}, index=[f"c{i}" for i in range(len(guides))])
    return ad.AnnData(
        rng.poisson(rates).astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(n_genes)])
    )


PLENTY = {(guide, kind): 20 for guide in ("none", "a", "b") for kind in ("T", "B")}


def _trained(adata, setup=ALL_TRAIN, **options):
    ssl.STTransition.setup_anndata(adata, **setup)
    st = ssl.STTransition(adata, model=SMALL_ST, **options)
    st.train(1, **QUICK)
    return st


@pytest.mark.parametrize(
    ("rare", "why"),
    [
        ({("rare", "T"): 3}, "3 training cells"),
        ({("rare", "T"): 4, ("rare", "B"): 4}, "8 training cells, at most 4 of them in one context"),
        (
            {("rare", "N"): 25, ("none", "N"): 3},
            "25 training cells, in contexts of fewer than 5 training control cells",
        ),
    ],
)
def test_perturbation_without_a_group_is_named_and_not_predicted(rare, why):
    with pytest.warns(UserWarning, match=f"'rare' \\({why}\\)") as caught:
        st = _trained(_cells({**PLENTY, **rare}))
    named = [str(w.message) for w in caught if "rare" in str(w.message)]
    assert len(named) == 1  # one warning
    assert "5 control and 5 perturbed training cells" in named[0]
    assert st.targets == ["a", "b"]
    for target in ("rare", "a+rare", ["a", "rare"]):
        with pytest.raises(ValueError, match=f"'rare'.*cannot be predicted: {why}.*5 control and 5 perturbed"):
            st.predict(target=target)
    assert st.predict(target="a").n_obs == sum(n for (guide, _), n in {**PLENTY, **rare}.items() if guide == "none")


def test_coarser_contexts_that_would_train_it_are_named():
    adata = _cells({**PLENTY, ("rare", "T"): 4, ("rare", "B"): 4})
    with pytest.warns(UserWarning, match=r"Coarser contexts would train them: context_keys=\[\]"):
        _trained(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        st = _trained(adata, {**ALL_TRAIN, "context_keys": []})
    assert "rare" in st.targets


def test_with_features_it_is_predicted_as_an_unseen_one():
    adata = _cells({**PLENTY, ("c", "T"): 20, ("c", "B"): 20, ("rare", "T"): 3})
    features = pd.DataFrame(np.random.default_rng(0).normal(size=(3, 2)), index=["a", "b", "c"])
    features.loc["rare"] = features.loc["a"]
    with pytest.warns(UserWarning, match="'rare'.*from the features, as one never seen"):
        st = _trained(adata, pert_features=features)
    assert st.targets == ["a", "b", "c", "rare"]
    np.testing.assert_allclose(st.predict(target="rare").X, st.predict(target="a").X, atol=1e-5)
    with pytest.warns(UserWarning, match="'rare'.*no row in pert_features"):
        st = _trained(adata, pert_features=features.drop(index="rare"))
    with pytest.raises(ValueError, match="'rare' cannot be predicted: 3 training cells"):
        st.predict(target="rare")


def test_rare_combination_is_the_sum_of_its_trained_parts():
    adata = _cells({**PLENTY, ("a+b", "T"): 3})
    with pytest.warns(UserWarning, match=r"'a\+b' \(3 training cells\).*as the sum of"):
        st = _trained(adata)
    assert st.targets == ["a", "a+b", "b"]
    logged = st.predict(target="a+b").X - st.predict(target="a").X
    assert np.abs(logged).max() > 0.3


def test_its_validation_cells_and_its_cells_of_a_coarser_group_are_not_used(monkeypatch):
    adata = _cells({**PLENTY, ("rare", "T"): 12, ("rare", "B"): 4})
    adata.obs["donor"] = np.arange(adata.n_obs) % 3  # at most 4 training cells of it in a context, 9 in a type
    is_rare = (adata.obs["guide"] == "rare").to_numpy()
    adata.obs["mine"] = np.where(is_rare & (np.cumsum(is_rare) > 9), "val", "train")
    seen = []
    monkeypatch.setattr(
        "scstate_lora.model.st.transition.deviation_weight",
        lambda _network, data, groups: seen.append((data, groups)) or 1.0,
    )
    setup = {k: v for k, v in ALL_TRAIN.items() if "size" not in k}
    with pytest.warns(UserWarning, match="'rare'"):
        st = _trained(
            adata, {**setup, "covariate_keys": ["donor"], "context_keys": ["type", "donor"], "split_key": "mine"}
        )
    assert set(st.history["phase"]) == {"train"}
    [(data, groups)] = seen
    assert {st.registry.perturbations[group.pert] for group in groups} == {"a", "b"}
    assert (np.abs(data.perts[[group.pert for group in groups]]).sum(axis=1) == 1).all()


def test_its_cells_are_represented_by_zeros_with_a_warning():
    adata = _cells({**PLENTY, ("rare", "T"): 3})
    with pytest.warns(UserWarning, match="'rare'"):
        st = _trained(adata)
    with pytest.warns(UserWarning, match="3 cells under 'rare'.*zero"):
        h = st.get_latent_representation()
    is_rare = (adata.obs["guide"] == "rare").to_numpy()
    assert (h[is_rare] == 0).all()
    assert (np.abs(h[~is_rare]).sum(axis=1) > 0).all()
    others = adata[~is_rare].copy()
    np.testing.assert_allclose(h[~is_rare], st.get_latent_representation(others), atol=1e-5)
    with pytest.warns(UserWarning, match="3 cells"):
        assert not st.get_latent_representation(adata[is_rare].copy()).any()


def test_saved_model_still_knows_why(tmp_path):
    with pytest.warns(UserWarning, match="'rare'"):
        st = _trained(_cells({**PLENTY, ("rare", "T"): 3}))
    st.save(tmp_path / "st")
    loaded = ssl.STTransition.load(tmp_path / "st", adata=st.adata)
    assert loaded.targets == ["a", "b"]
    with pytest.raises(ValueError, match="'rare' cannot be predicted: 3 training cells"):
        loaded.predict(target="rare")


def test_workflow_predicts_the_others_and_says_which_not(tmp_path, caplog):
    adata = _cells({**PLENTY, ("rare", "T"): 3})
    config = RunConfig.parse(
        {
            "se": {
                "compact": {"n_steps": 2, "d_model": 16, "d_hid": 16, "n_layers": 1, "n_heads": 2, "output_dim": 8},
                "conditioning": {"n_steps": 2, "hidden_dims": [16]},
                "train": {"max_epochs": 1},
            },
            "st": {"model": SMALL_ST, "train": {"max_epochs": 1}},
            "accelerator": "cpu",
            "data": {"covariate_keys": ["guide"], "pert_key": "guide", "control": "none", "cell_type_key": "type"},
        },
        name="run",
    )
    with caplog.at_level(logging.WARNING, logger="scstate_lora"), pytest.warns(UserWarning, match="'rare'"):
        workflow.run(adata, config, tmp_path / "out")
    written = ad.read_h5ad(tmp_path / "out" / "predictions.h5ad")
    assert set(written.obs["guide"]) == {"a", "b"}
    assert any("rare" in r.getMessage() and "predicted" in r.getMessage() for r in caplog.records)


def test_comparison_leaves_it_out_and_refuses_it_by_name(caplog):
    adata = _cells({**dict.fromkeys(PLENTY, 40), ("rare", "T"): 6})
    ssl.STTransition.setup_anndata(adata, **{**ALL_TRAIN, "test_size": 0.4})
    options = {"variants": ["ST"], "model": SMALL_ST, "train_kwargs": {"max_epochs": 1, **QUICK}, "n_boot": 5}
    del options["train_kwargs"]["logger"]
    with caplog.at_level(logging.WARNING, logger="scstate_lora"), pytest.warns(UserWarning, match="'rare'"):
        result = ssl.tl.compare(adata, **options)
    assert "rare" not in set(result.by_seed["target"])
    assert result.by_seed.query("model == 'ST'")["value"].notna().any()
    assert any("'rare' is not compared" in r.getMessage() for r in caplog.records)
    with pytest.warns(UserWarning, match="'rare'"), pytest.raises(ValueError, match="target: 'rare' cannot be"):
        ssl.tl.compare(adata, target="rare", **options)


def test_nothing_left_raises():
    adata = _cells({("none", "T"): 20, ("none", "B"): 20, ("a", "T"): 4, ("a", "B"): 4})
    ssl.STTransition.setup_anndata(adata, **ALL_TRAIN)
    with pytest.raises(ValueError, match=r"5 control and 5 perturbed training cells.*context_keys=\[\]"):
        ssl.STTransition(adata, model=SMALL_ST)


def test_context_without_controls_is_left_out_with_one_warning(recwarn):
    adata = _cells({**PLENTY, ("a", "Lonely"): 20, ("b", "Lonely"): 7})
    models = ssl.setup_anndata(adata, covariate_keys=["guide"], **{**ALL_TRAIN, "test_size": 0.2})
    named = [str(w.message) for w in recwarn if "Lonely" in str(w.message)]
    assert len(named) == 1
    assert "Lonely (27 cells)" in named[0]
    st = models.st
    st.train(1, **QUICK)
    predicted = st.predict(target="a")
    assert "Lonely" not in set(predicted.obs["type"])
    assert np.isfinite(st.get_latent_representation()).all()
    with pytest.raises(ValueError, match=r"No control cell.*type = 'Lonely'"):
        st.predict(target="a", contexts={"type": "Lonely"})
    test = adata[(adata.obs["scstate_split"] == "test").to_numpy()]
    table = ssl.tl.evaluate_perturbation(predicted, test, adata, context_key="type", n_boot=5)
    assert set(table["context"]) == {"T", "B", "all"}


def test_context_with_too_few_controls_is_named_when_the_model_is_made(caplog):
    adata = _cells({**PLENTY, ("a", "N"): 20, ("none", "N"): 2})
    ssl.STTransition.setup_anndata(adata, **ALL_TRAIN)
    with caplog.at_level(logging.WARNING, logger="scstate_lora"):
        st = ssl.STTransition(adata, model=SMALL_ST)
    assert st.targets == ["a", "b"]
    [said] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "N (20 perturbed and 2 control training cells)" in said
