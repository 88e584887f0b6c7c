"""RNA velocity of an AnnData's cells, in genes and in any embedding: `velocity`."""

from __future__ import annotations

from importlib.metadata import version
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scstate_lora._logging import logger
from scstate_lora._utils import did_you_mean
from scstate_lora.data.matrix import check_values
from scstate_lora.data.results import VELOCITY, read_result, write_result
from scstate_lora.data.stream import check_not_empty, matrix_name, open_source
from scstate_lora.pp import scvelo_steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from scipy import sparse

MODES = ("deterministic", "stochastic", "dynamical")
FEWEST_CELLS = 50


class _Options(NamedTuple):
    """Options of the fit."""

    mode: str
    layers: tuple[str, str]
    n_top_genes: int | None
    min_shared_counts: int
    n_neighbors: int
    n_pcs: int
    use_rep: str | None
    seed: int


def velocity(
    adata: AnnData,
    *,
    basis: str | None = None,
    mode: str = "deterministic",
    layers: Sequence[str] = ("spliced", "unspliced"),
    n_top_genes: int | None = 2000,
    min_shared_counts: int = 20,
    n_neighbors: int = 30,
    n_pcs: int = 30,
    use_rep: str | None = None,
    key_added: str = VELOCITY,
    n_jobs: int = 1,
    seed: int = 0,
) -> None:
    """Compute the RNA velocity of cells with scVelo, and project it to an embedding.

    Both layers are scaled to a common read depth, the most variable genes are selected, and moments are taken over
    neighbours, all on a copy: `adata` gains only the entries listed below. Existing velocities are used as they are,
    which is logged; delete them to recompute them.

    Parameters
    ----------
    adata
        Cells with spliced and unspliced counts.
    basis
        Key in ``adata.obsm`` of the embedding to project the velocities to, with any number of dimensions. None: no
        projection.
    mode
        ``"deterministic"``: unspliced counts in excess of a steady-state ratio, which is regressed on the extreme
        cells; ``"stochastic"``: the same with second moments and an offset for them; or ``"dynamical"``: full splicing
        kinetics, about fifty times slower.
    layers
        Names of the layers of spliced and of unspliced counts, in this order.
    n_top_genes
        Number of most variable genes to use (scanpy, on log1p of the spliced layer); None for all.
    min_shared_counts
        Genes with fewer counts, summed over the cells with both spliced and unspliced counts, are left out.
    n_neighbors
        Cells over which moments are taken.
    n_pcs
        Components of the PCA in which neighbours are found.
    use_rep
        Key in ``adata.obsm`` of an embedding in which to find neighbours instead, for instance one without batch
        effects.
    key_added
        Name of the layer, and first part of the other names.
    n_jobs
        Number of processes.
    seed
        Seed of PCA and neighbours.

    Raises
    ------
    KeyError
        If a layer, or `basis` or `use_rep` in ``adata.obsm``, does not exist.
    TypeError
        If `layers`, `basis` or `key_added` is not a name, or a layer does not hold numbers.
    ValueError
        If an option is not allowed, a layer does not hold counts, cells or genes are too few, or no gene has a fit.
    RuntimeError
        If ``mode="dynamical"`` does not run with the installed versions, as with pandas 3.

    Notes
    -----
    Adds, with the default `key_added`,

    - ``adata.layers["velocity"]``: float32 ``(n_cells, n_genes)``, change of spliced counts per 10,000 over time in
      units of a gene's splicing time (dynamical: of scVelo's latent time). A gene without a fit is NaN in all cells,
      because its velocity is unknown, not zero. With s counts per 10,000, velocity / (1 + s) is that of log1p(s);
    - ``adata.obs["velocity_confidence"]``: float32, 0 to 1, mean correlation of a cell's velocity with its neighbours'.
      Neighbours share their moments, so it is also high if neighbourhoods are small compared with the noise;
    - with a `basis`, ``adata.obsm["velocity_X_pca"]`` for ``"X_pca"`` and so on: float32 ``(n_cells, n_dims)``, the
      expected displacement under the transition probabilities of scVelo's velocity graph, in units of the basis, minus
      that under equal probabilities of the same cells. Trust its direction more than its length;
    - ``adata.uns["scstate_lora"]["velocity"]["velocity"]``: how it was computed, and the number of genes with a fit.

    The steady-state models are those of La Manno et al. 2018, doi:10.1038/s41586-018-0414-6, and Bergen et al. 2020,
    doi:10.1038/s41587-020-0591-3, who also describe the dynamical model, the graph and the confidence.
    """
    options = _checked(
        adata,
        mode=mode,
        layers=layers,
        n_top_genes=n_top_genes,
        min_shared_counts=min_shared_counts,
        n_neighbors=n_neighbors,
        n_pcs=n_pcs,
        use_rep=use_rep,
        seed=seed,
    )
    _check_number("n_jobs", n_jobs, 1)
    if not isinstance(key_added, str) or not key_added:
        msg = f"key_added={key_added!r} must be the name of a layer to write."
        raise TypeError(msg)
    space = None if basis is None else _space(adata, "basis", basis)
    key_obs, key_obsm = f"{key_added}_confidence", f"{key_added}_{basis}"
    has_layer, has_obsm = key_added in adata.layers, basis is not None and key_obsm in adata.obsm
    existing = _read_existing(adata, key_added) if has_layer else None
    if has_layer:
        logger.info("adata.layers[%r] exists and is used as it is; delete it to have it computed anew.", key_added)
    if has_obsm:
        _check_existing_obsm(adata, key_obsm, space)
        logger.info("adata.obsm[%r] exists and is used as it is; delete it to have it computed anew.", key_obsm)
    if has_obsm or (has_layer and space is None):
        return

    spliced, unspliced = (_counts(adata, layer) for layer in options.layers)
    work, used = _prepared(adata, spliced, unspliced, options, existing)
    values = existing[:, used] if existing is not None else None
    record: dict[str, Any] = {}
    if values is None:
        fit = scvelo_steps.fit_velocity(work, mode, n_jobs=n_jobs)
        values = fit.velocity
        record = _record(options, n_genes=adata.n_vars, n_used=int(used.sum()), n_fitted=fit.n_fitted)
        _log_fit(record)
    confidence, matrix = scvelo_steps.transitions(work, values, n_jobs=n_jobs)

    if not has_layer:
        layer = np.full(adata.shape, np.nan, dtype=np.float32)
        layer[:, used] = values
        adata.layers[key_added] = layer
    if not has_layer or key_obs not in adata.obs:
        adata.obs[key_obs] = confidence
    if space is not None:
        adata.obsm[key_obsm] = scvelo_steps.expected_displacement(matrix, space)
    _write_record(adata, key_added, record, basis)


