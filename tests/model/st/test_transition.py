from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scstate_lora as ssl
from scstate_lora.data import log_expression
from scstate_lora.model.st import predict
from scstate_lora.nn.transition import Prediction
from tests.builders import QUICK


@pytest.fixture(scope="module")
def screen():
    """300 cells x 40 genes: three guides and a dose, two cell types; a guide raises genes of its own."""
    rng = np.random.default_rng(0)
    n = 300
    obs = pd.DataFrame(
        {
            "guide": rng.choice(["none", "g1", "g2", "g3"], n),
            "cell_type": pd.Categorical(rng.choice(["A", "B"], n)),
            "dose": rng.uniform(1, 9, n),
            "batch": rng.integers(1, 3, n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    log_rate = rng.normal(0.5, 0.5, 40) + np.zeros((n, 40))
    for i, guide in enumerate(["g1", "g2", "g3"]):
        log_rate[np.ix_((obs["guide"] == guide).to_numpy(), range(5 * i, 5 * i + 5))] += 1.5
    counts = sparse.csr_matrix(rng.poisson(np.exp(log_rate)).astype(np.float32))
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(40)]))


SCREEN = {
    "covariate_keys": {"dose": "continuous", "batch": "categorical"},
    "pert_key": "guide",
    "control": "none",
    "cell_type_key": "cell_type",
    "context_keys": ["cell_type"],
}


@pytest.fixture(scope="module")
def screened(screen, make_st):
    adata = screen.copy()
    ssl.STTransition.setup_anndata(adata, **SCREEN)
    st = make_st(adata, {"n_genes": 30})
    st.train(max_epochs=2, **QUICK)
    return adata, st


def _controls(adata, key, control):
    return (adata.obs[key].astype(str) == control).to_numpy()


def test_before_training_the_network_predicts_the_controls_exactly(wound, setup, make_st):
    adata = wound.copy()
    ssl.STTransition.setup_anndata(adata, **setup)
    st = make_st(adata)
    control = torch.from_numpy(log_expression(adata)[:20].toarray())[None]
    covariates = {"timepoint": torch.zeros(1, 20, dtype=torch.long)}
    with torch.no_grad():
        assert torch.equal(st.network(control, torch.ones(1, 1), covariates).cells, control)


def test_training_reduces_the_loss_and_records_it(wound, setup, make_st):
    adata = wound.copy()
    ssl.STTransition.setup_anndata(adata, **setup)
    st = make_st(adata, {"residual": "latent"})
    st.train(max_epochs=4, **QUICK)
    columns = list(st.history.columns)
    assert columns[:5] == ["phase", "epoch", "step", "loss", "energy"]
    assert columns[-5:] == ["grad_norm", "lr", "seconds", "peak_memory_mb", "best"]
    train, val = (st.history[st.history["phase"] == phase] for phase in ("train", "val"))
    assert train["step"].tolist() == list(range(1, 81))
    assert len(val) == 4
    assert train["loss"].iloc[-10:].mean() < train["loss"].iloc[:10].mean()
    first = st.history
    st.train(max_epochs=1, **QUICK)
    pd.testing.assert_frame_equal(st.history.iloc[: len(first)], first)
    assert st.history["step"].max() == 100


def test_two_runs_of_one_seed_are_equal(wound, setup, make_st, fingerprint):
    adata = wound.copy()
    ssl.STTransition.setup_anndata(adata, **setup)
    before = torch.get_rng_state()
    prints = []
    for seed in (0, 0, 1):
        st = make_st(adata, seed=seed)
        st.train(max_epochs=1, **QUICK)
        prints.append(fingerprint(st.network))
    assert torch.equal(torch.get_rng_state(), before)
    assert prints[0] == prints[1] != prints[2]


def test_held_out_cells_teach_nothing(wound, setup, make_st, fingerprint):
    prints = []
    for poison in (False, True):
        adata = wound.copy()
        ssl.STTransition.setup_anndata(adata, **setup, holdout={"cell_type": "fibroblast", "condition": "burn"})
        held_out = (adata.obs["scstate_split"] == "test").to_numpy()
        assert held_out.sum() > 10
        if poison:
            x = adata.X.toarray()
            x[held_out] = 3 * x[held_out][:, ::-1] + 1
            adata.X = x
        st = make_st(adata, {"n_genes": 150})  # the choice of genes is training, too
        st.train(max_epochs=1, **QUICK)
        prints.append((st.genes, fingerprint(st.network)))
    assert prints[0] == prints[1]


