"""What a transition network computes of cells: predictions under another perturbation, and representations."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device
from scipy import sparse

from scstate_lora._constants import TARGET_SUM
from scstate_lora._utils import did_you_mean, progress_bar
from scstate_lora.data.genes import match_genes, take_columns
from scstate_lora.data.labels import label_of
from scstate_lora.data.log_scale import scale_name
from scstate_lora.data.results import PREDICT, Prediction, write_result
from scstate_lora.data.sets import SetData, dense, windows
from scstate_lora.inference.arrays import to_tensors
from scstate_lora.model.st.counts import draw_counts
from scstate_lora.model.st.inputs import covariates_of
from scstate_lora.model.st.published import GENE_RANGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from anndata import AnnData

    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.registry import Registry
    from scstate_lora.model.st.design import STDesign
    from scstate_lora.nn.transition import StateTransition

Output = Literal["mean", "counts"]
"""What predicted cells hold: expected log1p expression, or counts drawn like measured ones."""

_CELLS_PER_PASS = 1024  # small sets one at a time would spend their time on overhead


class Computed(NamedTuple):
    """Outputs of the network for cells, in their order."""

    cells: np.ndarray | sparse.csr_matrix
    """Predicted cells in the model's space, or their representations, ``(n_cells, width)``; sparse if counts."""
    genes: np.ndarray | None
    """Decoded expression, ``(n_cells, n_genes)``; None without a decoder."""
    expected_loss: np.ndarray | None
    """Loss that the network expects of the cell's set, ``(n_cells,)``; None without a confidence token."""


