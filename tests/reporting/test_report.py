from __future__ import annotations

from html.parser import HTMLParser

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import scstate_lora as ssl
from scstate_lora.config import DataConfig
from scstate_lora.data import Registry
from scstate_lora.reporting.parts import skill_text, text
from scstate_lora.reporting.verdicts import embedding_verdicts, perturbation_verdicts

mpl.use("agg")


class LoRACovariateSE:
    """Stands in for a trained model: the report needs its history and summary only."""

    def __init__(self, history: pd.DataFrame) -> None:
        self.history = history
        self.base_history = history.assign(loss=history["loss"] * 2)

    def summary(self) -> pd.DataFrame:
        return pd.DataFrame({"part": ["encoder", "adapters <A&B>"], "parameters": [1_000_000, 16_384]})


class Untrained(LoRACovariateSE):
    def __init__(self, history: pd.DataFrame) -> None:
        self.history = self.base_history = history.iloc[:0]


@pytest.fixture
def history() -> pd.DataFrame:
    n = 12
    train = pd.DataFrame(
        {
            "phase": "train", "epoch": np.arange(n) // 4, "step": np.arange(n), "loss": np.linspace(4, 1, n),
            "grad_norm": 1.0, "lr": 1e-3, "seconds": np.arange(n) * 0.5, "peak_memory_mb": 2048.0,
        }
    )  # fmt: skip
    val = train.groupby("epoch", as_index=False).last().assign(phase="val")
    return pd.concat([train, val[train.columns]], ignore_index=True)


@pytest.fixture
def adata() -> ad.AnnData:
    rng = np.random.default_rng(0)
    n = 80
    a = ad.AnnData(
        X=rng.poisson(3, (n, 12)).astype(np.float32),
        obs=pd.DataFrame(
            {
                "condition": pd.Categorical(np.where(np.arange(n) % 2, "stim", "ctrl")),
                "cell_type": pd.Categorical(np.where(np.arange(n) < 40, "B", "T")),
                "scstate_split": pd.Categorical(
                    np.where((np.arange(n) >= 40) & (np.arange(n) % 2 == 1), "test", "train")
                ),
            },
            index=[f"c{i}" for i in range(n)],
        ),
        var=pd.DataFrame(index=[f"g{i}" for i in range(12)]),
        obsm={"X_scstate_base": rng.normal(size=(n, 2)), "X_scstate_lora": rng.normal(size=(n, 2))},
    )
    registry = Registry.create(
        a, DataConfig(covariate_keys=["condition"], pert_key="condition", control="ctrl", cell_type_key="cell_type")
    )
    registry.write(a)
    return a


@pytest.fixture
def predictions(adata) -> ad.AnnData:
    pred = adata[:10].copy()
    pred.uns["scstate_lora"] = {
        "predict": {"scale": "log1p_cp10k", "pert_key": "condition", "control": "ctrl", "target": "stim"},
        "evaluate_perturbation": perturbation_table(model=0.9),
    }
    return pred


def perturbation_table(*, model: float, mean_shift: float = 0.8, spread: float = 0.02) -> pd.DataFrame:
    """Four contexts of different difficulty; the model's lead varies between them by ``spread`` either way."""
    difficulty = {"B": -0.2, "T": 0.2, "NK": -0.1, "Mono": 0.1, "all": 0.0}
    lead = {"B": spread, "T": -spread, "NK": spread, "Mono": -spread, "all": 0.0}
    rows = []
    for name, value in {"model": model, "mean shift": mean_shift, "no change": np.nan, "ceiling": 0.95}.items():
        for context, offset in difficulty.items():
            score = value + offset + (lead[context] if name == "model" else 0.0)
            rows.append(
                {
                    "model": name, "context": context, "metric": "pearson_delta", "value": score, "skill": 0.6,
                    "ci_low": value - 0.15 if context == "all" else np.nan,
                    "ci_high": value + 0.15 if context == "all" else np.nan,
                    "direction": "higher", "lowest": -1.0, "highest": 1.0,
                    "reason": "" if np.isfinite(value) else "The predicted delta is the same in all genes.",
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def evaluate_table(**values: float) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "embedding": name, "metric": metric, "key": key, "value": value, "baseline": 0.5,
                "direction": "higher", "lowest": 0.0, "highest": 1.0, "n_cells": 60,
                "reason": "" if np.isfinite(value) else "too few",
            }
            for name, value in values.items()
            for metric, key in (("knn_accuracy", "cell_type"), ("probe_accuracy", "condition"))
        ]
    )  # fmt: skip


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in {"src", "href"} and v]
        self.ids += [v for k, v in attrs if k == "id"]


