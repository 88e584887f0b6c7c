"""Our scores of predicted perturbations beside those of cell-eval 0.8 and cell-eval2 0.20, on the same predictions.

    python benchmarks/perturbation_parity.py KANG.h5ad --peers-python PATH/TO/python [--out table.csv]

``--peers-python`` has cell-eval 0.8 and cell-eval2 0.20, and needs nothing of ours. Two panels:

kang
    Kang et al. 2018: the five cell types under interferon beta are the perturbations, all unstimulated cells the
    controls. A cell type's prediction is its unstimulated profile times the mean fold change of the other four types,
    drawn as counts, as many cells as were measured. Four of the five have a gene "of their own" that is left out, the
    fifth has none.
screen
    A simulated screen of 40 knock-downs (``datasets.perturbation_screen``), each gene left out of its own score. The
    prediction is the control profile times a fold change that mixes the true one with that of another knock-down and
    with noise, drawn as counts.

Each score of counts is compared twice: as the function of ``scstate_lora.metrics`` gives it, and, in the rows "in the
table", as ``tl.evaluate_perturbation`` does, which gets the same counts.

Prints, for each metric that both have, the means and the largest difference over the perturbations. cell-eval2 compares
log1p of counts per million in float64, where equal shares (1 of 3000, 2 of 6000) may differ in their last bit and are
then no tie; ours are ties. The rows marked "their ties" are our scores of tables made with their arithmetic.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse, stats

from scstate_lora import datasets, metrics, tl
from scstate_lora.config import DataConfig
from scstate_lora.data import Registry
from scstate_lora.metrics.registry import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTROL = "non-targeting"
WORKER = Path(__file__).with_name("_peers_worker.py")
SIX = {
    "pds_cosine": "pds_cosine",
    "expr_mse_unbiased_capped_norm": "expr_mse_unbiased_capped_norm",
    "direction_fidelity_yield": "de_wilcoxon_direction_fidelity_yield_raw",
    "direction_reach": "de_wilcoxon_direction_reach_raw",
    "sig_jaccard": "de_wilcoxon_sig_jaccard",
    "lfc_nmae": "de_wilcoxon_lfc_nmae",
    "expr_mse_unbiased_capped": "expr_mse_unbiased_capped",
    "expr_distance_unbiased": "expr_distance_unbiased",
    "cell_cov_corr": "cell_cov_corr",
}


@dataclass(frozen=True)
class Panel:
    """Predicted and measured counts of some perturbations, and the measured controls."""

    names: list[str]
    genes: list[str]
    control: sparse.csr_matrix
    real: list[sparse.csr_matrix]
    pred: list[sparse.csr_matrix]
    own: list[str | None]

    @property
    def targets(self) -> np.ndarray:
        """Position of each perturbation's own gene, or -1."""
        return np.array([-1 if gene is None else self.genes.index(gene) for gene in self.own])

    def cells(self, side: str, *, log: bool = False) -> ad.AnnData:
        """Predicted or measured cells, and the controls."""
        blocks = [self.control, *getattr(self, side)]
        labels = np.repeat([CONTROL, *self.names], [block.shape[0] for block in blocks])
        counts = sparse.vstack(blocks, format="csr").astype(np.float32)
        return ad.AnnData(
            _log(counts) if log else counts,
            obs=pd.DataFrame({"target": labels}, index=[f"cell{i}" for i in range(len(labels))]),
            var=pd.DataFrame(index=self.genes),
        )

    def write(self, side: str, path: Path, *, log: bool) -> None:
        """Write them as both peers read them."""
        self.cells(side, log=log).write_h5ad(path)


def kang(path: str, rng: np.random.Generator) -> Panel:
    cells = ad.read_h5ad(path)
    counts = sparse.csr_matrix(cells.X)
    is_control = (cells.obs["condition"] == "ctrl").to_numpy()
    kinds = cells.obs["cell_type"].to_numpy().astype(str)
    names = sorted(set(kinds))
    shares = np.array(
        [[_share(counts[(kinds == name) & (is_control == side)]) for side in (True, False)] for name in names]
    )
    folds = np.log(shares[:, 1] / shares[:, 0])
    pred = []
    for i, name in enumerate(names):
        fold = np.delete(folds, i, axis=0).mean(axis=0)
        source = counts[(kinds == name) & is_control]
        pred.append(_draw(shares[i, 0] * np.exp(fold), source, int(((kinds == name) & ~is_control).sum()), rng))
    real = [counts[(kinds == name) & ~is_control] for name in names]
    own = [*(g for g in ("ISG15", "IFI6", "ISG20", "CXCL10") if g in cells.var_names), None][: len(names)]
    # Called as knock-downs are; a plus would stand for a combination, of which FCGR3A is a gene.
    names = [gene or name.replace("+", "") for gene, name in zip(own, names, strict=True)]
    return Panel(names, list(cells.var_names), counts[is_control], real, pred, own)


