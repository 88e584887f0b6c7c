"""The truth behind the simulated wound: noise-free expression of any cell under any condition at any day."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scstate_lora._constants import TARGET_SUM
from scstate_lora.datasets import courses, wound_genes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

N_FREE_STATES = 4
"""Directions in which cells of one type differ without any consequence for healing."""

STATES: tuple[str, ...] = (
    "clock",
    "transition",
    *wound_genes.SENSORS,
    *(f"free_{i + 1}" for i in range(N_FREE_STATES)),
)
"""A cell's hidden state, in standard deviations: its lead in time, its progress towards a related type, its deviation
in sensitivity to each programme, and free variation."""

CLOCK_SD = 0.7  # days by which cells of one sample run ahead of or behind each other
SHORTEST_DELAY, DELAY_RANGE = 1.5, 5.5  # days by which a burn delays a cell: from ... and up to as much more
SENSITIVITY_SD = 0.7  # how much cells of one type differ in sensitivity, in logits
SENSITIVITY_FLOOR = 0.1  # the least sensitive cell still responds this much
MAX_TRANSITION = 0.5  # no cell is closer to the related type than to its own
CHUNK = 512  # cells computed at once


@dataclass(frozen=True)
class Cells:
    """The inputs of the simulation, one entry per cell."""

    cell_type: NDArray[np.intp]
    """Index into `wound_genes.CELL_TYPES`, ``(n_cells,)``."""
    mouse: NDArray[np.intp]
    """Row of `WoundModel.mouse_effect`, ``(n_cells,)``."""
    burned: NDArray[np.bool_]
    """Whether the wound is a burn, ``(n_cells,)``."""
    day: NDArray[np.float64]
    """Days since wounding, ``(n_cells,)``."""
    state: NDArray[np.float32]
    """Hidden state, ``(n_cells, len(STATES))``."""

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.cell_type)

    def chunks(self) -> Iterator[Cells]:
        """Iterate over the cells, a few hundred at a time."""
        for start in range(0, len(self), CHUNK):
            part = slice(start, start + CHUNK)
            yield Cells(self.cell_type[part], self.mouse[part], self.burned[part], self.day[part], self.state[part])


@dataclass(frozen=True)
class WoundModel:
    """Parameters of the simulation: a log-linear model of expression driven by non-linear activities.

    A cell's log expression is a baseline of its type, plus its mouse's effect, plus its free variation, plus the
    activity of every channel times the cell's sensitivity times the gene's loading. The sensitivity is a sigmoid of the
    log expression of the programme's sensor genes in that cell, which therefore predicts its response to a burn.
    """

    base: NDArray[np.float32]
    """Log expression by cell type, ``(n_cell_types, n_genes)``."""
    mouse_effect: NDArray[np.float32]
    """Log fold change by mouse, ``(n_mice, n_genes)``."""
    state_loadings: NDArray[np.float32]
    """Log fold change per unit of hidden state, ``(len(STATES), n_genes)``; zero for the clock."""
    loadings: NDArray[np.float32]
    """Log fold change at full activity by channel, ``(n_programmes + 1, n_genes)``; the last row is systemic."""
    own_response: NDArray[np.float32]
    """Log fold change of the response to burn that is specific to a cell type, ``(n_cell_types, n_genes)``."""
    dispersion: NDArray[np.float32]
    """Negative-binomial dispersion phi, variance = mean + phi mean², ``(n_genes,)``."""
    beta: NDArray[np.float32]
    """Splicing rate per day, ``(n_genes,)``."""
    gamma: NDArray[np.float32]
    """Degradation rate of spliced RNA per day, ``(n_genes,)``."""

    @classmethod
    def draw(cls, rng: np.random.Generator, *, n_genes: int, n_mice: int) -> WoundModel:
        """Draw a model at random; the genes of each programme are fixed, the amounts are not."""
        base, state_loadings = _draw_baseline(rng, n_genes)
        gamma = np.clip(rng.lognormal(np.log(2), 0.4, n_genes), 1.3, 6.0)
        own = np.clip(rng.normal(0, 0.45, base.shape), -1, 1) * (rng.random(base.shape) < 0.12)
        model = {
            "base": base,
            "mouse_effect": rng.normal(0, 0.1, (n_mice, n_genes)),
            "state_loadings": state_loadings,
            "loadings": _draw_loadings(rng, n_genes),
            "own_response": own,
            "dispersion": np.clip(rng.lognormal(np.log(0.25), 0.5, n_genes), 0.05, 2.0),
            "beta": gamma * np.clip(rng.lognormal(np.log(2.5), 0.3, n_genes), 1.0, 6.0),
            "gamma": gamma,
        }
        return cls(**{name: np.asarray(values, dtype=np.float32) for name, values in model.items()})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> WoundModel:
        """Rebuild a model from the arrays of `to_arrays`, also after they were written to a file and read again."""
        return cls(**{name: np.asarray(arrays[name], dtype=np.float32) for name in cls.__dataclass_fields__})

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the model as plain arrays, fit for ``uns``."""
        return asdict(self)

    def identity(self, cells: Cells) -> NDArray[np.float64]:
        """Return the share of each cell type in each cell, mostly its own, ``(n_cells, n_cell_types)``."""
        names = wound_genes.CELL_TYPES
        relative = np.array([names.index(wound_genes.RELATIVES.get(name, name)) for name in names])
        away = MAX_TRANSITION / (1 + np.exp(3 - 2 * cells.state[:, STATES.index("transition")].astype(np.float64)))
        own = np.eye(len(names))
        return (1 - away)[:, None] * own[cells.cell_type] + away[:, None] * own[relative[cells.cell_type]]

    def sensitivity(self, cells: Cells) -> NDArray[np.float64]:
        """Return the sensitivity of each cell to each programme, between 0 and 1, ``(n_cells, n_programmes)``."""
        typical = np.array([list(wound_genes.SENSITIVITY[name].values()) for name in wound_genes.CELL_TYPES])
        first = STATES.index("inflammation")
        deviation = cells.state[:, first : first + len(wound_genes.SENSORS)].astype(np.float64)
        logit = self.identity(cells) @ typical + SENSITIVITY_SD * deviation
        return SENSITIVITY_FLOOR + (1 - SENSITIVITY_FLOOR) / (1 + np.exp(-1.5 * logit))

    def clock(self, cells: Cells) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return each cell's own time in days and the days by which a burn delays it, both ``(n_cells,)``."""
        stress = list(wound_genes.SENSORS).index("stress")
        lead = CLOCK_SD * cells.state[:, STATES.index("clock")].astype(np.float64)
        return cells.day + lead, SHORTEST_DELAY + DELAY_RANGE * self.sensitivity(cells)[:, stress]

    def polarisation(self, cells: Cells) -> NDArray[np.float64]:
        """Return the state on the macrophage axis, 0 M1-like to 1 M2-like; NaN for other cell types, ``(n_cells,)``."""
        time, delay = self.clock(cells)
        axis = courses.polarisation(time, delay * cells.burned).value
        return np.where(cells.cell_type == wound_genes.CELL_TYPES.index("macrophage"), axis, np.nan)

    def spliced(self, cells: Cells) -> courses.Course:
        """Return the expected spliced RNA in counts per 10,000 and its velocity per day, ``(n_cells, n_genes)``."""
        driven = self._drive(cells)
        identity = self.identity(cells)
        static = identity @ self.base
        static += self.mouse_effect[cells.mouse]
        static += cells.state.astype(np.float64) @ self.state_loadings
        own = identity @ self.own_response
        log_level = static + driven.value[:, :-1] @ self.loadings + driven.value[:, -1:] * own
        log_rate = driven.rate[:, :-1] @ self.loadings + driven.rate[:, -1:] * own
        share = np.exp(log_level - log_level.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        # The counts of a cell add up to 10,000 at all times, so a gene also falls because others rise.
        rate = share * (log_rate - (share * log_rate).sum(axis=1, keepdims=True))
        return courses.Course(TARGET_SUM * share, TARGET_SUM * rate)

    def unspliced(self, spliced: courses.Course) -> NDArray[np.float64]:
        """Return the expected unspliced RNA that yields this velocity: ds/dt = beta u - gamma s, solved for u."""
        return (spliced.rate + self.gamma * spliced.value) / self.beta

    def _drive(self, cells: Cells) -> courses.Course:
        """Activity times sensitivity by channel, ``(n_cells, n_channels)``."""
        time, delay = self.clock(cells)
        scale = np.ones((len(cells), len(courses.CHANNELS)))
        scale[:, : len(wound_genes.SENSORS)] = self.sensitivity(cells)
        others = cells.cell_type != wound_genes.CELL_TYPES.index("macrophage")
        for programme in wound_genes.MACROPHAGE_PROGRAMMES:
            scale[others, courses.CHANNELS.index(programme)] = 0
        return courses.activity(time, cells.burned, delay) * scale


def _draw_baseline(rng: np.random.Generator, n_genes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log expression by cell type and its variation between cells of a type."""
    index = {gene: i for i, gene in enumerate(wound_genes.CORE_GENES)}
    types = {cell_type: i for i, cell_type in enumerate(wound_genes.CELL_TYPES)}
    common = rng.normal(0, 1.0, n_genes)
    roles = wound_genes.gene_roles()
    for gene, i in index.items():
        level = {"housekeeping": 2.6, "sensor": 1.3, "marker": -1.0}.get(roles[gene], -0.6)
        common[i] = level + rng.normal(0, 0.3)
    base = common + rng.normal(0, 0.25, (len(types), n_genes))
    for members in wound_genes.LINEAGES.values():
        base[[types[name] for name in members]] += rng.normal(0, 0.3, n_genes)
        for name in members:
            markers = [index[gene] for gene in wound_genes.CELL_TYPE_MARKERS[name]]
            # Related types share much of a marker, so that they differ in amounts.
            base[np.ix_([types[other] for other in members], markers)] += rng.uniform(0.8, 1.6, len(markers))
            base[types[name], markers] += rng.uniform(0.5, 1.3, len(markers))
    for programme, (lineage, amount) in wound_genes.HOME.items():
        genes = [index[gene] for gene in wound_genes.PROGRAMMES[programme]]
        base[np.ix_([types[name] for name in wound_genes.LINEAGES[lineage]], genes)] += amount

    free = rng.normal(0, 0.25, (N_FREE_STATES, n_genes)) * (rng.random((N_FREE_STATES, n_genes)) < 0.4)
    state_loadings = np.zeros((len(STATES), n_genes))
    state_loadings[-N_FREE_STATES:] = free
    for programme, sensors in wound_genes.SENSORS.items():
        genes = [index[gene] for gene in sensors]
        typical = np.array([wound_genes.SENSITIVITY[name][programme] for name in types])
        # A sensor's log expression is the logit of the sensitivity, up to a constant.
        base[:, genes] = common[genes] + 0.8 * typical[:, None]
        state_loadings[:, genes] = 0
        state_loadings[STATES.index(programme), genes] = 0.8 * SENSITIVITY_SD
    return base, state_loadings


def _draw_loadings(rng: np.random.Generator, n_genes: int) -> NDArray[np.float64]:
    """Log fold change of each gene at full activity of each programme and of the systemic response."""
    index = {gene: i for i, gene in enumerate(wound_genes.CORE_GENES)}
    background = np.arange(n_genes) >= len(wound_genes.CORE_GENES)
    # Some background genes follow a programme, up or down, more weakly than its named genes. One programme only, and
    # within bounds, so that no gene ever falls faster than its RNA decays.
    loadings = np.zeros((len(wound_genes.PROGRAMMES) + 1, n_genes))
    followed = rng.integers(0, len(wound_genes.PROGRAMMES), n_genes)
    follows = background & (rng.random(n_genes) < 0.4)
    loadings[followed, np.arange(n_genes)] = np.where(follows, np.clip(rng.normal(0, 0.5, n_genes), -1.2, 1.2), 0)
    for row, genes in enumerate(wound_genes.PROGRAMMES.values()):
        loadings[row, [index[gene] for gene in genes]] = rng.uniform(1.2, 2.4, len(genes))
    systemic = background & (rng.random(n_genes) < 0.15)
    loadings[-1] = np.where(systemic, np.clip(rng.normal(0, 0.6, n_genes), -1.2, 1.2), 0)
    return loadings
