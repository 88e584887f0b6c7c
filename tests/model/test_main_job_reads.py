"""In the main job the measured matrix is read and checked once, in memory and in a file, and the predicted one once."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import scstate_lora as ssl
from scstate_lora.data import stream
from tests.builders import QUICK


@pytest.fixture
def counted(monkeypatch):
    """Numbers of cells that were checked, and that were read out of their storage."""
    counts = {"checked": 0, "read": 0}
    of_rows, read = stream.MatrixStats.of_rows, stream.ExpressionSource.read

    def count_checked(values, ends):
        counts["checked"] += len(ends) - 1
        return of_rows(values, ends)

    def count_read(source, start, stop):
        part = read(source, start, stop)
        counts["read"] += part.shape[0]
        return part

    monkeypatch.setattr(stream.MatrixStats, "of_rows", count_checked)
    monkeypatch.setattr(stream.ExpressionSource, "read", count_read)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["float32", "float64", "dense", "file"])
def test_the_main_job_reads_and_checks_the_matrix_once(wound, setup, make_se, make_st, counted, tmp_path, storage):
    adata = wound.copy()
    if storage == "file":
        adata.write_h5ad(tmp_path / "cells.h5ad")
        adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    else:
        adata.X = adata.X.toarray() if storage == "dense" else adata.X.astype(storage)
    ssl.STTransition.setup_anndata(adata, **setup)
    se, st = make_se(adata), make_st(adata)
    se.train(max_epochs=1, **QUICK)
    se.get_latent_representation()
    se.get_latent_representation(covariates={"timepoint": "day19"}, key_added="X_day19")
    st.train(max_epochs=1, **QUICK)
    predicted = st.predict(target="burn")
    st.get_latent_representation()
    ssl.tl.evaluate(adata)
    test = adata[(adata.obs["scstate_split"] == "test").to_numpy()]
    ssl.tl.evaluate_perturbation(predicted, test, adata, context_key="cell_type", n_boot=10)
    assert np.isfinite(adata.obsm["X_scstate_lora"]).all()
    assert counted["checked"] == adata.n_obs + predicted.n_obs
    assert counted["read"] == (0 if storage == "float32" else adata.n_obs) + predicted.n_obs
