from __future__ import annotations

import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora.config import DataConfig
from scstate_lora.data import Registry, expression, storage, stream
from scstate_lora.data.bound import BoundData
from scstate_lora.data.fields import CategoricalCovariate, ContinuousCovariate

KEYS = {
    "covariate_keys": ["condition", "day", "dose"],
    "pert_key": "condition",
    "control": "sham",
    "cell_type_key": "cell_type",
}


def _create(adata, **changed):
    return Registry.create(adata, DataConfig.parse({**KEYS, **changed}, name="options"))


def test_the_data_are_recorded_and_nothing_is_written(adata):
    before = adata.copy()
    registry = _create(adata, batch_key="day")
    assert registry.var_names == list(adata.var_names)
    assert (registry.scale, registry.layer, registry.gene_key) == ("counts", None, None)
    assert registry.covariates[0] == CategoricalCovariate("condition", ("burn", "sham"), control="sham")
    assert registry.covariates[1] == CategoricalCovariate("day", ("10", "14", "19"))
    assert isinstance(registry.covariates[2], ContinuousCovariate)
    assert (registry.pert_key, registry.control, registry.perturbations) == ("condition", "sham", ["burn", "sham"])
    assert registry.targets == ["burn"]
    assert (registry.cell_type_key, registry.batch_key) == ("cell_type", "day")
    assert registry.context_keys == ["cell_type", "day"]
    assert list(adata.uns) == []
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert (adata.X != before.X).nnz == 0


def test_contexts_default_to_cell_type_and_grouping_covariates(adata):
    registry = _create(adata)
    assert BoundData(registry, adata).contexts[:2].tolist() == ["B | 10", "T | 10"]
    assert BoundData(_create(adata, context_keys="cell_type"), adata).contexts[:2].tolist() == ["B", "T"]
    assert set(BoundData(_create(adata, context_keys=[]), adata).contexts) == {"all"}
    few_times = _create(adata, covariate_keys={"day": "continuous"})
    assert few_times.context_keys == ["cell_type", "day"]


def test_survives_the_file(adata, tmp_path):
    registry = _create(adata)
    registry.write(adata)
    assert isinstance(adata.uns["scstate_lora"]["registry"], str)
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    assert Registry.from_adata(read) == registry
    assert (BoundData(Registry.from_adata(read), read).contexts == BoundData(registry, adata).contexts).all()


def test_json_holds_plain_values_whatever_the_user_gave(adata):
    adata.obs["dose"] = adata.obs["dose"].astype(np.float32)
    adata.obs["pert"] = pd.Categorical(np.tile(np.array([0, 0, 5, 5], np.int16), 12))
    adata.var["symbol"] = [np.str_(f"S{i}") for i in range(30)]
    registry = Registry.create(
        adata,
        DataConfig(
            covariate_keys=np.array(["dose", "day"]),
            pert_key=np.str_("pert"),
            control=np.int64(0),
            context_keys=pd.Index(["cell_type"]),
            gene_key="symbol",
        ),
    )
    assert registry.control == "0"
    assert Registry.from_json(registry.to_json()) == registry
    assert json.loads(registry.to_json())["context_keys"] == ["cell_type"]


def test_bool_perturbation_and_control(adata):
    adata.obs["stimulated"] = np.repeat([False, True], 24)
    registry = Registry.create(adata, DataConfig(pert_key="stimulated", control=False))
    assert (registry.control, registry.targets) == ("False", ["True"])


def test_write_to_a_view_leaves_its_parent_alone(adata):
    _create(adata).write(adata)
    view = adata[:, :20]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ad.ImplicitModificationWarning)
        Registry.create(view, DataConfig(covariate_keys="day")).write(view)
    assert len(Registry.from_adata(view).var_names) == 20
    assert len(Registry.from_adata(adata).var_names) == 30


def test_write_keeps_other_results(adata):
    adata.uns["scstate_lora"] = {"evaluate": 1}
    _create(adata).write(adata)
    assert set(adata.uns["scstate_lora"]) == {"evaluate", "registry"}


def test_backed_anndata_is_set_up(adata, tmp_path):
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    registry = _create(backed)
    registry.write(backed)
    assert Registry.from_adata(backed) == _create(adata)
    assert (BoundData(registry, backed).matrix != adata.X).nnz == 0
    backed.file.close()


