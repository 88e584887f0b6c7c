"""Another library may set torch's default dtype: models compute in float32 all the same, and leave it as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scstate_lora as ssl
from tests.builders import QUICK, SMALL_SE, SMALL_ST, wound


def _everything(folder):
    """Results of all that computes with a network, by name."""
    adata = wound(300, seed=6)
    keys = {
        "covariate_keys": {"condition": None, "time_days": "continuous"},
        "pert_key": "condition",
        "control": "sham",
    }
    ssl.STTransition.setup_anndata(adata, cell_type_key="cell_type", context_keys=["cell_type"], **keys)
    se = ssl.LoRACovariateSE(
        adata, lora={}, compact={**SMALL_SE, "n_steps": 3}, conditioning={"n_steps": 3, "hidden_dims": [8]}
    )
    se.train(1, mhc=True, **QUICK)
    st = ssl.STTransition(adata, model={**SMALL_ST, "confidence_token": True})
    st.train(1, mhc={"dynamic": True}, **QUICK)
    for model in (se, st):
        model.save(folder / type(model).__name__)
    se = ssl.LoRACovariateSE.load(folder / "LoRACovariateSE", adata=adata)
    st = ssl.STTransition.load(folder / "STTransition", adata=adata)
    se.add_adapter("further")
    se.train(1, **QUICK)
    plain = ssl.tl.embed(adata, se, progress_bar=False)
    return {
        "latent": se.get_latent_representation(),
        "represented": st.get_latent_representation(),
        "predicted": st.predict(target="burn").X,
        "embedded": plain,
        "interpolated": ssl.tl.interpolate(se, "time_days", [12.0]).X,
        "decoded": ssl.tl.decode_expression(adata, se, list(adata.var_names[:5]), progress_bar=False).X,
        "connections": st.mhc_matrices()[0],
    }


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return _everything(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_results_are_those_of_float32(usual, tmp_path, dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        results = _everything(tmp_path)
        assert torch.get_default_dtype() is dtype
    finally:
        torch.set_default_dtype(before)
    for name, values in results.items():
        assert values.dtype == np.float32, name
        np.testing.assert_allclose(values, usual[name], atol=1e-5, err_msg=name)


def test_the_setting_is_restored_after_an_error():
    adata = wound(200)
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys=["condition"])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ValueError, match="accelerator"):
            ssl.LoRACovariateSE(adata).train(accelerator="abacus")
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(before)
