"""Results in ``adata.uns["scstate_lora"]``: all are written and read here."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scstate_lora._constants import TARGET_SUM, UNS_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

REGISTRY = "registry"
SPLIT = "split"
EMBED = "embed"
DECODE_EXPRESSION = "decode_expression"
PREDICT = "predict"
ANNOTATE = "annotate"
INTERPOLATE = "interpolate"
EVALUATE = "evaluate"
EVALUATE_PERTURBATION = "evaluate_perturbation"
DISCRIMINATION = "discrimination"
COMPARE = "compare"
COVARIATE_INFORMATION = "covariate_information"
TEMPORAL_COHERENCE = "temporal_coherence"
DISENTANGLEMENT = "disentanglement"
VELOCITY = "velocity"
VELOCITY_ALIGNMENT = "velocity_alignment"


def as_uns(function: str, value: Any, *, key: str | None = None) -> dict[str, Any]:
    """Make the ``uns`` of an AnnData with one result.

    Parameters
    ----------
    function, value, key
        As in :func:`write_result`.
    """
    return {UNS_KEY: {function: value if key is None else {key: value}}}


def write_result(adata: AnnData, function: str, value: Any, *, key: str | None = None) -> None:
    """Store a result and keep all others.

    Parameters
    ----------
    adata
        Annotated data. If it is a view, its parent stays as it is.
    function
        Function that wrote the result, one of the constants of this module.
    value
        The result, of types that an ``.h5ad`` file can store.
    key
        Name of the result, if a function stores several.
    """
    # New dicts, as those of a view belong to its parent.
    results = dict(adata.uns.get(UNS_KEY, {}))
    results[function] = value if key is None else {**results.get(function, {}), key: value}
    adata.uns[UNS_KEY] = results


def read_result(adata: AnnData, function: str, *, key: str | None = None) -> Any:
    """Read a result, or None if it does not exist.

    Parameters
    ----------
    adata
        Annotated data.
    function, key
        As in :func:`write_result`.
    """
    result = adata.uns.get(UNS_KEY, {}).get(function)
    return result if key is None or result is None else result.get(key)


def require_result(adata: AnnData, function: str, *, call: str) -> Any:
    """Read a result that must exist.

    Parameters
    ----------
    adata, function
        As in :func:`read_result`.
    call
        The call that writes the result, for the error message.

    Raises
    ------
    KeyError
        If the result does not exist.
    """
    result = read_result(adata, function)
    if result is None:
        msg = f"adata.uns[{UNS_KEY!r}] has no {function!r}. Call `scstate_lora.{call}` first."
        raise KeyError(msg)
    return result


def drop_result(adata: AnnData, function: str) -> None:
    """Remove a result if it exists."""
    if read_result(adata, function) is not None:
        adata.uns[UNS_KEY] = {name: value for name, value in adata.uns[UNS_KEY].items() if name != function}


@contextmanager
def results_restored_on_error(adata: AnnData) -> Iterator[None]:
    """Restore all results to their earlier state if the block raises."""
    before = adata.uns.get(UNS_KEY)
    try:
        yield
    except BaseException:
        if before is not None:
            adata.uns[UNS_KEY] = before
        else:
            adata.uns.pop(UNS_KEY, None)
        raise


class Prediction(NamedTuple):
    """Description of predicted cells."""

    scale: str
    """Scale of the expression."""
    pert_key: str
    """Column of ``obs`` with the perturbation."""
    control: str
    """Control level of the perturbation."""
    targets: list[str]
    """Predicted perturbations."""
    space: str
    """``"genes"``, or the key of ``obsm`` with the predicted embedding."""
    target_sum: float | None = None
    """Sum of the counts of a cell before log1p; None, and absent from the record, if unknown."""
    train_cells: np.ndarray | None = None
    """Hashes of the names of the targets' cells that the model was trained on; None if it keeps no split."""
    gene_choice: str | None = None
    """Which genes are predicted, in words; None if all are."""
    genes_left_out: list[str] | None = None
    """Genes of the data that are not predicted; None if all are."""

    def record(self, **further: Any) -> dict[str, Any]:
        """Return the record to store under :data:`PREDICT`, in which the perturbations are called ``target``."""
        names = {"targets": "target"}
        known = {name: value for name, value in self._asdict().items() if value is not None}
        return {**{names.get(name, name): value for name, value in known.items()}, **further}


LIBRARY_SIZE = "library_size"
"""Column of predicted counts: those of the cell over all genes, the ones that are not predicted included."""


def joined(descriptions: Sequence[Prediction]) -> Prediction:
    """Describe predictions of several targets together."""
    trained = [d.train_cells for d in descriptions if d.train_cells is not None]
    return descriptions[0]._replace(
        targets=[target for d in descriptions for target in d.targets],
        train_cells=np.unique(np.concatenate(trained)) if trained else None,
    )


def is_predicted(adata: AnnData) -> bool:
    """Whether these cells were predicted by a model."""
    return read_result(adata, PREDICT) is not None


def read_prediction(adata: AnnData) -> Prediction:
    """Read the description of predicted cells, including descriptions written by version 0.1.

    Raises
    ------
    ValueError
        If these cells were not predicted.
    """
    record = read_result(adata, PREDICT)
    if record is None:
        msg = (
            f"pred.uns[{UNS_KEY!r}][{PREDICT!r}] does not exist; pred must come from STTransition.predict. "
            "Of another model's prediction name the column of the perturbation: pert_key=."
        )
        raise ValueError(msg)
    pert_key = str(record["pert_key"])
    left_out = record.get("genes_left_out")
    scale = str(record.get("scale", "log1p_cp10k"))
    # Version 0.1 recorded the name alone.
    total = record.get("target_sum", TARGET_SUM if scale == "log1p_cp10k" else None)
    return Prediction(
        scale=scale,
        pert_key=pert_key,
        control=str(record["control"]),
        targets=_targets(record.get("target", ()), set(adata.obs[pert_key]) if pert_key in adata.obs else set()),
        space=str(record.get("space", "genes")),
        target_sum=None if total is None else float(total),
        train_cells=None if "train_cells" not in record else np.asarray(record["train_cells"], dtype=np.uint64),
        gene_choice=None if record.get("gene_choice") is None else str(record["gene_choice"]),
        genes_left_out=None if left_out is None else [str(gene) for gene in left_out],
    )


def _targets(stored: str | Sequence[str] | np.ndarray, labels: set[object]) -> list[str]:
    """Return the names of perturbations, which version 0.1 joined by commas."""
    if not isinstance(stored, str):
        return [str(name) for name in np.asarray(stored, dtype=object).ravel()]
    return [stored] if stored in labels else stored.split(", ")