def test_set_up_reads_a_file_too_large_to_be_cached_in_chunks(adata, tmp_path, monkeypatch):
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    sizes = []
    read = storage._read
    monkeypatch.setattr(storage, "_read", lambda *args: sizes.append(args[2] - args[1]) or read(*args))
    monkeypatch.setattr(stream, "_CHUNK_VALUES", 100)
    monkeypatch.setattr(expression, "_MAX_CACHED_VALUES", 100)
    registry = _create(backed)
    assert (registry.scale, registry.scale_reason) == (_create(adata).scale, _create(adata).scale_reason)
    assert max(sizes) <= 100 < adata.X.nnz
    backed.file.close()


def test_not_set_up_raises(adata):
    with pytest.raises(KeyError, match=r"not set up. Run ssl\.setup_anndata"):
        Registry.from_adata(adata)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"covariate_keys": ["conditoin"]}, KeyError, r"adata\.obs\['conditoin'\] does not exist.*'condition'"),
        ({"cell_type_key": "celltype"}, KeyError, r"adata\.obs\['celltype'\] does not exist.*'cell_type'"),
        ({"batch_key": 3}, ValueError, "batch_key=3 is not allowed: Input should be a valid string"),
        ({"control": None}, ValueError, r"pert_key='condition' needs control=.*'burn', 'sham'"),
        ({"control": "Sham"}, ValueError, r"control='Sham' is not in adata\.obs\['condition'\]. Did you mean 'sham'"),
        ({"pert_key": None}, ValueError, "control='sham' needs pert_key="),
        ({"cell_type_key": "condition"}, ValueError, "cell_type_key and pert_key are both 'condition'"),
        ({"batch_key": "condition"}, ValueError, "batch_key and pert_key are both 'condition'"),
        ({"context_keys": ["condition"]}, ValueError, "context_keys holds 'condition', which is pert_key"),
        ({"context_keys": ["nope"]}, KeyError, r"adata\.obs\['nope'\] does not exist"),
        ({"layer": "counts"}, KeyError, r"adata\.layers\['counts'\] does not exist"),
        ({"input_scale": "log1p"}, ValueError, r"every value of adata\.X is a whole number"),
        ({"gene_key": "symbol"}, KeyError, r"adata\.var\['symbol'\] does not exist"),
    ],
)
def test_unusable_argument_raises_and_writes_nothing(adata, changed, error, message):
    with pytest.raises(error, match=message):
        _create(adata, **changed)
    assert list(adata.uns) == []


def test_missing_label_raises(adata):
    adata.obs["cell_type"] = adata.obs["cell_type"].where(adata.obs_names != "cell3")
    with pytest.raises(ValueError, match=r"adata\.obs\['cell_type'\] has 1 missing values of 48"):
        _create(adata)


def test_one_perturbation_raises(adata):
    with pytest.raises(ValueError, match=r"adata\.obs\['condition'\] has one category only, 'sham'"):
        _create(adata[adata.obs["condition"] == "sham"], covariate_keys=[])


def test_contexts_without_control_cells_are_named_with_their_cells_warns(adata):
    lacking = (adata.obs["condition"] == "sham") & (adata.obs["cell_type"] == "T") & (adata.obs["day"] == 14)
    n_cells = ((adata.obs["condition"] == "burn") & (adata.obs["cell_type"] == "T") & (adata.obs["day"] == 14)).sum()
    message = rf"1 of 6 contexts \(cell_type x day\).*T \| 14 \({n_cells} cells\).*context_keys=\['cell_type'\]"
    with pytest.warns(UserWarning, match=message) as caught:
        assert _create(adata[~lacking]).targets == ["burn"]
    assert [w.category for w in caught].count(UserWarning) == 1  # others are of libraries
    lacking |= (adata.obs["condition"] == "sham") & (adata.obs["cell_type"] == "T")
    with pytest.warns(UserWarning, match=r"3 of 6 contexts .*T \| 10 .*T \| 14 .*T \| 19 .*context_keys=\['day'\]"):
        _create(adata[~lacking])


def test_no_context_with_control_cells_raises_and_names_coarser_contexts(adata):
    adata.obs["day"] = np.where(adata.obs["condition"] == "sham", 0, adata.obs["day"])
    with pytest.raises(ValueError, match=r"6 contexts.*context_keys=\['cell_type'\]") as error:
        _create(adata)
    assert "and 1 more" in str(error.value)


def test_context_with_only_control_cells_is_allowed(adata):
    only_control = (adata.obs["condition"] == "burn") & (adata.obs["cell_type"] == "T")
    assert _create(adata[~only_control]).targets == ["burn"]


@pytest.mark.parametrize(("axis", "fix"), [("obs", "obs_names_make_unique"), ("var", "var_names_make_unique")])
def test_duplicate_names_raises(adata, axis, fix):
    names = getattr(adata, f"{axis}_names").to_list()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setattr(adata, f"{axis}_names", [names[1], *names[1:]])
    with pytest.raises(ValueError, match=rf"adata\.{axis}_names holds '{names[1]}' more than once.*{fix}"):
        _create(adata)


