"""What a user is told who got something wrong."""

from __future__ import annotations

import numpy as np
import pytest

import scstate_lora as ssl
from tests.builders import QUICK, labelled_cells


def _set_up(adata=None, **options):
    adata = labelled_cells(60) if adata is None else adata
    ssl.CellTypeClassifier.setup_anndata(adata, **{"labels_key": "cell_type", **options})
    return adata


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"labels_key": "celltype"}, KeyError, r"adata\.obs\['celltype'\] does not exist\. Did you mean 'cell_type'\?"),
        (
            {"labels_key": ["cell_type", "dnor"]},
            KeyError,
            r"adata\.obs\['dnor'\] does not exist\. Did you mean 'donor'\?",
        ),
        ({"batch_key": "donors"}, KeyError, r"adata\.obs\['donors'\] does not exist\. Did you mean 'donor'\?"),
        ({"labels": "cell_type"}, TypeError, r"setup_anndata\(\) has no argument 'labels'.*'labels_key'"),
        ({"label_tree": {"T cell": ["CD4", "CD8"]}}, ValueError, "label_tree does not hold 'B', 'monocyte'"),
        ({"label_tree": {"T": ["CD4"], "U": ["CD4"]}}, ValueError, "'CD4' is in the tree twice"),
        ({"label_tree": ["donor"]}, ValueError, r"is not nested: .* is below"),
        ({"unlabeled_category": "none"}, ValueError, r"unlabeled_category='none' is not in adata\.obs\['cell_type'\]"),
    ],
)
def test_a_wrong_set_up_raises_and_leaves_nothing_behind(options, error, message):
    adata = labelled_cells(60)
    with pytest.raises(error, match=message):
        _set_up(adata, **options)
    assert not adata.uns
    assert "scstate_split" not in adata.obs


def test_a_model_of_cells_without_labels_raises():
    adata = labelled_cells(60)
    with pytest.raises(KeyError, match="setup_anndata"):
        ssl.CellTypeClassifier(adata)
    with pytest.raises(ValueError, match="option 'labels_key' is missing"):
        ssl.CellTypeClassifier.setup_anndata(adata)
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys="donor")
    with pytest.raises(ValueError, match=r"ssl\.CellTypeClassifier\.setup_anndata\(adata, labels_key=\.\.\.\)"):
        ssl.CellTypeClassifier(adata)
    with pytest.raises(TypeError, match="Expected an AnnData"):
        ssl.CellTypeClassifier(adata.X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": {"hidden": 3}}, "head: .*'hidden'.*hidden_dim"),
        ({"linear_start": {"penalty": -1}}, "linear_start: penalty=-1"),
        ({"lora": {"rank": 0}}, "lora"),
        ({"compact": {"n_step": 1}}, "compact: .*n_steps"),
    ],
)
def test_wrong_options_of_a_model_raises(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ssl.CellTypeClassifier(_set_up(), **options)


@pytest.mark.parametrize(
    ("strategy", "options", "error", "message"),
    [
        ("graduall", {}, ValueError, r"strategy='graduall' is unknown\. Did you mean 'gradual'"),
        ("adapters", {}, ValueError, "strategy='adapters' is unknown. Available: 'gradual', 'full', 'frozen', 'lora'"),
        ("full", {"epochs": 3}, TypeError, r"train\(\).*'epochs'.*max_epochs"),
        ("full", {"class_weight": "sqrt"}, ValueError, "class_weight='sqrt'.*'balanced', 'root'"),
        ("full", {"max_epochs": 0}, ValueError, "max_epochs=0"),
    ],
)
def test_a_wrong_training_raises_before_any_work(base, strategy, options, error, message):
    model = ssl.CellTypeClassifier(_set_up(), base=base)
    with pytest.raises(error, match=message):
        model.train(strategy, **options, **QUICK)
    assert not model.is_trained


def test_an_untrained_model_raises(base, query, tmp_path):
    model = ssl.CellTypeClassifier(_set_up(), base=base)
    for call in (model.predict, model.predict_proba, model.get_latent_representation):
        with pytest.raises(
            ValueError, match=rf"CellTypeClassifier is not trained: call \.train\(\) before {call.__name__}"
        ):
            call(query)
    with pytest.raises(ValueError, match=r"is not trained: call \.train\(\) before save\(\)"):
        model.save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"is not trained: call \.train\(\) before labels"):
        _ = model.labels
    assert "not trained" in repr(model)
    assert model.network is None


@pytest.mark.parametrize("value", [0, 1, -0.1, 5, float("nan")])
@pytest.mark.parametrize("option", ["max_error", "reject_below", "reject_unknown"])
def test_a_share_out_of_range_raises(frozen, query, option, value):
    with pytest.raises(ValueError, match=rf"{option}={value} must lie between 0 and 1: it is a"):
        frozen.predict(query, **{option: value})
    assert "scstate_celltype" not in query.obs


@pytest.mark.parametrize("sets", [0.0, 1.0, 2.0])
def test_sets_out_of_range_raises(frozen, query, sets):
    with pytest.raises(ValueError, match=rf"sets={sets} must lie between 0 and 1"):
        frozen.predict(query, sets=sets)


def test_clusters_that_do_not_exist_raises(frozen, query):
    with pytest.raises(KeyError, match=r"clusters='donr' is not a column of adata\.obs\. Did you mean 'donor'"):
        frozen.predict(query, clusters="donr")
    assert "scstate_celltype" not in query.obs


def test_a_split_that_changed_raises(base):
    adata = _set_up()
    model = ssl.CellTypeClassifier(adata, base=base)
    adata.obs["part"] = np.where(np.arange(60) < 40, "train", "test")
    _set_up(adata, split_key="part")
    with pytest.raises(ValueError, match="is not the one this CellTypeClassifier was made with"):
        model.train("frozen", **QUICK)
