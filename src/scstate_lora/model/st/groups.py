"""Groups of cells that train and validate, and the perturbations that have none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from scstate_lora._logging import logger
from scstate_lora._utils import listed, warn_user
from scstate_lora.data.contexts import join_labels
from scstate_lora.data.perturbations import PerturbationTable
from scstate_lora.data.sets import make_groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.sets import Group

MIN_GROUP = 5
"""Fewest control and perturbed cells of a group that trains."""
_MOST_LISTED = 10


def split_groups(cells: BoundData, split: str, *, min_cells: int, by: Sequence[str] | None = None) -> list[Group]:
    """Pair a split's perturbed cells with controls; validation ones are predicted from training controls too.

    Parameters
    ----------
    cells
        All cells.
    split
        ``"train"`` or ``"val"``.
    min_cells
        Groups with fewer control or perturbed cells are left out.
    by
        Columns that define a context; by default the registered ones.
    """
    registry = cells.registry
    perts = registry.perturbation.encode(cells.obs[registry.pert_key])
    used = cells.split == split
    if split == "val":
        used |= (cells.split == "train") & cells.is_control
    contexts = cells.contexts if by is None else join_labels([cells.labels(key) for key in by], len(cells))
    control = registry.perturbations.index(str(registry.control))
    return make_groups(contexts, perts, control, used, min_cells=min_cells)


def training_groups(cells: BoundData) -> list[Group]:
    """Pair the training split's perturbed cells with controls.

    Raises
    ------
    ValueError
        If no context has enough cells.
    """
    groups = split_groups(cells, "train", min_cells=MIN_GROUP)
    if not groups:
        keys = cells.registry.context_keys
        where = f"No context ({' x '.join(keys)}) has" if keys else "There are not"
        advice = _coarser(cells, cells.registry.targets) or "Use more cells."
        msg = f"{where} {MIN_GROUP} control and {MIN_GROUP} perturbed training cells. {advice}"
        raise ValueError(msg)
    return groups


def describe_perturbations(cells: BoundData, features: pd.DataFrame | None, groups: list[Group]) -> PerturbationTable:
    """Make the table of perturbation vectors, and name the perturbations and contexts that no group trains.

    Parameters
    ----------
    cells
        All cells.
    features
        Features of the perturbations; None for one-hot vectors.
    groups
        Training groups. Without features, the table holds their perturbations only: nothing is learned about others.

    Raises
    ------
    TypeError, ValueError
        If the features cannot be used; without them, if a perturbation has no training cells.

    Warns
    -----
    UserWarning
        If perturbations with training cells are in no group.
    """
    registry = cells.registry
    key, control = str(registry.pert_key), str(registry.control)
    trained = {registry.perturbations[group.pert] for group in groups}
    if features is not None:
        table = PerturbationTable.of_features(features, trained=trained, control=control)
    else:
        table = PerturbationTable.one_hot([name for name in registry.targets if name in trained], control)
    counts = _counts(cells)
    present = set(counts.index)
    left_out = [name for name in registry.targets if name in present - trained]
    unseen = [name for name in registry.targets if name not in present and not table.describes(name)]
    if unseen and features is None:
        msg = (
            f"No training cell has adata.obs[{key!r}] = {', '.join(map(repr, unseen[:5]))}, so nothing can be "
            "learnt of it. Hold out fewer cells, leave these cells out, or describe the perturbations: "
            "pert_features=DataFrame indexed by their names."
        )
        raise ValueError(msg)
    advice = _coarser(cells, left_out)
    needed = f"It takes {MIN_GROUP} control and {MIN_GROUP} perturbed training cells of one context"
    needed += f" ({' x '.join(registry.context_keys)})." if registry.context_keys else "."
    why = {name: _why(counts.loc[[name]]) for name in left_out}
    untrained = {name: f"{why[name]}. {needed} {advice}".rstrip() for name in left_out if not table.describes(name)}
    _warn_of(why, table, needed=needed, advice=advice)
    contexts = _without_controls(counts, set(cells.contexts[cells.is_control]))
    if contexts:
        logger.warning(
            "%d contexts have too few control cells to train perturbations: %s. %s",
            len(contexts),
            listed(contexts, limit=_MOST_LISTED, joined_by="; ", form=str),
            needed,
        )
    return replace(table, untrained=untrained)


def _counts(cells: BoundData) -> pd.DataFrame:
    """Count training cells by perturbation and context, beside the context's training control cells."""
    rows = cells.rows("train")
    table = pd.DataFrame({"pert": cells.perturbations[rows], "context": cells.contexts[rows]}).astype(str)
    sizes = table.value_counts(["pert", "context"]).rename("cells").reset_index("context")
    is_control = sizes.index == cells.registry.control
    controls = sizes[is_control].set_index("context")["cells"]
    sizes = sizes[~is_control]
    return sizes.assign(controls=sizes["context"].map(controls).fillna(0).astype(int))