def test_empty_anndata_raises(adata):
    for empty in (adata[[]], adata[:, []]):
        with pytest.raises(ValueError, match="The AnnData is empty"):
            _create(empty)
        with pytest.raises(ValueError, match="The AnnData is empty"):
            _ = BoundData(_create(adata), empty).matrix


def test_new_data_is_aligned_by_gene_name(adata):
    registry = _create(adata)
    expected = adata.X.toarray()
    order = np.random.default_rng(0).permutation(30)
    assert (BoundData(registry, adata[::-1, order]).matrix.toarray() == expected[::-1]).all()
    names = [f"other{i}" for i in range(30)] + list(adata.var_names)
    more = ad.AnnData(sparse.hstack([adata.X, adata.X], format="csr"), var=pd.DataFrame(index=names))
    assert (BoundData(registry, more).matrix.toarray() == expected).all()
    logged = BoundData(registry, adata).logged.toarray()
    assert (BoundData(registry, adata).logged_genes(["G7", "G2"]).toarray() == logged[:, [7, 2]]).all()


def test_absent_genes_are_zero_and_warns(adata):
    registry = _create(adata)
    with pytest.warns(
        UserWarning, match=r"20 of the model's 30 genes are not in the data and set to 0: G10, G11, G12, …"
    ):
        read = BoundData(registry, adata[:, :10]).matrix
    assert (read.toarray()[:, :10] == adata.X.toarray()[:, :10]).all()
    assert read.shape == adata.shape
    assert read[:, 10:].nnz == 0


def test_foreign_genes_raises(adata):
    registry = _create(adata)
    mouse = ad.AnnData(adata.X, obs=adata.obs, var=pd.DataFrame(index=[f"g{i}" for i in range(30)]))
    with pytest.raises(ValueError, match=r"Only 0\.0% of the model's 30 genes.*Ignoring case 100%"):
        _ = BoundData(registry, mouse).matrix


def test_new_data_of_another_scale_raises(adata):
    registry = _create(adata)
    logged = adata.copy()
    logged.X = adata.X.log1p()
    with pytest.raises(ValueError, match=r"adata\.X looks like log1p values .*set up on counts"):
        _ = BoundData(registry, logged).matrix
    with pytest.raises(ValueError, match=r"adata\.X looks like counts .*set up on log1p"):
        _ = BoundData(_create(logged), adata).matrix


def test_the_registered_layer_and_gene_column_are_read(adata):
    adata.layers["raw"] = adata.X.astype(np.int32)
    adata.var["symbol"] = [f"S{i}" for i in range(30)]
    registry = _create(adata, layer="raw", gene_key="symbol")
    adata.X = adata.X * 0.5
    new = adata[:, ::-1].copy()
    new.var_names = [f"anything{i}" for i in range(30)]
    assert registry.var_names[:2] == ["S0", "S1"]
    assert (BoundData(registry, new).matrix.toarray() == adata.layers["raw"].toarray()).all()
    del new.layers["raw"]
    with pytest.raises(KeyError, match=r"adata\.layers\['raw'\] does not exist"):
        _ = BoundData(registry, new).matrix


def test_log_expression(adata):
    counts = adata.X.toarray()
    expected = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    np.testing.assert_allclose(BoundData(_create(adata), adata).logged.toarray(), expected, rtol=1e-5)
    adata.X = adata.X.log1p()
    assert (BoundData(_create(adata), adata).logged != adata.X).nnz == 0


def test_encode(adata):
    registry = _create(adata)
    encoded = BoundData(registry, adata).encode()
    assert list(encoded) == ["condition", "day", "dose"]
    assert encoded["condition"].tolist() == [1] * 24 + [0] * 24
    assert encoded["day"][:6].tolist() == [0, 0, 1, 1, 2, 2]
    assert encoded["dose"].dtype == np.float32
    assert list(BoundData(registry, adata).encode(without="condition")) == ["day", "dose"]


