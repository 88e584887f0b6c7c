"""Set up and train the models of a configuration, or resume an interrupted run."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from scstate_lora._compat import read_csv
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
from scstate_lora.workflow.results_file import write_run_results

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from mudata import MuData

    from scstate_lora.config import RunConfig, TrainConfig
    from scstate_lora.data.bound import BoundData

# Options of the model's training that apply to that of the compact base, too.
_DEVICE = ("accelerator", "devices", "strategy", "precision")


@dataclass(frozen=True)
class Trained:
    """Trained models, each None if its section is.

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


def train(
    data: AnnData | MuData, config: RunConfig, folder: str | Path, *, resume: bool = False, overwrite: bool = False
) -> Trained:
    """Set up, train, embed and save; no scores and no predictions, see :func:`run`.

    Parameters
    ----------
    data
        Cells x genes; embeddings are added to it.
    config
        All options. The models whose sections are given are trained.
    folder
        Where the results are written: ``adata.h5ad``, ``config.yaml``, ``results.json``, ``tables/*.csv``,
        ``models/se`` and ``models/st``, and in ``logs/base``, ``logs/se`` and ``logs/st`` TensorBoard's files,
        ``metrics.csv`` and ``checkpoints``.
    resume
        Resume the run that was interrupted in this folder, with the same cells and options; ``max_epochs`` may be
        larger. If there is none, one is started.
    overwrite
        Replace the results of an earlier run, once the new ones are whole; until then these are in ``<folder>.new``.

    Raises
    ------
    TypeError, KeyError, ValueError
        As :func:`scstate_lora.setup_anndata`; no model is asked for; the run to be resumed had other options or cells.
    FileExistsError
        If ``folder`` holds files that would be overwritten and are not of an earlier run, or are of one that is neither
        to be resumed nor to be overwritten.

    Notes
    -----
    Every error is raised before any training, and nothing is written then.
    """
    if config.st is not None and config.data.pert_key is None:
        msg = "st, the perturbation model, needs a perturbation: give data.pert_key and data.control, or leave st out."
        raise ValueError(msg)
    place = ResultsFolder(folder, overwrite=overwrite)
    trained = train_models(data, config, place, resume=resume)
    place.write_cells("adata", trained.adata)
    if is_first_process():
        write_run_results(place, config, trained.adata, command="train")
    place.finish()
    return trained


def train_models(data: AnnData | MuData, config: RunConfig, place: ResultsFolder, *, resume: bool) -> Trained:
    """Do what :func:`train` does, except for writing the cells; without a perturbation, train no model of it."""
    if config.se is None and config.st is None:
        msg = "The options have neither a section se nor st: nothing to train. Write se: {} for the defaults."
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
        except ValueError:  # too few cells to train on: the last possible refusal
            if is_new and is_first_process():
                shutil.rmtree(place.path)
            raise
        _train_se(se, config, place)
    if st is not None:
        _train_st(st, config, place)
    return Trained(adata, se, st)


def _check_trainer(config: RunConfig) -> None:
    """Refuse an absent device or an option that is not allowed before anything is written."""
    for name, section in (("se", config.se), ("st", config.st)):
        if section is not None and section.train.run_folder is not None:
            msg = f"{name}.train.run_folder: the logs of a run are part of its results. Name their folder instead."
            raise ValueError(msg)
        if section is not None:
            options = TrainOptions.parse(_training(config, section.train), name=f"{name}.train")
            check_accelerator(options.accelerator)


def _training(config: RunConfig, section: TrainConfig) -> dict[str, Any]:
    """Options set for all models, overridden by those set for this one; the others stay the model's own defaults."""
    shared = config.model_dump(include=set(SharedTraining.model_fields))
    return {**shared, **section.model_dump(exclude_none=True)}


def _check_same_cells(cells: BoundData, place: ResultsFolder) -> None:
    """Refuse to resume with other cells, judging by the table of the split."""
    if place.earlier is None or not place.table("split").exists():
        return
    before, now = pd.read_csv(place.table("split")), split_table(cells)
    if before.astype(str).to_csv(index=False) != now.astype(str).to_csv(index=False):
        msg = (
            f"The cells are not those of the run in {place.path}, which split {_count(before)}; this one splits "
            f"{_count(now)}, see {place.table('split')}. Resume with the same file, or name another folder."
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
        se.base_history = read_csv(place.table("history_base"))
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
    # Held-out cells are embedded and predicted, too: refuse unknown perturbations before the training, not after it.
    st.perts.encode(st.targets, source=f"adata.obs[{st.registry.pert_key!r}]")
    return st


def _drop_earlier_embeddings(adata: AnnData) -> None:
    """Remove embeddings of other models under the names that this run may write."""
    earlier = [key for key in (OBSM_SE, OBSM_BASE, OBSM_ST) if key in adata.obsm]
    if earlier:
        logger.info("Removed %s from obsm, which other models had written.", ", ".join(map(repr, earlier)))
    for key in earlier:
        del adata.obsm[key]
    drop_result(adata, EVALUATE)


def _train_base(se: LoRACovariateSE, config: RunConfig, place: ResultsFolder) -> None:
    """Train the compact base if one is needed, and keep it until the model that contains it is saved."""
    assert config.se is not None  # the model exists
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
    if is_first_process() and isinstance(se.base, SEBase) and se.base.source is None:  # saved nowhere else
        se.base.save(place.model("base"))


def _train_se(se: LoRACovariateSE, config: RunConfig, place: ResultsFolder) -> None:
    assert config.se is not None  # the model exists
    if not se.is_trained:
        if place.saved("se"):  # it was trained as far as requested then, and goes further now
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
    assert config.st is not None  # the model exists
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
