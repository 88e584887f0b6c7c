"""Repeat the scores of a file of results from its files and options, and say what differs."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
from threadpoolctl import ThreadpoolController

from scstate_lora.config.evaluate import EvaluateEmbeddingsOptions, EvaluateOptions
from scstate_lora.data.results import EVALUATE, drop_result, read_result
from scstate_lora.workflow.evaluation import evaluate_cells, evaluate_embeddings, read_genes
from scstate_lora.workflow.features import read_features
from scstate_lora.workflow.main_job import score_embeddings, score_predictions
from scstate_lora.workflow.prediction import StoredPredictions
from scstate_lora.workflow.results_file import (
    FILE_NAME,
    Difference,
    Results,
    compare,
    describe_file,
    package_versions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

    Read = Callable[[Path], AnnData]


@dataclass(frozen=True)
class Replay:
    """Outcome of a repetition.

    Parameters
    ----------
    numbers
        How the tables differ from the recorded ones.
    files
        Files whose content has changed, in words.
    versions
        Packages whose version has changed, in words.
    """

    numbers: Difference
    files: list[str]
    versions: list[str]


def replay(path: Path, *, read: Read, moved: Mapping[str, Path] | None = None) -> Replay:
    """Repeat the scores that a file of results holds, with as many threads. Nothing is trained or written.

    Of a run, its stored predictions are scored with its stored cells again, and its embeddings.

    Parameters
    ----------
    path
        The file, or the folder that holds it.
    read
        Reads a file of cells.
    moved
        Where files are now that are no longer in their place, by role.

    Raises
    ------
    FileNotFoundError
        If a file is gone.
    ValueError
        If `path` is no file of results, or of another format version.
    """
    path = path / FILE_NAME if path.is_dir() else path
    results = Results.read(path)
    if results.command not in _COMMANDS:
        msg = (
            f"{path} is of the command {results.command!r}, whose numbers come from training: to repeat them, run that "
            f"command with the recorded settings. Scores are repeated of {', '.join(_COMMANDS)}."
        )
        raise ValueError(msg)
    files = {
        role: _find(role, described, path, moved or {})
        for role, described in results.files.items()
        if role != "input"  # trained on, and not read here
    }
    changed = []
    for role, file in files.items():
        then, now = (d["sha256"][:12] for d in (results.files[role], describe_file(file, path.parent)))
        if now != then:
            changed.append(f"{role}, {file}: the content is not the recorded one (SHA-256 {then}… then, {now}… now)")
    with _threads(int(results.versions["threads"])):
        found = package_versions()
        tables = _COMMANDS[results.command](results.settings, files, read)
    changes = {name: then for name, then in results.versions.items() if found.get(name) != then}
    versions = [f"{name} {then} then, {found.get(name)} now" for name, then in changes.items()]
    recorded = {name: table for name, table in results.tables.items() if name in _SCORES}
    return Replay(compare(recorded, tables), changed, versions)


_SCORES = ("perturbation", "audit", "embeddings")
"""Tables that are computed again: all but those of splits and trainings."""


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Within this context so many threads share a sum; numba's, too, as more of them would raise the others' number."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(number, numba.config.NUMBA_NUM_THREADS))
    try:
        with ThreadpoolController().limit(limits=number):
            yield
    finally:
        numba.set_num_threads(before)


def _find(role: str, described: Mapping[str, Any], path: Path, moved: Mapping[str, Path]) -> Path:
    """Find a recorded file."""
    file = moved.get(role, path.parent / described["path"])
    if not file.is_file():
        msg = (
            f"{role}: there is no file {file}, which {path} names; it had {described['bytes']:,} bytes and the SHA-256 "
            f"{described['sha256'][:12]}…. Without it nothing can be repeated: put it back"
        )
        msg += f", or give its new place as {_PLACES[role]}." if role in _PLACES else "."
        raise FileNotFoundError(msg)
    return file


_PLACES = {
    "pred": "the first argument",
    "cells": "the first argument",
    "real": "the second argument",
    "train": "--train",
}
"""Where the command line takes the new place of a file."""


def _evaluate(settings: dict[str, Any], files: Mapping[str, Path], read: Read) -> dict[str, pd.DataFrame]:
    options = EvaluateOptions.parse(settings, name="settings")
    return evaluate_cells(
        read(files["pred"]),
        read(files["real"]),
        read(files["train"]) if "train" in files else None,
        options,
        pert_features=read_features(files["pert_features"]) if "pert_features" in files else None,
        genes=read_genes(files["genes"]) if "genes" in files else None,
    ).tables


def _evaluate_embeddings(settings: dict[str, Any], files: Mapping[str, Path], read: Read) -> dict[str, pd.DataFrame]:
    options = EvaluateEmbeddingsOptions.parse(settings, name="settings")
    return evaluate_embeddings(read(files["cells"]), options).tables


def _run(settings: dict[str, Any], files: Mapping[str, Path], read: Read) -> dict[str, pd.DataFrame]:
    cells = read(files["real"])
    tables = {}
    if "pred" in files:
        features = read_features(files["pert_features"]) if "pert_features" in files else None
        tables["perturbation"] = score_predictions(StoredPredictions(files["pred"]), cells, features)
    drop_result(cells, EVALUATE)  # that of the run
    score_embeddings(cells)
    tables["embeddings"] = read_result(cells, EVALUATE)
    return {name: table for name, table in tables.items() if table is not None}


_COMMANDS: dict[str, Callable[[dict[str, Any], Mapping[str, Path], Read], dict[str, pd.DataFrame]]] = {
    "run": _run,
    "evaluate": _evaluate,
    "evaluate-embeddings": _evaluate_embeddings,
}