def _checked(adata: AnnData, *, mode: str, layers: Sequence[str], use_rep: str | None, **numbers: Any) -> _Options:
    """Refuse options that are not allowed."""
    check_not_empty(adata)
    if mode not in MODES:
        msg = f"mode={mode!r} is unknown. {did_you_mean(mode, MODES)}"
        raise ValueError(msg)
    if isinstance(layers, str) or len(layers) != 2 or not all(isinstance(layer, str) for layer in layers):
        msg = f"layers={layers!r} must be two names: the layers of spliced and of unspliced counts."
        raise TypeError(msg)
    if layers[0] == layers[1]:
        msg = f"layers={tuple(layers)!r} names one layer twice; give the spliced and the unspliced one."
        raise ValueError(msg)
    for name, least in (("min_shared_counts", 0), ("n_neighbors", 2), ("n_pcs", 1), ("seed", 0)):
        _check_number(name, numbers[name], least)
    if numbers["n_top_genes"] is not None:
        _check_number("n_top_genes", numbers["n_top_genes"], scvelo_steps.FEWEST_GENES)
    if use_rep is not None:
        _space(adata, "use_rep", use_rep)
    return _Options(mode=mode, layers=(layers[0], layers[1]), use_rep=use_rep, **numbers)


def _check_number(name: str, number: Any, least: int) -> None:
    if isinstance(number, bool) or not isinstance(number, Integral) or number < least:
        msg = f"{name}={number!r} must be a whole number, {least} or more."
        raise ValueError(msg)


def _space(adata: AnnData, name: str, key: str) -> np.ndarray:
    """Read an embedding, ``(n_cells, n_dims)``."""
    if not isinstance(key, str):
        msg = f"{name}={key!r} must be the name of an entry of adata.obsm."
        raise TypeError(msg)
    if key not in adata.obsm:
        msg = f"{name}={key!r} is not in adata.obsm. {did_you_mean(key, adata.obsm.keys())}"
        raise KeyError(msg)
    space = np.asarray(adata.obsm[key])
    if space.ndim != 2 or space.dtype.kind not in "fiu":
        msg = f"adata.obsm[{key!r}] must be a matrix of numbers, found {space.dtype} {space.shape}."
        raise ValueError(msg)
    if not np.isfinite(space).all():
        msg = f"adata.obsm[{key!r}] holds NaN or infinite values, so cells have no place in it."
        raise ValueError(msg)
    return space


def _read_existing(adata: AnnData, key: str) -> np.ndarray:
    """Read existing velocities, ``(n_cells, n_genes)``; a gene with a NaN is NaN in all cells."""
    from scipy import sparse

    layer = adata.layers[key]
    values = np.array(layer.toarray() if sparse.issparse(layer) else layer, dtype=np.float32)
    if np.isinf(values).any():
        msg = f"adata.layers[{key!r}] holds infinite values, so it is not a velocity. Delete or mend it."
        raise ValueError(msg)
    values[:, np.isnan(values).any(axis=0)] = np.nan
    if not (np.nan_to_num(values) != 0).any():
        msg = f"adata.layers[{key!r}] holds only zeros and NaN, so no velocity. Delete it or name another."
        raise ValueError(msg)
    return values


