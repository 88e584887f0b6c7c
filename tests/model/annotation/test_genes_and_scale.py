"""Cells with other genes, or on another scale, than those a classifier was trained on."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scstate_lora.model.annotation import outputs
from tests.builders import labelled_cells


def _logged(adata):
    """log1p of counts per 10,000."""
    logged = adata.copy()
    totals = np.asarray(adata.X.sum(axis=1)).ravel()
    logged.X = (sparse.diags(1e4 / totals) @ adata.X).log1p().tocsr().astype(np.float32)
    return logged


def test_the_order_of_genes_and_further_ones_do_not_matter(lora, frozen, new_cells):
    extra = ad.AnnData(
        sparse.csr_matrix((90, 3), dtype=np.float32),
        obs=pd.DataFrame(index=new_cells.obs_names),
        var=pd.DataFrame(index=["OTHER1", "OTHER2", "OTHER3"]),
    )
    shuffled = new_cells[:, np.random.default_rng(0).permutation(60)].copy()
    wide = ad.concat([extra, shuffled], axis=1, merge="first")
    wide.obs = new_cells.obs.copy()
    for model in (lora, frozen):
        expected = model.predict_proba(new_cells)
        for cells in (shuffled, wide):
            pd.testing.assert_frame_equal(model.predict_proba(cells), expected, atol=1e-5)


def test_counts_of_further_genes_do_not_change_the_scale(frozen, new_cells):
    """Counts are normalised over the genes of the model, not over those that one data set happens to have."""
    other = np.random.default_rng(0).poisson(5, (90, 40)).astype(np.float32)
    extra = ad.AnnData(
        sparse.csr_matrix(other),
        obs=pd.DataFrame(index=new_cells.obs_names),
        var=pd.DataFrame(index=[f"OTHER{i}" for i in range(40)]),
    )
    wide = ad.concat([new_cells, extra], axis=1, merge="first")
    wide.obs = new_cells.obs.copy()
    found, expected = (frozen.predict(cells, key_added=None)["scstate_celltype"] for cells in (wide, new_cells))
    assert (found == expected).mean() > 0.9


def test_a_missing_gene_counts_as_average(frozen, new_cells):
    """Where the model sees all its genes but some of average value, it sees what it does if these are absent."""
    model = frozen.targets["cell_type"].expression
    cells = frozen._bind(new_cells)
    x = cells.logged.toarray()
    absent = np.isin(np.arange(60), [3, 17, 40])
    filled = x.copy()
    filled[:, model.start.genes[absent]] = model.start.mean[absent]
    expected, far = model(filled)
    found, far_found = model(x, measured=~absent)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(far_found, far, atol=1e-4)
    zero = x.copy()
    zero[:, absent] = 0
    assert np.abs(model(zero)[0] - expected).max() > 0.1


def test_absent_genes_reach_predictions_as_such(frozen, new_cells):
    few, target = new_cells[:, 6:].copy(), frozen.targets["cell_type"]
    said = "6 of the model's 60 genes are not in the data and count as average: GENE0, GENE1, GENE2, …"
    with pytest.warns(UserWarning, match=said):
        table = frozen.predict(few, key_added=None, adapt=False)
    assert (table["scstate_celltype"] == new_cells.obs["cell_type"]).mean() > 0.85
    bound = frozen._bind(few)
    with pytest.warns(UserWarning, match=said):
        logits, _ = target.start(bound.logged, bound.measured)
    as_zero, _ = target.start(bound.logged, None)
    assert not target.is_used  # the heads, so that the start is all there is
    with pytest.warns(UserWarning, match=said):
        np.testing.assert_allclose(frozen.predict_proba(few, adapt=False), target.probabilities(logits), atol=1e-6)
    assert np.abs(target.probabilities(as_zero) - target.probabilities(logits)).max() > 0.01


def test_hardly_any_gene_of_the_model_raises(frozen, new_cells):
    few = new_cells.copy()
    few.var_names = [*few.var_names[:5], *(f"OTHER{i}" for i in range(55))]
    with pytest.raises(ValueError, match=r"Only 8\.3% of the model's 60 genes are in the data \(at least 10% needed\)"):
        frozen.predict(few)
    assert "scstate_celltype" not in few.obs


def test_another_species_raises(classify, query):
    adata = labelled_cells(120)
    adata.var_names = [f"ENSG{i:011d}" for i in range(60)]
    model = classify(adata, model={"base": None, "compact": {"n_steps": 2, "d_model": 8, "n_heads": 2}})
    query.var_names = [f"ENSMUSG{i:011d}" for i in range(60)]
    with pytest.raises(ValueError, match="species"):
        model.predict(query)


@pytest.fixture(scope="module")
def of_logs(classify):
    """A classifier set up on log1p values."""
    return classify(_logged(labelled_cells(240)))


def test_log1p_values_give_what_their_counts_do(classify, of_logs, new_cells):
    of_counts = classify(labelled_cells(240))
    assert (of_logs.registry.scale, of_counts.registry.scale) == ("log1p", "counts")
    found, expected = of_logs.predict_proba(_logged(new_cells)), of_counts.predict_proba(new_cells)
    assert (found - expected).abs().max(axis=None) < 0.05


def test_a_cell_of_log1p_values_alone_and_in_chunks(of_logs, new_cells, monkeypatch):
    logged = _logged(new_cells)
    whole = of_logs.predict_proba(logged, adapt=False)
    pd.testing.assert_frame_equal(of_logs.predict_proba(logged[4].copy(), adapt=False), whole.iloc[[4]], atol=1e-6)
    monkeypatch.setattr(outputs, "_CHUNK", 13)
    pd.testing.assert_frame_equal(of_logs.predict_proba(logged, adapt=False), whole, atol=1e-6)


def test_the_other_scale_raises(frozen, of_logs, new_cells):
    with pytest.raises(ValueError, match=r"looks like log1p values .* set up on counts .* Give raw counts"):
        frozen.predict(_logged(new_cells))
    with pytest.raises(ValueError, match="log1p"):
        of_logs.predict(new_cells.copy())


def test_a_model_of_a_layer_reads_the_layer(classify, new_cells):
    adata = labelled_cells(150)
    adata.layers["counts"] = adata.X.copy()
    adata.X = _logged(adata).X
    by_layer, by_x = classify(adata.copy(), layer="counts"), classify(adata.copy())
    query = new_cells.copy()
    query.layers["counts"] = query.X.copy()
    query.X = _logged(query).X
    proba = by_layer.predict_proba(query)
    assert (proba - by_x.predict_proba(query)).abs().max(axis=None) < 0.05
    query.X = query.X * 0
    pd.testing.assert_frame_equal(by_layer.predict_proba(query), proba)
    with pytest.raises(KeyError, match=r"adata\.layers\['counts'\]"):
        by_layer.predict(new_cells.copy())


def test_no_cells_raises(frozen, new_cells):
    with pytest.raises(ValueError, match=r"The AnnData is empty: 0 cells x 60 genes\."):
        frozen.predict(new_cells[:0].copy())