def test_a_missing_value_is_encoded_as_unknown(adata):
    adata.obs["dose"] = adata.obs["dose"].astype(float)
    adata.obs.loc["cell1", "dose"] = np.nan
    adata.obs["day"] = adata.obs["day"].astype("Int64").mask(adata.obs_names == "cell2")
    keys = {"condition": None, "day": {"allow_missing": True}, "dose": {"allow_missing": True}}
    registry = _create(adata, covariate_keys=keys)
    unknown = registry.unknown()
    assert list(unknown) == ["condition", "day", "dose"]
    assert (unknown["condition"], unknown["day"]) == (2, 3)
    encoded = BoundData(registry, adata).encode()
    assert encoded["day"][:3].tolist() == [0, 0, 3]
    np.testing.assert_array_equal(np.isnan(encoded["dose"]), adata.obs_names == "cell1")
    assert Registry.from_json(registry.to_json()) == registry
    contexts = BoundData(registry, adata).contexts
    assert contexts[2] == f"{adata.obs['cell_type'].iloc[2]} | (missing)"
    assert (BoundData(registry, adata).labels("day") == "(missing)").sum() == 1


def test_a_missing_value_raises_unless_the_call_allows_it(adata):
    registry = _create(adata)
    adata.obs = adata.obs.assign(day=None)
    cells = BoundData(registry, adata)
    with pytest.raises(ValueError, match="48 missing values of 48"):
        cells.encode()
    with pytest.raises(ValueError, match="48 missing values of 48"):
        cells.under({"dose": None}).encode()
    assert (cells.under({"day": None}).encode()["day"] == 3).all()


def test_batch_holds_the_levels_of_its_column(adata):
    registry = _create(adata, batch_key="day")
    assert registry.batch == CategoricalCovariate("day", ("10", "14", "19"))
    assert Registry.from_json(registry.to_json()) == registry
    assert _create(adata).batch is None
    adata.obs["one"] = "run1"
    assert (_create(adata, batch_key="one").batch_key, _create(adata, batch_key="one").batch) == ("one", None)


EARLIER = json.dumps(
    {
        "var_names": ["a", "b"],
        "scale": "counts",
        "scale_reason": "whole numbers",
        "layer": None,
        "gene_key": None,
        "pert_key": "condition",
        "control": "sham",
        "perturbations": ["burn", "sham"],
        "cell_type_key": None,
        "batch_key": "mouse",
        "context_keys": [],
        "covariates": [
            {"name": "condition", "categories": ["burn", "sham"], "kind": "categorical"},
            {"name": "day", "mean": 12.0, "std": 2.0, "low": 10.0, "high": 19.0, "kind": "continuous"},
        ],
    }
)


def test_registry_of_an_earlier_version_is_read():
    registry = Registry.from_json(EARLIER)
    assert registry.covariates == (
        CategoricalCovariate("condition", ("burn", "sham"), control="sham"),
        ContinuousCovariate("day", 12.0, 2.0, 10.0, 19.0),
    )
    assert (registry.batch_key, registry.batch, registry.embed_key) == ("mouse", None, None)
    cell = ad.AnnData(np.ones((1, 1)), obs=pd.DataFrame({"condition": ["sham"], "day": [16]}, index=["c"]))
    encoded = BoundData(registry, cell).encode()
    assert (encoded["condition"].tolist(), encoded["day"].tolist()) == ([1], [2.0])
    assert Registry.from_json(registry.to_json()) == registry


def test_encode_without_a_column_raises(adata):
    registry = _create(adata)
    adata.obs = adata.obs.rename(columns={"day": "days"})
    with pytest.raises(KeyError, match=r"adata\.obs\['day'\] does not exist, but the model.*'days'"):
        BoundData(registry, adata).encode()


def test_encode_of_an_unseen_category_raises(adata):
    registry = _create(adata)
    adata.obs = adata.obs.assign(day=12)
    with pytest.raises(ValueError, match=r"adata\.obs\['day'\] holds '12', never seen in training"):
        BoundData(registry, adata).encode()


def test_covariate_by_name(adata):
    registry = _create(adata)
    assert registry.covariate("day").name == "day"
    with pytest.raises(KeyError, match=r"'days' is not a covariate of this model\. Did you mean 'day'"):
        registry.covariate("days")


@pytest.mark.parametrize("role", ["pert_key", "cell_type_key", "batch_key", "context_keys", "covariate_keys"])
@pytest.mark.parametrize("name", ["control_cell", "expected_loss", "library_size", "source_cell", "scstate_split"])
def test_keys_that_are_columns_of_results_raises(adata, role, name):
    adata.obs[name] = adata.obs["condition"]
    options = {"pert_key": "condition", "control": "sham"} | {role: [name] if role.endswith("s") else name}
    with pytest.raises(ValueError, match=rf"adata\.obs\['{name}'\] cannot be used under this name.*Rename it"):
        Registry.create(adata, DataConfig(**options))


def test_columns_of_predictions_are_no_matter_without_a_perturbation(adata):
    adata.obs["library_size"] = np.arange(48.0)
    assert Registry.create(adata, DataConfig(covariate_keys=["library_size"])).covariates[0].kind == "continuous"


