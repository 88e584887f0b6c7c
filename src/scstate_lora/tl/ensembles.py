"""Average of the predictions of several models, with their disagreement: `ensemble`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
from scipy import sparse

from scstate_lora.data.log_scale import describe_scale
from scstate_lora.data.results import PREDICT, joined, read_prediction, write_result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

ENSEMBLE_SD = "ensemble_sd"


def ensemble(predictions: Sequence[AnnData]) -> AnnData:
    """Average the predictions of several models for the same cells, and measure their disagreement.

    Models that differ only in their seed disagree where the data do not determine the training (deep ensembles;
    Lakshminarayanan et al. 2017, arXiv:1612.01474). Errors that all seeds share do not show: with
    ``model={"prior": "context"}`` most of a prediction is solved for, in the same way for every seed. So disagreement
    is a lower bound of the error; :func:`evaluate_perturbation` on a held-out group shows the error itself.

    Parameters
    ----------
    predictions
        From :meth:`~scstate_lora.STTransition.predict` of two models or more: the same cells, target and genes in the
        same order.

    Returns
    -------
    AnnData as ``predict`` gives it: ``X``, and the predicted embedding in ``obsm``, averaged over the models, and so
    ``obs["expected_loss"]`` of models with a confidence token. The standard deviation over the models, in the units of
    the averaged values: ``layers["ensemble_sd"]`` of ``X``, float32 ``(n_cells, n_genes)``; and per cell
    ``obs["ensemble_sd"]``, the root mean square over the features of the space that the models predict in.
    ``uns["scstate_lora"]["predict"]["n_models"]``: number of models.

    Raises
    ------
    TypeError
        If a single AnnData is given.
    ValueError
        If there are fewer than two, one is not a prediction, or they differ in cells, targets, genes or space.
    """
    if isinstance(predictions, ad.AnnData):
        msg = "predictions is one AnnData. Give a list: those of several models for the same cells."
        raise TypeError(msg)
    members = list(predictions)
    if len(members) < 2:
        msg = f"{len(members)} predictions cannot disagree. Give those of two models or more."
        raise ValueError(msg)
    first, shared = members[0], read_prediction(members[0])
    if shared.scale == "counts":
        msg = "predictions hold drawn counts, whose average is none. Average those of predict(output='mean')."
        raise ValueError(msg)
    for i, member in enumerate(members):
        _check_same(first, member, i)
    averaged = ad.AnnData(obs=first.obs.copy(), var=first.var.copy())
    spread = None
    if first.X is not None:
        averaged.X, averaged.layers[ENSEMBLE_SD] = _mean_and_sd([p.X for p in members])
        spread = averaged.layers[ENSEMBLE_SD]
    for key in first.obsm:
        averaged.obsm[key], sd = _mean_and_sd([p.obsm[key] for p in members])
        spread = sd if key == shared.space else spread
    if spread is not None:
        averaged.obs[ENSEMBLE_SD] = np.sqrt(np.square(spread).mean(axis=1))
    if "expected_loss" in first.obs:
        averaged.obs["expected_loss"] = np.mean([p.obs["expected_loss"].to_numpy() for p in members], axis=0)
    shared = shared._replace(train_cells=joined([read_prediction(p) for p in members]).train_cells)
    write_result(averaged, PREDICT, shared.record(n_models=len(members)))
    return averaged


def _check_same(first: AnnData, other: AnnData, number: int) -> None:
    """Raise unless two predictions are of the same cells, targets, genes and space."""
    expected, actual = read_prediction(first), read_prediction(other)
    for field, first_value, value in (
        ("target", ", ".join(expected.targets), ", ".join(actual.targets)),
        ("space", expected.space, actual.space),
        ("scale", describe_scale(expected.target_sum), describe_scale(actual.target_sum)),
    ):
        if first_value != value:
            msg = f"predictions[{number}] has the {field} {value!r}, the first one {first_value!r}. "
            msg += "Predict the same with every model."
            raise ValueError(msg)
    for axis, names, others in (
        ("cells", first.obs_names, other.obs_names),
        ("genes", first.var_names, other.var_names),
    ):
        if not names.equals(others):
            msg = f"predictions[{number}] has other {axis} than the first one ({len(others)} and {len(names)}), "
            msg_0 = f"{msg}or in another order. Predict the same {axis} with every model."
            raise ValueError(msg_0)


def _mean_and_sd(members: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the models, float32, without all of them in one array."""
    mean = np.zeros(members[0].shape)
    squares = np.zeros(members[0].shape)
    for i, member in enumerate(members):
        values = member.toarray() if sparse.issparse(member) else np.asarray(member)
        deviation = values - mean
        mean += deviation / (i + 1)
        squares += deviation * (values - mean)
    return mean.astype(np.float32), np.sqrt(squares / (len(members) - 1)).astype(np.float32)
