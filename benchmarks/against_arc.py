"""Our package beside arc-state 0.11.1 on one machine: speed, memory and the numbers themselves.

    python benchmarks/against_arc.py --arc-python PATH/TO/python [--only tokens,embedding] [--repeats 5] [--threads 1]

``--arc-python`` has arc-state, Lightning and anndata, and needs nothing of ours. Each side runs in a process of its own
with the same number of threads, on the CPU, in float32. Machines are noisy, so the two take turns (A, B, A, B, ...):
the table has the median of each side, and of the ratio the median of the pairs' ratios with their range. Numbers that
were taken while the machine had other work are of no use.

tokens
    Counts (CSR) to sentences of 2048 tokens, 20,000 genes, all known, in one process and on one thread whatever
    ``--threads`` says: arc-state's data set and collator, called in a loop. Reading the file and matching the genes'
    names, once per data set, is not timed on either side.
loading
    A checkpoint of the size of SE-600M (see ``make_arc_checkpoints.py --sizes se600m``), each time in a fresh process:
    seconds until every weight was looked at, and the most resident memory, pages of mapped files included, less what
    the imports took, over the size of the checkpoint file.
embedding
    An ``.h5ad`` of counts, 20,000 genes, some 3,000 expressed in a cell, to its embedding: reading the file counts,
    loading the model does not, and a smaller file was embedded before. arc-state runs by ``Inference.encode_adata``,
    with its own worker process (so on one thread it keeps two cores busy) and the batch size that was fastest on the
    smaller file. It cannot embed without dataset correction; there only its last step is left out. Its collator draws
    512 + 512 + 512 training genes for every cell, in inference too, as in the configuration of SE-600M. ``token``:
    width of the protein embeddings; 5120 is that of ESM2.
flops
    FLOP/s of our network over those of plain matrix products, in one process. Counted are two FLOPs per
    multiplication in a matrix product, the two of attention included, and nothing else: ``computed`` are those that are
    done (no token encoder, since gene tokens come from a table; of the last layer keys and values of all tokens, and
    all else for the one or two tokens that are read; counts once per value), ``nominal`` those of the whole
    architecture.
memory
    Ours only: the most resident memory of ``embed_file``, from files of 2,000, 200,000 and 400,000 cells. The smallest
    does not fill one chunk of reading; what grows with the file shows between the other two.
parity
    Ours only: largest absolute difference from the numbers that arc-state gave (``make_arc_checkpoints.py``).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from _random_cells import write_cells
from _serve import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

N_GENES = 20_000
N_EXPRESSED = 3_000
SMALL = {"n_layers": 3, "d_model": 128, "n_heads": 8, "d_hid": 256, "output_dim": 128, "n_tokens": 256}
LARGE = {"n_layers": 8, "d_model": 512, "n_heads": 16, "d_hid": 1024, "output_dim": 512, "n_tokens": 1024}
TINY = {"n_layers": 1, "d_model": 32, "n_heads": 2, "d_hid": 32, "output_dim": 16, "n_tokens": 32}
MEMORY_CELLS = 2_000, 200_000, 400_000
MEMORY_GENES, MEMORY_EXPRESSED = 1_000, 40
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Model:
    """A model to embed with, cells to embed, and by how much we want to be faster."""

    name: str
    sizes: dict[str, Any]
    n_cells: int
    batch_sizes: tuple[int, ...]
    bar: float


MODELS = [
    Model("128 x 3, 8 heads, token 128", {**SMALL, "token_dim": 128}, 512, (16, 64, 128), 5),
    Model("128 x 3, 8 heads, token 5120", {**SMALL, "token_dim": 5120}, 256, (4, 16, 64), 5),
    Model("512 x 8, 16 heads, token 640", {**LARGE, "token_dim": 640}, 24, (1, 4, 8), 2),
    Model("512 x 8, 8 heads, token 640", {**LARGE, "token_dim": 640, "n_heads": 8}, 24, (1, 4, 8), 2),
    Model(
        "512 x 8, 16 heads, token 640, no dataset token",
        {**LARGE, "token_dim": 640, "dataset_correction": False},
        24,
        (1, 4, 8),
        2,
    ),
    Model("512 x 8, 16 heads, token 5120", {**LARGE, "token_dim": 5120}, 24, (1, 4, 8), 2),
]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    case: str
    unit: str
    ours: float
    arc: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    bar: str = ""
    met: bool | None = None
    note: str = ""


class Bench:
    """The machine, the two Pythons, and where files go."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.arc_python, self.repeats, self.threads = arguments.arc_python, arguments.repeats, arguments.threads
        self.parity_folder, self.se600m, self.models = arguments.parity, arguments.se600m, arguments.models
        self.work = work

    def ours(self, threads: int | None = None) -> Worker:
        """Start a process with our package."""
        log = self.work / "ours.log"
        return Worker(sys.executable, "_our_worker.py", threads=threads or self.threads, log=log)

    def arc(self, threads: int | None = None) -> Worker:
        """Start a process with arc-state."""
        log = self.work / "arc.log"
        return Worker(self.arc_python, "_arc_worker.py", threads=threads or self.threads, log=log)

    @contextmanager
    def both(self, threads: int | None = None) -> Iterator[tuple[Worker, Worker]]:
        """Start one process of each."""
        with self.ours(threads) as ours, self.arc(threads) as arc:
            yield ours, arc

    def cells(self, n_cells: int, n_genes: int = N_GENES, n_expressed: int = N_EXPRESSED) -> str:
        """Path of an ``.h5ad`` of random counts."""
        path = self.work / f"counts_{n_cells}x{n_genes}_{n_expressed}.h5ad"
        if not path.exists():
            write_cells(path, n_cells=n_cells, n_genes=n_genes, n_expressed=n_expressed)
        return str(path)

    def checkpoint(self, name: str, sizes: dict[str, Any], n_genes: int = N_GENES) -> str:
        """Path of a checkpoint with random weights, made by arc-state."""
        path = self.work / f"{name.replace(', ', '_').replace(' ', '')}.ckpt"
        if not path.exists():
            with self.arc() as arc:
                arc("make_checkpoint", path=str(path), genes=[f"GENE{i}" for i in range(n_genes)], sizes=sizes)
        return str(path)

    def pairs(self, ours: Callable[[], Any], arc: Callable[[], Any]) -> list[tuple[Any, Any]]:
        """Let the two take turns."""
        return [(ours(), arc()) for _ in range(self.repeats)]


