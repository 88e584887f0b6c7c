from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd


def test_both_models_say_something_else_without_a_covariate(trained, tmp_path):
    adata, se, st = trained
    own = se.get_latent_representation(key_added=None)
    for covariates in ({"timepoint": None}, pd.DataFrame({"timepoint": None}, index=adata.obs_names)):
        withheld = se.get_latent_representation(covariates=covariates, key_added=None)
        assert np.isfinite(withheld).all()
        assert np.abs(withheld - own).max() > 1e-4
    predicted = st.predict(target="burn", covariates={"timepoint": None})
    assert np.isfinite(predicted.X).all()
    assert predicted.obs["timepoint"].isna().all()
    assert np.abs(predicted.X - st.predict(target="burn").X).max() > 0
    predicted.write_h5ad(tmp_path / "predicted.h5ad")
    pd.testing.assert_frame_equal(ad.read_h5ad(tmp_path / "predicted.h5ad").obs, predicted.obs, check_dtype=False)
