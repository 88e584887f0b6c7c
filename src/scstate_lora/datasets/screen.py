"""A simulated perturbation screen whose effects follow, up to a known part, from features of the perturbed gene."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from scstate_lora._constants import TARGET_SUM
from scstate_lora._utils import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CONTROL = "control"
SEPARATOR = "+"
UNS = "perturbation_screen"
FEATURES = "perturbation_features"
MIN_CELLS = 2  # per cell type and perturbation
N_FEATURES = 10
N_PROGRAMMES = 8
GENES_PER_PROGRAMME = 0.08  # share of all genes
FEATURES_PER_PROGRAMME = 3
EFFECT_SD = 0.4  # of the log fold change that a programme at full activity gives one of its genes
RESIDUAL_GENES = 0.1  # share of the genes that respond to one perturbation outside of all programmes
RESIDUAL_SD = 0.6
INTERACTION = 0.5  # of two perturbations that drive the same programme: how much of their sum is lost
SHARED = 1.5  # input of every perturbation to three programmes: a response to any perturbation
SENSITIVITY_SD = 0.5  # of the log sensitivity of a cell type to a programme
KNOCKDOWN = -2.0  # log fold change of the perturbed gene itself
LIBRARY_SD = 0.35  # of the log library size between cells
CELLS_AT_ONCE = 1024


def perturbation_screen(
    n_perturbations: int = 50,
    *,
    n_cells: int = 3500,
    n_control: int = 500,
    n_genes: int = 500,
    n_cell_types: int = 3,
    combinations: int = 0,
    feature_noise: float = 0.2,
    depth: float = 4000.0,
    seed: int = 0,
) -> ad.AnnData:
    """Simulate a CRISPR screen: control cells, single knockdowns and pairs of them, in a few cell types.

    Every perturbed gene has ten hidden features. A saturating sum of them sets the activity of eight programmes, and
    each programme moves a few genes. Each cell type responds to each programme with its own sensitivity, and every
    perturbation also moves some genes that the features do not predict. So a model with the features can predict most
    of the effect of an unseen perturbation, and a model that knows only names cannot. Three programmes respond to
    nearly every perturbation, so that the mean over perturbations is a strong baseline. Two perturbations at once add
    up, except that part of their joint effect on the same programme in the same direction is lost.

    Parameters
    ----------
    n_perturbations
        Number of single perturbations; each knocks down one of the simulated genes and is named after it.
    n_cells
        Number of cells, control cells included. The perturbations and pairs share the others evenly.
    n_control
        Number of control cells among them.
    n_genes
        Number of genes, at least 50 and at least one per perturbation.
    n_cell_types
        Number of cell types, equally frequent under every perturbation.
    combinations
        Number of pairs ``"A+B"`` of single perturbations, chosen at random, to simulate as well.
    feature_noise
        Standard deviation of the noise added to the features, which have a standard deviation of 1.
    depth
        Median counts per cell.
    seed
        The same seed and arguments give the same data.

    Returns
    -------
    Cells ``(n_cells, n_genes)`` with

    - ``X``: negative-binomial counts, CSR float32.
    - ``obs``: ``perturbation`` (``"control"``, a gene, or two genes as ``"A+B"``), ``cell_type``, and the hidden
      ``true_library_size`` (expected counts).
    - ``layers["mean"]`` and ``layers["mean_control"]``: noise-free expression of each cell as it is, and as it
      would be without the perturbation: log1p of counts per 10,000, dense float32.
    - ``var``: ``is_target`` and ``true_dispersion`` (phi in variance = mean + phi mean²).
    - ``uns["perturbation_features"]``: DataFrame ``(n_perturbations, 10)``, indexed by perturbation: the hidden
      features with noise. Pairs have no row; the features of a pair are those of its parts.
    - ``uns["perturbation_screen"]``: the parameters of the simulation.

    Raises
    ------
    ValueError
        If an argument is out of range, or there are too few cells for every cell type under every perturbation.

    See Also
    --------
    perturbation_screen_truth : the noise-free mean of every perturbation in every cell type.
    """
    _check_arguments(
        n_perturbations=n_perturbations,
        n_cells=n_cells,
        n_control=n_control,
        n_genes=n_genes,
        n_cell_types=n_cell_types,
        combinations=combinations,
        feature_noise=feature_noise,
        depth=depth,
        seed=seed,
    )
    rng = np.random.default_rng(seed)
    model = _Screen.draw(rng, n_perturbations=n_perturbations, n_genes=n_genes, n_cell_types=n_cell_types)
    genes, types = _gene_names(n_genes), _type_names(n_cell_types)
    targets = [genes[i] for i in model.target]
    pairs = _draw_pairs(rng, targets, combinations)
    levels = [CONTROL, *targets, *pairs]

    level, cell_type = _draw_cells(rng, n_cells, n_control, len(levels) - 1, n_cell_types)
    library = depth * np.exp(rng.normal(0, LIBRARY_SD, n_cells))
    truth = np.array([[model.expected(_positions(name, targets), t) for t in range(n_cell_types)] for name in levels])
    adata = ad.AnnData(
        X=_draw_counts(rng, truth[level, cell_type] / TARGET_SUM, library, model.dispersion),
        obs=pd.DataFrame(
            {
                "perturbation": pd.Categorical.from_codes(level, categories=pd.Index(levels)),
                "cell_type": pd.Categorical.from_codes(cell_type, categories=pd.Index(types)),
                "true_library_size": library.astype(np.float32),
            },
            index=[f"cell{i:06d}" for i in range(n_cells)],
        ),
        var=pd.DataFrame(
            {"is_target": np.isin(np.arange(n_genes), model.target), "true_dispersion": model.dispersion}, index=genes
        ),
    )
    logged = np.log1p(truth).astype(np.float32)
    adata.layers["mean"] = logged[level, cell_type]
    adata.layers["mean_control"] = logged[0, cell_type]
    noisy = model.features + feature_noise * rng.normal(size=model.features.shape)
    columns = [f"feature{i + 1:02d}" for i in range(N_FEATURES)]
    adata.uns[FEATURES] = pd.DataFrame(noisy, index=targets, columns=columns)
    adata.uns[UNS] = {
        "seed": int(seed),
        "genes": np.array(genes, dtype=object),
        "cell_types": np.array(types, dtype=object),
        "perturbations": np.array(levels, dtype=object),
        "parameters": model.to_arrays(),
    }
    return adata


def perturbation_screen_truth(adata: ad.AnnData, *, perturbations: Sequence[str] | None = None) -> pd.DataFrame:
    """Noise-free mean expression of every perturbation in every cell type of `perturbation_screen`.

    Works on any subset of the cells and genes, also after the data was written to a file and read again.

    Parameters
    ----------
    adata
        Data from `perturbation_screen`; only ``uns["perturbation_screen"]`` and the gene names are read.
    perturbations
        ``"control"``, single perturbations, and pairs ``"A+B"`` of them, simulated or not. By default all that were
        simulated.

    Returns
    -------
    log1p of expected counts per 10,000, with rows ``(perturbation, cell_type)`` and one column per gene. The true
    effect of a perturbation is its row minus that of ``"control"`` in the same cell type.

    Raises
    ------
    KeyError
        If `adata` lacks the entries of the simulator, or has genes that were not simulated.
    ValueError
        If a perturbation cannot be simulated.
    """
    if UNS not in adata.uns:
        msg = (
            f"adata.uns[{UNS!r}] is missing, so these are not cells of scstate_lora.datasets.perturbation_screen(), or "
            "the entry was lost on the way (anndata.concat drops uns unless uns_merge is given)."
        )
        raise KeyError(msg)
    stored = adata.uns[UNS]
    model, types = _Screen.from_arrays(stored["parameters"]), [str(name) for name in stored["cell_types"]]
    columns = pd.Index(stored["genes"]).get_indexer(adata.var_names)
    if (columns < 0).any():
        unknown = adata.var_names[columns < 0]
        msg = (
            f"adata.var_names has {len(unknown)} genes that were not simulated, {unknown[0]!r} among them; "
            "take the truth before genes are renamed or added."
        )
        raise KeyError(msg)
    targets = [str(stored["genes"][i]) for i in model.target]
    if perturbations is None:
        perturbations = [str(name) for name in stored["perturbations"]]
    rows = {
        (name, kind): np.log1p(model.expected(_positions(name, targets), t))[columns]
        for name in ([perturbations] if isinstance(perturbations, str) else perturbations)
        for t, kind in enumerate(types)
    }
    index = pd.MultiIndex.from_tuples(list(rows), names=["perturbation", "cell_type"])
    return pd.DataFrame(np.array(list(rows.values()), dtype=np.float32), index=index, columns=adata.var_names)


@dataclass(frozen=True)
class _Screen:
    """Parameters of a simulated screen: the effect of a perturbation on the expected expression of a cell type."""

    base: NDArray[np.float64]  # log expression of unperturbed cells (n_cell_types, n_genes)
    features: NDArray[np.float64]  # hidden features of every perturbed gene (n_perturbations, N_FEATURES)
    weights: NDArray[np.float64]  # features to the activity of programmes (N_FEATURES, N_PROGRAMMES)
    shared: NDArray[np.float64]  # input of every perturbation (N_PROGRAMMES,)
    loading: NDArray[np.float64]  # log fold change of every gene at full activity (N_PROGRAMMES, n_genes)
    sensitivity: NDArray[np.float64]  # of cell types to programmes (n_cell_types, N_PROGRAMMES)
    residual: NDArray[np.float64]  # log fold change outside of programmes (n_perturbations, n_genes)
    target: NDArray[np.intp]  # position of the gene that is knocked down (n_perturbations,)
    dispersion: NDArray[np.float64]  # (n_genes,)

    @classmethod
    def draw(cls, rng: np.random.Generator, *, n_perturbations: int, n_genes: int, n_cell_types: int) -> Self:
        """Draw the parameters."""
        common = rng.normal(0, 1, n_genes)
        own = rng.normal(0, 1, (n_cell_types, n_genes)) * (rng.random((n_cell_types, n_genes)) < 0.25)
        weights = np.zeros((N_FEATURES, N_PROGRAMMES))
        loading = np.zeros((N_PROGRAMMES, n_genes))
        for k in range(N_PROGRAMMES):
            read = rng.choice(N_FEATURES, FEATURES_PER_PROGRAMME, replace=False)
            weights[read, k] = rng.normal(0, 1.5, FEATURES_PER_PROGRAMME)
            moved = rng.choice(n_genes, max(1, round(GENES_PER_PROGRAMME * n_genes)), replace=False)
            loading[k, moved] = rng.normal(0, EFFECT_SD, len(moved))
        residual = rng.normal(0, RESIDUAL_SD, (n_perturbations, n_genes))
        residual *= rng.random(residual.shape) < RESIDUAL_GENES
        return cls(
            base=common + own,
            features=rng.normal(0, 1, (n_perturbations, N_FEATURES)),
            weights=weights,
            shared=np.where(np.arange(N_PROGRAMMES) < 3, SHARED, 0.0),
            loading=loading,
            sensitivity=np.exp(rng.normal(0, SENSITIVITY_SD, (n_cell_types, N_PROGRAMMES))),
            residual=residual,
            target=np.sort(rng.choice(n_genes, n_perturbations, replace=False)),
            dispersion=rng.uniform(0.1, 0.4, n_genes),
        )

    def expected(self, perturbed: Sequence[int], cell_type: int) -> NDArray[np.float64]:
        """Return the expected counts per 10,000 of cells of one type with these genes perturbed, ``(n_genes,)``."""
        activity = np.tanh(self.features[list(perturbed)] @ self.weights + self.shared)  # (n_perturbed, N_PROGRAMMES)
        total = activity.sum(axis=0)
        if len(perturbed) > 1:
            same = (np.sign(activity) == np.sign(activity[0])).all(axis=0)
            total = total * np.where(same, 1 - INTERACTION, 1.0)
        log_rate = self.base[cell_type] + (total * self.sensitivity[cell_type]) @ self.loading
        for p in perturbed:
            log_rate = log_rate + self.residual[p]
            log_rate[self.target[p]] += KNOCKDOWN
        rate = np.exp(log_rate)
        return np.asarray(TARGET_SUM * rate / rate.sum())

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the parameters as arrays, which survive writing to a file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        """Rebuild from :meth:`to_arrays`."""
        return cls(**{field.name: np.asarray(arrays[field.name]) for field in fields(cls)})


def _check_arguments(**arguments: Any) -> None:
    """Refuse arguments that cannot be simulated."""
    lowest = {"n_perturbations": 2, "n_cells": 1, "n_control": 1, "n_genes": 50, "n_cell_types": 1}
    lowest |= {"combinations": 0, "seed": 0}
    for name, least in lowest.items():
        value = arguments[name]
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            msg = f"{name}={value!r} must be a whole number, {least} or more."
            raise ValueError(msg)
    for name, zero_is_fine in (("feature_noise", True), ("depth", False)):
        value = arguments[name]
        number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and np.isfinite(value)
        if not number or value < 0 or (value == 0 and not zero_is_fine):
            msg = f"{name}={value!r} must be a number {'of 0 or more' if zero_is_fine else 'above 0'}."
            raise ValueError(msg)
    n, n_types = arguments["n_perturbations"], arguments["n_cell_types"]
    if n > arguments["n_genes"]:
        msg = f"n_perturbations={n} is more than n_genes={arguments['n_genes']}: each knocks down a gene."
        raise ValueError(msg)
    n_pairs = n * (n - 1) // 2
    if arguments["combinations"] > n_pairs:
        msg = f"combinations={arguments['combinations']} is more than the {n_pairs} pairs of {n} perturbations."
        raise ValueError(msg)
    if arguments["n_control"] < MIN_CELLS * n_types:
        msg = f"n_control={arguments['n_control']} is too few; give at least {MIN_CELLS * n_types}."
        raise ValueError(msg)
    needed = arguments["n_control"] + (n + arguments["combinations"]) * MIN_CELLS * n_types
    if arguments["n_cells"] < needed:
        msg = (
            f"n_cells={arguments['n_cells']} is too few for {arguments['n_control']} control cells and {MIN_CELLS} "
            f"cells of each of {n_types} cell types under {n} perturbations and {arguments['combinations']} pairs; "
            f"give at least {needed}."
        )
        raise ValueError(msg)


def _gene_names(n_genes: int) -> list[str]:
    return [f"GENE{i + 1:0{max(3, len(str(n_genes)))}d}" for i in range(n_genes)]


def _type_names(n_cell_types: int) -> list[str]:
    return [f"type{i + 1}" for i in range(n_cell_types)]


def _draw_pairs(rng: np.random.Generator, targets: list[str], n_pairs: int) -> list[str]:
    """Choose different pairs, the earlier gene first."""
    first, second = np.triu_indices(len(targets), k=1)
    chosen = np.sort(rng.choice(len(first), n_pairs, replace=False))
    return [f"{targets[i]}{SEPARATOR}{targets[j]}" for i, j in zip(first[chosen], second[chosen], strict=True)]


def _positions(name: str, targets: list[str]) -> list[int]:
    """Find the perturbed genes of one perturbation among all."""
    if name == CONTROL:
        return []
    parts = name.split(SEPARATOR)
    for part in parts:
        if part not in targets:
            msg = f"{name!r} was not simulated. {did_you_mean(part, [CONTROL, *targets])}"
            raise ValueError(msg)
    if len(set(parts)) < len(parts):
        msg = f"{name!r} names one gene twice; a combination needs different genes."
        raise ValueError(msg)
    return [targets.index(part) for part in parts]


def _draw_cells(
    rng: np.random.Generator, n_cells: int, n_control: int, n_levels: int, n_cell_types: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Share the cells out to perturbations (0 for the control) and cell types, in random order."""
    sizes = np.full(n_levels, (n_cells - n_control) // n_levels)
    sizes[: n_cells - n_control - sizes.sum()] += 1
    level = np.repeat(np.arange(n_levels + 1), [n_control, *sizes])
    cell_type = np.concatenate([np.arange(size) % n_cell_types for size in (n_control, *sizes)])
    order = rng.permutation(n_cells)
    return level[order].astype(np.intp), cell_type[order].astype(np.intp)


def _draw_counts(
    rng: np.random.Generator, share: NDArray[np.float64], library: NDArray[np.float64], phi: NDArray[np.float64]
) -> sparse.csr_matrix:
    """Draw negative-binomial counts as a Poisson whose rate is Gamma; variance = mean + phi mean²."""
    parts = []
    for start in range(0, len(share), CELLS_AT_ONCE):
        rows = slice(start, start + CELLS_AT_ONCE)
        mean = share[rows] * library[rows, None]
        parts.append(sparse.csr_matrix(rng.poisson(rng.gamma(1 / phi, phi, mean.shape) * mean), dtype=np.float32))
    return sparse.vstack(parts, format="csr")