def test_input_is_left_as_it_was(screen, make_st, fingerprint):
    adata = screen.copy()
    adata.layers["other"] = adata.X.copy()
    before = fingerprint(adata.X), fingerprint(adata.layers["other"])
    ssl.STTransition.setup_anndata(adata, **SCREEN)
    st = make_st(adata)
    st.train(max_epochs=1, **QUICK)
    st.predict(target="g1")
    st.get_latent_representation()
    assert (fingerprint(adata.X), fingerprint(adata.layers["other"])) == before


def test_prediction_says_of_every_cell_where_it_comes_from(screened):
    adata, st = screened
    predicted = st.predict(target="g1")
    controls = adata[_controls(adata, "guide", "none")]
    assert predicted.shape == (controls.n_obs, 30)
    assert isinstance(predicted.X, np.ndarray)
    assert predicted.X.dtype == np.float32
    assert predicted.X.min() >= 0
    assert list(predicted.var_names) == st.genes
    assert predicted.obs["control_cell"].tolist() == controls.obs_names.tolist()
    assert (predicted.obs["guide"] == "g1").all()
    for column in ("cell_type", "dose", "batch"):
        assert predicted.obs[column].tolist() == controls.obs[column].tolist()
    record = dict(predicted.uns["scstate_lora"]["predict"])
    assert (
        len(record.pop("train_cells")) == ((adata.obs["guide"] == "g1") & (adata.obs["scstate_split"] == "train")).sum()
    )
    assert {"predict": record} == {
        "predict": {
            "scale": "log1p_cp10k",
            "target_sum": 1e4,
            "pert_key": "guide",
            "control": "none",
            "target": ["g1"],
            "space": "genes",
            "gene_choice": "the 30 most variable of 40 genes",
            "genes_left_out": [gene for gene in adata.var_names if gene not in st.genes],
        }
    }
    np.testing.assert_array_equal(log_expression(predicted).toarray(), predicted.X)


