from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora import tl

GENES = ["A", "B", "C"]


def _prediction(x, *, embedding=None, target="drug", loss=None):
    n = (x if embedding is None else embedding).shape[0]
    obs = pd.DataFrame(
        {"control_cell": [f"c{i}" for i in range(n)], "arm": target}, index=[f"c{i}|drug" for i in range(n)]
    )
    if loss is not None:
        obs["expected_loss"] = loss
    made = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=GENES if x is not None else []))
    if embedding is not None:
        made.obsm["X_own"] = embedding
    said = {"scale": "log1p_cp10k", "pert_key": "arm", "control": "none", "target": target}
    made.uns["scstate_lora"] = {"predict": {**said, "space": "genes" if embedding is None else "X_own"}}
    return made


def _values(seed, shape=(4, 3)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_mean_and_standard_deviation_over_the_models():
    members = [_values(i) for i in range(3)]
    made = tl.ensemble([_prediction(x, loss=np.full(4, i)) for i, x in enumerate(members)])
    np.testing.assert_allclose(made.X, np.mean(members, axis=0), atol=1e-6)
    sd = np.std(members, axis=0, ddof=1)
    np.testing.assert_allclose(made.layers["ensemble_sd"], sd, atol=1e-6)
    np.testing.assert_allclose(made.obs["ensemble_sd"], np.sqrt((sd**2).mean(axis=1)), atol=1e-6)
    assert (made.obs["expected_loss"] == 1).all()
    assert made.X.dtype == made.layers["ensemble_sd"].dtype == np.float32
    assert made.uns["scstate_lora"]["predict"]["n_models"] == 3
    assert made.uns["scstate_lora"]["predict"]["target"] == ["drug"]
    assert list(made.obs["control_cell"]) == ["c0", "c1", "c2", "c3"]


def test_models_that_agree_have_no_spread_and_sparse_cells_count_alike():
    x = np.abs(_values(0))
    made = tl.ensemble([_prediction(x), _prediction(sparse.csr_matrix(x))])
    np.testing.assert_allclose(made.X, x, atol=1e-6)
    assert made.obs["ensemble_sd"].max() == 0


@pytest.mark.parametrize("with_genes", [True, False])
def test_of_an_embedding_the_spread_is_in_it(with_genes):
    embedded = [_values(i, (4, 5)) for i in range(2)]
    found = [_prediction(_values(9 + i) if with_genes else None, embedding=e) for i, e in enumerate(embedded)]
    made = tl.ensemble(found)
    np.testing.assert_allclose(made.obsm["X_own"], np.mean(embedded, axis=0), atol=1e-6)
    expected = np.sqrt(np.var(embedded, axis=0, ddof=1).mean(axis=1))
    np.testing.assert_allclose(made.obs["ensemble_sd"], expected, atol=1e-6)
    assert ("ensemble_sd" in made.layers) == with_genes


def test_input_is_left_as_it_was():
    found = [_prediction(_values(i), loss=np.full(4, i)) for i in range(2)]
    before = [p.copy() for p in found]
    tl.ensemble(found)
    for was, now in zip(before, found, strict=True):
        np.testing.assert_array_equal(now.X, was.X)
        assert now.obs.equals(was.obs)
        assert not now.layers
        assert now.uns == was.uns


def test_predictions_that_do_not_belong_together_raise():
    one = _prediction(_values(0))
    with pytest.raises(TypeError, match="predictions is one AnnData"):
        tl.ensemble(one)
    with pytest.raises(ValueError, match="1 predictions cannot disagree"):
        tl.ensemble([one])
    with pytest.raises(ValueError, match=r"must come from STTransition\.predict"):
        tl.ensemble([one, ad.AnnData(_values(1))])
    with pytest.raises(ValueError, match=r"predictions\[1\] has the target 'other', the first one 'drug'"):
        tl.ensemble([one, _prediction(_values(1), target="other")])
    with pytest.raises(ValueError, match=r"predictions\[1\] has the space 'X_own', the first one 'genes'"):
        tl.ensemble([one, _prediction(_values(1), embedding=_values(2))])
    with pytest.raises(ValueError, match=r"predictions\[2\] has other cells than the first one \(4 and 4\)"):
        tl.ensemble([one, one, one[::-1]])
    with pytest.raises(ValueError, match=r"predictions\[1\] has other genes than the first one \(2 and 3\)"):
        tl.ensemble([one, one[:, :2]])
