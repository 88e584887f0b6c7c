from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import scstate_lora as ssl
from scstate_lora.data.bound import BoundData
from scstate_lora.model import SEBase
from tests.builders import QUICK

COLUMNS = ["phase", "epoch", "step", "loss"]
TERMS = ["reconstruction", "contrastive", "covariates", "preservation", "counterfactual"]
LAST = ["grad_norm", "lr", "seconds", "peak_memory_mb", "best"]


def test_training_reduces_losses_and_leaves_the_base_as_it_was(trained, wound, setup, make_se):
    _, reference, _ = trained
    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    se = make_se(adata, base=reference.base)
    before = se.base.sha256()
    adapters = {n: p.clone() for n, p in se.network.named_parameters() if "lora_" in n}
    se.train(max_epochs=6, lr=3e-3, batch_size=32, **QUICK)
    assert se.base.sha256() == before == reference.base.sha256()
    assert all(p.requires_grad == ("lora_" in n) for n, p in se.base.encoder.named_parameters())
    moved = [n for n, p in se.network.named_parameters() if "lora_" in n and not torch.equal(p, adapters[n])]
    assert len(moved) == len(adapters) == 4
    train = se.history[se.history["phase"] == "train"].groupby("epoch")[TERMS].mean()
    taught = ["contrastive", "covariates", "reconstruction"]
    assert (train.iloc[-1] < 0.99 * train.iloc[0])[taught].all(), train


def test_a_base_trained_here_stays_as_it_is_and_has_no_adapters_unless_asked_for(wound, setup, make_se, caplog):
    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    se = make_se(adata, lora=None)
    se.train_base(**QUICK)
    before = se.base.sha256()
    se.train(max_epochs=2, **QUICK)
    assert not se.adapts_base
    assert "lora={} would adapt it" in caplog.text
    assert se.base.sha256() == before
    assert not any(p.requires_grad for p in se.base.encoder.parameters())
    assert make_se(adata, lora=None, base=se.base).adapts_base
    assert not make_se(adata, lora=False, base=se.base).adapts_base


def test_history_and_base_history_have_the_promised_columns(trained):
    _, se, _ = trained
    assert list(se.history.columns) == [*COLUMNS, *TERMS, *LAST]
    assert list(se.base_history.columns) == [*COLUMNS, "expression", "readout", *LAST]
    for history, n_steps in ((se.history, 9), (se.base_history, 20)):
        train, val = (history[history["phase"] == phase] for phase in ("train", "val"))
        assert train["step"].tolist() == list(range(1, n_steps + 1))
        assert train.notna().all(axis=None)
        assert val["epoch"].tolist() == list(range(val["epoch"].max() + 1))
        assert val["loss"].notna().all()
    objective = se.objective
    weighted = sum(getattr(objective, name) * se.history[name] for name in TERMS)
    np.testing.assert_allclose(se.history["loss"], weighted, rtol=1e-5)


def test_training_again_continues(trained, wound, setup, make_se):
    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    se = make_se(adata, base=trained[1].base)
    se.train(max_epochs=1, **QUICK)
    first = se.history.copy()
    se.train(max_epochs=1, **QUICK)
    pd.testing.assert_frame_equal(se.history.iloc[: len(first)], first)
    # The conditioning alone is trained once, the adapters as often as is asked for.
    train = se.history[se.history["phase"] == "train"]
    assert train["epoch"].value_counts().sort_index().tolist() == [3, 3, 3]
    assert train["step"].tolist() == list(range(1, 10))
    assert first["step"].max() == 6
    assert len(se.base_history) == 0


def test_two_runs_of_one_seed_are_equal_and_another_seed_differs(wound, setup, make_se):
    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    np.random.seed(5)  # noqa: NPY002 (the global state is what is tested)
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    embeddings = []
    for seed in (0, 0, 1):
        se = make_se(adata, seed=seed)
        se.train(max_epochs=1, **QUICK)
        embeddings.append(se.get_latent_representation(key_added=None))
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    np.testing.assert_array_equal(embeddings[0], embeddings[1])
    assert not np.array_equal(embeddings[0], embeddings[2])