def test_several_targets_are_predicted_one_after_the_other(screened):
    _, st = screened
    both = st.predict(target=["g3", "g1", "g3"])
    assert both.obs_names.is_unique
    assert both.obs["guide"].unique().tolist() == ["g3", "g1"]
    assert both.uns["scstate_lora"]["predict"]["target"] == ["g3", "g1"]
    np.testing.assert_array_equal(both.X[: len(both) // 2], st.predict(target="g3").X)
    np.testing.assert_array_equal(both.X[len(both) // 2 :], st.predict(target="g1").X)


def test_contexts_choose_control_cells(screened):
    adata, st = screened
    everything = st.predict(target="g2")
    some = st.predict(target="g2", contexts={"cell_type": "A"})
    assert (some.obs["cell_type"] == "A").all()
    assert some.n_obs == (everything.obs["cell_type"] == "A").sum()
    assert st.predict(target="g2", contexts={"cell_type": ["A", "B"]}).n_obs == everything.n_obs
    narrow = st.predict(target="g2", contexts={"cell_type": "B", "batch": 2})
    assert set(zip(narrow.obs["cell_type"], narrow.obs["batch"], strict=True)) == {("B", 2)}
    assert _controls(adata, "guide", "none").sum() == everything.n_obs


def test_covariates_of_the_predicted_cells_can_be_set(screened):
    _, st = screened
    own = st.predict(target="g1")
    moved = st.predict(target="g1", covariates={"batch": 2, "dose": 5.0})
    assert (moved.obs["batch"] == 2).all()
    assert (moved.obs["dose"] == 5.0).all()
    assert np.abs(moved.X - own.X).max() > 0
    with pytest.warns(UserWarning, match=r"covariates\['dose'\].*extrapolation"):
        st.predict(target="g1", covariates={"dose": 40})


def test_new_cells_without_the_perturbations_column_all_count_as_controls(screened):
    adata, st = screened
    controls = _controls(adata, "guide", "none")
    order = np.random.default_rng(0).permutation(40)
    new = adata[controls][:, order].copy()
    del new.obs["guide"], new.uns["scstate_lora"], new.obs["scstate_split"]
    predicted = st.predict(new, target="g1")
    np.testing.assert_array_equal(predicted.X, st.predict(target="g1").X)
    assert "scstate_lora" not in new.uns


def test_every_cell_is_predicted_once_in_its_own_row(screened, monkeypatch):
    _, st = screened
    monkeypatch.setattr(
        st.network, "forward", lambda control, *_: Prediction(control, control, None, None)
    )  # "no change"
    predicted = st.predict(target="g1")
    expected = log_expression(st.adata)[_controls(st.adata, "guide", "none")]
    columns = [st.registry.var_names.index(g) for g in st.genes]
    np.testing.assert_array_equal(predicted.X, expected[:, columns].toarray())


def test_representation_is_returned_and_written(screened):
    adata, st = screened
    adata = adata.copy()
    h = st.get_latent_representation(adata)
    assert h.shape == (300, 16)
    assert h.dtype == np.float32
    assert np.isfinite(h).all()
    np.testing.assert_array_equal(adata.obsm["X_scstate_st"], h)
    np.testing.assert_array_equal(st.get_latent_representation(adata, key_added="X_mine"), h)
    assert set(adata.obsm) == {"X_scstate_st", "X_mine"}
    fewer = adata[::2].copy()
    fewer.obsm.clear()
    st.get_latent_representation(fewer, key_added=None)
    assert len(fewer.obsm) == 0


def test_most_variable_genes_of_the_training_cells_are_taken_in_order(wound, setup, make_st):
    adata = wound.copy()
    ssl.STTransition.setup_anndata(adata, **setup)
    st = make_st(adata, {"n_genes": 50})
    assert len(st.genes) == 50
    assert st.design.gene_note == "the 50 most variable of 200 genes"
    positions = [adata.var_names.get_loc(g) for g in st.genes]
    assert positions == sorted(positions)
    every = make_st(adata, {"n_genes": None})
    assert every.genes == list(adata.var_names)
    assert make_st(adata, {"n_genes": 200}).design.gene_note == "all 200 genes"


def test_set_length_follows_the_groups_or_the_user(wound, setup, make_st, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    adata = wound.copy()
    ssl.STTransition.setup_anndata(adata, **setup)
    st = make_st(adata)
    train = adata.obs[adata.obs["scstate_split"] == "train"]
    sizes = train.groupby(["cell_type", "condition"], observed=True).size().unstack().min(axis=1)
    median = int(sizes[sizes >= 5].median())
    assert st.design.set_len == max(8, 2 ** int(np.log2(median)))
    assert str(median) in st.design.set_note
    assert make_st(adata, {"cell_set_len": 5}).design.set_len == 5
    with pytest.raises(ValueError, match=f"cell_set_len=500, but the largest context has only {sizes.max()} control"):
        make_st(adata, {"cell_set_len": 500})


def test_without_validation_groups_there_are_training_rows_only(screen, make_st):
    adata = screen.copy()
    split = np.full(300, "train", dtype=object)
    split[0] = "val"
    adata.obs["mine"] = split
    ssl.STTransition.setup_anndata(adata, **SCREEN, split_key="mine")
    st = make_st(adata)
    st.train(max_epochs=1, **QUICK)
    assert set(st.history["phase"]) == {"train"}


@pytest.mark.parametrize("n_genes", [3, 2])
def test_tiny_data_works(screen, make_st, n_genes):
    adata = screen[screen.obs["guide"].isin(["none", "g1"])][:40, :10].copy()
    ssl.STTransition.setup_anndata(adata, pert_key="guide", control="none")
    st = make_st(adata, {"n_genes": n_genes})
    st.train(max_epochs=1, **QUICK)
    assert np.isfinite(st.predict(target="g1").X).all()


def test_without_context_and_covariates_all_cells_are_one_context(screen, make_st):
    adata = screen.copy()
    ssl.STTransition.setup_anndata(adata, pert_key="guide", control="none")
    st = make_st(adata)
    assert st.network.covariate_encoder is None
    st.train(max_epochs=1, **QUICK)
    assert st.predict(target="g2").obs.columns.tolist() == ["control_cell", "guide"]


def test_numeric_levels_are_named_as_in_the_table(screen, make_st):
    adata = screen.copy()
    adata.obs["minutes"] = adata.obs["guide"].map({"none": 0.0, "g1": 10.0, "g2": 20.0, "g3": 30.0})
    ssl.STTransition.setup_anndata(adata, pert_key="minutes", control=0)
    st = make_st(adata)
    st.train(max_epochs=1, **QUICK)
    np.testing.assert_array_equal(st.predict(target=10).X, st.predict(target="10").X)


def test_wrong_requests_raises(screened):
    adata, st = screened
    with pytest.raises(ValueError, match=r"target='g4' was not seen in training. Available: 'g1'"):
        st.predict(target="g4")
    with pytest.raises(ValueError, match="target='none' is the control"):
        st.predict(target="none")
    with pytest.raises(ValueError, match=r"target names no perturbation. Choose from 'g1', 'g2', 'g3'"):
        st.predict(target=[])
    with pytest.raises(KeyError, match=r"adata\.obs\['celltype'\] does not exist. Did you mean 'cell_type'"):
        st.predict(target="g1", contexts={"celltype": "A"})
    with pytest.raises(ValueError, match=r"contexts: 'C' is not in adata\.obs\['cell_type'\]"):
        st.predict(target="g1", contexts={"cell_type": "C"})
    with pytest.raises(KeyError, match=r"'batsh' is not a covariate of this model. Did you mean 'batch'"):
        st.predict(target="g1", covariates={"batsh": 1})
    with pytest.raises(ValueError, match=r"covariates\['batch'\]='7' was never seen in training"):
        st.predict(target="g1", covariates={"batch": 7})
    with pytest.raises(ValueError, match="'guide', which is the perturbation: give it as target="):
        st.predict(target="g1", covariates={"guide": "g1"})
    with pytest.raises(ValueError, match=r"No control cell \(guide = 'none'\) is left"):
        st.predict(adata[~_controls(adata, "guide", "none")], target="g1")
    with pytest.raises(TypeError, match="Expected an AnnData, found DataFrame"):
        st.predict(adata.obs, target="g1")
    with pytest.raises(ValueError, match="device='gpu' is unknown"):
        st.predict(target="g1", device="gpu")
    with pytest.raises(ValueError, match="device='cuda:99', but PyTorch sees"):
        st.get_latent_representation(device="cuda:99")


def test_network_is_on_the_device_while_it_predicts_and_then_on_the_cpu_again(screened, monkeypatch):
    _, st = screened
    moves = []
    monkeypatch.setattr(st.network, "to", lambda device: moves.append(str(device)))
    monkeypatch.setattr(st.network, "cpu", lambda: moves.append("back"))
    st.predict(target=["g1", "g2"], device="cpu")
    assert moves == ["cpu", "back"]  # once for all targets
    monkeypatch.setattr(st.network, "forward", None)
    with pytest.raises(TypeError):
        st.predict(target="g1", device="cpu")
    assert moves[-1] == "back"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_predicts_as_the_cpu(screened):
    _, st = screened
    exact, made = (st.predict(target="g1", device=device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(made.X, exact.X, atol=1e-4)
    h = st.get_latent_representation(key_added=None, device="cpu")
    np.testing.assert_allclose(st.get_latent_representation(key_added=None), h, atol=1e-3)


def test_cells_that_do_not_fit_raises(screened):
    adata, st = screened
    new = adata[:50].copy()
    new.obs["guide"] = "g9"
    with pytest.raises(ValueError, match=r"adata\.obs\['guide'\]='g9' was not seen in training"):
        st.get_latent_representation(new)
    del new.obs["guide"]
    with pytest.raises(KeyError, match=r"adata\.obs\['guide'\] does not exist"):
        st.get_latent_representation(new)
    del new.obs["dose"]
    with pytest.raises(KeyError, match=r"adata\.obs\['dose'\] does not exist"):
        st.predict(new, target="g1")
    other = adata.copy()
    other.var_names = [f"ENSG{i:011d}" for i in range(40)]
    with pytest.raises(ValueError, match=r"Only 0\.0% of the model's 40 genes"):
        st.predict(other, target="g1")


def test_untrained_or_without_perturbation_raises(screen, make_st, tmp_path):
    adata = screen.copy()
    ssl.STTransition.setup_anndata(adata, **SCREEN)
    st = make_st(adata)
    for call, name in (
        (lambda: st.predict(target="g1"), "predict"),
        (st.get_latent_representation, "get_latent_representation"),
        (lambda: st.save(tmp_path / "st"), "save"),
    ):
        with pytest.raises(ValueError, match=rf"STTransition is not trained: call \.train\(\) before {name}"):
            call()
    assert not (tmp_path / "st").exists()
    assert st.predict(target="g1", allow_untrained=True).n_vars == adata.n_vars
    ssl.STTransition.setup_anndata(adata, covariate_keys="dose")
    with pytest.raises(ValueError, match="STTransition needs a perturbation"):
        make_st(adata)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_epochs": -1}, ValueError, "max_epochs=-1"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"lr": 0}, ValueError, "lr=0"),
        ({"precison": "32"}, TypeError, "no argument 'precison'. Did you mean 'precision'"),
        ({"accelerator": "gpu"}, ValueError, "accelerator='gpu', but PyTorch sees no such device"),
    ],
)
def test_wrong_training_options_raises(screened, monkeypatch, options, error, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(error, match=message):
        screened[1].train(**options)


def test_wrong_model_options_raises(screened, make_st):
    with pytest.raises(ValueError, match=r"model: there is no option 'hiden'. Did you mean 'hidden'"):
        make_st(screened[0], {"hiden": 4})
    with pytest.raises(ValueError, match="model: hidden=16 is not divisible by n_heads=3"):
        make_st(screened[0], {"n_heads": 3})


def test_sets_that_pass_together_are_predicted_as_one_at_a_time(screened, monkeypatch):
    _, st = screened
    together = st.predict(target="g1").X
    monkeypatch.setattr(predict, "_CELLS_PER_PASS", 1)
    np.testing.assert_allclose(st.predict(target="g1").X, together, atol=1e-5)
