"""What makes the scores of a prediction worthless, or better than they are: `audit`."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean
from scstate_lora.data import Registry
from scstate_lora.data.contexts import join_labels
from scstate_lora.data.model_split import hash_names
from scstate_lora.data.results import REGISTRY, is_predicted, read_prediction, read_result
from scstate_lora.tl.plain_cells import logged

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData

    Severity = Literal["error", "warning", "info"]

AUDIT_COLUMNS = ["check", "severity", "finding", "cells", "fix"]
_SAME_SCALE = (2 / 3, 3 / 2)  # of the mean expression of two sets of cells on one scale
_DECIMALS = 3  # of log1p expression by which cells are recognised
_FEWEST_GENES = 5  # that a cell must express to be recognised


def audit(
    train: AnnData | None,
    test: AnnData,
    *,
    pred: AnnData | None = None,
    pert_key: str | None = None,
    control: str | None = None,
    context_key: str | Sequence[str] = (),
    batch_key: str | None = None,
) -> pd.DataFrame:
    """Name what makes the scores of a prediction worthless, or better than they are.

    Works on any AnnData, set up or not; nothing is written.

    * ``same cells``: cells in both training and test, by name, and by their expression under other names.
    * ``trained on``: test cells that the model was trained on, by the split that it keeps.
    * ``seen``: which share of the test groups has training cells of its perturbation, of its context, of both.
    * ``shared controls``: control cells that the model was trained on beside perturbed cells of their context, and that
      the prediction starts from: their noise is in the prediction and in the measured change.
    * ``copied cells``: predicted cells that are measured test cells.
    * ``scale``: the mean expression of two sets of cells, over the genes of both, differs by more than half.
    * ``same batch``: batches, for instance donors, whose perturbed cells stand in both training and test.
    * ``confounded``: perturbations whose cells are of batches without any control cell of the context: an error, or a
      warning where several batches stand on both sides, as animals do that are either treated or not.
    * ``no controls``: contexts with perturbed test cells and without control cells.

    Parameters
    ----------
    train
        Training cells, control and perturbed; None leaves out what needs them.
    test
        Measured cells that a prediction is scored with, and their control cells.
    pred
        Predicted cells, of :meth:`~scstate_lora.STTransition.predict` or any model.
    pert_key, control
        Column of the perturbation and its control level; by default those of `pred`, else those that `test` was set up
        with.
    context_key
        Column or columns that define a context; by default all cells are one.
    batch_key
        Column of the batch or donor; by default the one that `test` was set up with, if any.

    Returns
    -------
    One row per finding: ``check``, ``severity`` (``"error"``: the scores mean nothing; ``"warning"``: they are better
    or worse than they should be; ``"info"``), ``finding`` in words, ``cells``: number of cells concerned, ``fix``.
    Errors come first.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If neither the arguments nor the data say which column holds the perturbation and which level is the control.
    """
    pert_key, control, batch_key = _roles(pred, test, pert_key, control, batch_key)
    keys = [context_key] if isinstance(context_key, str) else list(context_key)
    sides = {"test": _Side(test, "test", pert_key, control, keys, batch_key)}
    if train is not None:
        sides["train"] = _Side(train, "train", pert_key, control, keys, batch_key)
    found = _Findings()
    _check_test(found, sides["test"])
    if train is not None:
        _check_split(found, sides["train"], sides["test"], batch_key)
    if pred is not None:
        _check_prediction(found, pred, sides["test"], sides.get("train"), keys)
    _check_scales(found, {name: side.adata for name, side in sides.items()} | ({} if pred is None else {"pred": pred}))
    _check_batches(found, list(sides.values()), batch_key)
    table = pd.DataFrame(found.rows, columns=AUDIT_COLUMNS)
    order = table["severity"].map({"error": 0, "warning": 1, "info": 2}).astype(int)
    return table.iloc[np.argsort(order.to_numpy(), kind="stable")].reset_index(drop=True)


class _Findings:
    """The rows of the table."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(self, check: str, severity: Severity, finding: str, cells: int, fix: str) -> None:
        self.rows.append({"check": check, "severity": severity, "finding": finding, "cells": int(cells), "fix": fix})


class _Side:
    """Measured cells with their labels."""

    def __init__(
        self, adata: AnnData, name: str, pert_key: str, control: str, keys: Sequence[str], batch_key: str | None
    ) -> None:
        self.adata, self.name = adata, name
        self.perturbations = _labels(adata, pert_key, name)
        self.is_control = self.perturbations == control
        self.contexts = join_labels([_labels(adata, key, name) for key in keys], adata.n_obs)
        self.batches = None if batch_key is None else _labels(adata, batch_key, name)
        self.names = np.array(adata.obs_names, dtype=str)


