"""What a trained STTransition computes of cells: predictions under another perturbation, and representations."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device

from scstate_lora._constants import OBSM_ST
from scstate_lora._utils import did_you_mean, progress_bar
from scstate_lora.data.counterfactual import move
from scstate_lora.data.fields import label_of
from scstate_lora.data.results import PREDICT, Prediction, write_result
from scstate_lora.data.sets import SetData, dense, windows
from scstate_lora.inference.arrays import to_tensors
from scstate_lora.inference.embed import ComputeOptions
from scstate_lora.model.base import BaseModel
from scstate_lora.model.st.published import GENE_RANGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from scipy import sparse

    from scstate_lora.config import STModelConfig
    from scstate_lora.data.fields import Covariate
    from scstate_lora.data.perturbations import PerturbationTable
    from scstate_lora.nn.transition import StateTransition, STConfig

_SCALE = "log1p_cp10k"


class _Computed(NamedTuple):
    """What the network says of cells, in their order."""

    cells: np.ndarray
    """Predicted cells in the model's space, or their representations, ``(n_cells, width)``."""
    genes: np.ndarray | None
    """Decoded expression, ``(n_cells, n_genes)``; None without a decoder."""
    expected_loss: np.ndarray | None
    """Loss that the network expects of the cell's set, ``(n_cells,)``; None where it does not say."""


