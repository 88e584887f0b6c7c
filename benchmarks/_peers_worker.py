"""Part of perturbation_parity.py and perturbation_scores.py: cell-eval 0.8 and cell-eval2 0.20, in their environment.

    python _peers_worker.py cell-eval2|cell-eval PRED.h5ad REAL.h5ad OUT.json [CONFIG.json]

Both files have counts (cell-eval2) or log1p of counts per 10,000 (cell-eval) in ``X`` and ``obs["target"]``, the
measured control cells included. CONFIG.json: the metrics, and the gene that each perturbation acts on. Writes seconds,
the most resident memory in MB, and the value of every metric and perturbation.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

CONTROL = "non-targeting"


def peak_memory() -> float:
    """Most resident memory of this program in MB; getrusage also counts what the parent had when it forked."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def run_cell_eval2(pred: str, real: str, config: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import replace

    from cell_eval2 import EvalConfig, aggregate_metrics, compute_metrics

    settings = replace(EvalConfig.from_preset("vcc2026"), target_gene_map=config["targets"], metrics=config["metrics"])
    table = compute_metrics(pred, real, config=settings)
    values: dict[str, dict[str, float]] = {}
    for perturbation, metric, value in table.iter_rows():
        values.setdefault(metric, {})[perturbation] = value
    means = dict(aggregate_metrics(table, metrics=config["metrics"]).select("metric", "mean").iter_rows())
    return {"values": values, "means": means}


def run_cell_eval(pred: str, real: str, config: dict[str, Any]) -> dict[str, Any]:
    import tempfile

    from cell_eval import MetricsEvaluator

    with tempfile.TemporaryDirectory() as out:
        evaluator = MetricsEvaluator(
            adata_pred=pred, adata_real=real, control_pert=CONTROL, pert_col="target", outdir=out, num_threads=2
        )
        table, _ = evaluator.compute(profile="full", skip_metrics=config.get("skip"), write_csv=False)
    names = table["perturbation"].to_list()
    return {
        "values": {
            metric: dict(zip(names, table[metric].to_list(), strict=True))
            for metric in table.columns
            if metric != "perturbation"
        }
    }


def main() -> None:
    package, pred, real, out, *rest = sys.argv[1:]
    config = json.loads(Path(rest[0]).read_text()) if rest else {}
    run = {"cell-eval2": run_cell_eval2, "cell-eval": run_cell_eval}[package]
    start = time.perf_counter()
    result = run(pred, real, config)
    result["seconds"] = time.perf_counter() - start
    result["memory_mb"] = peak_memory()
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
