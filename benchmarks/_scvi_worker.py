"""Train scVI on the training cells of a file and embed all of its cells; run by covariates.py in scVI's environment.

    python benchmarks/_scvi_worker.py cells.h5ad embedding.npy --split-key split [--batch-key batch] [--seed 0]

Defaults of scvi-tools everywhere: 10 latent dimensions, at most 400 epochs. Its own validation share is taken from the
training cells.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata
import numpy as np
import scvi
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("h5ad", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split-key", required=True)
    parser.add_argument("--batch-key")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scvi.settings.seed = args.seed
    adata = anndata.read_h5ad(args.h5ad)
    fitted = adata[(adata.obs[args.split_key] != "test").to_numpy()].copy()
    scvi.model.SCVI.setup_anndata(fitted, batch_key=args.batch_key)
    model = scvi.model.SCVI(fitted)
    model.train(accelerator="cpu", enable_progress_bar=False)
    np.save(args.out, model.get_latent_representation(adata))


if __name__ == "__main__":
    main()
