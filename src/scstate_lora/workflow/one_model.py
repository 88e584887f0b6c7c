"""Set up and train the models of a configuration, or go on where an interrupted run was."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from scstate_lora._constants import OBSM_BASE, OBSM_SE, OBSM_ST
from scstate_lora._logging import logger
from scstate_lora.config import TrainOptions
from scstate_lora.config.training import SharedTraining
from scstate_lora.data.register import register
from scstate_lora.data.results import EVALUATE, drop_result
from scstate_lora.data.splits import split_table
from scstate_lora.inference.devices import check_accelerator
from scstate_lora.model import LoRACovariateSE, SEBase, STTransition
from scstate_lora.workflow.features import read_features
from scstate_lora.workflow.folder import ResultsFolder, is_first_process

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from mudata import MuData

    from scstate_lora.config import RunConfig, TrainConfig
    from scstate_lora.data.bound import BoundData

# What the compact base's training takes over from that of the model.
_DEVICE = ("accelerator", "devices", "strategy", "precision")


@dataclass(frozen=True)
class Trained:
    """Models that were trained, each None where it was not asked for.

    Parameters
    ----------
    adata
        The cells with split and embeddings.
    se, st
        The models.
    """

    adata: AnnData
    se: LoRACovariateSE | None
    st: STTransition | None


def train(data: AnnData | MuData, config: RunConfig, folder: str | Path, *, resume: bool = False) -> Trained:
    """Set up, train, embed and save; no scores and no predictions, see :func:`run`.

    Parameters
    ----------
    data
        Cells x genes; embeddings are added to it.
    config
        Everything that can be chosen. The models whose sections are there are trained.
    folder
        Where the results are written: ``adata.h5ad``, ``config.yaml``, ``tables/*.csv``, ``models/se`` and
        ``models/st``, and in ``logs/base``, ``logs/se`` and ``logs/st`` TensorBoard's files, ``metrics.csv`` and
        ``checkpoints``. The results of an earlier run are replaced.
    resume
        Go on with the run that was interrupted in this folder, with the same cells and options; ``max_epochs`` may be
        larger. Where there is none one is started.

    Raises
    ------
    TypeError, KeyError, ValueError
        As :func:`scstate_lora.setup_anndata`; no model is asked for; the run to be resumed had other options or cells.
    FileExistsError
        ``folder`` holds files that would be overwritten and are not of an earlier run, or are of one that was
        interrupted and is not to be resumed.

    Notes
    -----
    Every error is raised before any training, and nothing is written then.
    """
    if config.st is not None and config.data.pert_key is None:
        msg = "st, the perturbation model, needs a perturbation: give data.pert_key and data.control, or leave st out."
        raise ValueError(msg)
    place = ResultsFolder(folder)
    trained = train_models(data, config, place, resume=resume)
    place.write_cells("adata", trained.adata)
    return trained


def train_models(data: AnnData | MuData, config: RunConfig, place: ResultsFolder, *, resume: bool) -> Trained:
    """Do what :func:`train` does, but for writing the cells; without a perturbation, no model of one."""
    if config.se is None and config.st is None:
        msg = "There is neither an se nor an st among the options: nothing to train. Write se: {} for the defaults."
        raise ValueError(msg)
    _check_trainer(config)
    place.look(config, resume=resume)
    cells = register(data, config.data, seed=config.seed)
    adata, registry = cells.adata, cells.registry
    _check_same_cells(cells, place)
    se = None if config.se is None else _make_se(adata, config, place)
    st = None
    if config.st is not None and registry.pert_key is not None:
        st = _make_st(adata, config, place)

    is_new = not place.path.exists()
    place.start(config)
    _drop_earlier_embeddings(adata)
    place.write_table("split", split_table(cells))
    if se is not None:
        try:
            _train_base(se, config, place)
        except ValueError:  # too few cells to train on: the last refusal there can be
            if is_new and is_first_process():
                shutil.rmtree(place.path)
            raise
        _train_se(se, config, place)
    if st is not None:
        _train_st(st, config, place)
    return Trained(adata, se, st)


def _check_trainer(config: RunConfig) -> None:
    """Refuse a device or another option that cannot be before anything is written."""
    for name, section in (("se", config.se), ("st", config.st)):
        if section is not None and section.train.run_folder is not None:
            msg = (
                f"{name}.train.run_folder: the logs of a run lie within its results. Name the folder of those instead."
            )
            raise ValueError(msg)
        if section is not None:
            options = TrainOptions.parse(_training(config, section.train), name=f"{name}.train")
            check_accelerator(options.accelerator)


def _training(config: RunConfig, section: TrainConfig) -> dict[str, Any]:
    """Take what is set for all, and on top what is set for this model; the rest is the model's own default."""
    shared = config.model_dump(include=set(SharedTraining.model_fields))
    return {**shared, **section.model_dump(exclude_none=True)}


def _check_same_cells(cells: BoundData, place: ResultsFolder) -> None:
    """Refuse to go on with other cells, to judge by the table of the split."""
    if place.earlier is None or not place.table("split").exists():
        return
    before, now = pd.read_csv(place.table("split")), split_table(cells)
    if before.astype(str).to_csv(index=False) != now.astype(str).to_csv(index=False):
        msg = (
            f"The cells are not those of the run in {place.path}: that split {_count(before)} of them, this one "
            f"{_count(now)}; see {place.table('split')}. Resume with the same file, or name another folder."
        )
        raise ValueError(msg)


def _count(table: pd.DataFrame) -> int:
    return int(table[["train", "val", "test"]].to_numpy().sum())


def _make_se(adata: AnnData, config: RunConfig, place: ResultsFolder) -> LoRACovariateSE:
    assert config.se is not None  # the caller's condition
    if place.is_finished("se", config):
        return LoRACovariateSE.load(place.model("se"), adata=adata, base=config.base)
    base: str | Path | None = config.base
    if base is None and config.data.embed_key is None:
        base = place.saved("base") or place.saved("se")
    se = LoRACovariateSE(
        adata,
        base=base,
        lora=config.se.lora,
        conditioning=config.se.conditioning,
        compact=config.se.compact,
        objective=config.se.objective,
        seed=config.seed,
    )
    if base is not config.base:
        se.base_history = pd.read_csv(place.table("history_base"), float_precision="round_trip")
    return se


def _make_st(adata: AnnData, config: RunConfig, place: ResultsFolder) -> STTransition:
    assert config.st is not None  # the caller's condition
    if place.is_finished("st", config):
        return STTransition.load(place.model("st"), adata=adata, pretrained=config.st.pretrained)
    options = config.st
    st = STTransition(
        adata,
        model=options.model,
        objective=options.objective,
        pretrained=options.pretrained,
        reuse=options.reuse,
        finetune=options.finetune,
        lora=options.lora if options.has_adapters else None,
        pert_features=None if options.pert_features is None else read_features(options.pert_features),
        seed=config.seed,
    )
    # Cells that are held out are embedded and predicted, too: not to be found out after the training.
    st.perts.encode(st.registry.targets, source=f"adata.obs[{st.registry.pert_key!r}]")
    return st


def _drop_earlier_embeddings(adata: AnnData) -> None:
    """Take out what other models left under the names that this run writes, or leaves unwritten."""
    earlier = [key for key in (OBSM_SE, OBSM_BASE, OBSM_ST) if key in adata.obsm]
    if earlier:
        logger.info("The cells came with %s in obsm, of other models: left out.", ", ".join(map(repr, earlier)))
    for key in earlier:
        del adata.obsm[key]
    drop_result(adata, EVALUATE)


def _train_base(se: LoRACovariateSE, config: RunConfig, place: ResultsFolder) -> None:
    """Train the compact base where one is needed, and keep it until the model that holds it is saved."""
    assert config.se is not None  # there is a model of it
    if se.base is not None:
        return
    options = _training(config, config.se.train)
    device: dict[str, Any] = {name: options[name] for name in _DEVICE if name in options}
    se.train_base(
        **device,
        early_stopping=config.early_stopping,
        run_folder=place.logs("base"),
        resume_from=place.checkpoint("base"),
    )
    place.write_table("history_base", se.base_history)
    _keep_base(se, place)


def _keep_base(se: LoRACovariateSE, place: ResultsFolder) -> None:
    if is_first_process() and isinstance(se.base, SEBase) and se.base.source is None:  # nowhere else
        se.base.save(place.model("base"))


def _train_se(se: LoRACovariateSE, config: RunConfig, place: ResultsFolder) -> None:
    assert config.se is not None  # there is a model of it
    if not se.is_trained:
        if place.saved("se"):  # what is there is as far as it was to be trained, and goes further now
            _keep_base(se, place)
            place.drop(place.model("se"))
        se.train(**_in_place(_training(config, config.se.train), "se", place))
        if is_first_process():
            se.save(place.model("se"))
    place.drop(place.model("base"))
    place.write_table("history_base", se.base_history)
    place.write_table("history_se", se.history)
    se.get_latent_representation()


def _train_st(st: STTransition, config: RunConfig, place: ResultsFolder) -> None:
    assert config.st is not None  # there is a model of it
    if not st.is_trained:
        place.drop(place.model("st"))
        st.train(**_in_place(_training(config, config.st.train), "st", place))
        if is_first_process():
            st.save(place.model("st"))
    place.write_table("history_st", st.history)
    st.get_latent_representation()


def _in_place(options: dict[str, Any], part: str, place: ResultsFolder) -> dict[str, Any]:
    """Add the run's folder, and the checkpoint of the interrupted run."""
    checkpoint = place.checkpoint(part)
    resumed = {} if checkpoint is None else {"resume_from": checkpoint}
    return {**options, **resumed, "run_folder": place.logs(part)}
