"""What an embedding knows of the covariates from expression, and what because it was told: `covariate_information`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scstate_lora._constants import OBS_SPLIT
from scstate_lora.data.fields import ContinuousCovariate, Covariate, as_labels, obs_column
from scstate_lora.data.results import COVARIATE_INFORMATION, write_result
from scstate_lora.data.splits import read_split
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
    *("embedding", "covariate", "told", "metric", "value", "low", "high", "baseline"),
    *("direction", "lowest", "highest", "n_train", "n_test", "reason", "verdict"),
]


class _Embedding(NamedTuple):
    """An embedding of the training and the held-out cells, ``(n, n_dims)`` each."""

    name: str
    told: str
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
    """Ask whether the model knows the covariates from the cells' expression, or only because it was told them.

    For every covariate a linear probe is fitted on the training cells and scored on the held-out ones
    (``adata.obs["scstate_split"]``), on

    - ``PCA`` of log1p expression, fitted on the training cells;
    - ``base``, the base's plain embedding, which knows no covariates;
    - ``model``, the conditioned embedding, told ``"nothing"`` (all covariates and the batch withheld), told the
      ``"others"`` (this covariate withheld), and told ``"all"``.

    Only what is told nothing speaks for the expression. Found where all is told, a covariate may be no more than an
    echo. Found where the others are told, they may give it away, as a mouse does that belongs to one condition.

    The other side is the cell type: an embedding that forgets everything but the covariates makes every
    counterfactual look right. So the table also has the accuracy of the nearest neighbours in naming it; cells of a
    type without training cells are left out.

    Parameters
    ----------
    se
        A trained model.
    adata
        Cells with their split and covariates; the model's own by default.
    cells
        Which cells take part, in fit and score, a mask of shape ``(n_cells,)``: for instance those of one type, as
        otherwise a probe may read a condition from the composition of types. All by default.
    n_pcs
        Components of the PCA, fewer where there are not as many cells or genes.
    n_neighbors
        Neighbours that vote.
    level
        Share of the bootstrap samples of held-out cells that lie between ``low`` and ``high``. Three embeddings are
        told nothing, so a covariate has three chances to look known by luck: hence not 0.95.
    n_boot
        Bootstrap samples.
    seed
        Of the PCA and the samples.

    Returns
    -------
    One row an embedding and covariate:

    - ``embedding``, ``covariate`` (or the column of the cell type), ``told``;
    - ``metric``: ``probe_balanced_accuracy`` of a multinomial logistic regression, ``probe_r2`` of a ridge
      regression, ``knn_accuracy`` of the cell type; inputs of the probes are standardised, and their penalty is chosen
      among the training cells;
    - ``value``, its bootstrap interval ``low`` to ``high``, and ``baseline``: what always answering with the commonest
      class, or the mean of the training cells, reaches;
    - ``direction`` (``"higher"`` is better), ``lowest`` and ``highest`` possible value, ``n_train``, ``n_test``;
    - ``reason``: why a value is NaN, else empty;
    - ``verdict``: what the rows of this covariate say together, in words.

    Adds ``adata.uns["scstate_lora"]["covariate_information"]``, the same table.

    Raises
    ------
    TypeError
        `se` is no LoRACovariateSE.
    KeyError
        ``adata.obs`` lacks the split or a covariate.
    ValueError
        The model is not trained, under 20 cells are held out, none is for training, `cells` is no mask, or a category
        of held-out cells does not occur among the training cells.

    Notes
    -----
    Cells are taken as independent. Where all cells of a condition come from two or three animals, a probe that knows
    the animal knows the condition, and the interval is too narrow: hold out whole animals then (``holdout=`` or
    ``split_key=`` in :func:`scstate_lora.setup_anndata`).

    A linear probe that finds nothing is no proof that there is nothing.
    """
    from scstate_lora.model.se.conditioned_cells import ConditionedCells

    require_trained(se, COVARIATE_INFORMATION)
    _check_level(level)
    adata = se.adata if adata is None else adata
    used = chosen_cells(adata, cells)
    train, test = _split(used)
    targets = {c.name: _target(used, c) for c in se.registry.covariates}
    for covariate in se.registry.covariates:
        if not isinstance(covariate, ContinuousCovariate):
            _check_classes(covariate.name, targets[covariate.name], train, test)

    assert se.base is not None  # a trained model has one
    bound = se.registry.bind(used)
    plain = se.base.embed(bound)
    conditioned = ConditionedCells(se, bound, plain=plain)
    shared = [
        _Embedding(PCA, NOTHING, *_pca(se, used, train, test, n_pcs=n_pcs, seed=seed)),
        _Embedding(BASE, NOTHING, plain[train], plain[test]),
        _halves(MODEL, NOTHING, conditioned.without_covariates(), train, test),
    ]
    told = _halves(MODEL, ALL, conditioned.under(), train, test)
    # With one covariate and no batch, to withhold it is to tell nothing.
    has_others = len(targets) > 1 or (se.registry.batch is not None and se.registry.batch.name not in targets)
    options: dict[str, Any] = {"level": level, "n_boot": n_boot, "seed": seed}
    tables = []
    for covariate in se.registry.covariates:
        name, embeddings = covariate.name, list(shared)
        if has_others:
            embeddings.append(_halves(MODEL, OTHERS, conditioned.under({name: None}), train, test))
        embeddings.append(told)
        number = isinstance(covariate, ContinuousCovariate)
        probe = held_out_continuous_probe if number else held_out_categorical_probe
        metric = "probe_r2" if number else "probe_balanced_accuracy"
        table = _score(embeddings, targets[name], train, test, lambda *pair, probe=probe: probe(*pair, **options))
        tables.append(table.assign(covariate=name, metric=metric, verdict=_covariate_verdict(table)))
    key = se.registry.cell_type_key
    if key is not None and key in used.obs:
        labels = as_labels(obs_column(used, key))
        labels = labels.where(labels.isin(set(labels.iloc[train])), None)  # no neighbour can vote for a new type

        def vote(*pair: np.ndarray) -> HeldOutScore:
            return held_out_knn_accuracy(*pair, n_neighbors=n_neighbors, **options)

        table = _score([*shared, told], labels, train, test, vote)
        verdict = _cell_type_verdict(table, is_told=key in targets)
        tables.append(table.assign(covariate=key, metric="knn_accuracy", verdict=verdict))
    result = pd.concat(tables, ignore_index=True)
    result = result.join(pd.DataFrame([METRICS[name].columns() for name in result["metric"]]))[_COLUMNS]
    write_result(adata, COVARIATE_INFORMATION, result)
    return result


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        msg = f"level={level!r} must lie between 0 and 1: it is a share of the bootstrap samples."
        raise ValueError(msg)


def _split(adata: AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training cells and of the held-out ones."""
    how = (
        "ssl.setup_anndata(adata, ..., test_size=0.2) holds out a random share, holdout={'column': 'level'} whole "
        "groups; then train anew, as cells that the model was trained on cannot tell what it knows of others."
    )
    if OBS_SPLIT not in adata.obs:
        msg = f"adata.obs[{OBS_SPLIT!r}] does not exist, which says what cells are held out. {how}"
        raise KeyError(msg)
    split = read_split(adata)
    train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
    if len(test) == 0:
        msg = f"No cell is held out: adata.obs[{OBS_SPLIT!r}] is 'test' for none of {adata.n_obs}. {how}"
        raise ValueError(msg)
    if len(test) < FEWEST_HELD_OUT:
        msg = (
            f"{len(test)} cells are held out (adata.obs[{OBS_SPLIT!r}] is 'test'); of under {FEWEST_HELD_OUT} a score "
            f"says next to nothing. Hold out more, or let more cells take part (cells=). {how}"
        )
        raise ValueError(msg)
    if len(train) == 0:
        msg = f"adata.obs[{OBS_SPLIT!r}] is 'train' for none of {adata.n_obs} cells: there is none to fit a probe on."
        raise ValueError(msg)
    return train, test