def compare(part: str, case: str, unit: str, pairs: list[tuple[float, float]], **more: Any) -> Row:
    """Sum up pairs of numbers of ours and of arc-state, of which more is better."""
    ratios = [ours / arc for ours, arc in pairs]
    low, middle, high = min(ratios), median(ratios), max(ratios)
    bar = more.pop("bar")
    return Row(
        part,
        case,
        unit,
        median(ours for ours, _ in pairs),
        median(arc for _, arc in pairs),
        middle,
        low,
        high,
        bar=f"ratio >= {bar:g}",
        met=middle >= bar,
        **more,
    )


def tokens(bench: Bench) -> Iterator[Row]:
    n_ours, n_arc, n_tokens = 2_000, 100, 2048
    with bench.both(threads=1) as (ours, arc):
        for n_expressed in (3_000, 1_000):
            path = bench.cells(n_ours, n_expressed=n_expressed)
            for worker in (ours, arc):
                worker("prepare_tokens", path=path, n_tokens=n_tokens)
            pairs = bench.pairs(
                lambda: n_ours / ours("tokenize", n_cells=n_ours), lambda: n_arc / arc("tokenize", n_cells=n_arc)
            )
            yield compare("tokens", f"{n_expressed} expressed", "cells/s", pairs, bar=50)