def test_held_out_cells_teach_nothing(wound, setup, make_se, fingerprint):
    prints = []
    for poison in (False, True):
        adata = wound.copy()
        ssl.LoRACovariateSE.setup_anndata(adata, **setup)
        held_out = (adata.obs["scstate_split"] == "test").to_numpy()
        if poison:
            x = adata.X.toarray()
            x[held_out] = 3 * x[held_out][:, ::-1] + 1
            adata.X = x
        se = make_se(adata)
        se.train(max_epochs=1, **QUICK)
        prints.append((se.base.sha256(), fingerprint(se.network)))
    assert prints[0] == prints[1]


def test_embedding_is_returned_and_written(trained):
    adata, se, _ = trained
    adata = adata.copy()
    z = se.get_latent_representation(adata)
    assert z.shape == (700, 16)
    assert z.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(adata.obsm["X_scstate_lora"], z)
    np.testing.assert_array_equal(adata.obsm["X_scstate_base"], se.base.embed(BoundData(se.registry, adata)))
    np.testing.assert_array_equal(se.get_latent_representation(adata, key_added="X_mine"), adata.obsm["X_mine"])


def test_nothing_is_written_without_a_key_nor_for_a_counterfactual(trained):
    adata, se, _ = trained
    adata = adata.copy()
    se.get_latent_representation(adata, key_added=None)
    moved = se.get_latent_representation(adata, covariates={"condition": "burn"})
    assert len(adata.obsm) == 0
    se.get_latent_representation(adata, covariates={"condition": "burn"}, key_added="X_burn")
    assert set(adata.obsm) == {"X_burn"}
    np.testing.assert_array_equal(adata.obsm["X_burn"], moved)


def test_counterfactual_moves_the_cells_that_it_changes_only(trained):
    adata, se, _ = trained
    own = se.get_latent_representation(key_added=None)
    burn = se.get_latent_representation(covariates={"condition": "burn"})
    unchanged = (adata.obs["condition"] == "burn").to_numpy()
    np.testing.assert_allclose(burn[unchanged], own[unchanged], atol=1e-6)
    assert (np.abs(burn - own)[~unchanged].max(1) > 1e-5).all()
    values = adata.obs[["condition"]].copy()
    np.testing.assert_array_equal(se.get_latent_representation(covariates=values), own)
    values["condition"] = "burn"
    np.testing.assert_array_equal(se.get_latent_representation(covariates=values), burn)
    # Cells that lack the column take it from covariates=.
    bare = adata.copy()
    del bare.obs["condition"]
    np.testing.assert_array_equal(se.get_latent_representation(bare, covariates={"condition": "burn"}), burn)


def test_a_cell_embeds_alike_alone_in_any_order_and_with_permuted_genes(trained):
    adata, se, _ = trained
    z = se.get_latent_representation(key_added=None)
    few = adata[[5, 600, 3]].copy()
    np.testing.assert_allclose(se.get_latent_representation(few), z[[5, 600, 3]], atol=1e-6)
    order = np.random.default_rng(0).permutation(200)
    np.testing.assert_array_equal(se.get_latent_representation(adata[:, order].copy()), z)


def test_new_cells_need_neither_set_up_nor_all_genes(trained, wound):
    _, se, _ = trained
    new = wound[:50, :150].copy()
    with pytest.warns(UserWarning, match="50 of the model's 200 genes are not in the data"):
        z = se.get_latent_representation(new)
    assert z.shape == (50, 16)
    assert "scstate_lora" not in new.uns


