"""Which genes respond: predicted and measured change of every gene, side by side: `responses`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scstate_lora._utils import did_you_mean
from scstate_lora.data.results import read_prediction
from scstate_lora.metrics.changes import Change, Moments
from scstate_lora.tl.scoring.inputs import read_inputs
from scstate_lora.tl.scoring.table import MIN_CELLS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


def responses(
    pred: AnnData,
    real: AnnData,
    control: AnnData,
    *,
    context_key: str | Sequence[str],
    genes: Sequence[str] | None = None,
    pert_key: str | None = None,
    level: float = 0.95,
    min_cells: int = MIN_CELLS,
) -> pd.DataFrame:
    """Tabulate the predicted and the measured change of every gene, by perturbation and context.

    A change is the difference of the means of log1p expression, cells minus control cells of the same context. Both
    changes are against the control cells that `pred` was predicted from, whose noise they share: judge the prediction
    as a whole by :func:`~scstate_lora.tl.evaluate_perturbation`, which takes care of that.

    Parameters
    ----------
    pred
        Cells predicted by :meth:`~scstate_lora.STTransition.predict`, for one or several targets.
    real, control, context_key, pert_key
        As in :func:`~scstate_lora.tl.evaluate_perturbation`.
    genes
        Genes to tabulate; by default all that were predicted.
    level
        Coverage of the intervals.
    min_cells
        With fewer measured or control cells of a context there are no intervals and tests. In few cells many genes are
        not seen at all, so that their variance is 0 by chance, and every such gene would be certain to have changed.

    Returns
    -------
    One row per perturbation, context and gene, the largest measured change of each context first: ``perturbation``,
    ``context``, ``gene``; ``control``, the mean of the control cells; ``predicted`` and ``measured`` change;
    ``measured_low`` and ``measured_high``, the interval of the measured one by Welch's t, and ``fdr``, its p-value
    adjusted over the predicted genes of the context by Benjamini and Hochberg, all three NaN with fewer than
    `min_cells` measured or control cells; ``n_control``, ``n_predicted`` and ``n_measured`` cells.

    Raises
    ------
    KeyError
        If a column or gene is missing, or a measured AnnData was not set up.
    ValueError
        If `level` is not between 0 and 1 or `min_cells` is under 2, and as
        :func:`~scstate_lora.tl.evaluate_perturbation`; several targets are allowed.

    Warns
    -----
    UserWarning
        If cells that the model was trained on are among those of `real`.

    References
    ----------
    Welch (1947), The generalization of Student's problem; Benjamini and Hochberg (1995), Controlling the false
    discovery rate.
    """
    if not 0 < level < 1:
        msg = f"level={level} must be between 0 and 1, for instance 0.95."
        raise ValueError(msg)
    if min_cells < 2:
        msg = f"min_cells={min_cells} must be 2 or more: of one cell no variance is known."
        raise ValueError(msg)
    inputs = read_inputs(
        pred, real, control, context_key=context_key, train=None, pert_key=pert_key, pert_features=None, name="model"
    )
    if genes is not None:
        genes = [genes] if isinstance(genes, str) else list(genes)
        _check_predicted(genes, pred)
    kept = slice(None) if genes is None else pd.Index(inputs.genes).get_indexer(pd.Index(genes))
    predicted, measured = inputs.predicted.groups(), inputs.measured.groups()
    controls = {context: Moments.of(inputs.controls.of(context)) for context in inputs.contexts}
    tables = []
    for target in inputs.targets:
        for context in inputs.contexts:
            if (target, context) not in predicted or (target, context) not in measured:
                continue
            table = _table(
                Moments.of(inputs.predicted.expression[predicted[target, context]].toarray()),
                Moments.of(inputs.measured.expression[measured[target, context]].toarray()),
                controls[context],
                genes=inputs.genes,
                level=level,
                min_cells=min_cells,
            ).iloc[kept]
            table = table.sort_values("measured", key=np.abs, ascending=False, kind="stable")
            table.insert(0, "context", context)
            table.insert(0, "perturbation", target)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _check_predicted(genes: Sequence[str], pred: AnnData) -> None:
    """Raise a KeyError for the first gene that was not predicted, saying why."""
    names = [str(name) for name in pred.var_names]
    for gene in genes:
        if gene in set(read_prediction(pred).genes_left_out or ()):
            msg = f"{gene!r} was left out of the prediction. Have it predicted: STTransition(adata, genes=[{gene!r}])."
            raise KeyError(msg)
        if gene not in names:
            msg = f"{gene!r} is not among the {len(names)} genes of pred. {did_you_mean(gene, names)}"
            raise KeyError(msg)


def _table(
    predicted: Moments, measured: Moments, control: Moments, *, genes: Sequence[str], level: float, min_cells: int
) -> pd.DataFrame:
    """Tabulate the changes of one perturbation in one context, in the order of the genes."""
    change = Change(measured, control)
    if min(measured.n_cells, control.n_cells) < min_cells:
        low, high, fdr = (np.full(len(genes), np.nan) for _ in range(3))
    else:
        (low, high), fdr = change.interval(level), change.genes.fdr
    return pd.DataFrame(
        {
            "gene": genes,
            "control": control.mean,
            "predicted": Change(predicted, control).delta,
            "measured": change.delta,
            "measured_low": low,
            "measured_high": high,
            "fdr": fdr,
            "n_control": control.n_cells,
            "n_predicted": predicted.n_cells,
            "n_measured": measured.n_cells,
        }
    )
