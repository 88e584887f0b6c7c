"""Information about covariates in an embedding, from expression or from conditioning: `covariate_information`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scstate_lora._constants import OBS_SPLIT
from scstate_lora._logging import logger
from scstate_lora.data.bound import BoundData
from scstate_lora.data.fields import ContinuousCovariate, Covariate, obs_column
from scstate_lora.data.labels import as_labels
from scstate_lora.data.results import COVARIATE_INFORMATION, write_result
from scstate_lora.metrics import (
    HeldOutScore,
    held_out_categorical_probe,
    held_out_continuous_probe,
    held_out_knn_accuracy,
)
from scstate_lora.metrics.components import sparse_pca
from scstate_lora.metrics.embedding import PCA
from scstate_lora.metrics.registry import METRICS
from scstate_lora.tl.conditioned import chosen_cells, require_trained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from anndata import AnnData

    from scstate_lora.model import LoRACovariateSE

FEWEST_HELD_OUT = 20
BASE, MODEL = "base", "model"
NOTHING, OTHERS, ALL = "nothing", "others", "all"
_FAILED = HeldOutScore(np.nan, np.nan, np.nan, np.nan)
_COLUMNS = [
    *("embedding", "covariate", "conditioned_on", "metric", "value", "low", "high", "baseline"),
    *("direction", "lowest", "highest", "n_train", "n_test", "reason", "verdict"),
]


class _Embedding(NamedTuple):
    """An embedding of the training and the held-out cells, ``(n, n_dims)`` each."""

    name: str
    conditioned_on: str
    train: np.ndarray
    test: np.ndarray


def covariate_information(
    se: LoRACovariateSE,
    adata: AnnData | None = None,
    *,
    cells: np.ndarray | None = None,
    n_pcs: int = 50,
    n_neighbors: int = 10,
    level: float = 0.99,
    n_boot: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Test whether the embedding shows the covariates by the cells' expression, or only because of its conditioning.

    For every covariate a linear probe is fitted to the training cells and scored on the held-out cells
    (``adata.obs["scstate_split"]``), on

    - ``PCA`` of log1p expression, fitted to the training cells;
    - ``base``, the base's plain embedding, which has no covariates;
    - ``model``, the embedding conditioned on ``"nothing"`` (all covariates and the batch withheld), on the ``"others"``
      (this covariate withheld), and on ``"all"``.

    Only embeddings conditioned on nothing are evidence of information in the expression. In an embedding conditioned on
    all, a covariate may merely be echoed. In one conditioned on the others, they may reveal it, as a mouse does that
    belongs to one condition.

    The counterpart is the cell type: an embedding that keeps nothing but the covariates makes every counterfactual look
    right. So the table also has the accuracy of the cell type by vote of the nearest neighbours; cells of a type
    without training cells are left out.

    Parameters
    ----------
    se
        A trained model.
    adata
        Cells with their split and covariates; the model's own by default.
    cells
        Cells to fit and score with, a mask of shape ``(n_cells,)``: for instance those of one type, because a probe may
        otherwise read a condition from the composition of types. All by default.
    n_pcs
        Components of the PCA, fewer if there are not as many cells or genes.
    n_neighbors
        Neighbours that vote.
    level
        Share of the bootstrap samples of held-out cells that lie between ``low`` and ``high``. Three embeddings are
        conditioned on nothing, so a covariate has three chances to look predictable by luck: hence not 0.95.
    n_boot
        Bootstrap samples.
    seed
        Seed of the PCA and the samples.

    Returns
    -------
    One row per embedding and covariate:

    - ``embedding``, ``covariate`` (or the column of the cell type), ``conditioned_on``;
    - ``metric``: ``probe_balanced_accuracy`` of a multinomial logistic regression, ``probe_r2`` of a ridge
      regression, ``knn_accuracy`` of the cell type; inputs of the probes are standardised, and their penalty is chosen
      on the training cells;
    - ``value``, its bootstrap interval ``low`` to ``high``, and ``baseline``: the score of always answering with
      the commonest class, or with the mean of the training cells;
    - ``direction`` (``"higher"`` is better), ``lowest`` and ``highest`` possible value, ``n_train``, ``n_test``;
    - ``reason``: why a value is NaN, else empty;
    - ``verdict``: the conclusion from the rows of this covariate, in words.

    Adds ``adata.uns["scstate_lora"]["covariate_information"]``, the same table.

    Raises
    ------
    TypeError
        If `se` is not a LoRACovariateSE.
    KeyError
        If ``adata.obs`` lacks the split or a covariate.
    ValueError
        If the model is not trained, under 20 cells are held out, no cell is a training cell, `cells` is not a mask, or
        a category of held-out cells does not occur among the training cells.

    Notes
    -----
    Cells are treated as independent. If all cells of a condition come from two or three animals, a probe that
    recognises the animal recognises the condition, and the interval is too narrow: hold out whole animals then
    (``holdout=`` or ``split_key=`` in :func:`scstate_lora.setup_anndata`).

    A linear probe that fails does not prove that the information is absent.
    """
    from scstate_lora.model.se.conditioned_cells import ConditionedCells

    require_trained(se, COVARIATE_INFORMATION)
    _check_level(level)
    adata = se.adata if adata is None else adata
    used = chosen_cells(adata, cells)
    bound = BoundData(se.registry, used)
    train, test = _split(se, bound)
    targets = {c.name: _target(used, c) for c in se.registry.covariates}
    for covariate in se.registry.covariates:
        if not isinstance(covariate, ContinuousCovariate):
            _check_classes(covariate.name, targets[covariate.name], train, test)

    assert se.base is not None  # a trained model has one
    plain = se.base.embed(bound)
    conditioned = ConditionedCells(se.adapters, bound, plain=plain)
    shared = [
        _Embedding(PCA, NOTHING, *_pca(se, used, train, test, n_pcs=n_pcs, seed=seed)),
        _Embedding(BASE, NOTHING, plain[train], plain[test]),
        _halves(MODEL, NOTHING, conditioned.without_covariates(), train, test),
    ]
    fully = _halves(MODEL, ALL, conditioned.under(), train, test)
    # With one covariate and no batch, withholding it leaves nothing to condition on.
    has_others = len(targets) > 1 or (se.registry.batch is not None and se.registry.batch.name not in targets)
    options: dict[str, Any] = {"level": level, "n_boot": n_boot, "seed": seed}
    tables = []
    for covariate in se.registry.covariates:
        name, embeddings = covariate.name, list(shared)
        if has_others:
            embeddings.append(_halves(MODEL, OTHERS, conditioned.under({name: None}), train, test))
        embeddings.append(fully)
        is_number = isinstance(covariate, ContinuousCovariate)
        probe = held_out_continuous_probe if is_number else held_out_categorical_probe
        metric = "probe_r2" if is_number else "probe_balanced_accuracy"
        table = _score(embeddings, targets[name], train, test, lambda *pair, probe=probe: probe(*pair, **options))
        tables.append(table.assign(covariate=name, metric=metric, verdict=_covariate_verdict(table)))
    key = se.registry.cell_type_key
    if key is not None and key in used.obs:
        labels = as_labels(obs_column(used, key))
        labels = labels.where(labels.isin(set(labels.iloc[train])), None)  # no neighbour can vote for a new type

        def vote(*pair: np.ndarray) -> HeldOutScore:
            return held_out_knn_accuracy(*pair, n_neighbors=n_neighbors, **options)

        table = _score([*shared, fully], labels, train, test, vote)
        verdict = _cell_type_verdict(table, is_covariate=key in targets)
        tables.append(table.assign(covariate=key, metric="knn_accuracy", verdict=verdict))
    result = pd.concat(tables, ignore_index=True)
    result = result.join(pd.DataFrame([METRICS[name].columns() for name in result["metric"]]))[_COLUMNS]
    write_result(adata, COVARIATE_INFORMATION, result)
    return result


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        msg = f"level={level!r} must lie between 0 and 1: it is a share of the bootstrap samples."
        raise ValueError(msg)


