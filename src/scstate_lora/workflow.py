"""The main job in one call: set up, train, embed, predict, evaluate, and leave it all in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from scstate_lora import tl
from scstate_lora._constants import OBS_SPLIT, UNS_KEY
from scstate_lora._logging import logger
from scstate_lora.config import RunConfig, TrainConfig, to_yaml
from scstate_lora.data.splits import split_table
from scstate_lora.model import LoRACovariateSE, Models, STTransition
from scstate_lora.model._register import register

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


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
        Where the results are written: ``adata.h5ad``, ``predictions.h5ad``, ``config.yaml``,
        ``tables/*.csv``, ``models/``, ``logs/`` (CSV and TensorBoard).

    Raises
    ------
    TypeError, KeyError, ValueError
        As :func:`scstate_lora.setup_anndata`, before any training.
    """
    folder = Path(folder)
    adata, registry = register(data, **config.data.model_dump(), seed=config.seed)
    se = LoRACovariateSE(
        adata,
        base=config.base,
        lora=config.se.lora,
        compact=config.se.compact,
        objective=config.se.objective,
        seed=config.seed,
    )
    st = None
    if registry.pert_key is not None:
        st = STTransition(adata, model=config.st.model, seed=config.seed)
    for part in ("tables", "models", "logs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    split_table(adata, registry).to_csv(folder / "tables" / "split.csv", index=False)

    se.train(**_training(config.se.train), **_trainer(config, folder, "se"))
    se.get_latent_representation()
    se.save(folder / "models" / "se")
    predictions: list[AnnData] = []
    if st is not None:
        st.train(**_training(config.st.train), **_trainer(config, folder, "st"))
        st.get_latent_representation()
        st.save(folder / "models" / "st")
        predictions = [_predict_and_score(st, adata, target) for target in registry.targets]

    logger.info("Scoring the embeddings on the cells that were not trained on.")
    unseen = adata[(adata.obs[OBS_SPLIT] != "train").to_numpy()].copy()
    tl.evaluate(unseen)
    adata.uns[UNS_KEY]["evaluate"] = unseen.uns[UNS_KEY]["evaluate"]

    models = Models(se, st)
    _write_tables(models, adata, predictions, folder / "tables")
    adata.write_h5ad(folder / "adata.h5ad", compression="gzip")
    if predictions:
        _join(predictions).write_h5ad(folder / "predictions.h5ad", compression="gzip")
    return Run(adata, models, predictions)


def _training(config: TrainConfig) -> dict[str, Any]:
    """What the user set; the rest is the model's own default."""
    return config.model_dump(exclude_none=True)


def _trainer(config: RunConfig, folder: Path, name: str) -> dict[str, Any]:
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    return {
        "accelerator": config.accelerator,
        "precision": config.precision,
        "early_stopping": config.early_stopping,
        "logger": [
            CSVLogger(str(folder / "logs"), name=f"{name}_csv", version=""),
            TensorBoardLogger(str(folder / "logs"), name=f"{name}_tensorboard", version=""),
        ],
    }


def _predict_and_score(st: STTransition, adata: AnnData, target: str) -> AnnData:
    """Predict a target for all controls, and score the prediction where perturbed cells were held out."""
    registry = st.registry
    predicted = st.predict(target=target)
    perts = registry.labels(adata, str(registry.pert_key))
    split = adata.obs[OBS_SPLIT].to_numpy()
    held_out = (split == "test") & (perts == target)
    # Few held-out cells share all of a context's keys; the cell type alone makes groups large enough to score.
    keys = [registry.cell_type_key] if registry.cell_type_key is not None else registry.context_keys
    if not held_out.any():
        logger.info("No held-out cells of %r: its prediction is not scored.", target)
        return predicted
    contexts = _groups(adata.obs, keys)
    scored = np.isin(_groups(predicted.obs, keys), contexts[held_out])
    part = predicted[scored].copy()
    tl.evaluate_perturbation(
        part,
        adata[held_out],
        adata[(perts == registry.control) & np.isin(contexts, contexts[held_out])],
        train=adata[split == "train"],
        context_key=keys,
        name="STTransition",
    )
    predicted.uns[UNS_KEY]["evaluate_perturbation"] = part.uns[UNS_KEY]["evaluate_perturbation"]
    return predicted


def _groups(obs: pd.DataFrame, keys: list[str]) -> np.ndarray:
    if not keys:
        return np.full(len(obs), "all")
    return obs[keys].astype(str).agg(" | ".join, axis=1).to_numpy(dtype=str)


def _write_tables(models: Models, adata: AnnData, predictions: list[AnnData], folder: Path) -> None:
    adata.uns[UNS_KEY]["evaluate"].to_csv(folder / "embeddings.csv", index=False)
    models.se.history.to_csv(folder / "history_se.csv", index=False)
    models.se.base_history.to_csv(folder / "history_base.csv", index=False)
    if models.st is not None:
        models.st.history.to_csv(folder / "history_st.csv", index=False)
    scored = [
        p.uns[UNS_KEY]["evaluate_perturbation"].assign(target=p.uns[UNS_KEY]["predict"]["target"])
        for p in predictions
        if "evaluate_perturbation" in p.uns[UNS_KEY]
    ]
    if scored:
        pd.concat(scored).to_csv(folder / "perturbation.csv", index=False)


def _join(predictions: list[AnnData]) -> AnnData:
    """All targets' predicted cells in one AnnData, with the first one's ``uns`` and all targets named."""
    joined = ad.concat(predictions, merge="same")
    joined.uns[UNS_KEY] = dict(predictions[0].uns[UNS_KEY])
    targets = [p.uns[UNS_KEY]["predict"]["target"] for p in predictions]
    joined.uns[UNS_KEY]["predict"] = {**predictions[0].uns[UNS_KEY]["predict"], "target": ", ".join(targets)}
    return joined