def _target(adata: AnnData, covariate: Covariate) -> pd.Series:
    """Read what a probe is asked for: labels or numbers, missing where the covariate is."""
    column = obs_column(adata, covariate.name, allow_missing=covariate.allow_missing)
    if isinstance(covariate, ContinuousCovariate):
        return pd.to_numeric(column.astype(object)).astype(np.float64)
    return as_labels(column).where(column.notna(), None)


def _check_classes(name: str, labels: pd.Series, train: np.ndarray, test: np.ndarray) -> None:
    known = set(labels.iloc[train].dropna())
    absent = sorted(set(labels.iloc[test].dropna()) - known)
    if absent:
        msg = (
            f"{', '.join(map(repr, absent))} of adata.obs[{name!r}] occurs among the held-out cells and not among the "
            f"training cells, which have {', '.join(map(repr, sorted(known)))}: no probe can know it. Leave those "
            f"cells out: cells=~adata.obs[{name!r}].isin({absent}).to_numpy()."
        )
        raise ValueError(msg)


def _halves(name: str, told: str, matrix: np.ndarray, train: np.ndarray, test: np.ndarray) -> _Embedding:
    return _Embedding(name, told, matrix[train], matrix[test])


def _pca(
    se: LoRACovariateSE, adata: AnnData, train: np.ndarray, test: np.ndarray, *, n_pcs: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores on the first components of the training cells' centred log1p expression, ``(n, n_components)``."""
    expression = se.registry.bind(adata).logged
    pca = sparse_pca((len(train), expression.shape[1]), n_pcs, seed=seed).fit(expression[train])
    return pca.transform(expression[train]), pca.transform(expression[test])


def _score(
    embeddings: Iterable[_Embedding],
    target: pd.Series,
    train: np.ndarray,
    test: np.ndarray,
    score: Callable[..., HeldOutScore],
) -> pd.DataFrame:
    """Score embeddings on the cells that have a value."""
    known_train, known_test = (target.iloc[rows].notna().to_numpy() for rows in (train, test))
    values = target.to_numpy()
    rows = []
    for embedding in embeddings:
        reason, found = "", _FAILED
        try:
            found = score(
                embedding.train[known_train],
                values[train][known_train],
                embedding.test[known_test],
                values[test][known_test],
            )
        except (ValueError, np.linalg.LinAlgError) as error:  # one score takes no other down
            reason = str(error)
        sizes = {"n_train": int(known_train.sum()), "n_test": int(known_test.sum()), "reason": reason}
        rows.append({"embedding": embedding.name, "told": embedding.told, **found._asdict(), **sizes})
    return pd.DataFrame(rows)


def _scores(table: pd.DataFrame) -> dict[tuple[str, str], HeldOutScore]:
    fields = table[list(HeldOutScore._fields)].itertuples(index=False, name=None)
    return {
        (e, t): HeldOutScore(*numbers) for e, t, numbers in zip(table["embedding"], table["told"], fields, strict=True)
    }


def _covariate_verdict(table: pd.DataFrame) -> str:
    """Say in words what the scores of a covariate mean; found is what lies above the baseline with its interval."""
    scores = _scores(table)
    if table["value"].isna().any():
        return f"not decided: {next(r for r in table['reason'] if r)}"
    found = {key: score.low > score.baseline for key, score in scores.items()}
    known, given = scores[MODEL, NOTHING], scores[MODEL, ALL]
    plain = [f"{name} {scores[name, NOTHING].value:.2f}" for name in (PCA, BASE) if found[name, NOTHING]]
    chance = ", ".join([*plain, f"baseline {known.baseline:.2f}"])
    if found[MODEL, NOTHING]:
        by = f"the expression tells it, and the embedding shows it without being told ({known.value:.2f}; {chance})"
        if not plain:
            by = f"the embedding shows it without being told ({known.value:.2f}; {chance}), PCA and base do not"
        others = scores.get((MODEL, OTHERS), known)
        more = ["the other covariates give more of it away"] * (others.low > known.high)
        more += ["telling it adds to that"] * (given.low > max(known.high, others.high))
        return "; ".join([by, *more])
    if plain:
        lost = f"the expression tells it ({chance}), but the embedding lost it"
        return f"{lost} and knows it only where it is told" if found[MODEL, ALL] else f"{lost}, even where it is told"
    nothing = f"the expression says nothing of it that a linear probe finds in {table['n_test'].iloc[0]} held-out cells"
    if not found[MODEL, ALL]:
        return f"{nothing}, and the embedding does not show it where it is told"
    if found.get((MODEL, OTHERS), False):
        return f"{nothing}; the embedding knows it because it was told, and the other covariates give it away"
    return f"{nothing}; the embedding knows it only because it was told"


def _cell_type_verdict(table: pd.DataFrame, *, is_told: bool) -> str:
    scores = _scores(table)
    if table["value"].isna().any():
        return f"not decided: {next(r for r in table['reason'] if r)}"
    base, untold, given = scores[BASE, NOTHING], scores[MODEL, NOTHING], scores[MODEL, ALL]
    if is_told:
        return "the cell type is a covariate: what the embedding knows where all is told, it was told"
    if given.high < base.low:
        kept = " (not where nothing is told)" if untold.high >= base.low else ""
        return f"the cell type is told apart worse than by the base: {base.value:.2f} to {given.value:.2f}{kept}"
    if given.low > base.high:
        return f"the cell type is told apart better than by the base: {base.value:.2f} to {given.value:.2f}"
    return "the cell type is told apart as well as by the base, within the interval"
