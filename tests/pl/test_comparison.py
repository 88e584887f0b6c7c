from __future__ import annotations

from types import SimpleNamespace

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scstate_lora import pl
from scstate_lora.pl.comparison import KINDS

MODELS = ["zero-shot", "ST", "ST-LoRA"]
COSTS = {
    "loss_variance": "loss_variance",
    "gradient_spikes": "gradient_spikes",
    "validation_improvement": "validation_improvement",
    "parameters": "trained",
    "seconds": "seconds_per_epoch",
    "memory": "peak_memory_mb",
}


def _scores():
    rng = np.random.default_rng(0)
    rows = [
        {"model": m, "target": t, "context": c, "metric": k, "value": rng.random(), "skill": 0.5, "ci_low": 0.1,
         "ci_high": 0.9, "direction": "higher", "lowest": -1.0, "highest": 1.0, "reason": ""}
        for m in ["mean shift", *MODELS] for t in ("burn", "salt", "all") for c in ("all", "B", "T")
        for k in ("pearson_delta", "e_distance", "mmd")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _training():
    rows = [{"model": "zero-shot", "seed": s, "trained": 0, "share": 0.0, "reason": "not trained"} for s in (0, 1)]
    for i, model in enumerate(MODELS[1:]):
        for seed in (0, 1):
            row = {"model": model, "seed": seed, "trained": 4000 // (i + 1), "share": 1 / (i + 1), "reason": ""}
            rows.append(row | {column: 0.1 * (i + 1) + 0.02 * seed for column in COSTS.values() if column != "trained"})
    return pd.DataFrame(rows)


@pytest.fixture
def result():
    """What `tl.compare` returns, made up."""
    rng = np.random.default_rng(1)
    histories = []
    for model in MODELS[1:]:
        for seed in (0, 1):
            norms = rng.uniform(0.9, 1.1, 40)
            norms[[5, 30]] = 9 + seed
            train = pd.DataFrame({"phase": "train", "epoch": np.repeat([0, 1], 20), "step": range(1, 41)})
            train = train.assign(loss=np.linspace(2, 1, 40), grad_norm=norms)
            val = pd.DataFrame({"phase": "val", "epoch": [0, 1], "step": [20, 40], "loss": [1.5, 1.0 + seed]})
            histories.append(pd.concat([train, val]).assign(model=model, seed=seed))
    criteria = pd.DataFrame(
        [
            ("zero-shot", "loss_variance", np.nan, "below", 0.1, "not measured", "", "not trained"),
            ("zero-shot", "pearson_delta", 0.4, "above", 0.5, "no", "", ""),
            ("ST", "loss_variance", 0.05, "below", 0.1, "yes", "", ""),
            ("ST", "pearson_delta", 0.7, "above", 0.5, "yes", "strong", ""),
        ],
        columns=["model", "criterion", "value", "side", "threshold", "met", "level", "reason"],
    )
    return SimpleNamespace(
        scores=_scores(), training=_training(), criteria=criteria, histories=pd.concat(histories, ignore_index=True)
    )


def _texts(ax):
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_from_the_object_the_tables_and_the_cells(result, kind):
    adata = ad.AnnData(np.zeros((1, 1), dtype=np.float32))
    adata.uns["scstate_lora"] = {"compare": dict(result.__dict__)}
    before = plt.rcParams.copy()
    drawn = [np.ravel(np.asarray(pl.compare(r, kind=kind), dtype=object)) for r in (result, result.__dict__, adata)]
    assert len({len(axes) for axes in drawn}) == 1
    for axes in drawn:
        axes[0].figure.canvas.draw()
    assert plt.rcParams == before


def test_scores_show_the_average_over_the_targets_or_one(result):
    _, ax = plt.subplots()
    assert pl.compare(result, metric="mmd", target="salt", ax=ax) is ax
    wanted = result.scores[(result.scores["target"] == "salt") & (result.scores["metric"] == "mmd")]["value"]
    drawn = [line.get_xdata()[0] for line in ax.get_lines() if len(line.get_xdata()) == 1]
    assert sorted(drawn) == pytest.approx(sorted(wanted))
    titles = [ax.get_title() for ax in pl.compare(result)]
    assert titles == ["Pearson of delta", "E-distance"]  # mmd is not among those shown by default


def test_a_variant_without_scores_is_called_failed(result):
    result.scores.loc[result.scores["model"] == "ST", "value"] = np.nan
    axes = pl.compare(result)
    names = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert names == ["mean shift", "zero-shot", "ST (failed)", "ST-LoRA"]


@pytest.mark.parametrize("kind", COSTS)
def test_bars_are_the_means_over_the_seeds(result, kind):
    _, ax = plt.subplots()
    assert pl.compare(result, kind=kind, ax=ax) is ax
    means = result.training.groupby("model", sort=False)[COSTS[kind]].mean().dropna()
    factor = 100 if kind == "validation_improvement" else 1
    np.testing.assert_allclose([patch.get_width() for patch in ax.patches], factor * means)
    assert [label.get_text() for label in ax.get_yticklabels()] == MODELS
    assert any("not trained" in text for text in _texts(ax)) == (kind != "parameters")
    if kind == "parameters":
        assert "2,000 (50%)" in _texts(ax)


def test_threshold_is_a_dotted_line(result):
    ax = pl.compare(result, kind="loss_variance")
    dotted = [line.get_xdata()[0] for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert dotted == [0.1]
    assert not [line for line in pl.compare(result, kind="memory").get_lines() if line.get_linestyle() == ":"]


def test_gradients_mark_the_spikes_of_the_seed(result):
    axes = pl.compare(result, kind="gradients", seed=1)
    assert [ax.get_title() for ax in axes] == ["ST: 1 spikes per epoch", "ST-LoRA: 1 spikes per epoch"]
    _, marks = axes[0].get_lines()
    assert marks.get_xdata().tolist() == [6, 31]
    assert marks.get_ydata().tolist() == [10, 10]


def test_losses_of_all_variants_in_one_colour_each(result):
    train, val = pl.compare(result, kind="losses", seed=1)
    assert [line.get_label() for line in train.get_lines()] == MODELS[1:]
    assert val.get_lines()[0].get_ydata().tolist() == [1.5, 2.0]
    _, ax = plt.subplots()
    assert pl.compare(result, kind="losses", ax=ax) is ax
    bars = pl.compare(result, kind="seconds").patches
    for i in range(2):
        assert plt.matplotlib.colors.same_color(bars[i].get_facecolor()[:3], train.get_lines()[i].get_color())
        assert train.get_lines()[i].get_color() == val.get_lines()[i].get_color()


def test_criteria_say_value_level_and_what_is_missing(result):
    ax = pl.compare(result, kind="criteria")
    assert _texts(ax) == ["not measured", "✗ 0.4", "✓ 0.05", "✓ 0.7, strong"]
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "late loss varies little  (< 0.1)",
        "Pearson of delta  (> 0.5)",
    ]


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"kind": "los"}, ValueError, "losses"),
        ({"target": "bern"}, KeyError, "burn"),
        ({"metric": "pearson"}, KeyError, "pearson_delta"),
        ({"kind": "losses", "seed": 7}, KeyError, "Available: 0, 1"),
        ({"ax": True}, ValueError, "metric"),
        ({"kind": "training", "ax": True}, ValueError, "several"),
    ],
)
def test_mistake_raises(result, kwargs, error, match):
    if "ax" in kwargs:
        kwargs = {**kwargs, "ax": plt.subplots()[1]}
    with pytest.raises(error, match=match):
        pl.compare(result, **kwargs)


def test_without_a_comparison_raises(result):
    with pytest.raises(KeyError, match="no 'compare'"):
        pl.compare(ad.AnnData(np.zeros((1, 1), dtype=np.float32)))
    with pytest.raises(TypeError, match="found int"):
        pl.compare(3)
    result.histories = result.histories.iloc[:0]
    with pytest.raises(ValueError, match="No variant was trained"):
        pl.compare(result, kind="losses")
