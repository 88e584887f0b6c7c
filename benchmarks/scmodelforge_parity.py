"""Encoders that scModelForge trained and saved, read here: the same tokens and embeddings, from both of its forms.

    python benchmarks/scmodelforge_parity.py --peer-python PATH/TO/python [--work DIR]

``--peer-python`` has scModelForge (github.com/EhsanRS/scModelForge, 0.1.0) and safetensors, and needs nothing of ours.
It trains ten small models for an epoch each and embeds cells with them, which takes minutes; ``--work`` keeps these
files, and a second call reads them. Columns: whether the tokens are the same; the largest difference of values; that
of embeddings from the folder, from the ``.ckpt``, and from log1p of CP10k in place of counts; the mean size of an entry
of the embedding, which layers without a norm at the end let grow; the largest difference of ours and of theirs from
theirs in float64; and whether scModelForge's own loader reads its ``.ckpt``. A cell without expression is left out of a
model without CLS, where it gives NaN there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from scstate_lora.config import ComputeOptions, DataConfig
from scstate_lora.data.bound import BoundData
from scstate_lora.data.register import register
from scstate_lora.data.registry import Registry
from scstate_lora.model.annotation.rank_base import RankBase

EMPTY_CELL = 7


def bound(adata: ad.AnnData) -> BoundData:
    register(adata, DataConfig(), seed=0)
    return BoundData(Registry.from_adata(adata), adata)


def logged(adata: ad.AnnData) -> ad.AnnData:
    """Give the same cells as most files hold them: log1p of counts per 10,000; the cell without counts stays empty."""
    x = adata.X.copy()
    totals = np.maximum(np.asarray(x.sum(axis=1)).ravel(), 1)
    x.data = np.log1p(x.data * np.repeat(1e4 / totals, np.diff(x.indptr))).astype(np.float32)
    return ad.AnnData(x, obs=adata.obs[[]].copy(), var=adata.var.copy())


def compare(written: dict[str, str], counts: BoundData, logs: BoundData) -> dict[str, object]:
    folder, checkpoint = RankBase.load(written["folder"]), RankBase.load(written["checkpoint"])
    expected = np.load(Path(written["folder"]).parent / "expected.npz")
    # A folder does not say how the cells were normalised: for other than the defaults, its YAML file does.
    if checkpoint.options != folder.options:
        folder = RankBase.load(written["folder"], config=Path(written["checkpoint"]).parent / "config.yaml")
    tokens = checkpoint.tokens(counts, np.arange(len(counts)))
    rows = np.ones(len(counts), dtype=bool)
    rows[EMPTY_CELL] = checkpoint.options["cls_id"] is not None
    same = all(np.array_equal(tokens[name][rows], expected[name][rows]) for name in ("genes", "mask"))
    values = np.abs(tokens["values"] - expected["values"]).max() if "values" in tokens else 0.0

    def difference(base: RankBase, cells: BoundData) -> float:
        embedding = base.embed(cells, options=ComputeOptions(device="cpu"))
        if not np.isfinite(embedding).all():
            msg = f"{base.name} gives embeddings that are not finite"
            raise ValueError(msg)
        return float(np.abs(embedding - expected["embedding"])[rows].max())

    def from_exact(embedding: np.ndarray) -> float:
        return float(np.abs(embedding - expected["exact"])[rows].max())

    normalised = checkpoint.options["target_sum"] is not None
    return {
        "tokens": "same" if same else "differ",
        "values": float(values),
        "folder": difference(folder, counts),
        "ckpt": difference(checkpoint, counts),
        "log1p": difference(folder, logs) if normalised else np.nan,
        "size": float(np.abs(expected["embedding"][rows]).mean()),
        "ours, float64": from_exact(folder.embed(counts, options=ComputeOptions(device="cpu"))),
        "theirs, float64": from_exact(expected["embedding"]),
        "identity": "same" if folder.sha256() == checkpoint.sha256() else "differs",
        "peer reads ckpt": "yes" if written["reads_its_own_ckpt"] else "no",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--work", type=Path, help="keep the models here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "summary.json").is_file():
            worker = Path(__file__).with_name("_scmodelforge_worker.py")
            subprocess.run([arguments.peer_python, str(worker), str(work)], check=True, stdout=sys.stderr)
        written = json.loads((work / "summary.json").read_text())
        adata = ad.read_h5ad(work / "cells.h5ad")
        logs, counts = bound(logged(adata)), bound(adata)
        table = pd.DataFrame({name: compare(entry, counts, logs) for name, entry in written.items()}).T
    with pd.option_context("display.width", 200, "display.max_columns", 20):
        sys.stdout.write(table.to_string(float_format=lambda x: f"{x:.2g}") + "\n")


if __name__ == "__main__":
    main()