@pytest.mark.parametrize(
    "covariate_keys", [{"time_days": "continuous"}, {"time_days": "continuous", "condition": None}]
)
def test_continuous_covariates_take_values_between_and_warn_beyond(wound, make_se, trained, covariate_keys):
    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys=covariate_keys)
    se = make_se(adata, base=trained[1].base)
    se.train(max_epochs=1, **QUICK)
    between = se.get_latent_representation(covariates={"time_days": 12})
    assert np.isfinite(between).all()
    with pytest.warns(UserWarning, match=r"covariates\['time_days'\] .*25\.5.* 10 to 19\. This is extrapolation"):
        se.get_latent_representation(covariates={"time_days": 25.5})


def test_base_is_taken_from_a_model_or_its_directory(trained, wound, setup, make_se, tmp_path):
    _, reference, _ = trained
    reference.save(tmp_path / "se")
    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    embeddings = []
    for base in (reference.base, tmp_path / "se", str(tmp_path / "se")):
        se = make_se(adata, base=base)
        assert se.base is not reference.base
        assert se.base.sha256() == reference.base.sha256()
        assert len(se.base_history) == 0
        se.train(max_epochs=1, **QUICK)
        assert len(se.base_history) == 0
        embeddings.append(se.get_latent_representation(key_added=None))
    np.testing.assert_array_equal(embeddings[0], embeddings[1])
    np.testing.assert_array_equal(embeddings[0], embeddings[2])


def test_base_meets_data_of_another_gene_order(trained, wound, setup, make_se):
    source, reference, _ = trained
    order = np.random.default_rng(3).permutation(200)
    adata = wound[:, order].copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    se = make_se(adata, base=reference.base)
    assert se.base.genes == reference.base.genes != se.registry.var_names
    plain = reference.base.embed(BoundData(reference.registry, source))
    # The same sentences, whose genes are summed in another order.
    np.testing.assert_allclose(se.base.embed(BoundData(se.registry, adata)), plain, atol=1e-5)
    se.train(max_epochs=1, **QUICK)
    assert np.isfinite(se.get_latent_representation()).all()


def test_base_alone_can_be_trained_first(wound, setup, make_se):
    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    se = make_se(adata)
    se.train_base(**QUICK)
    assert len(se.base_history) > 0
    assert not se.is_trained
    assert isinstance(se.base, SEBase)
    with pytest.raises(ValueError, match="has a base already"):
        se.train_base(**QUICK)


def test_a_logger_sees_the_models_own_training(wound, setup, make_se, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    se = make_se(adata)
    se.train(max_epochs=1, **{**QUICK, "logger": CSVLogger(tmp_path)})
    files = list(tmp_path.rglob("metrics.csv"))
    assert len(files) == 1  # not that of the base, nor of what comes before
    logged = pd.read_csv(files[0])
    assert {"train/reconstruction", "train/counterfactual", "val/loss"} <= set(logged.columns)
    assert logged["train/loss"].notna().sum() == 3
    assert "train/readout" not in logged


def test_a_single_validation_cell_and_few_cells_work(wound, make_se):
    adata = wound[:30].copy()
    split = np.full(30, "train", dtype=object)
    split[0] = "val"
    adata.obs["mine"] = split
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys="condition", split_key="mine")
    se = make_se(adata)
    se.train(max_epochs=1, **QUICK)
    assert set(se.history["phase"]) == {"train"}
    assert np.isfinite(se.get_latent_representation()).all()


@pytest.mark.parametrize("shape", [(20, 10), (24, 3)])
def test_tiny_data_works(wound, make_se, shape):
    high = np.argsort(-np.asarray(wound.X.sum(0)).ravel())[: shape[1]]
    adata = wound[: shape[0], high].copy()
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys="condition")
    se = make_se(adata)
    se.train(max_epochs=1, **QUICK)
    assert np.isfinite(se.get_latent_representation()).all()


def test_too_few_genes_for_a_base_raises(wound, make_se):
    high = np.argsort(-np.asarray(wound.X.sum(0)).ravel())[:2]
    adata = wound[:30, high].copy()
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys="condition")
    with pytest.raises(ValueError, match="at least 3 training cells and 3 genes"):
        make_se(adata).train(**QUICK)


