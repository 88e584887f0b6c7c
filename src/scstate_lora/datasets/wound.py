"""A simulated skin wound, burn against sham over several days, with known truth for every cell."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from scstate_lora._constants import TARGET_SUM
from scstate_lora._utils import did_you_mean
from scstate_lora.datasets import courses, wound_genes
from scstate_lora.datasets.wound_model import STATES, Cells, WoundModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CONDITIONS = ("sham", "burn")
UNS = "wound_healing"
STATE_KEY = "true_state"
MIN_CELLS = 3  # per cell type, condition and day
MOUSE_CONCENTRATION = 150.0  # of the Dirichlet by which mice differ in composition
LIBRARY_SD = 0.35  # of the log library size between cells
UNSPLICED_LIBRARY_SD = 0.15  # of the log capture of unspliced RNA, on top of the library size


def wound_healing(
    n_cells: int = 6000,
    *,
    n_genes: int = 500,
    days: Sequence[float] = (10, 14, 19),
    n_mice: int = 3,
    depth: float = 2000.0,
    seed: int = 0,
) -> ad.AnnData:
    """Simulate single cells of healing skin: burn and sham, several days, eleven cell types, several mice.

    Inflammation, stress and interferon fade, proliferation comes and goes, remodelling rises, and macrophages polarise
    from M1-like to M2-like. A burn delays all of this, strengthens parts of it and adds a response of its own, to an
    extent that depends on the cell: the delay and the sensitivity to each programme are sigmoids of the log expression
    of sensor genes in the same cell. Condition and time therefore interact strongly: many genes are lower under burn at
    day 10 and higher at day 14, and no sum of a condition effect and a time effect describes them.

    Parameters
    ----------
    n_cells
        Number of cells, shared evenly by the mice.
    n_genes
        Number of genes: 191 have real mouse symbols and a known role, the others are background.
    days
        Days after wounding at which cells are sampled. `wound_healing_truth` knows all other days as well.
    n_mice
        Number of mice per condition and day; every mouse belongs to one condition and one day.
    depth
        Median spliced counts per cell.
    seed
        The same seed and arguments give the same data.

    Returns
    -------
    Cells ``(n_cells, n_genes)`` with

    - ``X`` and ``layers["spliced"]``: spliced counts, negative-binomial, CSR float32; ``layers["unspliced"]``
      likewise.
    - ``obs``: ``condition``, ``timepoint`` (``"day10"`` ...), ``time_days``, ``cell_type``, ``mouse_id``; hidden
      truth ``polarisation`` (macrophages: 0 M1-like to 1 M2-like; NaN elsewhere) and ``true_library_size``
      (expected counts).
    - ``layers["mean"]`` and ``layers["mean_other_condition"]``: noise-free expression of each cell under its own
      and under the other condition, log1p of counts per 10,000, dense float32.
    - ``layers["velocity"]``: true RNA velocity ds/dt = beta u - gamma s, spliced counts per 10,000 per day,
      dense float32. With s = ``expm1(mean)``, velocity divided by 1 + s is the velocity of ``mean``.
    - ``var``: ``role`` (a programme, ``marker``, ``sensor``, ``housekeeping`` or ``background``), ``true_beta`` and
      ``true_gamma`` (per day), ``true_dispersion`` (phi in variance = mean + phi mean²).
    - ``obsm["true_state"]``: hidden state of each cell, used by `wound_healing_truth`.
    - ``uns["wound_healing"]``: ``markers`` (programme to genes that rise with it), ``cell_type_markers``,
      ``trends`` (direction of a programme from day 10 to day 19 under sham: 1 up, -1 down), and the parameters
      of the simulation.

    Raises
    ------
    ValueError
        If an argument is out of range, or there are too few cells for every cell type in every condition and day.

    See Also
    --------
    wound_healing_truth : the same cells under any condition and at any day.

    Notes
    -----
    Time and memory grow with ``n_cells * n_genes``: the layers of 6,000 cells by 20,000 genes take about 2 GB.
    Background genes take their share of the counts, so raise `depth` along with `n_genes` to see the programmes
    equally well.
    """
    in_order = _check_arguments(n_cells, n_genes, days, n_mice, depth, seed)
    rng = np.random.default_rng(seed)
    mice = [(condition, day) for condition in CONDITIONS for day in in_order for _ in range(n_mice)]
    model = WoundModel.draw(rng, n_genes=n_genes, n_mice=len(mice))
    cells = _draw_cells(rng, n_cells, mice, n_mice)
    library = _draw_library(rng, cells, depth, len(mice))

    obs = _describe_cells(cells, mice, in_order)
    obs["polarisation"] = model.polarisation(cells).astype(np.float32)
    obs["true_library_size"] = library.astype(np.float32)
    layers = _draw_layers(rng, model, cells, library)
    var = _describe_genes(model, n_genes)
    adata = ad.AnnData(X=layers["spliced"].copy(), obs=obs, var=var, layers=layers, obsm={STATE_KEY: cells.state})
    adata.uns[UNS] = {
        "seed": int(seed),
        "genes": var.index.to_numpy(dtype=object),
        "mice": obs["mouse_id"].cat.categories.to_numpy(dtype=object),
        "parameters": model.to_arrays(),
        "markers": _as_arrays(wound_genes.PROGRAMMES),
        "cell_type_markers": _as_arrays(wound_genes.CELL_TYPE_MARKERS),
        "trends": dict(wound_genes.TRENDS),
    }
    return adata


def wound_healing_truth(
    adata: ad.AnnData, *, condition: str | None = None, day: float | None = None
) -> NDArray[np.float32]:
    """Noise-free expression of simulated cells, as they are, under another condition or on another day.

    The cells keep their type, mouse effect and hidden state. Works on any subset of the cells and genes of
    `wound_healing`, also after the data was written to a file and read again.

    Parameters
    ----------
    adata
        Data from `wound_healing`, with ``obs["cell_type"]``, ``obs["mouse_id"]``, ``obs["condition"]``,
        ``obs["time_days"]``, ``obsm["true_state"]`` and ``uns["wound_healing"]``.
    condition
        ``"sham"`` or ``"burn"`` for all cells; each cell's own by default.
    day
        Days after wounding for all cells, simulated or not; each cell's own by default.

    Returns
    -------
    log1p of expected counts per 10,000, ``(n_cells, n_genes)``.

    Raises
    ------
    KeyError
        If `adata` lacks the entries of the simulator, or has genes that were not simulated.
    ValueError
        If `condition` or `day` is not possible.
    """
    model, cells = _read_cells(adata)
    if condition is not None:
        if condition not in CONDITIONS:
            msg = f"condition={condition!r} is not simulated. {did_you_mean(str(condition), CONDITIONS)}"
            raise ValueError(msg)
        cells = replace(cells, burned=np.full(len(cells), condition == "burn"))
    if day is not None:
        if not _is_number(day) or day < 0:
            msg = f"day={day!r} is not a number of days after wounding; give one number, 0 or more."
            raise ValueError(msg)
        cells = replace(cells, day=np.full(len(cells), float(day)))
    columns = pd.Index(adata.uns[UNS]["genes"]).get_indexer(adata.var_names)
    if (columns < 0).any():
        unknown = adata.var_names[columns < 0]
        msg = (
            f"adata.var_names has {len(unknown)} genes that were not simulated, {unknown[0]!r} among them; "
            "take the truth before genes are renamed or added."
        )
        raise KeyError(msg)
    truth = [np.log1p(model.spliced(part).value).astype(np.float32)[:, columns] for part in cells.chunks()]
    return np.concatenate(truth) if truth else np.zeros(adata.shape, dtype=np.float32)


def _check_arguments(
    n_cells: int, n_genes: int, days: Sequence[float], n_mice: int, depth: float, seed: int
) -> list[float]:
    """Refuse arguments that cannot be simulated; return the days in order."""
    for name, value, lowest in (
        ("n_cells", n_cells, 1),
        ("n_genes", n_genes, 1),
        ("n_mice", n_mice, 1),
        ("seed", seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < lowest:
            msg = f"{name}={value!r} must be a whole number, {lowest} or more."
            raise ValueError(msg)
    if not _is_number(depth) or depth <= 0:
        msg = f"depth={depth!r} must be a positive number of counts per cell, for instance 2000."
        raise ValueError(msg)
    listed = list(days) if np.iterable(days) else [days]
    if not listed or not all(_is_number(day) and day >= 0 for day in listed):
        msg = f"days={days!r} must be one or more numbers of days after wounding, none negative."
        raise ValueError(msg)
    if len({_timepoint(day) for day in listed}) < len(listed):
        msg = f"days={days!r} names a day twice; give each day once."
        raise ValueError(msg)
    if n_genes < len(wound_genes.CORE_GENES):
        msg = f"n_genes={n_genes} is too few: programmes, markers and sensors take {len(wound_genes.CORE_GENES)}."
        raise ValueError(msg)
    n_groups = len(CONDITIONS) * len(listed)
    needed = MIN_CELLS * len(wound_genes.CELL_TYPES) * n_groups
    if n_cells < max(needed, n_groups * n_mice):
        msg = (
            f"n_cells={n_cells} is too few for {MIN_CELLS} cells of each of {len(wound_genes.CELL_TYPES)} cell types "
            f"under {len(CONDITIONS)} conditions at {len(listed)} days and {n_mice} mice; give at least "
            f"{max(needed, n_groups * n_mice)}."
        )
        raise ValueError(msg)
    return sorted(float(day) for day in listed)


def _is_number(value: object) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _timepoint(day: float) -> str:
    """Name a day in ``obs["timepoint"]``."""
    return f"day{day:g}"


def _draw_cells(rng: np.random.Generator, n_cells: int, mice: list[tuple[str, float]], n_mice: int) -> Cells:
    """Share the cells out to mice and cell types, in random order."""
    n_types = len(wound_genes.CELL_TYPES)
    group_sizes = np.full(len(mice) // n_mice, n_cells // (len(mice) // n_mice))
    group_sizes[: n_cells - group_sizes.sum()] += 1
    cell_type, mouse = [], []
    for group, size in enumerate(group_sizes):
        members = np.arange(group * n_mice, (group + 1) * n_mice)
        condition, day = mice[members[0]]
        expected = courses.composition(day, burned=condition == "burn")
        shares = np.array([expected[name] for name in wound_genes.CELL_TYPES])
        # A fixed part, a little over one cell in eight, goes evenly to all types, so that no type is missing.
        reserved = max(MIN_CELLS, round(0.012 * size))
        owners = np.resize(members, size)
        types = np.concatenate([np.repeat(np.arange(n_types), reserved), np.full(size - reserved * n_types, -1)])
        rng.shuffle(types)
        for owner in members:
            open_places = np.flatnonzero((types < 0) & (owners == owner))
            types[open_places] = rng.choice(n_types, len(open_places), p=rng.dirichlet(MOUSE_CONCENTRATION * shares))
        cell_type.append(types)
        mouse.append(owners)
    order = rng.permutation(n_cells)
    owners = np.concatenate(mouse)[order].astype(np.intp)
    return Cells(
        cell_type=np.concatenate(cell_type)[order].astype(np.intp),
        mouse=owners,
        burned=np.array([condition == "burn" for condition, _ in mice])[owners],
        day=np.array([day for _, day in mice])[owners],
        state=np.clip(rng.normal(0, 1, (n_cells, len(STATES))), -3, 3).astype(np.float32),
    )


def _draw_library(rng: np.random.Generator, cells: Cells, depth: float, n_mice: int) -> NDArray[np.float64]:
    """Draw the expected counts of each cell: log-normal, with a factor by cell type and one by mouse."""
    by_type = np.array([wound_genes.LIBRARY_FACTOR.get(name, 1.0) for name in wound_genes.CELL_TYPES])
    by_mouse = np.exp(rng.normal(0, 0.15, n_mice))
    return depth * by_type[cells.cell_type] * by_mouse[cells.mouse] * np.exp(rng.normal(0, LIBRARY_SD, len(cells)))


def _draw_layers(
    rng: np.random.Generator, model: WoundModel, cells: Cells, library: NDArray[np.float64]
) -> dict[str, Any]:
    """Compute truth and counts of all cells, a few hundred cells at a time."""
    chunks: dict[str, list[Any]] = {
        name: [] for name in ("spliced", "unspliced", "mean", "mean_other_condition", "velocity")
    }
    library_unspliced = library * np.exp(rng.normal(-(UNSPLICED_LIBRARY_SD**2) / 2, UNSPLICED_LIBRARY_SD, len(cells)))
    start = 0
    for part in cells.chunks():
        rows = slice(start, start + len(part))
        spliced = model.spliced(part)
        unspliced = model.unspliced(spliced)
        other = model.spliced(replace(part, burned=~part.burned))
        for name, expected, size in (("spliced", spliced.value, library), ("unspliced", unspliced, library_unspliced)):
            chunks[name].append(_draw_counts(rng, expected / TARGET_SUM * size[rows, None], model.dispersion))
        chunks["mean"].append(np.log1p(spliced.value).astype(np.float32))
        chunks["mean_other_condition"].append(np.log1p(other.value).astype(np.float32))
        chunks["velocity"].append(spliced.rate.astype(np.float32))
        start += len(part)
    layers: dict[str, Any] = {name: sparse.vstack(chunks.pop(name), format="csr") for name in ("spliced", "unspliced")}
    return layers | {name: np.concatenate(parts) for name, parts in chunks.items()}


def _draw_counts(
    rng: np.random.Generator, mean: NDArray[np.float64], dispersion: NDArray[np.float32]
) -> sparse.csr_matrix:
    """Draw negative-binomial counts as a Poisson whose rate is Gamma; variance = mean + dispersion mean²."""
    phi = dispersion.astype(np.float64)
    counts = rng.poisson(rng.gamma(1 / phi, phi, mean.shape) * mean)
    return sparse.csr_matrix(counts, dtype=np.float32)


def _describe_cells(cells: Cells, mice: list[tuple[str, float]], days: list[float]) -> pd.DataFrame:
    """Make an ``obs`` like that of real data."""
    mouse_names = [f"mouse{i + 1:02d}" for i in range(len(mice))]
    return pd.DataFrame(
        {
            "condition": pd.Categorical.from_codes(cells.burned.astype(int), categories=pd.Index(CONDITIONS)),
            "timepoint": pd.Categorical.from_codes(
                np.searchsorted(days, cells.day), categories=pd.Index([_timepoint(day) for day in days])
            ),
            "time_days": cells.day,
            "cell_type": pd.Categorical.from_codes(cells.cell_type, categories=pd.Index(wound_genes.CELL_TYPES)),
            "mouse_id": pd.Categorical.from_codes(cells.mouse, categories=pd.Index(mouse_names)),
        },
        index=[f"cell{i:06d}" for i in range(len(cells))],
    )


def _describe_genes(model: WoundModel, n_genes: int) -> pd.DataFrame:
    """Make the ``var``: roles and true kinetics."""
    names = wound_genes.gene_names(n_genes)
    roles = wound_genes.gene_roles()
    return pd.DataFrame(
        {
            "role": pd.Categorical([roles.get(name, "background") for name in names]),
            "true_beta": model.beta,
            "true_gamma": model.gamma,
            "true_dispersion": model.dispersion,
        },
        index=names,
    )


def _read_cells(adata: ad.AnnData) -> tuple[WoundModel, Cells]:
    """Rebuild model and cells from the entries of `wound_healing`."""
    if UNS not in adata.uns:
        msg = (
            f"adata.uns[{UNS!r}] is missing, so these are not cells of scstate_lora.datasets.wound_healing(), or the "
            "entry was lost on the way (anndata.concat drops uns unless uns_merge is given)."
        )
        raise KeyError(msg)
    if STATE_KEY not in adata.obsm:
        msg = f"adata.obsm[{STATE_KEY!r}] is missing; keep it when copying data of wound_healing()."
        raise KeyError(msg)
    for key in ("cell_type", "mouse_id", "condition", "time_days"):
        if key not in adata.obs:
            msg = f"adata.obs[{key!r}] is missing. {did_you_mean(key, adata.obs.columns)}"
            raise KeyError(msg)
    stored = adata.uns[UNS]
    cells = Cells(
        cell_type=_positions(adata, "cell_type", list(wound_genes.CELL_TYPES)),
        mouse=_positions(adata, "mouse_id", list(stored["mice"])),
        burned=_positions(adata, "condition", list(CONDITIONS)) == 1,
        day=adata.obs["time_days"].to_numpy(dtype=np.float64),
        state=np.asarray(adata.obsm[STATE_KEY], dtype=np.float32),
    )
    return WoundModel.from_arrays(stored["parameters"]), cells


def _positions(adata: ad.AnnData, key: str, known: list[str]) -> NDArray[np.intp]:
    """Find the position of each cell's value among the simulated ones."""
    values = adata.obs[key].astype(str)
    positions = pd.Index(known).get_indexer(values)
    if (positions < 0).any():
        unknown = values[positions < 0].iloc[0]
        msg = f"adata.obs[{key!r}] holds {unknown!r}, which was not simulated. {did_you_mean(unknown, known)}"
        raise ValueError(msg)
    return positions.astype(np.intp)


def _as_arrays(table: dict[str, tuple[str, ...]]) -> dict[str, NDArray[np.object_]]:
    """Turn lists of gene names into arrays, which survive writing to a file."""
    return {name: np.array(genes, dtype=object) for name, genes in table.items()}