def _split(se: LoRACovariateSE, bound: BoundData) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the model's training cells and of the held-out ones."""
    adata = bound.adata
    advice = (
        "ssl.setup_anndata(adata, ..., test_size=0.2) holds out a random share, holdout={'column': 'level'} whole "
        "groups; then train anew, because training cells say nothing about others."
    )
    if OBS_SPLIT not in adata.obs:
        msg = f"adata.obs[{OBS_SPLIT!r}] does not exist, which marks the held-out cells. {advice}"
        raise KeyError(msg)
    split = se.split_of(bound)
    if (split != bound.split).any():
        logger.warning("The split is the one that the model keeps: adata.obs[%r] has changed since.", OBS_SPLIT)
    train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
    if len(test) == 0:
        msg = f"No cell is held out: adata.obs[{OBS_SPLIT!r}] is 'test' for none of {adata.n_obs}. {advice}"
        raise ValueError(msg)
    if len(test) < FEWEST_HELD_OUT:
        msg = (
            f"{len(test)} cells are held out (adata.obs[{OBS_SPLIT!r}] is 'test'); a score of fewer than "
            f"{FEWEST_HELD_OUT} is meaningless. Hold out more, or use more cells (cells=). {advice}"
        )
        raise ValueError(msg)
    if len(train) == 0:
        msg = f"adata.obs[{OBS_SPLIT!r}] is 'train' for none of {adata.n_obs} cells: a probe needs some to fit."
        raise ValueError(msg)
    return train, test


def _target(adata: AnnData, covariate: Covariate) -> pd.Series:
    """Read the target of a probe: labels or numbers, missing where the covariate is."""
    column = obs_column(adata, covariate.name, allow_missing=covariate.allow_missing)
    if isinstance(covariate, ContinuousCovariate):
        return pd.to_numeric(column.astype(object)).astype(np.float64)
    return covariate.labels(column).where(column.notna(), None)


