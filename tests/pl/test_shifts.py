from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from matplotlib.text import Annotation

from scstate_lora import pl
from tests.pl.conftest import LONG, assert_well_made

CONTEXT = {"context_key": "cell_type"}


def make_cells(contexts=("B", "T"), perturbations=("IFNB1",), n=20, n_genes=12, seed=0, space="genes"):
    """Predicted and measured cells, log1p: every perturbation raises a gene by 2, predicted is 1.5."""
    rng = np.random.default_rng(seed)
    rows, values = [], []
    for i, context in enumerate(contexts):
        for j, perturbation in enumerate(("control", *perturbations)):
            cells = 1 + rng.normal(0, 0.1, (n, n_genes)).clip(-1)
            cells[:, i % n_genes] += 3
            if j:
                cells[:, (5 + j) % n_genes] += 2
            values.append(cells)
            rows += [{"cell_type": context, "drug": perturbation}] * n
    obs = pd.DataFrame(rows, index=[f"c{i}" for i in range(len(rows))])
    adata = ad.AnnData(np.vstack(values).astype(np.float32), obs=obs)
    adata.var_names = [f"G{i}" for i in range(n_genes)]
    control = adata[adata.obs["drug"] == "control"]
    parts = []
    for j, perturbation in enumerate(perturbations, start=1):
        part = control.copy()
        part.obs["control_cell"] = part.obs_names
        part.obs["drug"] = perturbation
        part.X[:, (5 + j) % n_genes] += 1.5
        part.obs_names = part.obs_names + f"-{perturbation}"
        parts.append(part)
    pred = ad.concat(parts)
    record = {"scale": "log1p", "pert_key": "drug", "control": "control", "target": list(perturbations), "space": space}
    pred.uns["scstate_lora"] = {"predict": record}
    return pred, adata


def arrows(ax) -> list[tuple[np.ndarray, np.ndarray]]:
    """Start and end of every arrow."""
    found = [child for child in ax.texts if isinstance(child, Annotation)]
    return [(np.array(a.xyann), np.array(a.xy)) for a in found]


def test_arrows_lead_from_the_mean_control_to_the_mean_predicted_cell(style):
    pred, adata = make_cells()
    ax = pl.shift(pred, adata, **CONTEXT)
    (start_b, end_b), (start_t, end_t) = arrows(ax)
    goals = [np.ravel(line.get_xydata()) for line in ax.get_lines() if line.get_marker() == "o"]
    for start, end, goal in ((start_b, end_b, goals[0]), (start_t, end_t, goals[1])):
        # PCA is linear: predicted cells went 3/4 of the way to the measured ones
        np.testing.assert_allclose(end - start, 0.75 * (goal - start), atol=0.08)
    assert np.linalg.norm(end_b - start_b) == pytest.approx(1.5, abs=0.1)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["B", "T", "control cells", "measured mean"]
    assert_well_made(ax)


def test_counts_are_normalised_as_the_prediction_is():
    pred, adata = make_cells()
    counts = ad.AnnData(np.round(np.expm1(adata.X) * 50).astype(np.float32), obs=adata.obs, var=adata.var)
    share = counts.X / counts.X.sum(axis=1, keepdims=True)
    pred.uns["scstate_lora"]["predict"] |= {"scale": "log1p_cp10k", "target_sum": 1e4}
    pred.X = np.log1p(1e4 * share[counts.obs["drug"] == "control"])  # "no change"
    ax = pl.shift(pred, counts, **CONTEXT)
    for start, end in arrows(ax):
        np.testing.assert_allclose(start, end, atol=1e-4)
    layered = ad.AnnData(np.zeros_like(counts.X), obs=adata.obs, var=adata.var, layers={"counts": counts.X})
    ax = pl.shift(pred, layered, layer="counts", **CONTEXT)
    assert all(np.allclose(start, end, atol=1e-4) for start, end in arrows(ax))