def screen(rng: np.random.Generator) -> Panel:
    cells = datasets.perturbation_screen(40, n_cells=4500, n_control=500, n_genes=800, n_cell_types=1)
    counts, label = sparse.csr_matrix(cells.X), cells.obs["perturbation"].to_numpy().astype(str)
    names = sorted(set(label) - {"control"})
    control = counts[label == "control"]
    truth = np.expm1(cells.layers["mean"])
    base = truth[label == "control"].mean(axis=0)
    folds = np.array([np.log(truth[label == name].mean(axis=0) / base) for name in names])
    noisy = 0.4 * folds + 0.4 * np.roll(folds, 1, axis=0) + rng.normal(0, 0.2, folds.shape)
    real = [counts[label == name] for name in names]
    pred = [_draw(base * np.exp(fold), control, cells.shape[0], rng) for fold, cells in zip(noisy, real, strict=True)]
    return Panel(names, list(cells.var_names), control, real, pred, list(names))


def ours_on_counts(panel: Panel) -> Iterator[tuple[str, np.ndarray | float]]:
    code = [np.repeat(np.arange(len(side)), [block.shape[0] for block in side]) for side in (panel.pred, panel.real)]
    sides = [sparse.vstack(side, format="csr") for side in (panel.pred, panel.real)]
    targets = panel.targets
    pred, real = (metrics.de_table(*side, panel.control) for side in zip(sides, code, strict=True))
    broken = [_their_ties(table, side, panel.control) for table, side in ((pred, panel.pred), (real, panel.real))]
    for name in ("direction_fidelity_yield", "direction_reach", "sig_jaccard", "lfc_nmae"):
        yield name, getattr(metrics, name)(pred, real, targets=targets)
        yield f"{name}, their ties", getattr(metrics, name)(*broken, targets=targets)
    bulk, truth = (metrics.count_profiles(*side) for side in zip(sides, code, strict=True))
    base = metrics.count_profiles(panel.control)
    effects = [side.expression - base.expression for side in (bulk, truth)]
    yield "pds_cosine", metrics.pds_cosine(*effects, targets=targets)
    errors = metrics.unbiased_errors(bulk, truth, base, targets=targets)
    yield "expr_mse_unbiased_capped", errors.error
    yield "expr_distance_unbiased", errors.effect
    yield "expr_mse_unbiased_capped_norm", errors.normalized
    logs = [[_log(block).toarray() for block in side] for side in (panel.pred, panel.real)]
    controls = _log(panel.control).toarray()
    yield (
        "cell_cov_corr",
        np.array(
            [
                metrics.cell_cov_corr(p, r, controls, excluded=[] if t < 0 else [t])
                for p, r, t in zip(*logs, targets, strict=True)
            ]
        ),
    )


def ours_in_the_table(panel: Panel) -> Iterator[tuple[str, np.ndarray | float]]:
    values = table_of(panel, log=False)
    for name in SIX:
        if METRICS.get(name) is not None and name != "cell_cov_corr":  # of which the table hides no gene
            is_ratio = name == "expr_mse_unbiased_capped_norm"
            yield f"{name}, in the table", values[name]["all"] if is_ratio else values[name][panel.names].to_numpy()


def ours_in_the_table_on_logs(panel: Panel) -> Iterator[tuple[str, np.ndarray | float]]:
    values = table_of(panel, log=True)
    for name in ("mse", "mae"):
        yield f"{name}, in the table", values[name][panel.names].to_numpy()


def table_of(panel: Panel, *, log: bool) -> pd.Series:
    """Values of the prediction in the table of ``tl.evaluate_perturbation``, by metric and perturbation."""
    pred, real = panel.cells("pred", log=log), panel.cells("real")
    pred = pred[(pred.obs["target"] != CONTROL).to_numpy()].copy()
    Registry.create(real, DataConfig(pert_key="target", control=CONTROL, context_keys=[])).write(real)
    table = tl.evaluate_perturbation(pred, real, real, context_key=[], pert_key="target", n_boot=10)
    return table[table["model"] == "model"].set_index(["metric", "perturbation"])["value"]


def ours_on_logs(panel: Panel) -> Iterator[tuple[str, np.ndarray | float]]:
    pred, real = ([_log(block).toarray() for block in side] for side in (panel.pred, panel.real))
    control = _log(panel.control).toarray()
    means = [np.array([cells.mean(axis=0, dtype=np.float64) for cells in side]) for side in (pred, real)]
    base = control.mean(axis=0, dtype=np.float64)
    pairs = list(zip(*means, strict=True))
    yield "pearson_delta", np.array([metrics.pearson_delta(p, r, base) for p, r in pairs])
    yield "mse", np.array([metrics.mse(p, r) for p, r in pairs])
    yield "mae", np.array([metrics.mae(p, r) for p, r in pairs])
    own = [[panel.genes.index(name)] if name in panel.genes else [] for name in panel.names]  # by name, in cell-eval
    deltas = [side - base for side in means]
    yield "discrimination_score_cosine", metrics.discrimination_score(*deltas, excluded=own, rank_by="all")
    distances = [[metrics.energy_distance(cells, control) for cells in side] for side in (pred, real)]
    yield "pearson_edistance", float(stats.pearsonr(*distances).statistic)