def _check_existing_obsm(adata: AnnData, key: str, space: np.ndarray | None) -> None:
    shape = np.asarray(adata.obsm[key]).shape
    if space is not None and shape != space.shape:
        msg = f"adata.obsm[{key!r}] has shape {shape}, but its basis has {space.shape}. It is outdated: delete it."
        raise ValueError(msg)


def _counts(adata: AnnData, layer: str) -> sparse.csr_matrix:
    """Read a layer of counts; tools that divide ambiguous reads give fractional ones."""
    if layer not in adata.layers:
        msg = (
            f"{matrix_name(layer)} does not exist. {did_you_mean(layer, adata.layers.keys())} Spliced and unspliced "
            "counts come from velocyto, alevin-fry, STARsolo or kallisto; name them by layers=(spliced, unspliced)."
        )
        raise KeyError(msg)
    source = open_source(adata, layer)
    stats = source.scan()
    check_values(stats, source.name)
    if not stats.whole and (stats.largest <= 20 or stats.sums.constant):
        msg = (
            f"{source.name} does not hold counts: it has fractional values up to {stats.largest:.3g}, as after "
            "normalisation or log1p. Velocity compares spliced with unspliced counts; name the raw layers by layers=."
        )
        raise ValueError(msg)
    return source.read_all()


def _prepared(
    adata: AnnData,
    spliced: sparse.csr_matrix,
    unspliced: sparse.csr_matrix,
    options: _Options,
    existing: np.ndarray | None,
) -> tuple[AnnData, np.ndarray]:
    """Make the copy that scVelo works on, with neighbours, and the mask of the genes in it."""
    needed = max(FEWEST_CELLS, options.n_neighbors + 1)
    if adata.n_obs < needed:
        msg = (
            f"{adata.n_obs} cells are too few: velocities are fitted on the extreme 5 % of the cells, with "
            f"moments over n_neighbors={options.n_neighbors} of them. {needed} or more are needed."
        )
        raise ValueError(msg)
    empty = np.flatnonzero(np.asarray(spliced.sum(axis=1)).ravel() == 0)
    if len(empty):
        msg = (
            f"{len(empty)} cells have no counts in {matrix_name(options.layers[0])}, {adata.obs_names[empty[0]]!r} "
            "among them, so they have neither neighbours nor a velocity. Remove them first."
        )
        raise ValueError(msg)
    work = scvelo_steps.working_copy(spliced, unspliced, adata.obs_names, adata.var_names)
    shared = scvelo_steps.shared_counts(spliced, unspliced)
    eligible = shared >= max(1, options.min_shared_counts)
    if eligible.sum() < scvelo_steps.FEWEST_GENES:
        msg = (
            f"{eligible.sum()} of {adata.n_vars} genes have {max(1, options.min_shared_counts)} spliced and unspliced "
            f"counts in cells with both, and {scvelo_steps.FEWEST_GENES} are needed. Lower min_shared_counts= (the "
            f"best gene has {shared.max():g}), or check that layers= names the right two."
        )
        raise ValueError(msg)
    chosen = scvelo_steps.select_genes(work, eligible, options.n_top_genes)
    space = None if options.use_rep is None else _space(adata, "use_rep", options.use_rep)
    graph = work[:, chosen].copy()
    scvelo_steps.add_neighbors(
        graph, space=space, n_pcs=options.n_pcs, n_neighbors=options.n_neighbors, seed=options.seed
    )
    if existing is None:
        return graph, chosen
    used = (np.nan_to_num(existing) != 0).any(axis=0)
    work = work[:, used].copy()
    work.uns["neighbors"] = graph.uns["neighbors"]
    for key, matrix in graph.obsp.items():
        work.obsp[key] = matrix
    return work, used


def _record(options: _Options, *, n_genes: int, n_used: int, n_fitted: int) -> dict[str, Any]:
    settings = {name: value for name, value in options._asdict().items() if value is not None}
    return {
        **settings,
        "layers": list(options.layers),
        "n_genes": n_genes,
        "n_genes_used": n_used,
        "n_genes_fitted": n_fitted,
        "share_fitted": n_fitted / n_used,
        "scvelo": version("scvelo"),
    }


def _log_fit(record: dict[str, Any]) -> None:
    n_fitted, n_used = record["n_genes_fitted"], record["n_genes_used"]
    logger.info(
        "RNA velocity (%s): %d of %d genes used have a fit (%.0f %%), of %d in all; the others are NaN.",
        *(record["mode"], n_fitted, n_used, 100 * record["share_fitted"], record["n_genes"]),
    )
    if n_fitted < scvelo_steps.FEWEST_GENES or record["share_fitted"] < 0.1:
        logger.warning("Few genes have a fit: the splicing signal is weak, so interpret the velocities with caution.")


def _write_record(adata: AnnData, key: str, record: dict[str, Any], basis: str | None) -> None:
    """Record how the velocities were computed."""
    record = record or dict(read_result(adata, VELOCITY, key=key) or {"mode": "precomputed"})
    if basis is not None:
        record["bases"] = sorted({*map(str, record.get("bases", [])), basis})
    write_result(adata, VELOCITY, record, key=key)
