"""Predicted and measured cells of AnnData objects, brought to the same genes and contexts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scstate_lora._constants import TARGET_SUM
from scstate_lora._logging import logger
from scstate_lora._utils import did_you_mean, warn_user
from scstate_lora.data import Registry, log_predicted
from scstate_lora.data.bound import BoundData
from scstate_lora.data.contexts import join_labels
from scstate_lora.data.log_scale import check_scales
from scstate_lora.data.matrix import log_normalize
from scstate_lora.data.model_split import hash_names
from scstate_lora.data.perturbations import PerturbationTable, parts_of, respelled
from scstate_lora.data.results import LIBRARY_SIZE, Prediction, is_predicted, read_prediction
from scstate_lora.data.stream import read_matrix
from scstate_lora.metrics.baselines import reference_names
from scstate_lora.tl.scoring.cells import Cells, common_contexts, is_among
from scstate_lora.tl.scoring.controls import pair
from scstate_lora.tl.scoring.training import Training

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from scipy import sparse


class Inputs(NamedTuple):
    """What a prediction is scored by."""

    genes: list[str]
    """Genes that are scored: those of the prediction."""
    targets: list[str]
    """Predicted perturbations."""
    predicted: Cells
    """Cells predicted from the controls."""
    measured: Cells
    """Measured cells under the targets."""
    controls: Cells
    """Control cells that were predicted from."""
    contexts: list[str]
    """Contexts with predicted and measured cells."""
    training: Training

    @property
    def pairs(self) -> dict[str, list[str]]:
        """Perturbations both predicted and measured, by context."""
        shared = sorted(set(self.predicted.groups()) & set(self.measured.groups()))
        by_context = {context: [name for name, where in shared if where == context] for context in self.contexts}
        return {context: names for context, names in by_context.items() if names}


def read_inputs(
    pred: AnnData,
    real: AnnData,
    control: AnnData,
    *,
    context_key: str | Sequence[str],
    train: AnnData | None,
    pert_key: str | None,
    pert_features: pd.DataFrame | None,
    name: str,
) -> Inputs:
    """Read and check what a prediction is scored by.

    Parameters
    ----------
    pred, real, control, context_key, train, pert_key, pert_features, name
        As in :func:`scstate_lora.tl.evaluate_perturbation`.

    Raises
    ------
    KeyError, TypeError, ValueError
        As in :func:`scstate_lora.tl.evaluate_perturbation`.

    Warns
    -----
    UserWarning
        If perturbed cells of `train`, or cells that the model was trained on, are among those of `real`.
    """
    check_name(name)
    prediction = read_prediction(pred) if is_predicted(pred) or pert_key is None else _of_any_model(real, pert_key)
    for argument, adata in (("real", real), ("control", control), ("train", train)):
        if adata is not None:
            _refuse_predicted(adata, argument)
    measured_cells = {"real": real, "control": control} | ({} if train is None else {"train": train})
    target_sums = {argument: Registry.from_adata(adata).target_sum for argument, adata in measured_cells.items()}
    check_scales({"pred": prediction.target_sum} | target_sums)
    key = prediction.pert_key if pert_key is None else pert_key
    keys = [context_key] if isinstance(context_key, str) else list(context_key)
    genes = [str(gene) for gene in pred.var_names]
    read = partial(_read_cells, genes=genes, context_keys=keys)

    predicted = read(pred, "pred", registry=Registry.from_adata(real), pert_key=prediction.pert_key, is_pred=True)
    spelled = partial(respelled, names=predicted.perturbations, control=prediction.control)

    def read_measured(adata: AnnData, argument: str) -> Cells:
        cells = read(adata, argument, registry=Registry.from_adata(adata), pert_key=key)
        return cells._replace(perturbations=spelled(cells.perturbations))

    predicted = predicted._replace(perturbations=spelled(predicted.perturbations))
    if not is_predicted(pred):  # other models may hand back their controls, too
        predicted = predicted.at(predicted.perturbations != prediction.control)
    # Of a prediction of several targets, pred may hold the cells of a few.
    targets = sorted(set(predicted.perturbations) - {prediction.control})
    measured = read_measured(real, "real")
    is_target = is_among(measured.perturbations, targets)
    controls = read_measured(control, "control")
    is_control = controls.perturbations == prediction.control
    for argument, cells, chosen, levels in (
        ("real", measured, is_target, targets),
        ("control", controls, is_control, [prediction.control]),
    ):
        if not chosen.any():
            required = " or ".join(map(repr, levels[:5]))
            present = ", ".join(map(repr, sorted(set(cells.perturbations))[:10]))
            msg = f"{argument}.obs[{key!r}] has no cell {required}; it holds {present}."
            raise ValueError(msg)
    trained, features = None, None
    if train is not None:
        trained = read_measured(train, "train")
        _warn_of_overlap(real.obs_names[is_target], train.obs_names[is_among(trained.perturbations, targets)], targets)
        features = features_of(pert_features, trained.perturbations, control=prediction.control)
    candidates = {"control": controls.at(is_control), "real": measured.at(measured.perturbations == prediction.control)}
    if trained is not None:
        candidates["train"] = trained.at(trained.perturbations == prediction.control)
    measured = measured.at(is_target)
    is_measured = is_among(predicted.contexts, measured.contexts)
    if is_measured.any():
        predicted = predicted.at(is_measured)
    predicted, controls = pair(predicted, candidates)
    if predicted.depth is None or measured.depth is None or controls.depth is None:  # then none has counts
        predicted, measured, controls = (cells._replace(depth=None) for cells in (predicted, measured, controls))
    contexts = common_contexts(predicted, measured)
    _warn_of_training(prediction.train_cells, real.obs_names[is_target][is_among(measured.contexts, contexts)])
    training = Training(trained, control=prediction.control, pert_features=features)
    n_shared = training.shares_noise(controls.at(is_among(controls.contexts, contexts)))
    if n_shared:
        logger.warning(
            "The model was trained on %d of the control cells that it is scored with, beside perturbed cells of their "
            "contexts. Their noise is in the change that it learned and in the measured one, which raises its scores "
            "of changes; the baselines are refitted without them. Score it with controls that were held out.",
            n_shared,
        )
    return Inputs(genes, targets, predicted, measured, controls, contexts, training)


def check_name(name: str) -> None:
    """Raise a ValueError if a model has the name of a baseline."""
    if name in reference_names():
        msg = f"name={name!r} is the name of a baseline; choose another one."
        raise ValueError(msg)


def features_of(
    pert_features: pd.DataFrame | None, perturbations: np.ndarray, *, control: str
) -> PerturbationTable | None:
    """Features as the linear baseline reads them, standardised over the perturbations of the training cells.

    Parameters
    ----------
    pert_features
        One row per perturbation; None without.
    perturbations
        Perturbation of every training cell, ``(n_cells,)``.
    control
        Control level.
    """
    if pert_features is None:
        return None
    trained = sorted(set(perturbations) - {control})
    return PerturbationTable.of_features(pert_features, trained=trained, control=control)


def own_genes(targets: Sequence[str], genes: Sequence[str]) -> dict[str, list[int]]:
    """Positions of the genes that every perturbation, or part of a combination, is named after."""
    position = {gene: i for i, gene in enumerate(genes)}
    return {target: [position[gene] for gene in parts_of(target) if gene in position] for target in targets}


def check_genes(genes: Sequence[str], present: Sequence[str], argument: str) -> None:
    """Check that cells have the predicted genes.

    Parameters
    ----------
    genes, present
        Predicted genes, and those of the cells.
    argument
        Name of the parameter with the cells, for the error message.

    Raises
    ------
    KeyError
        If one is missing.
    """
    available = set(present)
    missing = [gene for gene in genes if gene not in available]
    if missing:
        msg = (
            f"{len(missing)} of the {len(genes)} genes of pred are not in {argument}, the first is {missing[0]!r}. "
            f"{did_you_mean(missing[0], present)}"
        )
        raise KeyError(msg)


def _read_cells(
    adata: AnnData,
    argument: str,
    *,
    registry: Registry,
    genes: Sequence[str],
    context_keys: Sequence[str],
    pert_key: str,
    is_pred: bool = False,
) -> Cells:
    """Read all cells; `registry` is theirs or, of predicted cells, that of the measured cells."""
    for key in (*context_keys, pert_key):
        if key not in adata.obs:
            msg = f"{argument}.obs[{key!r}] does not exist. {did_you_mean(key, adata.obs.columns)}"
            raise KeyError(msg)
    bound = BoundData(registry, adata)
    contexts = join_labels([bound.labels(key) for key in context_keys], len(bound))
    if is_predicted(adata):
        if "control_cell" not in adata.obs:
            msg = (
                f"{argument}.obs['control_cell'] does not exist. It names the control cell that each was predicted "
                "from, as STTransition.predict writes it: model and baselines are scored from the same control cells."
            )
            raise KeyError(msg)
        names = adata.obs["control_cell"].astype(str).to_numpy()
        return Cells(log_predicted(adata), contexts, bound.labels(pert_key), names, predicted_depth(adata))
    if is_pred:
        names = np.full(adata.n_obs, None, dtype=object)
        if "control_cell" in adata.obs:
            names = adata.obs["control_cell"].astype(str).to_numpy(dtype=object)
        logged, depth = _logged_as(adata, registry)
        return Cells(logged, contexts, bound.labels(pert_key), names, depth)
    check_genes(genes, registry.var_names, argument)
    names, depth = np.array(bound.names, dtype=object), measured_depth(bound)
    return Cells(bound.logged_genes(genes), contexts, bound.labels(pert_key), names, depth)


def _of_any_model(real: AnnData, pert_key: str) -> Prediction:
    """Describe cells that another model predicted, on the scale of the measured ones."""
    registry = Registry.from_adata(real)
    if registry.control is None:
        msg = "real was set up without perturbations. Run ssl.setup_anndata(real, pert_key=..., control=...)."
        raise ValueError(msg)
    return Prediction("log1p", pert_key, str(registry.control), [], "genes", registry.target_sum)


def measured_depth(bound: BoundData) -> np.ndarray | None:
    """Depth of measured cells, as of :class:`Cells`; None of log1p values."""
    if bound.registry.scale != "counts":
        return None
    return _totals(bound.matrix) / (bound.registry.target_sum or TARGET_SUM)


def predicted_depth(adata: AnnData) -> np.ndarray | None:
    """Depth of cells that :meth:`STTransition.predict` predicted, as of :class:`Cells`; None of log1p values."""
    prediction = read_prediction(adata)
    if prediction.scale != "counts":
        return None
    return adata.obs[LIBRARY_SIZE].to_numpy(dtype=np.float64) / (prediction.target_sum or TARGET_SUM)


def _totals(matrix: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()


def _logged_as(adata: AnnData, registry: Registry) -> tuple[sparse.csr_matrix, np.ndarray | None]:
    """Take log1p values as they are, and counts at the depth of the measured cells, with the depth of each."""
    matrix = read_matrix(adata)
    is_counts = matrix.nnz > 0 and bool((matrix.data == np.round(matrix.data)).all())
    if not is_counts:
        return matrix, None
    if adata.n_vars < len(registry.var_names) and LIBRARY_SIZE not in adata.obs:
        msg = (
            f"pred holds counts of {adata.n_vars} of the {len(registry.var_names)} genes: give the counts of each cell "
            f"over all genes as pred.obs[{LIBRARY_SIZE!r}], or log1p values."
        )
        raise KeyError(msg)
    totals = adata.obs[LIBRARY_SIZE].to_numpy(dtype=np.float64) if LIBRARY_SIZE in adata.obs else _totals(matrix)
    target_sum = registry.target_sum or TARGET_SUM
    return log_normalize(matrix, "counts", totals, target_sum=target_sum), totals / target_sum


def _refuse_predicted(adata: AnnData, argument: str) -> None:
    if is_predicted(adata) or _has_names_of_predicted(adata):
        msg = (
            f"{argument} holds predicted cells (it comes from STTransition.predict); scores need measured ones. "
            f"Give the measured cells as {argument}."
        )
        raise ValueError(msg)


def _has_names_of_predicted(adata: AnnData) -> bool:
    """Whether cells are called as predicted ones, after their control cells, though the record of it is lost."""
    if "control_cell" not in adata.obs:
        return False
    names = zip(adata.obs_names, adata.obs["control_cell"].astype(str), strict=True)
    return all(bool(control_cell) and name.startswith(control_cell) for name, control_cell in names)


def _warn_of_training(trained: np.ndarray | None, real: pd.Index) -> None:
    """Warn if the model that predicted was trained on measured cells."""
    n = 0 if trained is None else int(np.isin(hash_names(real), trained).sum())
    if n:
        warn_user(
            f"The model was trained on {n} of the {len(real)} measured cells that its prediction is scored with: "
            "the scores are not of held-out cells. Give real= without them: test cells of the model's split."
        )


def _warn_of_overlap(real: pd.Index, train: pd.Index, targets: Sequence[str]) -> None:
    """Warn if measured cells are training cells."""
    shared = len(set(real) & set(train))
    if shared:
        label = f"cells {targets[0]!r}" if len(targets) == 1 else "perturbed cells"
        warn_user(f"{shared} {label} are in both real and train, by name: the scores are not of held-out cells.")
