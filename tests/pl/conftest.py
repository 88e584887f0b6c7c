from __future__ import annotations

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("agg")


@pytest.fixture(autouse=True)
def _close_figures():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def make_history(seed: int, n_epochs: int = 5, steps_per_epoch: int = 20) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    n = n_epochs * steps_per_epoch
    step = np.arange(n)
    reconstruction = 0.2 + np.exp(-step / 30) + rng.normal(0, 0.03, n)
    contrastive = 2 + np.exp(-step / 60) + rng.normal(0, 0.1, n)
    train = pd.DataFrame(
        {
            "phase": "train",
            "epoch": step // steps_per_epoch,
            "step": step,
            "loss": reconstruction + contrastive,
            "reconstruction": reconstruction,
            "contrastive": contrastive,
            "grad_norm": rng.lognormal(0, 0.5, n),
            "lr": 1e-3,
            "seconds": step * 0.1,
            "peak_memory_mb": 100.0,
        }
    )
    val = train.groupby("epoch", as_index=False).last().assign(phase="val", grad_norm=np.nan, lr=np.nan)
    return pd.concat([train, val[train.columns]], ignore_index=True)


def make_perturbation_table(contexts=("B cells", "CD4 T cells", "FCGR3A+ Monocytes")) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    level = {"model": 0.88, "no change": 0.0, "mean shift": 0.83, "perturbed mean": 0.7, "ceiling": 0.93}
    rows = []
    for metric, direction, lowest, highest in (
        ("pearson_delta", "higher", -1.0, 1.0),
        ("e_distance", "lower", 0.0, np.inf),
        ("mae", "lower", 0.0, np.inf),
    ):
        for model, base in level.items():
            base = base if direction == "higher" else 4 * (1 - base)
            for context in ("all", *contexts):
                value = base + (0 if context == "all" else rng.normal(0, 0.03))
                rows.append(
                    {
                        "model": model, "context": context, "metric": metric, "value": value, "skill": 0.5,
                        "ci_low": value - 0.05 if context == "all" else np.nan,
                        "ci_high": value + 0.05 if context == "all" else np.nan,
                        "direction": direction, "lowest": lowest, "highest": highest, "reason": "",
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def make_evaluate_table() -> pd.DataFrame:
    rows = []
    for embedding, bonus in (("X_pca", 0.0), ("X_scstate_base", 0.01), ("X_scstate_lora", 0.04)):
        for metric, key, value, baseline in (
            ("knn_accuracy", "cell_type", 0.9, 0.3),
            ("probe_accuracy", "condition", 0.8, 0.5),
            ("probe_accuracy", "replicate", 0.6, 0.5),
            ("probe_r2", "time_days", np.nan, 0.0),
        ):
            rows.append(
                {
                    "embedding": embedding, "metric": metric, "key": key, "value": value + bonus, "baseline": baseline,
                    "direction": "higher", "lowest": 0.0, "highest": 1.0,
                    "reason": "" if np.isfinite(value) else "only one value in adata.obs['time_days']",
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def history() -> pd.DataFrame:
    return make_history(0)


@pytest.fixture
def perturbation_table() -> pd.DataFrame:
    return make_perturbation_table()


@pytest.fixture
def evaluate_table() -> pd.DataFrame:
    return make_evaluate_table()


@pytest.fixture
def cells() -> ad.AnnData:
    rng = np.random.default_rng(1)
    n = 120
    group = rng.integers(0, 3, n)
    base = rng.normal(size=(n, 8)).astype(np.float32)
    base[:, 0] += 6 * group
    return ad.AnnData(
        X=np.zeros((n, 2), dtype=np.float32),
        obs=pd.DataFrame(
            {
                "cell_type": pd.Categorical(np.array(["B", "NK", "T"])[group]),
                "treated": rng.random(n) < 0.5,
                "days": rng.normal(14, 3, n),
            },
            index=[f"c{i}" for i in range(n)],
        ),
        obsm={"X_scstate_base": base, "X_scstate_lora": base + 1, "X_flat": base[:, :2]},
    )


LONG = "regulatory T cells of the inflamed lamina propria, sorted twice, donor pool and lane 0"
"""A name of more than 80 characters."""


def make_responses(contexts=("B cells", "T cells"), perturbations=("IFNB1",), n_genes=60, seed=0) -> pd.DataFrame:
    """A table as `tl.responses` returns it: the first 10 genes respond, the last of them against the prediction."""
    rng = np.random.default_rng(seed)
    tables = []
    for perturbation in perturbations:
        for context in contexts:
            measured = rng.normal(0, 0.05, n_genes)
            measured[:10] += np.linspace(2, -2, 10)
            predicted = 0.7 * measured + rng.normal(0, 0.05, n_genes)
            predicted[9] = 0.4
            table = pd.DataFrame(
                {
                    "perturbation": perturbation, "context": context, "gene": [f"GENE{i}" for i in range(n_genes)],
                    "control": 0.5, "predicted": predicted, "measured": measured, "measured_low": measured - 0.2,
                    "measured_high": measured + 0.2, "fdr": np.where(np.arange(n_genes) < 10, 0.001, 0.6),
                    "n_control": 50, "n_predicted": 50, "n_measured": 40,
                }
            )  # fmt: skip
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def make_labels(types, n_per_type=20, seed=0, accuracy=0.8) -> ad.AnnData:
    """Cells with a true label, a predicted one and a confidence, which is right in that share of the cells."""
    rng = np.random.default_rng(seed)
    true = np.repeat(np.array(types, dtype=object), n_per_type)
    confidence = rng.uniform(max(0.0, 2 * accuracy - 1), 1, len(true))
    wrong = rng.random(len(true)) > confidence
    predicted = np.where(wrong, np.roll(true, n_per_type), true)
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(true), "predicted": predicted, "confidence": confidence},
        index=[f"c{i}" for i in range(len(true))],
    )
    return ad.AnnData(np.zeros((len(true), 1), dtype=np.float32), obs=obs)


@pytest.fixture(params=["default", "dark_background"])
def style(request):
    """Draw on a light and on a dark page; matplotlib's settings are restored."""
    import matplotlib.pyplot as plt

    with plt.style.context(request.param):
        yield request.param


def assert_well_made(axes) -> None:
    """Draw a figure, and check that its texts contrast with the page, lie on it, and do not cover each other."""
    from itertools import combinations

    from matplotlib.colors import to_rgb
    from matplotlib.text import Text

    figure = np.ravel(np.asarray(axes, dtype=object))[0].figure
    figure.canvas.draw()
    page = np.mean(to_rgb(figure.get_facecolor()))
    fields = [ax.get_window_extent() for ax in figure.axes if ax.images]
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    assert texts
    for text in texts:
        box = text.get_window_extent()
        assert not np.isnan(box.extents).any()
        on_field = any(f.contains(*box.min) and f.contains(*box.max) for f in fields)
        if not on_field and text.get_bbox_patch() is None:
            assert abs(np.mean(to_rgb(text.get_color())) - page) > 0.35, f"{text.get_text()!r} is hardly readable"
    whole = figure.get_tightbbox().padded(0.02)  # inches
    for ax in figure.axes:
        for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
            shown = [label for label in labels if label.get_text() and label.get_visible()]
            for first, second in combinations(shown, 2):
                a, b = first.get_window_extent(), second.get_window_extent()
                # Boxes of neighbours may touch by the leading of their lines.
                assert not a.padded(-1.5).overlaps(b.padded(-1.5)), f"{first.get_text()!r}, {second.get_text()!r}"
    assert whole.width < 60
    assert whole.height < 60
