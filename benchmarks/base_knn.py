"""Train the compact base on a file's cells and score its plain embedding beside a PCA: 5-fold kNN accuracy, k=10.

    python benchmarks/base_knn.py kang_muscat.h5ad:cell_type pbmc_symphony.h5ad:cell_type_broad

All cells are embedded; the base is trained, without labels, on those of the training split.
"""

from __future__ import annotations

import argparse
import logging
import time

import scanpy as sc
import torch

import scstate_lora as ssl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="H5AD:LABEL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("scstate_lora").setLevel(logging.WARNING)
    for entry in args.data:
        path, _, label = entry.rpartition(":")
        adata = sc.read_h5ad(path)
        ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys=[label], cell_type_key=label, seed=args.seed)
        se = ssl.LoRACovariateSE(adata, seed=args.seed)
        start = time.perf_counter()
        se.train_base(progress_bar=False)
        seconds = time.perf_counter() - start
        ssl.tl.embed(adata, se)
        scores = ssl.tl.evaluate(adata, ["X_state"], label_key=label, covariate_keys=[])
        knn = scores[scores["metric"] == "knn_accuracy"].set_index("embedding")["value"]
        print(f"{path}: base {knn['X_state']:.3f}, PCA {knn['PCA']:.3f}, trained in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