def _written(adata, key, how):
    """Write every second value of a column in another way."""
    labels = adata.obs[key].astype(str).to_numpy(dtype=object)
    labels[::2] = [how(label) for label in labels[::2]]
    adata.obs[key] = labels
    return adata


@pytest.mark.parametrize(
    "how", [str.encode, lambda v: f"{v} ", lambda v: f" {v}\t".encode(), lambda v: str(v.encode())]
)
@pytest.mark.parametrize("as_category", [False, True])
def test_labels_in_several_writings_are_one_level(adata, how, as_category):
    options = DataConfig(
        covariate_keys=["condition", "cell_type", "day"],
        pert_key="condition",
        control="sham",
        cell_type_key="cell_type",
        batch_key="batch",
    )
    adata.obs["batch"] = np.tile(["b1", "b2", "b2"], 16)
    plain = Registry.create(adata, options)
    expected = BoundData(plain, adata)
    other = adata.copy()
    for key in ("condition", "cell_type", "batch"):
        _written(other, key, how)
        if as_category:
            other.obs[key] = other.obs[key].astype("category")
    with pytest.warns(UserWarning, match=r"read as one level.*\['condition'\].*'sham'.*\['batch'\].*'b2'"):
        assert Registry.create(other, options) == plain
    found = BoundData(plain, other)
    assert (found.contexts == expected.contexts).all()
    assert (found.perturbations == expected.perturbations).all()
    assert (found.batch_codes == expected.batch_codes).all()
    for name, codes in expected.encode().items():
        np.testing.assert_array_equal(found.encode()[name], codes)


def test_bytes_as_control_and_as_levels(adata):
    adata.obs["condition"] = [str(c).encode() for c in adata.obs["condition"]]
    for control in (b"sham", "sham"):
        registry = Registry.create(adata, DataConfig(pert_key="condition", control=control))
        assert (registry.perturbations, registry.control) == (["burn", "sham"], "sham")


def test_a_dose_in_two_precisions_is_one_level(adata):
    doses = np.tile([0.1, 0.3, 1 / 3], 16)
    adata.obs["amount"] = np.where(np.arange(48) < 24, doses.astype(np.float32), doses)
    options = {"covariate_keys": {"amount": "categorical"}}
    with pytest.warns(
        UserWarning, match=r"read as one level.*'0\.1' \(0\.1.*0\.10000000149011612|0\.10000000149011612, 0\.1"
    ):
        both = Registry.create(adata, DataConfig(**options))
    assert both.covariates[0].categories == ("0.1", "0.3", "0.33333334")
    for dtype in (np.float32, np.float64):
        adata.obs["amount"] = doses.astype(dtype)
        assert Registry.create(adata, DataConfig(**options)) == both
        assert BoundData(both, adata).encode()["amount"].tolist() == [0, 1, 2] * 16


@pytest.mark.parametrize("as_category", [False, True])
def test_gene_names_as_bytes_are_decoded(adata, as_category):
    adata.var["symbol"] = [name.encode() for name in adata.var_names]
    if as_category:
        adata.var["symbol"] = adata.var["symbol"].astype("category")
    assert Registry.create(adata, DataConfig(gene_key="symbol")).var_names == list(adata.var_names)


def test_gene_names_that_are_written_bytes_raises(adata):
    adata.var_names = [str(name.encode()) for name in adata.var_names]
    with pytest.raises(ValueError, match=r"adata\.var_names holds bytes that were written as text \(\"b'G0'\"\)"):
        Registry.create(adata, DataConfig())


def test_missing_values_of_new_cells_say_how_to_withhold_a_covariate(adata):
    registry = Registry.create(adata, DataConfig(covariate_keys={"day": "categorical", "dose": "continuous"}))
    new = adata.copy()
    for key in ("day", "dose"):
        new.obs[key] = np.nan
        with pytest.raises(ValueError, match=rf"48 missing values.*covariates=\{{'{key}': None\}}\.") as refused:
            BoundData(registry, new).encode()
        assert "covariate_keys" not in str(refused.value)
        new.obs[key] = adata.obs[key]
    new.obs.loc[new.obs_names[:5], "dose"] = np.nan
    with pytest.raises(ValueError, match=r"5 missing values.*covariates=adata\.obs\[\['dose'\]\]"):
        BoundData(registry, new).encode()
    encoded = BoundData(registry, new).under(new.obs[["dose"]]).encode()["dose"]
    assert np.isnan(encoded).tolist() == [True] * 5 + [False] * 43
    assert np.isnan(BoundData(registry, new).under({"dose": None}).encode()["dose"]).all()
