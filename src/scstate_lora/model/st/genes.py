"""Genes that a transition model predicts, and those in which single cells deviate from the shift."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch

from scstate_lora._logging import logger
from scstate_lora._utils import did_you_mean
from scstate_lora.training.st.shift_prior import mean_of, variances_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scstate_lora.config import STModelConfig
    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.sets import Group

_N_VARIABLE, _N_RESPONDERS = 2000, 500
_RESPONDS = 4.0
"""Standard errors by which the mean of a gene that responds changes."""
_MOST_BYTES = 2 * 2**30
"""Memory that the predicted cells of one target, and the shifts, may take."""


class GeneChoice(NamedTuple):
    """Genes of a model, in the order of the data."""

    predicted: list[str]
    network: list[str]
    """Genes that the network reads and in which single cells deviate; the others are moved by the shift alone."""
    note: str
    """The choice in words."""


def choose_genes(cells: BoundData, options: STModelConfig, groups: list[Group]) -> GeneChoice:
    """Choose the genes of a model by its options and the training cells.

    Parameters
    ----------
    cells, groups
        All cells, and the training groups.
    options
        ``n_genes`` and ``genes``; and ``space`` and ``residual``, by which genes have a shift of their own or not.

    Raises
    ------
    KeyError
        If ``genes`` names one that the data do not have.
    """
    names = cells.registry.var_names
    everything = GeneChoice(names, names, f"all {len(names)} genes")
    requested = _positions(options.genes or [], names)
    limit = _N_VARIABLE if options.n_genes == "auto" else options.n_genes
    if limit is None or len(names) <= limit:
        return everything
    chosen = _most_variable(cells, limit)
    note = f"the {chosen.sum()} most variable"
    responders = list(_strongest(cells, groups))
    n_responders = len(set(responders))
    added = []
    if options.n_genes == "auto":
        taken = list(dict.fromkeys(responders))[:_N_RESPONDERS]
        added.append((taken, "that respond most to perturbations"))
    added.append((requested, "requested"))
    for positions, kind in added:
        n_new = int((~chosen[positions]).sum())
        chosen[positions] = True
        note += f", {n_new} more {kind}" if n_new else ""
    network = [name for name, c in zip(names, chosen, strict=True) if c]
    if options.n_genes == "auto" and options.space == "genes" and options.residual == "output":
        n_rows = int(cells.is_control.sum()) + len(cells.registry.targets) + len(groups)
        if n_rows * len(names) * 4 <= _MOST_BYTES:
            return GeneChoice(names, network, f"all {len(names)} genes; cells deviate from the shift in {note}")
        note += f" (all would take {n_rows * len(names) * 4 / 2**30:.1f} GiB)"
    n_missed = int((~chosen[list(set(responders))]).sum())
    logger.info(
        "Predicted: %s of %d genes; of the %d that respond to a perturbation in training, %d are left out. Name genes "
        "to add: model={'genes': [...]}; model={'n_genes': None} predicts all.",
        note,
        len(names),
        n_responders,
        n_missed,
    )
    return GeneChoice(network, network, f"{note} of {len(names)} genes")


def _positions(requested: list[str], names: list[str]) -> list[int]:
    position = {name: i for i, name in enumerate(names)}
    absent = [name for name in requested if name not in position]
    if absent:
        msg = f"model: genes names {absent[0]!r}, which the data do not have. {did_you_mean(absent[0], names)}"
        raise KeyError(msg)
    return [position[name] for name in requested]


def _most_variable(cells: BoundData, limit: int) -> np.ndarray:
    """Mark the most variable genes of the training cells, bool ``(n_genes,)``."""
    names = cells.registry.var_names
    train = ad.AnnData(cells.logged[cells.rows("train")], var=pd.DataFrame(index=names))
    threads = torch.get_num_threads()
    sc.pp.highly_variable_genes(train, n_top_genes=limit)
    torch.set_num_threads(threads)  # scanpy's numba shares torch's thread pool, and resizes it
    # Genes that tie with the last one are marked too, as rounding has it: the first of them is taken.
    marked = np.flatnonzero(train.var["highly_variable"])
    order = np.argsort(-train.var["dispersions_norm"].to_numpy()[marked], kind="stable")
    chosen = np.zeros(len(names), dtype=bool)
    chosen[marked[order[:limit]]] = True
    return chosen


def _strongest(cells: BoundData, groups: list[Group]) -> Iterator[int]:
    """Genes that respond in the training groups: the strongest of every perturbation first, then the second ones."""
    x = cells.logged
    controls: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    ranked = []
    by_pert: dict[int, list[Group]] = {}
    for group in groups:
        by_pert.setdefault(group.pert, []).append(group)
    for _, own in sorted(by_pert.items()):
        change, noise = np.zeros(x.shape[1]), np.zeros(x.shape[1])
        for group in own:
            if group.context not in controls:
                controls[group.context] = mean_of(x, group.control), variances_of(x, group.control)
            mean, variance = controls[group.context]
            change += mean_of(x, group.perturbed) - mean
            noise += variances_of(x, group.perturbed) / len(group.perturbed) + variance / len(group.control)
        responds = np.flatnonzero(np.abs(change) > _RESPONDS * np.sqrt(noise))
        ranked.append(responds[np.argsort(-np.abs(change[responds]), kind="stable")].tolist())
    for strongest in zip_longest(*ranked):
        yield from (gene for gene in strongest if gene is not None)
