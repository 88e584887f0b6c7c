"""Scores of cells in files: predictions of any model beside baselines, with an audit, and embeddings beside a PCA."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scstate_lora import tl
from scstate_lora._constants import OBS_SPLIT
from scstate_lora._logging import logger
from scstate_lora._utils import did_you_mean
from scstate_lora.config import DataConfig
from scstate_lora.config.evaluate import SHARED
from scstate_lora.data import Registry
from scstate_lora.data.bound import BoundData
from scstate_lora.data.fields import obs_column
from scstate_lora.data.log_scale import describe_scale
from scstate_lora.data.model_split import ModelSplit, hash_names
from scstate_lora.data.results import LIBRARY_SIZE, REGISTRY, is_predicted, read_result
from scstate_lora.data.split_column import SPLITS, write_split
from scstate_lora.data.splits import SplitRules, make_split
from scstate_lora.tl.scoring.held_out import HeldOutCells
from scstate_lora.workflow.results_file import split_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    import pandas as pd
    from anndata import AnnData

    from scstate_lora.config.evaluate import EvaluateEmbeddingsOptions, EvaluateOptions


class Evaluated(NamedTuple):
    """What an evaluation found."""

    tables: dict[str, pd.DataFrame]
    """Tables by name."""
    split: dict[str, Any]
    """Description of the split, see :func:`scstate_lora.workflow.results_file.split_record`."""
    scored: AnnData
    """The cells that were scored: predicted ones with the genes that were chosen, or those with embeddings."""


class _Measured(NamedTuple):
    """Measured cells by what they are for."""

    tested: AnnData
    """Cells that predictions are compared with, and their controls."""
    controls: AnnData
    """Cells among which the controls are."""
    train: AnnData | None
    """Cells that baselines learn from."""
    split: dict[str, Any]


def evaluate_cells(
    pred: AnnData,
    real: AnnData,
    train: AnnData | None,
    options: EvaluateOptions,
    *,
    pert_features: pd.DataFrame | None = None,
    genes: Sequence[str] | None = None,
) -> Evaluated:
    """Score predicted cells of any model, and audit them.

    Parameters
    ----------
    pred
        Predicted cells, see :func:`scstate_lora.tl.evaluate_perturbation`.
    real
        Measured cells, control and perturbed; they are set up here.
    train
        Training cells, control and perturbed; None: those of `real`, by its split.
    options
        All options; the perturbation and its control level must be named.
    pert_features
        Features of perturbations for the linear baseline.
    genes
        Genes that are scored, if `options` names a file of them.

    Returns
    -------
    Tables ``perturbation``, as of :func:`scstate_lora.tl.evaluate_perturbation`, and ``audit``, as of
    :func:`scstate_lora.tl.audit`.

    Raises
    ------
    KeyError, TypeError, ValueError
        As these two, as the set-up of `real` and `train`, and if a split holds out nothing that was predicted.
    """
    pred = _with_genes(pred, real, options, genes)
    measured = _measured(real, train, options)
    scores = tl.evaluate_perturbation(
        pred,
        measured.tested,
        measured.controls,
        context_key=options.context_key,
        train=measured.train,
        pert_key=options.pert_key,
        pert_features=pert_features,
        name=options.name,
        min_cells=options.min_cells,
        weights=options.weights,
        n_boot=options.n_boot,
        seed=options.seed,
    )
    findings = tl.audit(
        measured.train,
        measured.tested,
        pred=pred,
        pert_key=options.pert_key,
        control=options.control,
        context_key=options.context_key,
        batch_key=options.batch_key,
    )
    return Evaluated({"perturbation": scores, "audit": findings}, measured.split, pred)


def evaluate_embeddings(cells: AnnData, options: EvaluateEmbeddingsOptions) -> Evaluated:
    """Score the embeddings of cells by :func:`scstate_lora.tl.evaluate`; the table is called ``embeddings``.

    Parameters
    ----------
    cells
        The cells; if they were not set up, they are set up here.
    options
        All options.

    Raises
    ------
    KeyError, ValueError
        As ``evaluate``, and if cells that were set up are to be read otherwise.
    """
    if read_result(cells, REGISTRY) is None:
        _set_up(cells, DataConfig(layer=options.layer, input_scale=options.input_scale), "The file")
    elif options.layer is not None or options.input_scale is not None:
        msg = "layer= and input_scale= are for cells that were not set up; these were. Leave them out."
        raise ValueError(msg)
    metrics = options.metrics
    table = tl.evaluate(
        cells,
        options.embedding or None,
        metrics=metrics[0] if len(metrics) == 1 else metrics,
        label_key=options.label_key,
        batch_key=options.batch_key,
        covariate_keys=options.covariate or None,
        n_pcs=options.n_pcs,
        n_neighbors=options.n_neighbors,
        seed=options.seed,
    )
    return Evaluated({"embeddings": table}, {}, cells)


def read_genes(path: Path) -> list[str]:
    """Read names of genes, one per line; empty lines are passed over.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it holds no name, or one twice.
    """
    if not path.is_file():
        msg = f"genes: there is no file {path}. Name a text file with one gene per line, or 'shared'."
        raise FileNotFoundError(msg)
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not names:
        msg = f"genes: {path} " + (f"names {twice[0]!r} more than once." if twice else "holds no name.")
        raise ValueError(msg)
    return names


def _with_genes(pred: AnnData, real: AnnData, options: EvaluateOptions, genes: Sequence[str] | None) -> AnnData:
    """Take the genes of a prediction that are scored; its counts over all genes stay known."""
    if options.genes is None:
        return pred
    if options.genes == SHARED:
        genes = list(pred.var_names[pred.var_names.isin(real.var_names)])
    assert genes is not None  # the caller has read the file
    missing = [gene for gene in genes if gene not in pred.var_names]
    if missing:
        msg = f"{missing[0]!r}, one of {options.genes}, is no gene of PRED. {did_you_mean(missing[0], pred.var_names)}"
        raise KeyError(msg)
    if not len(genes):
        msg = "PRED and REAL have no gene in common: give both the same names of genes."
        raise ValueError(msg)
    logger.info("%d of the %d genes of PRED are scored.", len(genes), pred.n_vars)
    if not is_predicted(pred) and LIBRARY_SIZE not in pred.obs and real.var_names.isin(pred.var_names).all():
        pred.obs[LIBRARY_SIZE] = np.asarray(pred.X.sum(axis=1)).ravel()  # read if they are counts
    return pred[:, list(genes)].copy()


def _measured(real: AnnData, train: AnnData | None, options: EvaluateOptions) -> _Measured:
    """Set measured cells up, and tell those that are scored from those that baselines learn from."""
    data = options.data()
    if train is None and data.split_key is None and data.holdout is None and OBS_SPLIT in real.obs:
        data = data.model_copy(update={"split_key": OBS_SPLIT})
    if train is not None:
        if data.split_key is not None or data.holdout is not None:
            msg = "split_key= and holdout= find training cells in REAL. With a file of training cells leave them out."
            raise ValueError(msg)
        _set_up(train, data, "The file of training cells")
        _set_up(real, data, "REAL")
        write_split(real, np.full(real.n_obs, "test", dtype=object))
        parts = np.repeat(np.array([SPLITS.index("train"), SPLITS.index("test")], np.int8), [train.n_obs, real.n_obs])
        names = np.concatenate([hash_names(train.obs_names), hash_names(real.obs_names)])
        split = ModelSplit(names, parts, np.full(len(names), -1, dtype=np.int32))
        return _Measured(real, real, train, split_record(split, "a file of training cells"))
    registry = _set_up(real, data, "REAL")
    if data.split_key is None and data.holdout is None:
        logger.warning(
            "There are no training cells, so that the baselines cannot learn: only 'no change' is beside the model. "
            "Name the training cells by --split-key or --holdout, or give a file of them by --train."
        )
        write_split(real, np.full(real.n_obs, "test", dtype=object))
        return _Measured(real, real, None, split_record(ModelSplit.of(BoundData(registry, real)), "none"))
    rules = SplitRules.of(data, seed=options.seed)
    write_split(real, make_split(BoundData(registry, real), rules))
    cells = BoundData(registry, real)
    held_out = (cells.split == "test") & ~cells.is_control
    if not held_out.any():
        msg = f"{rules.source} holds out no perturbed cell of REAL, so that there is nothing to score."
        raise ValueError(msg)
    grouped = HeldOutCells(cells, genes=[], context_keys=options.context_key)
    controls = grouped.controls_in_use & np.isin(grouped.contexts, grouped.contexts[held_out])
    logger.info("Scored are %d held-out cells, with %d control cells.", held_out.sum(), controls.sum())
    return _Measured(
        tested=real[held_out | controls],
        controls=real[controls],
        train=real[cells.split == "train"],
        split=split_record(ModelSplit.of(cells), rules.source),
    )


def _set_up(cells: AnnData, data: DataConfig, name: str) -> Registry:
    """Validate cells and write their registry; cells that were set up before are read as they were then."""
    earlier = read_result(cells, REGISTRY)
    if earlier is not None and data.layer is None and data.input_scale is None:
        known = Registry.from_json(earlier)
        total = known.target_sum if known.scale == "counts" else None
        as_before = {"layer": known.layer, "input_scale": known.scale, "gene_key": known.gene_key, "target_sum": total}
        data = data.model_copy(update=as_before)
    for key in data.columns:
        obs_column(cells, key, allow_missing=True)
    registry = Registry.create(cells, data)
    registry.write(cells)
    logger.info("%s holds %s (%s).", name, registry.scale, registry.scale_reason)
    logger.info("Scored are %s.", describe_scale(registry.target_sum))
    return registry
