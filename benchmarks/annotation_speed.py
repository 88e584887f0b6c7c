"""Time and memory of CellTypeClassifier on many cells: training by a strategy, and streamed prediction from a file.

    python benchmarks/annotation_speed.py FOLDER --parts train --cells 50000 [--strategy lora]
    python benchmarks/annotation_speed.py FOLDER --parts predict --new-cells 1000000

Simulated cells of 12 types (six pairs of relatives, the rarest under 1 % of the cells) in four batches that differ in
composition, depth and in a factor for every gene; 2,000 genes, about 1,000 counts a cell, three quarters of the values
zero. They are drawn and written in blocks, so that a file larger than memory can be made; a file that FOLDER
holds already is used again. Each part runs in a process of its own, and memory is the most that was resident.

train
    Reads the file, sets up, trains with the defaults of ``--strategy``, labels the same cells, and saves the model in
    FOLDER for the part below. Accuracy on these cells says only that the job was a real one.
predict
    Loads the model and labels the cells of another file, of the same types in a fifth batch, which stays on disk.

The load that other work puts on the machine is printed beside: numbers taken under load say little.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from _peers_worker import peak_memory

N_GENES, N_TYPES, N_BATCHES = 2000, 12, 4
BLOCK = 5000  # cells drawn at once
DEPTH = 1000.0  # median counts of a cell
LABEL, BATCH = "cell_type", "batch"


@dataclass(frozen=True)
class Population:
    """What the cells are drawn from: shares of genes by type, and what a batch changes."""

    profiles: np.ndarray  # log level (N_TYPES, N_GENES)
    batches: np.ndarray  # added to it (N_BATCHES + 1, N_GENES)
    mixes: np.ndarray  # of types (N_BATCHES + 1, N_TYPES)
    depths: np.ndarray  # factor of the library size (N_BATCHES + 1,)
    dispersion: np.ndarray  # phi in variance = mean + phi mean² (N_GENES,)

    @classmethod
    def draw(cls, seed: int) -> Population:
        """Draw a population; the same seed gives the same one."""
        rng = np.random.default_rng(seed)

        def differences(n: int, share: float) -> np.ndarray:
            return rng.normal(0, 1.2, (n, N_GENES)) * (rng.random((n, N_GENES)) < share)

        common = np.log(rng.gamma(0.4, 1, N_GENES) + 1e-3)
        families = np.repeat(differences(N_TYPES // 2, 0.1), 2, axis=0)
        shares = np.geomspace(1, 1 / 30, N_TYPES)
        return cls(
            profiles=common + families + differences(N_TYPES, 0.03),
            batches=rng.normal(0, 0.3, (N_BATCHES + 1, N_GENES)),
            mixes=rng.dirichlet(30 * shares / shares.mean(), N_BATCHES + 1),
            depths=rng.lognormal(0, 0.2, N_BATCHES + 1),
            dispersion=rng.uniform(0.1, 0.4, N_GENES),
        )

    def cells(self, n_cells: int, rng: np.random.Generator, batches: range) -> ad.AnnData:
        """Draw negative-binomial counts of cells of these batches."""
        batch = rng.integers(batches.start, batches.stop, n_cells)
        kind = np.empty(n_cells, dtype=int)
        for b in batches:
            kind[batch == b] = rng.choice(N_TYPES, int(np.sum(batch == b)), p=self.mixes[b])
        level = np.exp(self.profiles[kind] + self.batches[batch])
        library = DEPTH * self.depths[batch] * rng.lognormal(0, 0.35, n_cells)
        mean = level / level.sum(axis=1, keepdims=True) * library[:, None]
        counts = rng.poisson(mean * rng.gamma(1 / self.dispersion, self.dispersion, mean.shape))
        return ad.AnnData(
            sparse.csr_matrix(counts, dtype=np.float32),
            obs=pd.DataFrame(
                {
                    LABEL: pd.Categorical.from_codes(kind, [f"type{i + 1:02d}" for i in range(N_TYPES)]),
                    BATCH: pd.Categorical.from_codes(batch, [f"batch{i + 1}" for i in range(N_BATCHES + 1)]),
                }
            ),
        )


def write_cells(path: Path, n_cells: int, *, seed: int, batches: range) -> None:
    """Write cells of one population in blocks."""
    population, parts = Population.draw(seed), []
    partial = path.with_suffix(".part")
    with h5py.File(partial, "w") as file:
        for k, start in enumerate(range(0, n_cells, BLOCK)):
            rng = np.random.default_rng([seed, batches.start, k])
            block = population.cells(min(BLOCK, n_cells - start), rng, batches)
            parts.append(block.obs)
            if k == 0:
                ad.io.write_elem(file, "X", block.X)
            else:
                ad.io.sparse_dataset(file["X"]).append(block.X)
        obs = pd.concat(parts, ignore_index=True)
        obs.index = [f"cell{i}" for i in range(n_cells)]
        rest = ad.AnnData(obs=obs, var=pd.DataFrame(index=[f"GENE{i + 1:04d}" for i in range(N_GENES)]))
        for name in ("obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns"):
            value = getattr(rest, name)
            ad.io.write_elem(file, name, value if name in ("obs", "var") else dict(value))
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    partial.rename(path)


class Steps:
    """Seconds of the steps of a job, one after the other."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._begun = time.perf_counter()

    def end(self, name: str) -> None:
        """Note the seconds since the end of the step before."""
        now = time.perf_counter()
        self.seconds[f"{name} s"], self._begun = now - self._begun, now