def _roles(
    pred: AnnData | None, test: AnnData, pert_key: str | None, control: str | None, batch_key: str | None
) -> tuple[str, str, str | None]:
    if pred is not None and is_predicted(pred):
        prediction = read_prediction(pred)
        pert_key = prediction.pert_key if pert_key is None else pert_key
        control = prediction.control if control is None else control
    if read_result(test, REGISTRY) is not None:
        registry = Registry.from_adata(test)
        pert_key = registry.pert_key if pert_key is None else pert_key
        control = None if registry.control is None and control is None else str(control or registry.control)
        batch_key = registry.batch_key if batch_key is None else batch_key
    if pert_key is None or control is None:
        msg = (
            "Neither pred nor test says which column holds the perturbation and which level is the control. Give both: "
            "audit(train, test, pert_key=..., control=...)."
        )
        raise ValueError(msg)
    return pert_key, str(control), batch_key


def _labels(adata: AnnData, key: str, argument: str) -> np.ndarray:
    if key not in adata.obs:
        msg = f"{argument}.obs[{key!r}] does not exist. {did_you_mean(key, adata.obs.columns)}"
        raise KeyError(msg)
    return adata.obs[key].astype(str).to_numpy(dtype=object)


def _check_test(found: _Findings, test: _Side) -> None:
    for context in sorted(set(test.contexts[~test.is_control]) - set(test.contexts[test.is_control])):
        n = int(((test.contexts == context) & ~test.is_control).sum())
        found.add(
            "no controls", "warning", f"test has perturbed cells and no control cell in {context}", n,
            "add the context's control cells, or leave the context out",
        )  # fmt: skip


def _check_split(found: _Findings, train: _Side, test: _Side, batch_key: str | None) -> None:
    shared = np.isin(test.names, train.names)
    severities: dict[str, Severity] = {"perturbed": "error", "control": "info"}
    for kind, severity in severities.items():
        n = int((shared & (test.is_control == (kind == "control"))).sum())
        if n:
            found.add(
                "same cells", severity, f"{n} {kind} cells are in both train and test, by name", n,
                "leave them out of train, and train again",
            )  # fmt: skip
    genes = train.adata.var_names.intersection(test.adata.var_names)
    prints = [_fingerprints(side.adata, genes) for side in (train, test)]
    copies = np.isin(prints[1], prints[0][prints[0] != 0]) & (prints[1] != 0) & ~shared
    if copies.any():
        found.add(
            "same cells", "error", f"{int(copies.sum())} test cells have exactly the expression of training cells of "
            "other names", copies.sum(), "remove duplicated cells before splitting",
        )  # fmt: skip
    trained = set(zip(train.perturbations[~train.is_control], train.contexts[~train.is_control], strict=True))
    perturbed = ~test.is_control
    groups = pd.Series(list(zip(test.perturbations[perturbed], test.contexts[perturbed], strict=True)), dtype=object)
    perturbations, contexts = ({pair[i] for pair in trained} for i in (0, 1))
    for words, known in (
        ("both in training, together", [g in trained for g in groups]),
        (
            "both in training, though not together",
            [g not in trained and g[0] in perturbations and g[1] in contexts for g in groups],
        ),
        ("new by the context", [g[0] in perturbations and g[1] not in contexts for g in groups]),
        ("new by the perturbation", [g[0] not in perturbations and g[1] in contexts for g in groups]),
        ("new by both", [g[0] not in perturbations and g[1] not in contexts for g in groups]),
    ):
        n = int(np.sum(known))
        if n:
            text = f"perturbation and context of {n} of {len(groups)} perturbed test cells are {words}"
            found.add("seen", "info", text, n, "say which of these a score is about")
    if batch_key is not None and train.batches is not None and test.batches is not None:
        both = sorted(set(train.batches[~train.is_control]) & set(test.batches[~test.is_control]))
        if both:
            n = int(np.isin(test.batches[~test.is_control], both).sum())
            found.add(
                "same batch", "warning", f"{len(both)} levels of {batch_key!r} have perturbed cells in both train and "
                f"test: {_some(both)}", n, "split by it: scores then hold for new ones",
            )  # fmt: skip