def _why(counts: pd.DataFrame) -> str:
    """Why no group holds a perturbation: by its rows of :func:`_counts`."""
    total, most = int(counts["cells"].sum()), int(counts["cells"].max())
    text = f"{total} training cell{'s' if total > 1 else ''}"
    if total < MIN_GROUP:
        return text
    if most < MIN_GROUP:
        return f"{text}, at most {most} of them in one context"
    if counts["controls"].max() < MIN_GROUP:
        return f"{text}, in contexts of fewer than {MIN_GROUP} training control cells"
    return f"{text}, no {MIN_GROUP} of them in a context of {MIN_GROUP} training control cells"


def _without_controls(counts: pd.DataFrame, controlled: set[str]) -> list[str]:
    """Describe contexts with enough cells of a perturbation, and too few controls; set-up names those without any."""
    short = counts[(counts["controls"] < MIN_GROUP) & counts["context"].isin(controlled)]
    sizes = short.groupby("context").agg({"cells": ["max", "sum"], "controls": "first"})
    return [
        f"{name} ({perturbed} perturbed and {controls} control training cells)"
        for name, most, perturbed, controls in sizes.itertuples(name=None)
        if most >= MIN_GROUP
    ]


def _coarser(cells: BoundData, names: Sequence[str]) -> str:
    """Advise on coarser contexts, in which groups hold these perturbations; empty if there are none."""
    registry = cells.registry
    keys = registry.context_keys
    best: tuple[int, list[str]] = (0, [])
    for coarse in [*([k for k in keys if k != dropped] for dropped in reversed(keys)), []] if names and keys else []:
        grouped = {registry.perturbations[g.pert] for g in split_groups(cells, "train", min_cells=MIN_GROUP, by=coarse)}
        best = max(best, (len(grouped & set(names)), coarse), key=lambda choice: choice[0])
    n_trained, coarse = best
    if not n_trained:
        return ""
    which = "them" if n_trained == len(names) else f"{n_trained} of them"
    return f"Coarser contexts would train {which}: context_keys={coarse}."


def _warn_of(why: dict[str, str], table: PerturbationTable, *, needed: str, advice: str) -> None:
    """Warn once of all perturbations that no group holds."""
    source = "from the features, as one never seen" if table.from_features else "as the sum of their parts"
    refused = "not predicted: no row in pert_features" if table.from_features else "not predicted"
    parts = []
    for names, fate in (
        ([name for name in why if not table.describes(name)], refused),
        ([name for name in why if table.describes(name)], f"predicted {source}"),
    ):
        if names:
            each = listed((f"{name!r} ({why[name]})" for name in names), limit=_MOST_LISTED, form=str)
            parts.append(f"Too few training cells to learn {each}: {fate}.")
    if parts:
        warn_user(" ".join(part for part in (*parts, needed, advice) if part))