class Predicting(BaseModel):
    """A model whose network predicts sets of perturbed cells."""

    options: STModelConfig
    sizes: STConfig
    perts: PerturbationTable
    network: StateTransition
    genes: list[str]
    set_len: int

    @abstractmethod
    def _covariates(self) -> list[Covariate]:
        """Give the covariates other than the perturbation."""

    @abstractmethod
    def _cells_in_space(self, adata: AnnData) -> sparse.csr_matrix | np.ndarray:
        """Cells as the network reads them."""

    @abstractmethod
    def _batch_codes(self, adata: AnnData) -> np.ndarray | None:
        """Codes of cells in the network's table of batches; None where it has none."""

    @property
    @abstractmethod
    def _predicts_untrained(self) -> bool:
        """Whether it predicts without any training here."""

    def _require_ready(self, what: str) -> None:
        if not self._predicts_untrained:
            self._require_trained(what)

    def predict(
        self,
        adata: AnnData | None = None,
        *,
        target: str | Sequence[str],
        contexts: Mapping[str, Any] | None = None,
        covariates: Mapping[str, Any] | None = None,
        device: str | None = None,
    ) -> AnnData:
        """Predict the perturbed cells of control cells.

        Parameters
        ----------
        adata
            Cells whose controls are taken; the model's own by default. Genes are matched by name. Without the
            perturbation's column all cells count as controls.
        target
            Perturbation, or several. With ``pert_features`` any that these name; combinations are written ``"A+B"``.
        contexts
            Take only control cells with these values, for instance ``{"cell_type": ["B cells", "NK cells"]}``.
        covariates
            Counterfactual values for all cells, for instance ``{"timepoint": "day19"}``; None withholds a covariate.
        device
            ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; None: CUDA where there is one, else the CPU.

        Returns
        -------
        AnnData of predicted cells, ``X`` float32 ``(n_cells, n_genes)`` as log1p of counts per 10,000. Of a model that
        works in an embedding, ``obsm`` has the predicted one under its key, and ``X`` is decoded from it; without a
        gene decoder there are no genes. ``obs``: the control cell's name (``control_cell``), the target under the name
        of the perturbation's column, the context columns and covariates, and with a confidence token the loss that
        the model expects of the cell's set (``expected_loss``). ``uns["scstate_lora"]["predict"]``: scale, pert_key,
        control, target (a list) and space.

        Raises
        ------
        ValueError
            The model is not trained, a target has neither been seen nor features, a level was never seen, no
            control cell is left, or the device is absent.
        KeyError
            A column is missing.
        """
        self._require_ready("predict()")
        on = ComputeOptions(device=device).resolved_device()
        adata = self._cells(adata)
        registry = self.registry
        targets = names_of(target)
        if not targets:
            msg = f"target names no perturbation. There are: {', '.join(map(repr, self.perts.names[1:]))}."
            raise ValueError(msg)
        if registry.control in targets:
            msg = f"target={registry.control!r} is the control, from which cells are predicted. Leave it out."
            raise ValueError(msg)
        described = self.perts.encode(targets)
        if covariates is not None and registry.pert_key in covariates:
            msg = f"covariates holds {registry.pert_key!r}, which is the perturbation: give it as target=."
            raise ValueError(msg)
        rows = self._control_rows(adata, contexts)
        cells = adata[rows]
        obs = move(cells.obs[[c for c in self._carried() if c in cells.obs]], registry, covariates)
        encoded = registry.encode(obs, without=registry.pert_key, allow_missing=covariates)
        data = self._data(cells, encoded)
        context = registry.contexts(cells)  # cells are grouped as they were measured, whatever they are moved to
        made = []
        with self._network_on(on):
            for name, pert in progress_bar(
                list(zip(targets, described, strict=True)), desc="STTransition", unit="target", disable=len(targets) < 5
            ):
                computed = self._run(data, context, np.broadcast_to(pert, (len(rows), self.perts.dim)))
                made.append((self._prediction_obs(obs, name, computed.expected_loss), computed))
        return self._as_anndata(targets, made)

    def _as_anndata(self, targets: list[str], made: list[tuple[pd.DataFrame, _Computed]]) -> AnnData:
        embedded = self.options.space == "embedding"
        table = pd.concat([obs for obs, _ in made])
        shown = [found for _, c in made if (found := c.genes if embedded else c.cells) is not None]
        x = np.concatenate(shown) if shown else None
        var = pd.DataFrame(index=self.genes if x is not None else [])
        result = ad.AnnData(x, obs=table, var=var)
        if embedded:
            result.obsm[str(self.registry.embed_key)] = np.concatenate([c.cells for _, c in made])
        prediction = Prediction(
            scale=_SCALE,
            pert_key=str(self.registry.pert_key),
            control=str(self.registry.control),
            targets=targets,
            space=str(self.registry.embed_key) if embedded else "genes",
        )
        write_result(result, PREDICT, prediction.record())
        return result

    def _carried(self) -> list[str]:
        """Columns that travel from control cells to predicted ones."""
        keys = [*self.registry.context_keys, *(c.name for c in self._covariates())]
        keys += [k for k in (self.registry.cell_type_key, self.registry.batch_key) if k is not None]
        return [k for k in dict.fromkeys(keys) if k != self.registry.pert_key]

    def _prediction_obs(self, obs: pd.DataFrame, target: str, expected_loss: np.ndarray | None) -> pd.DataFrame:
        made = obs.copy()
        made.insert(0, "control_cell", obs.index.astype(str))
        made.insert(1, str(self.registry.pert_key), target)
        if expected_loss is not None:
            made["expected_loss"] = expected_loss
        made.index = [f"{name}|{target}" for name in obs.index]
        return made

    def _control_rows(self, adata: AnnData, contexts: Mapping[str, Any] | None) -> np.ndarray:
        registry = self.registry
        keep = np.ones(adata.n_obs, dtype=bool)
        if registry.pert_key in adata.obs:
            keep &= registry.labels(adata, str(registry.pert_key)) == registry.control
        for key, wanted in (contexts or {}).items():
            values = registry.labels(adata, key)
            names = names_of(wanted)
            for name in names:
                if name not in set(values):
                    msg = f"contexts: {name!r} is not in adata.obs[{key!r}]. {did_you_mean(name, sorted(set(values)))}"
                    raise ValueError(msg)
            keep &= np.isin(values.astype(str), names)
        if not keep.any():
            msg = f"No control cell ({registry.pert_key} = {registry.control!r}) is left to predict from."
            raise ValueError(msg)
        return np.flatnonzero(keep)

    def _data(self, adata: AnnData, encoded: dict[str, np.ndarray] | None = None) -> SetData:
        """Read what the network sees of cells, their perturbation excepted; covariates may be given."""
        own = self.registry.encode(adata.obs, without=self.registry.pert_key) if encoded is None else encoded
        batches = self._batch_codes(adata)
        return SetData(self._cells_in_space(adata), self.perts.values[:0], own, batch_codes=batches)

    def _run(self, data: SetData, contexts: np.ndarray, perts: np.ndarray, *, represent: bool = False) -> _Computed:
        """Pass all cells through the network in sets of one context and perturbation; rows stay in order."""
        rng = np.random.default_rng(self.seed)
        groups = pd.DataFrame({"context": contexts, "pert": [row.tobytes() for row in perts]})
        by_group = groups.groupby(["context", "pert"], sort=True).indices
        sets = [rows for members in by_group.values() for rows in windows(np.asarray(members), self.set_len, rng)]
        found = [
            self._compute(data, rows, perts[rows[:1]], represent=represent)
            for rows in progress_bar(sets, desc="STTransition", unit="set", disable=len(sets) < 50)
        ]
        back = np.argsort(np.concatenate(sets))

        def in_order(parts: list[np.ndarray | None]) -> np.ndarray | None:
            there = [part for part in parts if part is not None]
            return np.concatenate(there)[back] if there else None

        cells = in_order([c.cells for c in found])
        assert cells is not None  # every set has cells
        return _Computed(cells, in_order([c.genes for c in found]), in_order([c.expected_loss for c in found]))

    @contextmanager
    def _network_on(self, device: torch.device) -> Iterator[None]:
        """Have the network on a device for a while, and then on the CPU, where it is kept."""
        self.network.to(device)
        try:
            yield
        finally:
            self.network.cpu()

    def _compute(self, data: SetData, rows: np.ndarray, pert: np.ndarray, *, represent: bool) -> _Computed:
        """Pass one set through the network; what describes its perturbation is ``(1, pert_dim)``."""
        batch = to_tensors(
            {
                "control": dense(data.x, rows[None]),
                "pert": np.array(pert, dtype=np.float32),
                "covariates": {name: values[rows][None] for name, values in data.covariates.items()},
            }
        )
        if data.batch_codes is not None:
            batch["batch_codes"] = torch.from_numpy(data.batch_codes[rows][None])
        network = self.network.eval()
        batch = move_data_to_device(batch, next(network.parameters()).device)
        with torch.inference_mode():
            inputs = batch["control"], batch["pert"], batch["covariates"], batch.get("batch_codes")
            if represent:
                shown = network.represent(*inputs)
                return _Computed(shown[0].cpu().numpy(), None, None)
            predicted = network(*inputs)
            genes = None if network.gene_decoder is None else network.decode(predicted.cells)[0].cpu().numpy()
            expected = None if predicted.confidence is None else predicted.confidence.expand(len(rows)).cpu().numpy()
            cells = predicted.cells[0].cpu().numpy()
        if self._predicts_untrained:  # a published model's expression is cut as its own code does
            genes = None if genes is None else genes.clip(*GENE_RANGE)
            cells = cells.clip(*GENE_RANGE) if self.options.space == "genes" else cells
        return _Computed(cells, genes, expected)

    def get_latent_representation(
        self, adata: AnnData | None = None, *, key_added: str | None = OBSM_ST, device: str | None = None
    ) -> np.ndarray:
        """Represent cells under their own perturbation as the network sees them before its head.

        Parameters
        ----------
        adata
            Cells; the model's own by default.
        key_added
            Where it is written in ``adata.obsm``; None to write nothing.
        device
            As in :meth:`predict`.

        Returns
        -------
        float32 ``(n_cells, hidden)``.

        Raises
        ------
        ValueError
            The model is not trained, a level was never seen in training, or the device is absent.
        KeyError
            A column is missing.

        Notes
        -----
        Adds ``adata.obsm["X_scstate_st"]``. A cell's representation depends on the set it is in: cells of its context
        and perturbation. So it was told both, and finding the cell type in it is no evidence.
        """
        self._require_ready("get_latent_representation()")
        on = ComputeOptions(device=device).resolved_device()
        adata = self._cells(adata)
        key = str(self.registry.pert_key)
        if key not in adata.obs:
            msg = f"adata.obs[{key!r}] does not exist, and the model needs every cell's perturbation."
            raise KeyError(msg)
        labels = self.registry.labels(adata, key)
        names, codes = np.unique(labels.astype(str), return_inverse=True)
        data, contexts = self._data(adata), self.registry.contexts(adata)
        perts = self.perts.encode(names.tolist(), where=f"adata.obs[{key!r}]")[codes]
        with self._network_on(on):
            computed = self._run(data, contexts, perts, represent=True)
        if key_added is not None:
            adata.obsm[key_added] = computed.cells
        return computed.cells


def names_of(wanted: Any) -> list[str]:
    """One value or several, as names of levels, each once."""
    several = wanted if hasattr(wanted, "__iter__") and not isinstance(wanted, str) else [wanted]
    return list(dict.fromkeys(label_of(value) for value in several))