def loading(bench: Bench) -> Iterator[Row]:
    path, proteins = bench.se600m / "se600m_epoch16.ckpt", bench.se600m / "protein_embeddings.pt"
    size = path.stat().st_size
    paths = {"path": str(path), "protein_embeddings": str(proteins)}

    def load(start: Callable[[], Worker]) -> dict[str, float]:
        with start() as worker:
            return worker("load", **paths)

    load(bench.ours)  # the file is in the system's cache from here on
    pairs = bench.pairs(partial(load, bench.ours), partial(load, bench.arc))
    for case, key in (("until every weight was read", "all"), ("the call alone", "load")):
        taken = [(ours[key], arc[key]) for ours, arc in pairs]
        ratios = sorted(arc / ours for ours, arc in taken)
        ours, arc = (median(side) for side in zip(*taken, strict=True))
        yield Row("loading", case, "s", ours, arc, median(ratios), ratios[0], ratios[-1], note="ratio: arc / ours")
    over = [tuple((side["peak"] - side["before"]) / size for side in pair) for pair in pairs]
    yield Row(
        "loading",
        "peak memory over the imports' / checkpoint file",
        "x file",
        max(ours for ours, _ in over),
        max(arc for _, arc in over),
        bar="ours <= 1.3",
        met=max(ours for ours, _ in over) <= 1.3,
        note=f"file of {size / 1e9:.2f} GB, and {proteins.stat().st_size / 1e9:.2f} GB of protein embeddings read too",
    )
    for case, key in (("peak memory of the whole process / checkpoint file", "peak"), ("of it not of files", "own")):
        ours, arc = (max(side[key] for side in sides) / size for sides in zip(*pairs, strict=True))
        yield Row("loading", case, "x file", ours, arc)