def test_cells_by_choice_and_without_measured_ones(style):
    pred, adata = make_cells()
    control = adata[adata.obs["drug"] == "control"]
    ax = pl.shift(pred, control, each="cell", **CONTEXT)
    (quiver,) = [c for c in ax.collections if hasattr(c, "U")]
    assert len(quiver.U) == pred.n_obs
    lengths = np.hypot(quiver.U, quiver.V)
    np.testing.assert_allclose(lengths, 1.5, atol=0.05)
    assert "measured mean" not in [text.get_text() for text in ax.get_legend().get_texts()]
    assert_well_made(ax)


def test_of_one_context_colours_are_perturbations():
    pred, adata = make_cells(("B",), ("IFNB1", "TNF"))
    ax = pl.shift(pred, adata, **CONTEXT)
    assert [text.get_text() for text in ax.get_legend().get_texts()][:2] == ["IFNB1", "TNF"]
    assert len(arrows(ax)) == 2
    ax = pl.shift(pred, adata, perturbation="TNF", **CONTEXT)
    assert len(arrows(ax)) == 1


def test_colours_are_those_of_the_anndata():
    pred, adata = make_cells()
    adata.obs["cell_type"] = pd.Categorical(adata.obs["cell_type"], categories=["T", "B"])
    adata.uns["cell_type_colors"] = ["#112233", "#445566"]
    ax = pl.shift(pred, adata, **CONTEXT)
    found = [a.arrow_patch.get_facecolor() for a in ax.texts if isinstance(a, Annotation)]
    assert all(same_color(a, b) for a, b in zip(found, ["#445566", "#112233"], strict=True))


def test_umap_of_cells_in_an_embedding(style):
    pred, adata = make_cells(space="X_latent")
    rng = np.random.default_rng(0)
    adata.obsm["X_latent"] = rng.normal(size=(adata.n_obs, 5)).astype(np.float32)
    pred.obsm["X_latent"] = adata.obsm["X_latent"][adata.obs_names.get_indexer(pred.obs["control_cell"])] + 1
    ax = pl.shift(pred, adata, layout="umap", **CONTEXT)
    assert ax.get_xlabel() == "UMAP 1"
    assert len(arrows(ax)) == 2
    assert_well_made(ax)


def test_30_contexts_with_long_names(style):
    pred, adata = make_cells([f"{LONG}{i}" for i in range(30)], n=3)
    ax = pl.shift(pred, adata, **CONTEXT)
    assert len(arrows(ax)) == 30
    assert len({text.get_text() for text in ax.get_legend().get_texts()}) == 32
    assert_well_made(ax)


def test_the_cells_are_left_alone():
    pred, adata = make_cells()
    before = adata.X.copy(), pred.X.copy()
    _, ax = plt.subplots()
    assert pl.shift(pred, adata, ax=ax, **CONTEXT) is ax
    np.testing.assert_array_equal(adata.X, before[0])
    np.testing.assert_array_equal(pred.X, before[1])
    assert not adata.uns
    assert not adata.obsm


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"layout": "tsne"}, ValueError, "pca"),
        ({"each": "arrow"}, ValueError, "mean"),
        ({"context_key": "celltype"}, KeyError, "cell_type"),
        ({"context": "NK"}, KeyError, "no context 'NK'"),
        ({"perturbation": "IFNB"}, KeyError, "IFNB1"),
        ({"layer": "logged"}, KeyError, "no 'logged'"),
    ],
)
def test_mistakes_raise(kwargs, error, match):
    pred, adata = make_cells()
    with pytest.raises(error, match=match):
        pl.shift(pred, adata, **{**CONTEXT, **kwargs})


def test_cells_that_do_not_belong_together_raise():
    pred, adata = make_cells()
    with pytest.raises(ValueError, match=r"must come from STTransition\.predict"):
        pl.shift(adata, adata, **CONTEXT)
    with pytest.raises(ValueError, match="0 of the control cells"):
        pl.shift(pred, adata[adata.obs["drug"] != "control"], **CONTEXT)
    with pytest.raises(KeyError, match="1 genes of pred are not in adata, the first is 'G0'"):
        pl.shift(pred, adata[:, 1:], **CONTEXT)