def test_base_without_the_datas_genes_raises(trained, wound, setup, make_se):
    adata = wound.copy()
    adata.var_names = [f"ENSG{i:011d}" for i in range(200)]
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    with pytest.raises(ValueError, match=r"Only 0 of the data's 200 genes are in the base's vocabulary of 200"):
        make_se(adata, base=trained[1].base)


def test_wrong_covariates_raises(trained):
    adata, se, _ = trained

    def embed(covariates, cells=None):
        return se.get_latent_representation(cells, covariates=covariates, key_added=None)

    with pytest.raises(KeyError, match=r"'timpoint' is not a covariate of this model. Did you mean 'timepoint'"):
        embed({"timpoint": "day19"})
    with pytest.raises(ValueError, match=r"covariates\['timepoint'\]='day91' was never seen.*'day19'"):
        embed({"timepoint": "day91"})
    with pytest.raises(TypeError, match=r"covariates\['timepoint'\] must be one value"):
        embed({"timepoint": ["day10", "day14"]})
    with pytest.raises(TypeError, match="covariates must be a dict or a DataFrame, found str"):
        embed("day19")
    with pytest.raises(ValueError, match=r"covariates has 3 rows; expected one per cell \(700\)"):
        embed(adata.obs[["timepoint"]].iloc[:3])
    new = adata[:10].copy()
    new.obs["timepoint"] = "day99"
    with pytest.raises(ValueError, match=r"adata\.obs\['timepoint'\] holds 'day99'.*never seen"):
        embed(None, new)
    del new.obs["timepoint"]
    with pytest.raises(KeyError, match=r"adata\.obs\['timepoint'\] does not exist"):
        embed(None, new)
    with pytest.raises(TypeError, match="Expected an AnnData, found ndarray"):
        embed(None, np.zeros((3, 3)))


def test_untrained_raises(wound, setup, make_se, tmp_path):
    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    se = make_se(adata)
    with pytest.raises(ValueError, match=r"not trained: call \.train\(\) before get_latent_representation"):
        se.get_latent_representation()
    with pytest.raises(ValueError, match=r"not trained: call \.train\(\) before save"):
        se.save(tmp_path / "se")
    assert not (tmp_path / "se").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_epochs": 0}, ValueError, "max_epochs=0"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"lr": -1.0}, ValueError, "lr=-1"),
        ({"acelerator": "cpu"}, TypeError, "no argument 'acelerator'. Did you mean 'accelerator'"),
        ({"epochs": 3}, TypeError, "no argument 'epochs'.*'max_epochs'"),
        ({"accelerator": "quantum"}, ValueError, "accelerator='quantum' is not allowed"),
        ({"accelerator": "cuda"}, ValueError, "accelerator='cuda', but PyTorch sees no such device"),
    ],
)
def test_wrong_training_options_end_before_any_work_raises(wound, setup, make_se, monkeypatch, options, error, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    se = make_se(adata)
    with pytest.raises(error, match=message):
        se.train(**options)
    assert se.base is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": {"ranks": 4}}, "lora: there is no option 'ranks'"),
        ({"compact": {"n_step": 4}}, r"compact: there is no option 'n_step'.*'n_steps'"),
        ({"objective": {"contrastiv": 1}}, r"objective: there is no option 'contrastiv'.*'contrastive'"),
    ],
)
def test_wrong_model_options_raises(wound, setup, options, message):
    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    with pytest.raises(ValueError, match=message):
        ssl.LoRACovariateSE(adata, **options)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"contrastive_on": "cell_type"}, "contrastive_on='cell_type', but no cell_type_key was set up"),
        (
            {**dict.fromkeys([*TERMS], 0), "batch": 1.0},
            "has weights for batch only, which this experiment has no data for",
        ),
    ],
)
def test_objectives_that_the_data_cannot_serve_end_before_any_work_raises(wound, make_se, objective, message):
    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys="condition")
    se = make_se(adata, objective=objective)
    with pytest.raises(ValueError, match=message):
        se.train(max_epochs=1, **QUICK)
    assert se.base is None
