"""Do the metrics behave? Predictions that are wrong in a known way, and screens in which there is nothing to know.

    python benchmarks/metric_controls.py [--seeds 20]

The first table says which metric, or finding of the audit, catches each wrong prediction. A metric catches it if its
skill is below that of the right model by a quarter of the way from the chosen baseline to a replicate, and, of a
prediction that knows the test cells, if it is far better than a replicate. The second table is of the metrics that ask
whether the perturbations with an effect are found, on a screen in which one in four has one. The third says by how much
a model exceeds the baseline that training cells choose where nothing happens, with a 95 % t-interval over seeds; the
last one by how much better than that baseline a guess, of effects of random size and direction, finds the hits.
"""

from __future__ import annotations

import argparse

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse, stats

from scstate_lora import metrics, tl
from scstate_lora.config import DataConfig
from scstate_lora.data import Registry, log_expression

N_GUIDES, N_GUIDES_OF_SCREEN, EVERY = 6, 32, 4
N_CELLS, N_CONTROLS, N_GENES = 60, 120, 200
HITS = ["hit_recall_budget", "hit_recall_fdr10"]
WRONG = ["collapsed", "shuffled", "twice the effect", "scaled by two", "on another scale", "leaked"]


def screen(*, effect: float, seed: int, n_guides: int = N_GUIDES, every: int = 1) -> ad.AnnData:
    """Cells of guides, of which the first half is tested, and controls; nothing happens at an effect of 0.

    One guide of `every` has an effect, and half of the effect is common to those that have one.
    """
    rng = np.random.default_rng(seed)
    guides = [f"guide{i:02d}" for i in range(n_guides)]
    labels = np.repeat(["none", *guides], [2 * N_CONTROLS, *[2 * N_CELLS] * n_guides])
    base, common = rng.normal(0, 1, N_GENES), rng.normal(0, effect / 2, N_GENES)
    changes = {"none": np.zeros(N_GENES)}
    for i, name in enumerate(guides):
        changes[name] = (common + rng.normal(0, effect, N_GENES)) * (i % every == 0)
    rate = np.exp(base + np.array([changes[name] for name in labels]))
    counts = rng.poisson(rate * rng.lognormal(0, 0.2, (len(labels), 1)))
    obs = pd.DataFrame({"guide": labels, "run": np.tile(["one", "two"], len(labels) // 2)})
    obs["is_tested"] = np.isin(labels, guides[: n_guides // 2])
    obs.index = [f"cell{i}" for i in range(len(obs))]
    adata = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs)
    adata.var_names = [f"gene{i}" for i in range(N_GENES)]
    Registry.create(adata, DataConfig(pert_key="guide", control="none", context_keys=[])).write(adata)
    return adata


def split(cells: ad.AnnData) -> tuple[ad.AnnData, ad.AnnData, ad.AnnData]:
    """Training cells (other guides, half of the controls), measured test cells, and a second run of these."""
    is_test, one = cells.obs["is_tested"], cells.obs["run"] == "one"
    is_control = cells.obs["guide"] == "none"
    train = cells[((~is_test & ~is_control) | (is_control & ~one)).to_numpy()].copy()
    test = cells[((is_test | is_control) & one).to_numpy()].copy()
    return train, test, cells[(is_test & ~one).to_numpy()].copy()


def predict(train: ad.AnnData, test: ad.AnnData, again: ad.AnnData, kind: str, *, seed: int = 0) -> ad.AnnData:
    """Predict from the test controls as a good model would, and then make it wrong in a known way."""
    tested = sorted(set(test.obs.loc[test.obs["is_tested"], "guide"]))

    def mean(cells: ad.AnnData, name: str) -> np.ndarray:
        return log_expression(cells[(cells.obs["guide"] == name).to_numpy()].copy()).mean(0).A1

    controls = test[(test.obs["guide"] == "none").to_numpy()].copy()
    logged = log_expression(controls).toarray()
    effects = {name: mean(again, name) - mean(train, "none") for name in tested}
    if kind == "guessed":
        rng = np.random.default_rng([seed, 1])
        effects = {name: rng.normal(0, rng.uniform(0, 0.5), N_GENES) for name in tested}
    parts = []
    for i, name in enumerate(tested):
        own = effects[tested[(i + 1) % len(tested)]] if kind == "shuffled" else effects[name]
        x = np.maximum(logged + own * (2 if kind == "twice the effect" else 1), 0)
        names = controls.obs_names
        if kind == "leaked":
            copied = test[(test.obs["guide"] == name).to_numpy()].copy()
            x = log_expression(copied).toarray()
            names = names[: len(x)]
        x = np.tile(x.mean(axis=0), (len(x), 1)) if kind == "collapsed" else x
        x = 2 * x if kind == "scaled by two" else x
        x = np.log1p(100 * np.expm1(x)) if kind == "on another scale" else x
        obs = pd.DataFrame({"guide": name, "control_cell": names}, index=[f"{cell}|{name}" for cell in names])
        parts.append(ad.AnnData(x.astype(np.float32), obs=obs, var=controls.var[[]]))
    return ad.concat(parts)


def score(kind: str, cells: ad.AnnData, *, n_boot: int = 100, seed: int = 0) -> pd.DataFrame:
    """Score a prediction; a row per model and metric."""
    train, test, again = split(cells)
    predicted = again if kind == "replicate" else predict(train, test, again, kind, seed=seed)
    table = tl.evaluate_perturbation(
        predicted, test, test, context_key=[], train=train, pert_key="guide", n_boot=n_boot
    )
    return table[table["perturbation"] == "all"].set_index(["model", "metric"])


def caught(table: pd.DataFrame, right: pd.DataFrame) -> list[str]:
    """Metrics that tell a prediction from the right one, or that a replicate could not score so well."""
    names = []
    for metric, row in table.loc["model"].iterrows():
        good = right.loc[("model", metric)]
        value, best, top = metrics.goodness(
            [row["value"], good["value"], table.loc[("ceiling", metric), "value"]], direction=row["direction"]
        )
        if value < best and row["skill"] < good["skill"] - 0.25:
            names.append(str(metric))
        elif value > top + 1e-9 and top < value - 0.5 * abs(top):
            names.append(f"{metric} (beyond a replicate)")
    return names


def controls_table(seed: int = 0) -> pd.DataFrame:
    """Tell by what each wrong prediction is caught."""
    cells = screen(effect=0.5, seed=seed)
    train, test, again = split(cells)
    right = score("right", cells)
    rows = []
    for kind in ("right", *WRONG):
        found = tl.audit(train, test, pred=predict(train, test, again, kind), pert_key="guide", control="none")
        table = right if kind == "right" else score(kind, cells)
        rows.append({
            "prediction": kind,
            "metrics": ", ".join(caught(table, right)) or "-",
            "audit": ", ".join(found.loc[found["severity"] == "error", "check"]) or "-",
        })  # fmt: skip
    return pd.DataFrame(rows)


def hits_table(seed: int = 0) -> pd.DataFrame:
    """Tell which wrong predictions the metrics of hits catch; their values, of replicate and baseline as well."""
    cells = screen_with_hits(seed)
    right = score("right", cells, n_boot=10)
    rows = []
    for kind in ("right", *WRONG, "guessed"):
        table = right if kind == "right" else score(kind, cells, n_boot=10, seed=seed)
        by = [name for name in caught(table, right) if name.split(" ")[0] in HITS]
        values = {name: table.loc[("model", name), "value"] for name in HITS}
        rows.append({"prediction": kind, **values, "caught by": ", ".join(by) or "-"})
    for model in ("ceiling", *dict.fromkeys(right.loc[("model", HITS), "yardstick"])):
        rows.append({"prediction": model, **{name: right.loc[(model, name), "value"] for name in HITS}})
    return pd.DataFrame(rows).fillna("")


def screen_with_hits(seed: int) -> ad.AnnData:
    """Cells of a screen in which one guide of four has an effect."""
    return screen(effect=0.5, seed=seed, n_guides=N_GUIDES_OF_SCREEN, every=EVERY)


def gains_without_effect(n_seeds: int) -> pd.DataFrame:
    """Gains of a model over the chosen baseline where nothing happens, with t-intervals over seeds."""
    return _gains([score("right", screen(effect=0.0, seed=seed), n_boot=10) for seed in range(n_seeds)])


def gains_of_guessing(n_seeds: int) -> pd.DataFrame:
    """Gains of a guess over the chosen baseline in finding hits, where one guide of four has an effect."""
    return _gains([score("guessed", screen_with_hits(s), n_boot=10, seed=s) for s in range(n_seeds)]).loc[HITS]


def _gains(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Gains over the chosen baseline, a table of scores for each seed."""
    rows = []
    for scores in tables:
        for metric, row in scores.loc["model"].iterrows():
            if not row["yardstick"]:
                continue
            pair = [row["value"], scores.loc[(row["yardstick"], metric), "value"]]
            good = metrics.goodness(pair, direction=row["direction"])
            rows.append({"metric": metric, "gain": good[0] - good[1], "skill": row["skill"]})
    single = pd.DataFrame(rows).groupby("metric", sort=False)
    table = single["gain"].agg(["mean", "sem", "count"])
    half = stats.t.ppf(0.975, table["count"].clip(lower=2) - 1) * table["sem"]
    table["low"], table["high"] = table["mean"] - half, table["mean"] + half
    table["seeds with a skill"] = single["skill"].count()
    table["above its baseline"] = table["low"] > 0
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    seeds = parser.parse_args().seeds
    with pd.option_context("display.max_colwidth", None, "display.width", 250):
        print(controls_table().to_string(index=False))
        print(hits_table().round(3).to_string(index=False))
        print(gains_without_effect(seeds).round(4).to_string())
        print(gains_of_guessing(seeds).round(4).to_string())


if __name__ == "__main__":
    main()