def _check_prediction(found: _Findings, pred: AnnData, test: _Side, train: _Side | None, keys: Sequence[str]) -> None:
    if is_predicted(pred):
        trained = read_prediction(pred).train_cells
        n = 0 if trained is None else int(np.isin(hash_names(test.names[~test.is_control]), trained).sum())
        if n:
            found.add(
                "trained on", "error", f"the model was trained on {n} of the perturbed test cells", n,
                "score it with the test cells of its own split",
            )  # fmt: skip
    genes = pred.var_names.intersection(test.adata.var_names)
    of_pred, of_test = _fingerprints(pred, genes), _fingerprints(test.adata, genes)[~test.is_control]
    copied = np.isin(of_pred, of_test) & (of_pred != 0)
    if copied.any():
        found.add(
            "copied cells", "error", f"{int(copied.sum())} of {pred.n_obs} predicted cells are measured test cells",
            copied.sum(), "keep test cells from the model",
        )  # fmt: skip
    if "control_cell" not in pred.obs:
        found.add(
            "shared controls", "info", "pred.obs['control_cell'] does not say from which control cells was predicted: "
            "whether prediction and measured change share their noise is not known", pred.n_obs,
            "name the control cell of every predicted cell in pred.obs['control_cell']",
        )  # fmt: skip
        return
    if train is None:
        return
    used = set(pred.obs["control_cell"].astype(str))
    trained_contexts = set(train.contexts[~train.is_control])
    beside = train.is_control & np.isin(train.contexts, list(trained_contexts)) & np.isin(train.names, list(used))
    if beside.any():
        found.add(
            "shared controls", "warning", f"{int(beside.sum())} control cells that were predicted from are in train, "
            "beside perturbed cells of their context: their noise is in the prediction and in the measured change",
            beside.sum(), "hold control cells out of the training, and predict from these",
        )  # fmt: skip


def _check_scales(found: _Findings, sides: dict[str, AnnData]) -> None:
    (first, reference), *others = sides.items()
    for name, adata in others:
        genes = reference.var_names.intersection(adata.var_names)
        if not len(genes):
            found.add("scale", "error", f"{first} and {name} share no gene", adata.n_obs, "give both the same names")
            continue
        means = [float(logged(side)[:, side.var_names.get_indexer(genes)].mean()) for side in (adata, reference)]
        ratio = means[0] / means[1] if means[1] > 0 else np.inf
        if not _SAME_SCALE[0] < ratio < _SAME_SCALE[1]:
            found.add(
                "scale", "error", f"the mean log expression of {name} is {ratio:.2g} times that of {first}, over "
                f"{len(genes)} genes: they are not on one scale", adata.n_obs,
                "bring both to log1p of counts per 10,000",
            )  # fmt: skip


def _check_batches(found: _Findings, sides: Iterable[_Side], batch_key: str | None) -> None:
    if batch_key is None:
        return
    parts = [
        pd.DataFrame(
            {
                "pert": s.perturbations,
                "context": s.contexts,
                "batch": s.batches,
                "control": s.is_control,
                "name": s.names,
            }
        )
        for s in sides
    ]
    cells = pd.concat(parts).drop_duplicates("name")
    with_controls = set(map(tuple, cells.loc[cells["control"], ["context", "batch"]].to_numpy()))
    perturbed = cells[~cells["control"]]
    lone = np.array([(c, b) not in with_controls for c, b in perturbed[["context", "batch"]].to_numpy()], dtype=bool)
    for name, part in perturbed.assign(lone=lone).groupby("pert", sort=True):
        if not part["lone"].all():
            continue
        batches = sorted(set(part["batch"]))
        alone = f"every cell of {name!r} is of {batch_key} {_some(batches)}, which has no control cell of the same "
        "context"
        n_control = cells.loc[cells["control"] & cells["context"].isin(part["context"]), "batch"].nunique()
        if min(len(batches), n_control) > 1:  # as animals are, which cannot be treated and untreated
            found.add(
                "confounded", "warning", f"{alone}: {len(batches)} batches stand against {n_control} of the "
                "controls, and their differences are in the effect", len(part),
                "count batches, not cells: the effect is as sure as so few of them can make it",
            )  # fmt: skip
        else:
            found.add(
                "confounded", "error", f"{alone}: the effect cannot be told from the batch", len(part),
                "add control cells of that batch, or leave the perturbation out",
            )  # fmt: skip


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _fingerprints(adata: AnnData, genes: pd.Index) -> np.ndarray:
    """Hash the expression of each cell over some genes, 0 for one with too few expressed genes."""
    matrix = logged(adata)[:, adata.var_names.get_indexer(genes)].tocsr()
    matrix.data = np.round(matrix.data, _DECIMALS).astype(np.float32)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    prints = np.zeros(matrix.shape[0], dtype=np.uint64)
    for i, (start, stop) in enumerate(zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)):
        if stop - start >= _FEWEST_GENES:
            columns = matrix.indices[start:stop].astype(np.int32).tobytes()
            low, high = zlib.crc32(columns), zlib.crc32(matrix.data[start:stop].tobytes(), 1)
            prints[i] = np.uint64(low) << np.uint64(32) | np.uint64(high)
    return prints
