"""The main job: train, predict, score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from scstate_lora import tl
from scstate_lora._constants import OBS_SPLIT
from scstate_lora._logging import logger
from scstate_lora.data.results import (
    EVALUATE,
    EVALUATE_PERTURBATION,
    PREDICT,
    read_prediction,
    read_result,
    write_result,
)
from scstate_lora.model import Models
from scstate_lora.workflow.features import read_features
from scstate_lora.workflow.folder import PARTS, ResultsFolder
from scstate_lora.workflow.one_model import train_models

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from mudata import MuData

    from scstate_lora.config import RunConfig
    from scstate_lora.data import Registry
    from scstate_lora.model import STTransition

# Of fewer cells an accuracy has a standard error of more than 0.07.
_FEWEST_SCORED = 50


@dataclass(frozen=True)
class Run:
    """What a run made.

    Parameters
    ----------
    adata
        The cells with embeddings, split and scores.
    models
        Both models.
    predictions
        Predicted cells, one AnnData a target.
    """

    adata: AnnData
    models: Models
    predictions: list[AnnData]


def run(data: AnnData | MuData, config: RunConfig, folder: str | Path, *, resume: bool = False) -> Run:
    """Do the whole job on one experiment, but for the report.

    Parameters
    ----------
    data
        Cells x genes; embeddings and scores are added to it.
    config
        Everything that can be chosen. A perturbation is predicted where there is one, unless ``st`` is None.
    folder
        Where the results are written: ``adata.h5ad``, ``predictions.h5ad``, ``config.yaml``, ``tables/*.csv``,
        ``models/se`` and ``models/st``, ``logs/base``, ``logs/se`` and ``logs/st`` (``metrics.csv`` and TensorBoard).
        The results of an earlier run are replaced.
    resume
        Go on with the run that was interrupted in this folder, see :func:`train`.

    Raises
    ------
    TypeError, KeyError, ValueError
        As :func:`scstate_lora.setup_anndata`; or the section ``se`` is missing.
    FileExistsError
        As :func:`train`.

    Notes
    -----
    Every error is raised before any training, and nothing is written then.
    """
    if config.se is None:
        msg = (
            "The whole job needs the embedding model, and se is null. To train the other one alone: scstate-lora train."
        )
        raise ValueError(msg)
    place = ResultsFolder(folder)
    trained = train_models(data, config, place, resume=resume)
    adata, se, st = trained.adata, trained.se, trained.st
    assert se is not None  # asked for
    predictions = []
    if st is not None:
        path = config.st.pert_features if config.st is not None else None
        features = None if path is None else read_features(path)
        predictions = [_predict_and_score(st, adata, target, features) for target in st.registry.targets]
    _score_embeddings(adata)

    place.write_table("embeddings", read_result(adata, EVALUATE))
    place.write_table("perturbation", _scores(predictions))
    if predictions:
        place.write_cells("predictions", _join(predictions))
    place.write_cells("adata", adata)
    place.drop(*(path for part in PARTS for path in place.logs(part).glob("**/checkpoints")))  # the models are saved
    return Run(adata, Models(se, st), predictions)


def _predict_and_score(st: STTransition, adata: AnnData, target: str, features: pd.DataFrame | None) -> AnnData:
    """Predict a target for all controls, and score the prediction where perturbed cells were held out."""
    predicted = st.predict(target=target)
    try:
        _score_prediction(predicted, adata, st.registry, target, features)
    except (ValueError, KeyError) as error:  # hours of training must not end here
        logger.warning("The prediction of %r is not scored: %s", target, error.args[0])
    return predicted


def _score_prediction(
    predicted: AnnData, adata: AnnData, registry: Registry, target: str, features: pd.DataFrame | None
) -> None:
    if not predicted.n_vars:
        msg = "it is an embedding without a gene decoder, and scores are of genes."
        raise ValueError(msg)
    perts = registry.labels(adata, str(registry.pert_key))
    split = adata.obs[OBS_SPLIT].to_numpy()
    held_out = (split == "test") & (perts == target)
    if not held_out.any():
        msg = "no cell of it was held out."
        raise ValueError(msg)
    # Few held-out cells share all of a context's keys; the cell type alone makes groups large enough to score.
    keys = [registry.cell_type_key] if registry.cell_type_key is not None else registry.context_keys
    contexts = _groups(adata.obs, keys)
    part = predicted[np.isin(_groups(predicted.obs, keys), contexts[held_out])].copy()
    tl.evaluate_perturbation(
        part,
        adata[held_out],
        adata[(perts == registry.control) & np.isin(contexts, contexts[held_out])],
        train=adata[split == "train"],
        context_key=keys,
        pert_features=features,
        name="STTransition",
    )
    write_result(predicted, EVALUATE_PERTURBATION, read_result(part, EVALUATE_PERTURBATION))


def _groups(obs: pd.DataFrame, keys: list[str]) -> np.ndarray:
    if not keys:
        return np.full(len(obs), "all")
    return obs[keys].astype(str).agg(" | ".join, axis=1).to_numpy(dtype=str)


def _score_embeddings(adata: AnnData) -> None:
    """Score the embeddings on the cells that were not trained on, or on all cells where those are too few."""
    unseen = (adata.obs[OBS_SPLIT] != "train").to_numpy()
    n_unseen = int(unseen.sum())
    table = tl.evaluate(adata, cells=unseen) if n_unseen >= _FEWEST_SCORED else None
    if table is not None and table["value"].notna().any():
        logger.info("The embeddings are scored on the %d cells that were not trained on.", n_unseen)
    elif adata.n_obs < _FEWEST_SCORED:
        logger.warning("%d cells are too few to score the embeddings.", adata.n_obs)
    else:
        said = f"scored on all cells, training ones included: {n_unseen} others are too few"
        logger.warning("The embeddings are %s.", said)
        table = tl.evaluate(adata)
        table["reason"] = [f"{said}; {reason}" if reason else said for reason in table["reason"]]


def _scores(predictions: list[AnnData]) -> pd.DataFrame | None:
    """Join the scores of the predictions that have any."""
    tables = {read_prediction(p).targets[0]: read_result(p, EVALUATE_PERTURBATION) for p in predictions}
    scored = [table.assign(target=target) for target, table in tables.items() if table is not None]
    return pd.concat(scored) if scored else None


def _join(predictions: list[AnnData]) -> AnnData:
    """Join all targets' predicted cells in one AnnData; scores are kept where there is one target."""
    if len(predictions) == 1:
        return predictions[0]
    joined = ad.concat(predictions, merge="same")
    descriptions = [read_prediction(p) for p in predictions]
    targets = [target for description in descriptions for target in description.targets]
    write_result(joined, PREDICT, descriptions[0]._replace(targets=targets).record())
    return joined
