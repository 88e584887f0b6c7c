from __future__ import annotations

import pytest

import scstate_lora as ssl


def test_parameters_are_counted_by_part(trained):
    _, se, st = trained
    for model in (se, st):
        table = model.summary().set_index("part")
        parameters = list(model.network.parameters())
        total = sum(p.numel() for p in parameters)
        assert table.loc["total", "parameters"] == total == table["parameters"].iloc[:-1].sum()
        assert table.loc["total", "trained"] == sum(p.numel() for p in parameters if p.requires_grad)
        assert table.loc["total", "share"] == pytest.approx(table["share"].iloc[:-1].sum())
        assert table.loc["total", "share"] == pytest.approx(table.loc["total", "trained"] / total)
    table = se.summary().set_index("part")
    assert table.loc["base", "trained"] == 0
    assert table.loc["LoRA", "parameters"] == table.loc["LoRA", "trained"] == 2 * 2 * 16 * 16  # q and v, A and B
    assert "r=16, alpha=32, on q, v" in table.loc["LoRA", "note"]
    assert (st.summary()["share"].iloc[-1]) == 1


def test_repr_says_state_results_and_choices(trained, wound, setup, make_se, make_st):
    _, se, st = trained
    assert repr(se).startswith("LoRACovariateSE (trained, 9 steps), writes adata.obsm['X_scstate_lora']")
    assert repr(st).startswith("STTransition (trained, 40 steps), writes predictions as a new AnnData")
    assert "sets of 16 cells: the median of 11 training contexts has" in repr(st)
    assert "all 200 genes" in repr(st)
    assert "0.0%" in repr(se)
    adata = wound.copy()
    ssl.LoRACovariateSE.setup_anndata(adata, **setup)
    assert repr(make_se(adata)).startswith("LoRACovariateSE (not trained)")
    assert "compact SE, trained on these cells by train(): 1 layers x 16" in repr(make_se(adata))
    assert repr(make_st(adata)).startswith("STTransition (not trained)")