def embedding(bench: Bench) -> Iterator[Row]:
    for model in bench.models:
        checkpoint = bench.checkpoint(model.name, model.sizes)
        path, small = bench.cells(model.n_cells), bench.cells(max(4, model.n_cells // 4))
        with bench.both() as (ours, arc):
            ours("load", path=checkpoint)
            arc("load", path=checkpoint, dataset_correction=model.sizes.get("dataset_correction", True))
            ours("embed", path=small)
            arc("embed", path=small, batch_size=model.batch_sizes[0])
            tried = {size: arc("embed", path=small, batch_size=size) for size in model.batch_sizes}
            fastest = min(tried, key=tried.__getitem__)
            seconds = bench.pairs(
                partial(ours, "embed", path=path), partial(arc, "embed", path=path, batch_size=fastest)
            )
        pairs = [(model.n_cells / our, model.n_cells / their) for our, their in seconds]
        case = f"{model.name}, {model.sizes['n_tokens']} tokens"
        yield compare("embedding", case, "cells/s", pairs, bar=model.bar, note=f"arc-state's batches: {fastest}")


def memory(bench: Bench) -> Iterator[Row]:
    checkpoint = bench.checkpoint("tiny", {**TINY, "token_dim": 64}, MEMORY_GENES)
    peaks = []
    for n_cells in MEMORY_CELLS:
        path = bench.cells(n_cells, MEMORY_GENES, MEMORY_EXPRESSED)
        with bench.ours() as ours:
            found = ours("embed_file", path=path, model=checkpoint, out=str(bench.work / "embedded.h5ad"))
        peaks.append(found["peak"])
        size = os.path.getsize(path) / 1e6  # noqa: PTH202  (a path given as text)
        note = f"file of {size:.0f} MB, {found['seconds']:.0f} s; imports alone {found['before'] / 1e6:.0f} MB"
        yield Row("memory", f"peak of embed_file, {n_cells} cells", "MB", found["peak"] / 1e6, note=note)
    for before, after in ((0, 1), (1, 2)):
        case = f"more for {MEMORY_CELLS[after]} cells than for {MEMORY_CELLS[before]}"
        yield Row("memory", case, "MB", (peaks[after] - peaks[before]) / 1e6)


def parity(bench: Bench) -> Iterator[Row]:
    folders = [folder for folder in sorted(bench.parity_folder.iterdir()) if (folder / "expected.npz").exists()]
    jobs = [(folder.name, folder / "model.ckpt", folder) for folder in folders]
    if (bench.se600m / "expected.npz").exists():
        jobs.append(("SE-600M's size", bench.se600m, bench.se600m))
    for name, path, folder in jobs:
        with bench.ours() as ours:
            rows = ours("parity", path=str(path), expected=str(folder / "expected.npz"))
        for what in ("embedding", "predictions"):
            exact = max(row[what] for row in rows if row["cells"] == "exact")
            others = max(row[what] for row in rows if row["cells"] != "exact")
            for of, found in (("end to end", exact), ("on arc-state's sentences", others)):
                case, bar = f"{name}: {what}, {of}", f"<= {TOLERANCE:g}"
                yield Row("parity", case, "difference", found, bar=bar, met=found <= TOLERANCE)


def flops(bench: Bench) -> Iterator[Row]:
    for n_heads in (16, 8):
        model = next(m for m in MODELS if m.sizes["n_heads"] == n_heads and m.sizes["d_model"] == 512)
        checkpoint, path = bench.checkpoint(model.name, model.sizes), bench.cells(model.n_cells)
        with bench.ours() as ours:
            ours("load", path=checkpoint)
            work = ours("prepare_flops", path=path)
            found = [ours("flops") for _ in range(bench.repeats)]
        for counted in ("computed", "nominal"):
            for against in ("square", "tokens"):
                ratios = [f[counted] / f[against] for f in found]
                judged = counted == "computed" and against == "square"
                yield Row(
                    "flops",
                    f"512 x 8, {n_heads} heads, 1024 tokens: {counted} / {against}",
                    "GFLOP/s",
                    median(f[counted] for f in found) / 1e9,
                    median(f[against] for f in found) / 1e9,
                    median(ratios),
                    min(ratios),
                    max(ratios),
                    bar="ratio >= 0.8" if judged else "",
                    met=median(ratios) >= 0.8 if judged else None,
                    note=f"second column: the matmul; a cell is {work[counted] / work['n_cells'] / 1e9:.1f} GFLOP",
                )


PARTS = {
    "tokens": tokens,
    "loading": loading,
    "embedding": embedding,
    "flops": flops,
    "memory": memory,
    "parity": parity,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arc-python", required=True, help="a Python that has arc-state")
    parser.add_argument("--work", type=Path, help="folder of checkpoints and cells, kept for the next time")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, by default all: %(default)s")
    parser.add_argument("--models", default="", help="only those models of embedding that have this in their name")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--se600m", type=Path, help="folder made with --sizes se600m, for loading and parity")
    parser.add_argument("--parity", type=Path, help="folder made with --sizes parity")
    parser.add_argument("--out", type=Path, action="append", default=[], help=".csv or .json for the table; may repeat")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := set(names) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    if "loading" in names and arguments.se600m is None:
        parser.error("loading needs --se600m")
    if "parity" in names and arguments.parity is None:
        parser.error("parity needs --parity")
    if wrong := [str(path) for path in arguments.out if path.suffix not in {".csv", ".json"}]:
        parser.error(f"--out: {wrong[0]} must end in .csv or .json")
    arguments.models = [model for model in MODELS if arguments.models in model.name]
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        rows = run(Bench(arguments, work), names)
    for path in arguments.out:
        write(path, rows)


def run(bench: Bench, names: list[str]) -> list[Row]:
    """Run the parts and print every row as soon as it is there."""
    rows = []
    print(f"{'':68} {'unit':>10} {'ours':>10} {'arc':>10} {'ratio':>8} {'range':>15}  bar", flush=True)
    for name in names:
        for row in PARTS[name](bench):
            rows.append(row)
            print(line(row), flush=True)
    return rows


def line(row: Row) -> str:
    def number(value: float | None, width: int) -> str:
        return f"{'' if value is None else format(value, '.4g'):>{width}}"

    spread = "" if row.ratio_low is None else f"{row.ratio_low:.3g} to {row.ratio_high:.3g}"
    verdict = "" if row.met is None else f"{row.bar}: {'met' if row.met else 'MISSED'}"
    numbers = f"{number(row.ours, 10)} {number(row.arc, 10)} {number(row.ratio, 8)} {spread:>15}"
    note = f"({row.note})" if row.note else ""
    return f"{f'{row.part}: {row.case}':68} {row.unit:>10} {numbers}  {verdict} {note}".rstrip()


def write(path: Path, rows: list[Row]) -> None:
    """Write the table as CSV or JSON."""
    table = [asdict(row) for row in rows]
    with path.open("w", newline="") as file:
        if path.suffix == ".json":
            json.dump(table, file, indent=1)
        else:
            writer = csv.DictWriter(file, fieldnames=list(Row.__dataclass_fields__))
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
