"""The main job: train, predict, score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from threadpoolctl import ThreadpoolController

from scstate_lora import tl
from scstate_lora._constants import OBS_SPLIT
from scstate_lora._logging import logger
from scstate_lora._utils import progress_bar
from scstate_lora.data import Registry
from scstate_lora.data.bound import BoundData
from scstate_lora.data.results import (
    EVALUATE,
    read_result,
)
from scstate_lora.model import Models
from scstate_lora.reporting import begin_report, report
from scstate_lora.tl.scoring.held_out import HeldOutCells
from scstate_lora.workflow.features import read_features
from scstate_lora.workflow.folder import PARTS, ResultsFolder, is_first_process
from scstate_lora.workflow.one_model import train_models
from scstate_lora.workflow.prediction import StoredPredictions, write_predictions
from scstate_lora.workflow.results_file import write_run_results

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    from scstate_lora.config import RunConfig
    from scstate_lora.model import STTransition

# With fewer cells the standard error of an accuracy exceeds 0.07.
_FEWEST_SCORED = 50
_MANY = 5  # targets: from so many on progress is shown, and sets are taken to be small


@dataclass(frozen=True)
class Run:
    """Results of a run.

    Parameters
    ----------
    adata
        The cells with embeddings, split and scores.
    models
        Both models.
    predictions
        Predicted cells, one AnnData per target, each read from ``predictions.h5ad`` when it is asked for.
    """

    adata: AnnData
    models: Models
    predictions: Sequence[AnnData]


def run(
    data: AnnData | MuData,
    config: RunConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    title: str | None = None,
) -> Run:
    """Do the whole job on one experiment.

    Parameters
    ----------
    data
        Cells x genes; embeddings and scores are added to it.
    config
        All options. Without a perturbation, or with ``st`` None, nothing is predicted.
    folder
        Folder of the results: ``adata.h5ad``, ``predictions.h5ad``, ``config.yaml``, ``results.json``,
        ``tables/*.csv``, ``models/se`` and ``models/st``, ``logs/base``, ``logs/se`` and ``logs/st`` (``metrics.csv``
        and TensorBoard).
    resume, overwrite
        Continue, or replace, the run in this folder, see :func:`train`.
    title
        Heading of ``report.html``; None: no report.

    Raises
    ------
    TypeError, KeyError, ValueError
        As :func:`scstate_lora.setup_anndata`, and if the section ``se`` is missing.
    FileExistsError
        As :func:`train`.

    Notes
    -----
    Every error is raised before any training, and nothing is written then.
    """
    if config.se is None:
        msg = "The main job needs the embedding model, but se is null. To train the other one: scstate-lora train."
        raise ValueError(msg)
    place = ResultsFolder(folder, overwrite=overwrite)
    trained = train_models(data, config, place, resume=resume)
    adata, se, st = trained.adata, trained.se, trained.st
    assert se is not None  # config.se is not
    heading = title if is_first_process() else None
    predictions: StoredPredictions | None = None
    if st is not None and st.targets and is_first_process():
        file = place.path / "predictions.h5ad"
        write_predictions(file, _predicted(st), n_targets=len(st.targets))
        predictions = StoredPredictions(file)
    if heading is not None:
        begin_report(adata)  # on the core that scoring leaves free
    if st is not None and predictions is not None:
        path = config.st.pert_features if config.st is not None else None
        table = score_predictions(predictions, adata, None if path is None else read_features(path))
        if table is not None:
            predictions.add_scores(table)
        place.write_table("perturbation", table)
    score_embeddings(adata)

    place.write_table("embeddings", read_result(adata, EVALUATE))
    place.write_cells("adata", adata)
    place.drop(*(path for part in PARTS for path in place.logs(part).glob("**/checkpoints")))  # the models are saved
    models = Models(se, st)
    if heading is not None:
        report(adata, models, place.path / "report.html", predictions=predictions, title=heading)
    if is_first_process():
        write_run_results(place, config, adata)
    place.finish()
    if predictions is not None:
        predictions.path = place.path / predictions.path.name
    return Run(adata, models, [] if predictions is None else predictions)


def _predicted(st: STTransition) -> Iterator[AnnData]:
    """Predict every target for all controls, one after the other."""
    for name, why in st.perts.untrained.items():
        logger.warning("%r is not predicted: %s", name, why)
    for target in progress_bar(st.targets, desc="Predicting", unit="target", disable=len(st.targets) < _MANY):
        yield st.predict(target=target)


def score_predictions(
    predictions: StoredPredictions, adata: AnnData, features: pd.DataFrame | None
) -> pd.DataFrame | None:
    """Score the predictions with held-out cells; None, and a warning that says why, where nothing can be scored."""
    registry = Registry.from_adata(adata)
    # Few held-out cells share all of a context's keys; the cell type alone makes groups large enough to score.
    keys = [registry.cell_type_key] if registry.cell_type_key is not None else registry.context_keys
    if not predictions.n_vars:
        logger.warning("The predictions are not scored: they are embeddings without a gene decoder.")
        return None
    cells = HeldOutCells(BoundData(registry, adata), genes=predictions.genes, context_keys=keys, pert_features=features)
    held_out = [target for target in predictions.targets if cells.is_held_out(target).any()]
    table = None
    if held_out:
        # The sets of a screen are small: threads cost more than they give, and far more beside other programs.
        with ThreadpoolController().limit(limits=1 if len(held_out) >= _MANY else None, user_api="blas"):
            try:
                table = cells.score_all(held_out, predictions.of, name="STTransition")
            except (ValueError, KeyError) as error:  # hours of training must not end here
                logger.warning("The predictions are not scored: %s", error.args[0])
                return None
    scored = set() if table is None else set(table["perturbation"])
    for target in predictions.targets:
        if target not in held_out:
            logger.warning("The prediction of %r is not scored: no cell of it was held out.", target)
        elif target not in scored:
            logger.warning("The prediction of %r is not scored: its held-out cells have no control cells.", target)
    return table


def score_embeddings(adata: AnnData) -> None:
    """Score the embeddings on cells that no model was trained on, or on all cells if these are too few."""
    unseen = (adata.obs[OBS_SPLIT] != "train").to_numpy()
    n_unseen = int(unseen.sum())
    table = tl.evaluate(adata, cells=unseen) if n_unseen >= _FEWEST_SCORED else None
    if table is not None and table["value"].notna().any():
        logger.info("The embeddings are scored on the %d cells that were not trained on.", n_unseen)
    elif adata.n_obs < _FEWEST_SCORED:
        logger.warning("%d cells are too few to score the embeddings.", adata.n_obs)
    else:
        note = f"scored on all cells, training ones included: {n_unseen} others are too few"
        logger.warning("The embeddings are %s.", note)
        table = tl.evaluate(adata)
        table["reason"] = [f"{note}; {reason}" if reason else note for reason in table["reason"]]
