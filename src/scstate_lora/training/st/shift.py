"""The shift of a State Transition network, solved for before any step from what the training groups show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from scstate_lora.nn.context_shift import covariate_coordinates
from scstate_lora.training.st.context_prior import fit_contexts
from scstate_lora.training.st.shift_prior import group_statistics, mean_shifts, shifts_of, shrinkage

if TYPE_CHECKING:
    from scstate_lora.data.sets import Group, SetData
    from scstate_lora.nn.transition import StateTransition
    from scstate_lora.training.st.context_prior import ContextFit

_SOLVED = ("centre", "basis", "points", "perts", "alpha", "width", "slope", "reach")
_GENES = 2000  # per block, so that memory is bounded


def solve_shift(
    network: StateTransition, data: SetData, groups: list[Group], types: np.ndarray, *, by_context: bool
) -> str | None:
    """Set a network's shift to what the training groups show.

    Parameters
    ----------
    network
        Changed in place; it has a shift.
    data
        The cells.
    groups
        Training groups.
    types
        Cell type of every cell, or its context where no types are known, ``(n_cells,)``.
    by_context
        Whether the shift depends on the context; otherwise it is the mean shift.

    Returns
    -------
    Description of the shift by context; None without it.
    """
    assert network.shift is not None  # the caller has looked
    with torch.no_grad():
        network.shift.copy_(torch.from_numpy(mean_shifts(data.x, groups, data.perts)))
    if not by_context:
        _solve_further(network, data, groups, None)
        return None
    coordinates = [
        covariate_coordinates(covariate_tensors(data, group), network.specs).numpy().reshape(-1) for group in groups
    ]
    where = np.array(coordinates, dtype=np.float64).reshape(len(groups), -1)
    fitted = fit_contexts(data.x, groups, data.perts, where, [str(types[g.control[0]]) for g in groups])
    network.set_context_shift({name: torch.as_tensor(getattr(fitted, name), dtype=torch.float32) for name in _SOLVED})
    _solve_further(network, data, groups, fitted)
    return fitted.note


def _solve_further(network: StateTransition, data: SetData, groups: list[Group], fitted: ContextFit | None) -> None:
    """Set the shift of the genes that the network does not read, by the kernel fitted to those that it reads."""
    if network.further_shift is None or data.further is None:
        return
    pert_vectors = data.perts[[g.pert for g in groups]].astype(np.float64)
    columns = data.further.tocsc()
    solved = network.further_shift
    for start in range(0, columns.shape[1], _GENES):
        part = slice(start, start + _GENES)
        stats = group_statistics(columns[:, part].tocsr(), groups)
        common = shifts_of(stats.delta, pert_vectors)
        solved.shift[:, part] = torch.from_numpy(common)
        if fitted is not None:
            centre, alpha = fitted.extend(stats, pert_vectors, common)
            solved.centre[part], solved.alpha[:, part] = torch.from_numpy(centre), torch.from_numpy(alpha)


def deviation_weight(network: StateTransition, data: SetData, groups: list[Group]) -> float:
    """Weight of the deviations' penalty that the groups' noise asks for, see :func:`shrinkage`.

    Parameters
    ----------
    network
        Its shift is solved for.
    data
        The cells.
    groups
        Training groups by cell type: contexts of one type respond alike, so that their evidence counts together.
    """
    stats, codes = group_statistics(data.x, groups), np.array([g.pert for g in groups])
    control, perts = (torch.from_numpy(a.astype(np.float32)) for a in (stats.control, data.perts[codes]))
    with torch.no_grad():
        expected = [
            network.common_shift(control[i : i + 1], perts[i : i + 1], covariate_tensors(data, group))
            for i, group in enumerate(groups)
        ]
    return shrinkage(stats, codes, torch.cat(expected).numpy())


def covariate_tensors(data: SetData, group: Group) -> dict[str, torch.Tensor]:
    """Covariates of a group's control cells, as of one set: ``(1, n_cells)`` each."""
    return {name: torch.from_numpy(values[group.control])[None] for name, values in data.covariates.items()}