def test_page_is_self_contained_and_complete(adata, history, predictions, tmp_path):
    adata.uns["scstate_lora"]["evaluate"] = evaluate_table(X_scstate_base=0.91, X_scstate_lora=0.97, PCA=0.9)
    before = adata.copy()
    path = ssl.report(
        adata,
        (LoRACovariateSE(history), None),
        tmp_path / "new" / "r.html",
        predictions=predictions,
        title="Wound & heal",
    )
    html = path.read_text(encoding="utf-8")
    assert path == tmp_path / "new" / "r.html"

    page = _Links()
    page.feed(html)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} == set(page.ids)
    assert page.tags.count("img") == 6  # two histories, embeddings, their scores, two pictures of the prediction

    assert "<h1>Wound &amp; heal</h1>" in html
    assert "adapters &lt;A&amp;B&gt;" in html
    assert "1,000,000" in html
    assert "60 cells train" in html
    assert "Held out whole, so that training saw none of their cells: T / stim." in html
    assert "&#39;model&#39; is better than the best baseline on Pearson of delta (mean shift)" in html
    assert "equal to PCA" in html
    for package in ("torch", "anndata", "python"):
        assert f"<td>{package}</td>" in html
    assert set(adata.uns["scstate_lora"]) == set(before.uns["scstate_lora"])
    assert set(adata.uns) == set(before.uns)
    assert set(adata.obsm) == set(before.obsm)


def test_parts_that_were_not_run_say_so(adata, history, predictions, tmp_path):
    del adata.obsm["X_scstate_base"], adata.obsm["X_scstate_lora"], adata.obs["scstate_split"]
    del predictions.uns["scstate_lora"]["evaluate_perturbation"]
    html = ssl.report(adata, Untrained(history), tmp_path / "r.html", predictions=[predictions]).read_text("utf-8")
    for sentence in ("No split is stored", "Not trained.", "No embedding is stored", "were not scored", "no verdict"):
        assert sentence in html


def test_survives_write_and_read(adata, history, predictions, tmp_path):
    adata.uns["scstate_lora"]["evaluate"] = evaluate_table(X_scstate_base=0.91, PCA=np.nan)
    for name, data in (("a", adata), ("p", predictions)):
        data.write_h5ad(tmp_path / f"{name}.h5ad")
    stored = ad.read_h5ad(tmp_path / "a.h5ad")
    path = ssl.report(stored, path=tmp_path / "r.html", predictions=ad.read_h5ad(tmp_path / "p.h5ad"))
    assert "is better than the best baseline" in path.read_text("utf-8")