def compare(panel: Panel, python: str, work: Path) -> Iterator[dict[str, object]]:
    sides = (
        ("cell-eval2", False, (ours_on_counts, ours_in_the_table)),
        ("cell-eval", True, (ours_on_logs, ours_in_the_table_on_logs)),
    )
    for package, log, all_ours in sides:
        paths = [work / f"{side}.h5ad" for side in ("pred", "real")]
        for side, path in zip(("pred", "real"), paths, strict=True):
            panel.write(side, path, log=log)
        config, out = work / "config.json", work / "out.json"
        config.write_text(
            json.dumps(
                {
                    "metrics": list(SIX.values()),
                    "targets": dict(zip(panel.names, panel.own, strict=True)),
                    "skip": ["clustering_agreement"],
                }
            )
        )
        command = [python, WORKER, package, *paths, out, config]
        done = subprocess.run(command, check=False, cwd=work, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            msg = f"{package} failed in the environment of {python}:\n{done.stderr[-2000:]}"
            raise RuntimeError(msg)
        theirs = json.loads(out.read_text())
        for name, value in (pair for ours in all_ours for pair in ours(panel)):
            yield _row(package, name, value, panel, theirs)


def _row(package: str, name: str, value: np.ndarray | float, panel: Panel, theirs: dict) -> dict[str, object]:
    name_of_both = name.removesuffix(", their ties").removesuffix(", in the table")
    key = SIX.get(name_of_both, name_of_both)
    if key in theirs["values"]:
        per = theirs["values"][key]
        other = np.array([np.nan if per.get(p) is None else per.get(p, np.nan) for p in panel.names], dtype=float)
    else:
        other = np.full(1, theirs["means"][key])
    mine = np.broadcast_to(np.asarray(value, dtype=float), other.shape)
    both = ~np.isnan(mine) & ~np.isnan(other)
    return {
        "package": package,
        "metric": name,
        "ours": np.nanmean(mine),
        "theirs": np.nanmean(other),
        "largest difference": np.abs(mine - other)[both].max(),
        "n": int(both.sum()),
        "missing on one side": int((np.isnan(mine) != np.isnan(other)).sum()),
    }


def _their_ties(table: metrics.DETable, side: list[sparse.csr_matrix], control: sparse.csr_matrix) -> metrics.DETable:
    """Test again on log1p of counts per million in float64, by scipy."""

    def logs(counts: sparse.csr_matrix) -> np.ndarray:
        dense = counts.toarray().astype(np.float64)
        return np.log1p(dense / (dense.sum(axis=1, keepdims=True) / 1e6))[:, table.genes]

    base = logs(control)
    p = np.array([stats.mannwhitneyu(logs(cells), base, method="asymptotic").pvalue for cells in side])
    return table._replace(p_value=p, fdr=stats.false_discovery_control(p, axis=1))


def _share(counts: sparse.csr_matrix) -> np.ndarray:
    total = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel() + 0.5
    return total / total.sum()


def _draw(profile: np.ndarray, source: sparse.csr_matrix, n_cells: int, rng: np.random.Generator) -> sparse.csr_matrix:
    depth = rng.choice(np.asarray(source.sum(axis=1)).ravel(), n_cells)
    return sparse.csr_matrix(rng.poisson(depth[:, None] * profile / profile.sum()).astype(np.float32))


def _log(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    logs = counts.astype(np.float64)
    total = np.asarray(counts.sum(axis=1)).ravel()
    logs.data = np.log1p(logs.data * np.repeat(1e4 / np.where(total > 0, total, 1), np.diff(logs.indptr)))
    return logs.astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="Kang et al. 2018, .h5ad with counts")
    parser.add_argument("--peers-python", required=True)
    parser.add_argument("--out", help="also write the table, as CSV")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    tables = []
    with tempfile.TemporaryDirectory() as work:
        for name, panel in (("kang", kang(arguments.data, rng)), ("screen", screen(rng))):
            rows = pd.DataFrame(compare(panel, arguments.peers_python, Path(work)))
            rows.insert(0, "panel", name)
            tables.append(rows)
    table = pd.concat(tables, ignore_index=True)
    with pd.option_context("display.width", 200, "display.max_columns", 20):
        sys.stdout.write(table.to_string(index=False, float_format=lambda x: f"{x:.6g}") + "\n")
    if arguments.out:
        table.to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