@dataclass(frozen=True)
class SetPredictor:
    """A transition network that passes cells in sets of one context and perturbation.

    Parameters
    ----------
    network
        The network.
    set_len
        Most cells per set.
    seed
        Seed of the composition of the sets.
    clips
        Whether predicted expression is clipped as by a published model's own code.
    order
        Positions of the predicted genes among those that the network reads, followed by those it does not read; None
        where it reads all.
    """

    network: StateTransition
    set_len: int
    seed: int
    clips: bool = False
    order: np.ndarray | None = None

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Within this context the network is on a device; otherwise it is on the CPU."""
        self.network.to(device)
        try:
            yield
        finally:
            self.network.cpu()

    def run(
        self, data: SetData, contexts: np.ndarray, pert_vectors: np.ndarray, *, represent: bool = False
    ) -> Computed:
        """Pass all cells through the network.

        Parameters
        ----------
        data
            The cells.
        contexts
            Context of each, ``(n_cells,)``.
        pert_vectors
            Perturbation vector of each, ``(n_cells, pert_dim)``.
        represent
            Whether to give the representations before the head.
        """
        rng = np.random.default_rng(self.seed)
        groups = pd.DataFrame({"context": contexts, "pert": [row.tobytes() for row in pert_vectors]})
        by_group = groups.groupby(["context", "pert"], sort=True).indices
        sets = [rows for members in by_group.values() for rows in windows(np.asarray(members), self.set_len, rng)]
        batches = _of_equal_length(sets)
        outputs = [
            self.compute(data, rows, pert_vectors[rows[:, 0]], represent=represent)
            for rows in progress_bar(batches, desc="STTransition", unit="batch", disable=len(batches) < 50)
        ]
        order = np.argsort(np.concatenate([rows.ravel() for rows in batches]))

        def in_order(parts: list[np.ndarray | None]) -> np.ndarray | None:
            present = [part for part in parts if part is not None]
            return np.concatenate(present)[order] if present else None

        cells = in_order([c.cells for c in outputs])
        assert cells is not None  # every set has cells
        return Computed(cells, in_order([c.genes for c in outputs]), in_order([c.expected_loss for c in outputs]))

    def compute(self, data: SetData, rows: np.ndarray, pert_vectors: np.ndarray, *, represent: bool) -> Computed:
        """Pass sets of equal length through the network.

        Parameters
        ----------
        data
            The cells.
        rows
            Row indices of the cells of each set, ``(n_sets, n_cells)``.
        pert_vectors
            Perturbation vector of each set, ``(n_sets, pert_dim)``.
        represent
            As in :meth:`run`.
        """
        batch = to_tensors(
            {
                "control": dense(data.x, rows),
                "pert": np.array(pert_vectors, dtype=np.float32),
                "covariates": {name: values[rows] for name, values in data.covariates.items()},
            }
        )
        if data.batch_codes is not None:
            batch["batch_codes"] = torch.from_numpy(data.batch_codes[rows])
        if data.further is not None and not represent:
            batch["further"] = torch.from_numpy(dense(data.further, rows))
        network = self.network.eval()
        batch = move_data_to_device(batch, next(network.parameters()).device)
        with torch.inference_mode():
            inputs = batch["control"], batch["pert"], batch["covariates"], batch.get("batch_codes")
            if represent:
                return Computed(_by_cell(network.represent(*inputs)), None, None)
            predicted = network(*inputs)
            genes = None if network.gene_decoder is None else _by_cell(network.decode(predicted.cells))
            expected = None if predicted.confidence is None else predicted.confidence.cpu().numpy().ravel()
            cells = _by_cell(predicted.cells)
            if self.order is not None:
                further = _by_cell(network.move_further(batch["further"], *inputs[:3]))
                cells = np.hstack([cells, further])[:, self.order]
        if expected is not None:
            expected = expected.repeat(rows.shape[1])
        if self.clips:
            genes = None if genes is None else genes.clip(*GENE_RANGE)
            cells = cells.clip(*GENE_RANGE) if network.config.non_negative else cells
        return Computed(cells, genes, expected)


def _of_equal_length(sets: list[np.ndarray]) -> list[np.ndarray]:
    """Stack sets of equal length, ``(n_sets, n_cells)`` each, as many as one pass through the network takes."""
    by_length: dict[int, list[np.ndarray]] = {}
    for rows in sets:
        by_length.setdefault(len(rows), []).append(rows)
    batches = []
    for length, members in by_length.items():
        n_sets = max(1, _CELLS_PER_PASS // length)
        batches += [np.stack(members[i : i + n_sets]) for i in range(0, len(members), n_sets)]
    return batches


def _by_cell(values: torch.Tensor) -> np.ndarray:
    """Bring values of sets ``(n_sets, n_cells, width)`` to one row per cell."""
    return values.flatten(0, 1).cpu().numpy()


def control_rows(cells: BoundData, contexts: Mapping[str, Any] | None) -> np.ndarray:
    """Find the control cells, in some contexts or all, as row indices.

    Raises
    ------
    KeyError
        If a column of a context is absent.
    ValueError
        If no cell has a requested label, or no control cell is left.
    """
    chosen = cells.is_control.copy()
    for key, requested in (contexts or {}).items():
        labels = cells.labels(key)
        names = [cells.registry.level_of(key, name) for name in names_of(requested)]
        for name in names:
            if name not in set(labels):
                msg = f"contexts: {name!r} is not in adata.obs[{key!r}]. {did_you_mean(name, sorted(set(labels)))}"
                raise ValueError(msg)
        chosen &= np.isin(labels.astype(str), names)
    if not chosen.any():
        registry = cells.registry
        where = "; ".join(f"{key} = {', '.join(map(repr, names_of(v)))}" for key, v in (contexts or {}).items())
        of = f" of {where}" if where else ""
        msg = f"No control cell ({registry.pert_key} = {registry.control!r}){of} is left to predict from."
        raise ValueError(msg)
    return np.flatnonzero(chosen)


@dataclass(frozen=True)
class CountSource:
    """Counts of the control cells from which those of predicted cells are drawn.

    Parameters
    ----------
    counts
        Over the predicted genes, CSR ``(n_cells, n_genes)``.
    library_sizes
        Over all genes, ``(n_cells,)``.
    contexts
        Context of each cell, ``(n_cells,)``.
    seed
        Seed of the draws.
    target_sum
        Sum of the counts of a cell before the log1p of predicted cells.
    """

    counts: sparse.csr_matrix
    library_sizes: np.ndarray
    contexts: np.ndarray
    seed: int
    target_sum: float

    @classmethod
    def of(cls, controls: BoundData, genes: list[str], *, seed: int) -> CountSource:
        """Read the counts of control cells.

        Raises
        ------
        ValueError
            If they are no counts, or not whole numbers.
        """
        registry = controls.registry
        if registry.scale != "counts":
            msg = (
                f"output='counts' needs counts, but the model was set up on {registry.scale} values. Set up with a "
                "layer= of counts, or use output='mean'."
            )
            raise ValueError(msg)
        matrix = controls.matrix
        if (matrix.data != np.rint(matrix.data)).any():
            msg = "output='counts' needs whole numbers, but these counts are fractional. Round them before set-up."
            raise ValueError(msg)
        sizes = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
        counts = take_columns(matrix, match_genes(registry.var_names, genes))
        return cls(counts, sizes, controls.contexts, seed, registry.target_sum or TARGET_SUM)

    def draw(self, predicted: np.ndarray) -> sparse.csr_matrix:
        """Draw counts of predicted cells, see :func:`draw_counts`."""
        return draw_counts(
            self.counts, self.library_sizes, predicted, self.contexts, seed=self.seed, target_sum=self.target_sum
        )

    def sizes_of(self, drawn: sparse.csr_matrix) -> np.ndarray:
        """Library sizes of drawn cells: with the control cell's counts of the genes that are not predicted."""
        change = np.asarray(drawn.sum(axis=1) - self.counts.sum(axis=1, dtype=np.float64)).ravel()
        return np.rint(self.library_sizes + change).astype(np.int64)