def test_bad_arguments_raise(adata, tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        ssl.report(adata, path=tmp_path)
    with pytest.raises(TypeError, match="holds a int, which is not a model"):
        ssl.report(adata, [3], tmp_path / "r.html")
    del adata.uns["scstate_lora"]
    with pytest.raises(KeyError, match="setup_anndata"):
        ssl.report(adata, path=tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("model", "mark", "words"),
    [
        (0.9, "good", "better than the best baseline, mean shift, with 0.8, better in 4 of 4 contexts (ceiling 0.95)"),
        (0.6, "bad", "worse than the best baseline, mean shift, with 0.8, better in 0 of 4 contexts"),
        (0.805, "even", "(95 % interval over contexts, positive is better): not decided"),
        (0.8, "even", "equal to the best baseline, mean shift"),
        (np.nan, "even", "not computed for model"),
    ],
)
def test_perturbation_verdict(model, mark, words):
    headline, detail = perturbation_verdicts(perturbation_table(model=model), target="stim")
    assert detail.mark == mark
    assert words in detail.text
    assert headline.mark == mark
    assert headline.headline
    assert ("A naive baseline predicts better here" in headline.text) == (mark == "bad")


def test_verdict_of_lower_is_better_and_of_nearest_to_one():
    table = perturbation_table(model=0.75, mean_shift=0.65)  # all under 1
    lower, one = table.assign(direction="lower"), table.assign(direction="one")
    assert perturbation_verdicts(lower, target="stim")[1].mark == "bad"
    assert perturbation_verdicts(one, target="stim")[1].mark == "good"


def test_verdict_without_a_baseline_claims_nothing():
    for table in (
        perturbation_table(model=0.9, mean_shift=np.nan),
        perturbation_table(model=0.9).query("model != 'mean shift'"),
    ):
        headline, detail = perturbation_verdicts(table, target="stim")
        assert (headline.mark, detail.mark) == ("even", "even")
        assert "no baseline has a score" in detail.text


@pytest.mark.parametrize("kept", [["all"], ["B"], ["B", "T"]])
def test_verdict_of_too_few_contexts_for_an_interval_decides_nothing(kept):
    table = perturbation_table(model=0.9)
    headline, detail = perturbation_verdicts(table[table["context"].isin(kept)], target="stim")
    assert (headline.mark, detail.mark) == ("even", "even")
    assert "not decided on Pearson of delta (mean shift)" in headline.text
    assert "better than the best baseline, mean shift" in detail.text
    assert detail.text.endswith("no interval can be made: not decided.")


def _with_baseline(table: pd.DataFrame, name: str, value: float) -> pd.DataFrame:
    """Add a baseline that differs from the mean shift by as much in every context."""
    rows = table[table["model"] == "mean shift"]
    average = rows.loc[rows["context"] == "all", "value"].iloc[0]
    return pd.concat([table, rows.assign(model=name, value=rows["value"] + value - average)], ignore_index=True)


def test_verdict_compares_with_the_best_baseline_of_each_metric():
    good, bad = perturbation_table(model=0.9), perturbation_table(model=0.9).assign(metric="mae", direction="lower")
    table = pd.concat([_with_baseline(good, "linear", 0.95), _with_baseline(bad, "linear", 0.97)], ignore_index=True)
    headline, pearson, mae = perturbation_verdicts(table, target="stim")
    assert "worse than the best baseline, linear, with 0.95" in pearson.text
    assert (pearson.mark, mae.mark) == ("bad", "bad")
    assert "worse than the best baseline, mean shift, with 0.8" in mae.text
    assert "worse than the best baseline on Pearson of delta (linear) and MAE of means (mean shift)." in headline.text
    assert (headline.mark, headline.text[-39:]) == ("bad", " A naive baseline predicts better here.")


def test_verdict_does_not_call_best_what_only_training_cells_chose():
    table = _with_baseline(perturbation_table(model=0.9), "linear", 0.95).assign(yardstick="mean shift")
    _, detail = perturbation_verdicts(table, target="stim")
    assert "better than the baseline that training cells chose, mean shift, with 0.8" in detail.text
    assert "linear 0.95, the best on these cells" in detail.text


def test_verdict_calls_equal_what_is_shown_equal():
    headline, detail = perturbation_verdicts(perturbation_table(model=0.80012, spread=0.0), target="stim")
    assert detail.mark == "even"
    assert "model 0.8, equal to the best baseline, mean shift" in detail.text
    assert "equal to the best baseline on Pearson of delta (mean shift)" in headline.text


def test_verdict_leaves_out_contexts_that_do_not_count():
    table = perturbation_table(model=0.9)
    weight = {"B": 1.0, "T": 1.0, "NK": 1.0, "Mono": 0.0}
    table["weight"] = table["context"].map(weight).fillna(3.0)
    table.loc[(table["context"] == "Mono") & (table["model"] == "model"), "value"] = 0.0  # 3 cells, far off
    assert "better in 3 of 3 contexts" in perturbation_verdicts(table, target="stim")[1].text
    table["weight"] = 1.0
    assert "better in 3 of 4 contexts" in perturbation_verdicts(table, target="stim")[1].text


def test_skill_is_shown_clipped():
    assert [skill_text(value) for value in (0.5, -0.25, 1.0, 9.9, -377.0, np.nan)] == [
        "0.5", "-0.25", "1", "1 (clipped)", "-1 (clipped)", "n/a",
    ]  # fmt: skip


def test_embedding_verdicts():
    table = evaluate_table(PCA=0.9, X_scstate_base=0.905, X_scstate_lora=0.95, X_bad=0.7, X_failed=np.nan)
    by_text = {v.text.split(":")[0] + v.text.split(":")[1].split(" 0")[0]: v for v in embedding_verdicts(table)}
    assert by_text["kNN accuracy of cell_type X_scstate_base"].mark == "even"
    assert by_text["kNN accuracy of cell_type X_scstate_lora"].mark == "good"
    assert by_text["probe accuracy of condition X_bad"].mark == "bad"
    assert not by_text["probe accuracy of condition X_bad"].headline
    assert any("X_failed not computed (too few)" in v.text for v in by_text.values())


def test_a_covariate_that_the_embedding_was_given_proves_nothing():
    verdicts = embedding_verdicts(evaluate_table(PCA=0.5, X_scstate_lora=1.0), covariates=["condition"])
    conditioned = next(v for v in verdicts if "probe" in v.text)
    assert conditioned.mark == "even"
    assert "conditioned on it, so this is no evidence" in conditioned.text


def test_a_cell_type_that_sets_were_made_by_proves_nothing_for_the_transition_model():
    table = evaluate_table(PCA=0.5, X_scstate_lora=0.9, X_scstate_st=0.99)
    verdicts = embedding_verdicts(table, context_keys=["cell_type"])
    knn = {v.text.split(": ")[1].split(" ")[0]: v for v in verdicts if "kNN" in v.text}
    assert knn["X_scstate_lora"].mark == "good"
    assert knn["X_scstate_st"].mark == "even"
    assert not knn["X_scstate_st"].headline


def test_numbers_as_text():
    values = [1234567, np.int64(3), 0.123456, 12345.6, float("nan"), float("inf"), True, None, "a"]
    assert [text(v) for v in values] == ["1,234,567", "3", "0.123", "12,346", "n/a", "inf", "yes", "", "a"]
