"""The main job in one call: set up, train, embed, predict, evaluate, and leave it all in a folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from scstate_lora import tl
from scstate_lora._constants import OBS_SPLIT, OBSM_BASE, OBSM_SE, OBSM_ST, UNS_KEY
from scstate_lora._logging import logger
from scstate_lora._utils import did_you_mean
from scstate_lora.config import RunConfig, TrainConfig, to_yaml
from scstate_lora.data.splits import split_table
from scstate_lora.model import LoRACovariateSE, Models, STTransition
from scstate_lora.model._register import register
from scstate_lora.training.runner import TrainerOptions

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scstate_lora.data import Registry

_CONFIG = "config.yaml"
_MARK = "# All options of a run of scstate_lora"
_TABLES = ("split", "embeddings", "perturbation", "history_base", "history_se", "history_st")
_RESULTS = (
    _CONFIG,
    "adata.h5ad",
    "predictions.h5ad",
    "report.html",
    "models/se",
    "models/st",
    *(f"tables/{name}.csv" for name in _TABLES),
)
_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
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


def run(data: AnnData | MuData, config: RunConfig, folder: str | Path) -> Run:
    """Do the whole job on one experiment, but for the report.

    Parameters
    ----------
    data
        Cells x genes; embeddings and scores are added to it.
    config
        Everything that can be chosen.
    folder
        Where the results are written: ``adata.h5ad``, ``predictions.h5ad``, ``config.yaml``, ``tables/*.csv``,
        ``models/se`` and ``models/st``, ``logs/base``, ``logs/se`` and ``logs/st`` (CSV and TensorBoard). The results
        of an earlier run are replaced.

    Raises
    ------
    TypeError, KeyError, ValueError
        As :func:`scstate_lora.setup_anndata`.
    FileExistsError
        ``folder`` holds files that would be overwritten and are not of an earlier run.

    All of these before any training, and nothing is written then.
    """
    folder = Path(folder)
    _check_trainer(config)
    adata, registry = register(data, **config.data.model_dump(), seed=config.seed)
    se = LoRACovariateSE(
        adata,
        base=config.base,
        lora=config.se.lora,
        conditioning=config.se.conditioning,
        compact=config.se.compact,
        objective=config.se.objective,
        seed=config.seed,
    )
    st = STTransition(adata, model=config.st.model, seed=config.seed) if registry.pert_key is not None else None
    is_new = not folder.exists()
    _start(folder, config)
    _drop_earlier_results(adata)
    split_table(adata, registry).to_csv(folder / "tables" / "split.csv", index=False)

    if se.base is None:
        try:
            se.train_base(**_trainer(config, folder, "base"))
        except ValueError:  # too few cells to train on: the last refusal there can be
            if is_new:
                shutil.rmtree(folder)
            raise
    se.train(**_training(config.se.train), **_trainer(config, folder, "se"))
    se.get_latent_representation()
    se.save(folder / "models" / "se")
    predictions: list[AnnData] = []
    if st is not None:
        st.train(**_training(config.st.train), **_trainer(config, folder, "st"))
        st.get_latent_representation()
        st.save(folder / "models" / "st")
        predictions = [_predict_and_score(st, adata, target) for target in registry.targets]
    _score_embeddings(adata)

    models = Models(se, st)
    _write_tables(models, adata, predictions, folder / "tables")
    if predictions:
        _join(predictions).write_h5ad(folder / "predictions.h5ad", compression="gzip")
    adata.write_h5ad(folder / "adata.h5ad", compression="gzip")
    return Run(adata, models, predictions)


def _check_trainer(config: RunConfig) -> None:
    """Refuse a device or precision that is not there before anything is written."""
    TrainerOptions(accelerator=config.accelerator, precision=config.precision, early_stopping=config.early_stopping)
    if config.precision not in (None, *_PRECISIONS):
        msg = f"precision={config.precision!r} is unknown. {did_you_mean(config.precision, _PRECISIONS)}"
        raise ValueError(msg)


def _start(folder: Path, config: RunConfig) -> None:
    """Make the folder, without the results of an earlier run, and write the configuration that marks it as ours."""
    ours = [folder / name for name in _RESULTS]
    ours += [file for part in ("base", "se", "st") for file in sorted((folder / "logs" / part).glob("*"))]
    there = [path for path in ours if path.exists()]
    if there and not _is_earlier_run(folder):
        msg = (
            f"{there[0]} exists and would be overwritten, and {folder} is not the folder of an earlier run. "
            "Choose another folder, or move it away."
        )
        raise FileExistsError(msg)
    if there:
        logger.info("Replacing the results of an earlier run in %s.", folder)
    for path in there:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for part in ("tables", "models", "logs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).write_text(f"{_MARK} {version('scstate-lora')}.\n{to_yaml(config)}", encoding="utf-8")


def _is_earlier_run(folder: Path) -> bool:
    config = folder / _CONFIG
    return config.is_file() and config.read_bytes().startswith(_MARK.encode())


def _drop_earlier_results(adata: AnnData) -> None:
    """Take out what other models left under the names that this run writes, or leaves unwritten."""
    earlier = [key for key in (OBSM_SE, OBSM_BASE, OBSM_ST) if key in adata.obsm]
    if earlier:
        logger.info("The cells came with %s in obsm, of other models: left out.", ", ".join(map(repr, earlier)))
    for key in earlier:
        del adata.obsm[key]
    adata.uns[UNS_KEY] = {key: value for key, value in adata.uns[UNS_KEY].items() if key != "evaluate"}


def _training(config: TrainConfig) -> dict[str, Any]:
    """Take what the user set; the rest is the model's own default."""
    return config.model_dump(exclude_none=True)


def _trainer(config: RunConfig, folder: Path, name: str) -> dict[str, Any]:
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    # Both in logs/<name>. CSV first: it warns of a folder that is not empty.
    return {
        "accelerator": config.accelerator,
        "precision": config.precision,
        "early_stopping": config.early_stopping,
        "logger": [logs(str(folder / "logs"), name="", version=name) for logs in (CSVLogger, TensorBoardLogger)],
    }


def _predict_and_score(st: STTransition, adata: AnnData, target: str) -> AnnData:
    """Predict a target for all controls, and score the prediction where perturbed cells were held out."""
    predicted = st.predict(target=target)
    try:
        _score_prediction(predicted, adata, st.registry, target)
    except (ValueError, KeyError) as error:  # hours of training must not end here
        logger.warning("The prediction of %r is not scored: %s", target, error.args[0])
    return predicted


def _score_prediction(predicted: AnnData, adata: AnnData, registry: Registry, target: str) -> None:
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
        name="STTransition",
    )
    predicted.uns[UNS_KEY]["evaluate_perturbation"] = part.uns[UNS_KEY]["evaluate_perturbation"]


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


def _write_tables(models: Models, adata: AnnData, predictions: list[AnnData], folder: Path) -> None:
    tables = {
        "embeddings": adata.uns[UNS_KEY].get("evaluate"),
        "history_base": models.se.base_history,
        "history_se": models.se.history,
    }
    if models.st is not None:
        tables["history_st"] = models.st.history
    scored = [p for p in predictions if "evaluate_perturbation" in p.uns[UNS_KEY]]
    if scored:
        tables["perturbation"] = pd.concat(
            p.uns[UNS_KEY]["evaluate_perturbation"].assign(target=p.uns[UNS_KEY]["predict"]["target"]) for p in scored
        )
    for name, table in tables.items():
        if table is not None and len(table):
            table.to_csv(folder / f"{name}.csv", index=False)


def _join(predictions: list[AnnData]) -> AnnData:
    """Join all targets' predicted cells in one AnnData; scores are kept where there is one target."""
    if len(predictions) == 1:
        return predictions[0]
    joined = ad.concat(predictions, merge="same")
    described = [p.uns[UNS_KEY]["predict"] for p in predictions]
    targets = ", ".join(d["target"] for d in described)
    joined.uns[UNS_KEY] = {"predict": {**described[0], "target": targets}}
    return joined