def _check_classes(name: str, labels: pd.Series, train: np.ndarray, test: np.ndarray) -> None:
    trained = set(labels.iloc[train].dropna())
    absent = sorted(set(labels.iloc[test].dropna()) - trained)
    if absent:
        msg = (
            f"{', '.join(map(repr, absent))} of adata.obs[{name!r}] occurs among the held-out cells and not among the "
            f"training cells, which have {', '.join(map(repr, sorted(trained)))}: no probe can learn it. Leave those "
            f"cells out: cells=~adata.obs[{name!r}].isin({absent}).to_numpy()."
        )
        raise ValueError(msg)


def _halves(name: str, conditioned_on: str, matrix: np.ndarray, train: np.ndarray, test: np.ndarray) -> _Embedding:
    return _Embedding(name, conditioned_on, matrix[train], matrix[test])


def _pca(
    se: LoRACovariateSE, adata: AnnData, train: np.ndarray, test: np.ndarray, *, n_pcs: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates on the first components of the training cells' log1p expression, ``(n, n_components)`` each."""
    expression = BoundData(se.registry, adata).logged
    pca = sparse_pca(expression[train], n_pcs, seed=seed)
    return pca.transform(expression[train]), pca.transform(expression[test])


def _score(
    embeddings: Iterable[_Embedding],
    target: pd.Series,
    train: np.ndarray,
    test: np.ndarray,
    score: Callable[..., HeldOutScore],
) -> pd.DataFrame:
    """Score embeddings on the cells that have a value."""
    valued_train, valued_test = (target.iloc[rows].notna().to_numpy() for rows in (train, test))
    values = target.to_numpy()
    rows = []
    for embedding in embeddings:
        reason, result = "", _FAILED
        try:
            result = score(
                embedding.train[valued_train],
                values[train][valued_train],
                embedding.test[valued_test],
                values[test][valued_test],
            )
        except (ValueError, np.linalg.LinAlgError) as error:  # the other scores go on
            reason = str(error)
        sizes = {"n_train": int(valued_train.sum()), "n_test": int(valued_test.sum()), "reason": reason}
        rows.append(
            {"embedding": embedding.name, "conditioned_on": embedding.conditioned_on, **result._asdict(), **sizes}
        )
    return pd.DataFrame(rows)


def _scores(table: pd.DataFrame) -> dict[tuple[str, str], HeldOutScore]:
    fields = table[list(HeldOutScore._fields)].itertuples(index=False, name=None)
    return {
        (e, t): HeldOutScore(*numbers)
        for e, t, numbers in zip(table["embedding"], table["conditioned_on"], fields, strict=True)
    }


def _covariate_verdict(table: pd.DataFrame) -> str:
    """Conclude from the scores of a covariate: a score counts if its interval lies above the baseline."""
    scores = _scores(table)
    if table["value"].isna().any():
        return f"not decided: {next(r for r in table['reason'] if r)}"
    is_shown = {key: score.low > score.baseline for key, score in scores.items()}
    plain, conditioned = scores[MODEL, NOTHING], scores[MODEL, ALL]
    references = [f"{name} {scores[name, NOTHING].value:.2f}" for name in (PCA, BASE) if is_shown[name, NOTHING]]
    chance = ", ".join([*references, f"baseline {plain.baseline:.2f}"])
    if is_shown[MODEL, NOTHING]:
        verdict = f"the embedding shows it without conditioning ({plain.value:.2f}; {chance})"
        verdict = f"expression predicts it, and {verdict}" if references else f"{verdict}, PCA and base do not"
        others = scores.get((MODEL, OTHERS), plain)
        more = ["the other covariates reveal more of it"] * (others.low > plain.high)
        more += ["conditioning on it adds to that"] * (conditioned.low > max(plain.high, others.high))
        return "; ".join([verdict, *more])
    if references:
        lost = f"expression predicts it ({chance}), but the embedding lost it"
        return (
            f"{lost} and shows it only by conditioning" if is_shown[MODEL, ALL] else f"{lost}, even with conditioning"
        )
    nothing = f"no linear probe finds it in the expression of {table['n_test'].iloc[0]} held-out cells"
    if not is_shown[MODEL, ALL]:
        return f"{nothing}, and the embedding does not show it even with conditioning"
    if is_shown.get((MODEL, OTHERS), False):
        return f"{nothing}; the embedding shows it by conditioning, and the other covariates reveal it"
    return f"{nothing}; the embedding shows it only by conditioning"


def _cell_type_verdict(table: pd.DataFrame, *, is_covariate: bool) -> str:
    scores = _scores(table)
    if table["value"].isna().any():
        return f"not decided: {next(r for r in table['reason'] if r)}"
    base, plain, conditioned = scores[BASE, NOTHING], scores[MODEL, NOTHING], scores[MODEL, ALL]
    if is_covariate:
        return "the cell type is a covariate: the embedding conditioned on all shows it by conditioning"
    if conditioned.high < base.low:
        exception = " (not without conditioning)" if plain.high >= base.low else ""
        change = f"{base.value:.2f} to {conditioned.value:.2f}"
        return f"cell types are separated worse than by the base: {change}{exception}"
    if conditioned.low > base.high:
        return f"cell types are separated better than by the base: {base.value:.2f} to {conditioned.value:.2f}"
    return "cell types are separated as well as by the base, within the interval"
