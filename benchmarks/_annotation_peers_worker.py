"""Part of annotation.py: CellTypist 1.7.1 (scikit-learn < 1.7) and scANVI of scvi-tools 1.4, each in its environment.

    python _annotation_peers_worker.py celltypist|scanvi CELLS.h5ad OUT.json [--seed 0] [--threads 1]

CELLS.h5ad: log1p of counts per 10,000 in ``X``, counts in ``layers["counts"]``; in ``obs`` the columns ``label``
("Unknown" for the cells to label) and ``batch``. Writes labels and confidence of the cells to label, in their order,
and the seconds of training and labelling, by the clock and of the processor.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import anndata

if TYPE_CHECKING:
    from collections.abc import Sequence

UNKNOWN = "Unknown"


def run_celltypist(adata: anndata.AnnData, options: argparse.Namespace) -> tuple[Sequence[str], Sequence[float]]:
    """Train a model of the user's own as its manual does, and label by the largest score; it has no seed."""
    import celltypist

    is_new = (adata.obs["label"] == UNKNOWN).to_numpy()
    train, new = adata[~is_new].copy(), adata[is_new].copy()
    model = celltypist.train(train, labels="label", check_expression=False)
    found = celltypist.annotate(new, model=model, majority_voting=False)
    return found.predicted_labels["predicted_labels"].astype(str), found.probability_matrix.max(axis=1)


def run_scanvi(adata: anndata.AnnData, options: argparse.Namespace) -> tuple[Sequence[str], Sequence[float]]:
    """Train scVI, then scANVI from it, the cells to label in both; settings of its tutorials (see annotation.py)."""
    import scvi
    import torch

    torch.set_num_threads(options.threads)
    scvi.settings.seed = options.seed
    quiet = {"accelerator": "cpu", "enable_progress_bar": False}
    scvi.model.SCVI.setup_anndata(adata, layer="counts", batch_key="batch")
    base = scvi.model.SCVI(adata, n_layers=2, n_latent=30, gene_likelihood="nb")
    base.train(max_epochs=100, **quiet)
    model = scvi.model.SCANVI.from_scvi_model(base, labels_key="label", unlabeled_category=UNKNOWN)
    model.train(max_epochs=25, **quiet)
    found = model.predict(adata[(adata.obs["label"] == UNKNOWN).to_numpy()].copy(), soft=True)
    return found.idxmax(axis=1).astype(str), found.max(axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=("celltypist", "scanvi"))
    parser.add_argument("cells", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    adata = anndata.read_h5ad(options.cells)
    package, run = {"celltypist": ("celltypist", run_celltypist), "scanvi": ("scvi", run_scanvi)}[options.method]
    importlib.import_module(package)  # not part of the seconds
    begun, cpu_begun = time.perf_counter(), time.process_time()
    labels, confidence = run(adata, options)
    spent = {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu_begun}
    options.out.write_text(json.dumps({"labels": list(labels), "confidence": list(map(float, confidence)), **spent}))


if __name__ == "__main__":
    main()