def train(options: argparse.Namespace) -> dict[str, object]:
    import scstate_lora as ssl

    before, steps = peak_memory(), Steps()
    adata = ad.read_h5ad(_file(options, "train"))
    steps.end("read")
    ssl.CellTypeClassifier.setup_anndata(adata, labels_key=LABEL, batch_key=BATCH)
    model = ssl.CellTypeClassifier(adata, seed=options.seed)
    steps.end("set-up")
    model.train(strategy=options.strategy, progress_bar=False)
    steps.end("train")
    truth = adata.obs.pop(LABEL).astype(str).to_numpy()
    model.predict(adata)
    steps.end("predict")
    accuracy = float(np.mean(adata.obs["scstate_celltype"].astype(str).to_numpy() == truth))
    result = {"cells": adata.n_obs, "accuracy": accuracy, **steps.seconds, "MB": peak_memory(), "before MB": before}
    model.save(options.folder / "model")
    return result


def predict(options: argparse.Namespace) -> dict[str, object]:
    import scstate_lora as ssl

    before, steps = peak_memory(), Steps()
    model = ssl.CellTypeClassifier.load(options.folder / "model")
    adata = ad.read_h5ad(_file(options, "predict"), backed="r")
    steps.end("load")
    truth = adata.obs.pop(LABEL).astype(str).to_numpy()
    model.predict(adata)
    steps.end("predict")
    accuracy = float(np.mean(adata.obs["scstate_celltype"].astype(str).to_numpy() == truth))
    return {"cells": adata.n_obs, "accuracy": accuracy, **steps.seconds, "MB": peak_memory(), "before MB": before}


PARTS = {"train": train, "predict": predict}


def _file(options: argparse.Namespace, part: str) -> Path:
    n_cells = options.cells if part == "train" else options.new_cells
    return options.folder / f"{part}-{n_cells}-{options.seed}.h5ad"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the files of cells and the model")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["train", "predict"])
    parser.add_argument("--cells", type=int, default=50_000)
    parser.add_argument("--new-cells", type=int, default=1_000_000)
    parser.add_argument("--strategy", default="lora")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        logging.getLogger("scstate_lora").setLevel(logging.WARNING)
        print(json.dumps(PARTS[options.one](options)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        path = _file(options, part)
        if not path.exists():
            new = range(N_BATCHES, N_BATCHES + 1)
            n_cells = options.cells if part == "train" else options.new_cells
            write_cells(path, n_cells, seed=options.seed, batches=new if part == "predict" else range(N_BATCHES))
        command = [sys.executable, __file__, *sys.argv[1:], "--one", part]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"\n## {part} ({path.stat().st_size / 1e6:.0f} MB on disk, load {os.getloadavg()[0]:.1f})")
        print(pd.DataFrame([result]).round(3).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
