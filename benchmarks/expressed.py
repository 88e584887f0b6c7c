"""How far embeddings move when the unexpressed genes that fill short sentences are left out, and what is gained.

    python benchmarks/expressed.py CELLS.h5ad:LABEL [...] [--base CHECKPOINT] [--n-tokens 513]

Without ``--base`` a compact base with long sentences is trained on each file. Printed for every file: the share of
padding in the sentences, the cosine between a cell's two embeddings, the accuracy of the 10 nearest neighbours in five
folds by either, and the time of either, medians of paired runs.
"""

from __future__ import annotations

import argparse
import logging
import time

import anndata as ad
import numpy as np

import scstate_lora as ssl
from scstate_lora.metrics import knn_accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE:LABEL")
    parser.add_argument("--base", help="published SE checkpoint")
    parser.add_argument("--n-tokens", type=int, default=513)
    parser.add_argument("--n-steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    logging.getLogger("scstate_lora").setLevel(logging.WARNING)
    for file in args.files:
        path, _, label = file.partition(":")
        adata = ad.read_h5ad(path)
        base = args.base or _compact(adata, label, args.n_tokens, args.n_steps)
        base = ssl.SEBase.load(base) if isinstance(base, str) else base
        report(adata, label, base, path, args.repeats)


def _compact(adata: ad.AnnData, label: str, n_tokens: int, n_steps: int) -> ssl.SEBase:
    ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys=[label], test_size=0.0)
    se = ssl.LoRACovariateSE(adata, compact={"n_tokens": n_tokens, "n_steps": n_steps})
    se.train_base(progress_bar=False)
    return se.base


def report(adata: ad.AnnData, label: str, base: ssl.SEBase, path: str, repeats: int) -> None:
    def embed(n_tokens: str | None) -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        z = ssl.tl.embed(adata, base, key_added=None, n_tokens=n_tokens, progress_bar=False)
        return z[:, : base.encoder.config.output_dim], time.perf_counter() - start

    pairs = [(embed(None), embed("expressed")) for _ in range(repeats)]
    (padded, _), (short, _) = pairs[-1]
    cosine = (padded * short).sum(1)
    labels = adata.obs[label].to_numpy().astype(str)
    accuracy = [knn_accuracy(z, labels) for z in (padded, short)]
    ratio = np.median([a[1] / b[1] for a, b in pairs])
    known = np.isin(adata.var_names, base.genes)
    expressed = np.minimum((adata[:, known].X > 0).sum(1), base.encoder.config.n_tokens - 1).mean()
    padding = 1 - expressed / (base.encoder.config.n_tokens - 1)
    print(
        f"{path}: {padding:.0%} padding; cosine median {np.median(cosine):.4f}, 5 % {np.quantile(cosine, 0.05):.4f}; "
        f"kNN {label} {accuracy[0]:.3f} padded, {accuracy[1]:.3f} expressed; {ratio:.2f} x as fast"
    )


if __name__ == "__main__":
    main()