def columns_carried(registry: Registry) -> list[str]:
    """Columns that predicted cells take over from their control cells."""
    keys = [*registry.context_keys, *(c.name for c in covariates_of(registry))]
    keys += [k for k in (registry.cell_type_key, registry.batch_key) if k is not None]
    return [k for k in dict.fromkeys(keys) if k != registry.pert_key]


def describe_predicted(cells: BoundData, target: str, expected_loss: np.ndarray | None) -> pd.DataFrame:
    """Make the table of predicted cells.

    Parameters
    ----------
    cells
        Control cells, under the covariates that they are predicted for.
    target
        Perturbation.
    expected_loss
        Loss that the network expects, ``(n_cells,)``; None where it gives none.
    """
    registry = cells.registry
    columns = columns_carried(registry)
    obs = cells.obs[[c for c in columns if c in cells.obs]].copy()
    values = cells.covariate_values
    for name in values.columns.intersection(columns):
        obs[name] = values[name]
    obs.insert(0, "control_cell", obs.index.astype(str))
    obs.insert(1, str(registry.pert_key), target)
    if expected_loss is not None:
        obs["expected_loss"] = expected_loss
    obs.index = [f"{name}|{target}" for name in cells.names]
    return obs


def as_anndata(
    registry: Registry,
    design: STDesign,
    tables: Mapping[str, pd.DataFrame],
    outputs: list[Computed],
    *,
    train_cells: np.ndarray,
) -> AnnData:
    """Join the predictions of several targets.

    Parameters
    ----------
    registry
        Of the model.
    design
        Of the model: its genes, and the space that it works in.
    tables
        Table of the predicted cells of each target.
    outputs
        Outputs of the network, of each target.
    train_cells
        Hashes of the names of the targets' training cells, uint64 ``(n,)``.
    """
    embedded, genes = design.options.space == "embedding", design.genes
    shown = [x for c in outputs if (x := c.genes if embedded else c.cells) is not None]
    counts = [x for x in shown if sparse.issparse(x)]
    x = None
    if shown:
        x = sparse.csr_matrix(sparse.vstack(counts)) if counts else np.concatenate(shown)
    var = pd.DataFrame(index=genes if x is not None else [])
    result = ad.AnnData(x, obs=pd.concat(list(tables.values())), var=var)
    if embedded:
        result.obsm[str(registry.embed_key)] = np.concatenate([c.cells for c in outputs])
    predicted = set(genes)
    left_out = [gene for gene in registry.var_names if gene not in predicted] if x is not None else []
    prediction = Prediction(
        scale="counts" if counts else scale_name(registry.target_sum),
        pert_key=str(registry.pert_key),
        control=str(registry.control),
        targets=list(tables),
        space=str(registry.embed_key) if embedded else "genes",
        target_sum=registry.target_sum,
        train_cells=train_cells,
        gene_choice=design.gene_note if left_out else None,
        genes_left_out=left_out or None,
    )
    write_result(result, PREDICT, prediction.record())
    return result


def names_of(requested: Any) -> list[str]:
    """Turn one value or several into names of levels, each once."""
    several = requested if hasattr(requested, "__iter__") and not isinstance(requested, (str, bytes)) else [requested]
    return list(dict.fromkeys(label_of(value) for value in several))
