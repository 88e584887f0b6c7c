"""STTransition: from a set of control cells and a perturbation to the perturbed cells."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from torch import nn

from scstate_lora._constants import OBSM_ST, UNS_KEY
from scstate_lora._utils import did_you_mean, progress_bar
from scstate_lora.config import STModelConfig
from scstate_lora.data.fields import CategoricalCovariate, Covariate, label_of
from scstate_lora.data.genes import match_genes, take_columns
from scstate_lora.data.sets import Group, SetSampler, WholeGroups, make_groups, windows
from scstate_lora.io.save_load import check_state
from scstate_lora.model._base import BaseModel
from scstate_lora.model._counterfactual import move
from scstate_lora.model._specs import covariate_specs
from scstate_lora.nn.transition import StateTransition, STConfig
from scstate_lora.training.batches import to_tensors
from scstate_lora.training.runner import TRAIN_ARGUMENTS, TrainerOptions, check_schedule, fit
from scstate_lora.training.st_plan import STPlan
from scstate_lora.training.start import mean_shifts, shrinkage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from scipy import sparse
    from torch import Tensor

# Cells a step on a CPU: more is slower without being better on data of a laptop's size.
_CPU_CELLS = 512
_MIN_GROUP = 5
_STEPS_PER_EPOCH = 20
_SCALE = "log1p_cp10k"
_COVARIATE_DIM = 64  # width of every covariate's own vector


class STTransition(BaseModel):
    """Predict what a perturbation does to a set of cells.

    Control cells of one context (cell type and covariates) and a perturbation enter a transformer over the set.
    Prediction = control + mean shift of the perturbation + the cell's own deviation from it, in log1p expression; an
    untrained model says exactly "no change". Trained by the energy distance between predicted and real cells of the
    same context; deviations are held back as far as differences between the contexts are noise.

    Parameters
    ----------
    adata
        Set up by :func:`scstate_lora.setup_anndata` or :meth:`setup_anndata`, with ``pert_key`` and ``control``.
    model
        Sizes, see :class:`scstate_lora.config.STModelConfig`.
    seed
        Seed of initialisation, of the drawn sets and of training.

    Raises
    ------
    KeyError
        ``adata`` was not set up.
    ValueError
        It was set up without ``pert_key``, no context has enough training cells, or ``cell_set_len`` is larger than
        any of them.

    References
    ----------
    Adduri et al. 2025, STATE, doi:10.1101/2025.06.26.661135.
    """

    writes = f"predictions as a new AnnData, and adata.obsm['{OBSM_ST}']"

    def __init__(self, adata: AnnData, *, model: STModelConfig | dict[str, Any] | None = None, seed: int = 0) -> None:
        super().__init__(adata, seed=seed)
        if self.registry.pert_key is None:
            msg = "STTransition needs a perturbation: ssl.setup_anndata(adata, pert_key=..., control=...)."
            raise ValueError(msg)
        self.options = STModelConfig.parse(model, name="model")
        groups = self._groups("train", _MIN_GROUP)
        if not groups:
            keys = self.registry.context_keys
            where = f"No context ({' x '.join(keys)}) has" if keys else "There are not"
            advice = "Use coarser contexts (context_keys=[...]) or more cells." if keys else "Use more cells."
            msg = f"{where} {_MIN_GROUP} control and {_MIN_GROUP} perturbed training cells. {advice}"
            raise ValueError(msg)
        self.set_len, self.set_note = self._choose_set_len(groups)
        self.genes, self.gene_note = self._choose_genes()
        self._build()

    def _covariates(self) -> list[Covariate]:
        return [c for c in self.registry.covariates if c.name != self.registry.pert_key]

    def _groups(self, split: str, min_cells: int, *, by_type: bool = False) -> list[Group]:
        """Find the groups of a split's perturbed cells; validation ones are predicted from training controls too.

        ``by_type`` takes the cell type alone as the context, where there is one.
        """
        perts = self._pert_codes(self.adata)
        control = self._pert_code(str(self.registry.control))
        cells = np.zeros(self.adata.n_obs, dtype=bool)
        cells[self._rows(split)] = True
        if split == "val":
            training = self._rows("train")
            cells[training[perts[training] == control]] = True
        contexts = self.registry.contexts(self.adata)
        if by_type and self.registry.cell_type_key is not None:
            contexts = self.registry.labels(self.adata, self.registry.cell_type_key)
        return make_groups(contexts, perts, control, cells, min_cells=min_cells)

    def _choose_set_len(self, groups: list[Group]) -> tuple[int, str]:
        sizes = [min(len(g.control), len(g.perturbed)) for g in groups]
        asked = self.options.cell_set_len
        if asked is not None:
            if asked > max(sizes):
                msg = (
                    f"cell_set_len={asked}, but the largest context has only {max(sizes)} control and perturbed "
                    "training cells. Use at most that many, or leave it out."
                )
                raise ValueError(msg)
            return asked, f"sets of {asked} cells, as asked"
        largest = 256 if torch.cuda.is_available() else 64
        median = int(np.median(sizes))
        length = int(min(largest, max(8, 2 ** int(np.log2(median)))))
        return length, f"sets of {length} cells: the median of {len(groups)} training contexts has {median}"

    def _choose_genes(self) -> tuple[list[str], str]:
        names = self.registry.var_names
        limit = self.options.n_genes
        if limit is None or len(names) <= limit:
            return names, f"all {len(names)} genes"
        rows = self._rows("train")
        cells = ad.AnnData(self.registry.log_expression(self.adata)[rows], var=pd.DataFrame(index=names))
        threads = torch.get_num_threads()
        sc.pp.highly_variable_genes(cells, n_top_genes=limit)
        torch.set_num_threads(threads)  # scanpy's numba shares torch's thread pool, and resizes it
        chosen = cells.var["highly_variable"].to_numpy()
        note = f"the {chosen.sum()} most variable of {len(names)} genes"
        return [n for n, c in zip(names, chosen, strict=True) if c], note

    def _build(self) -> None:
        o = self.options
        sizes = STConfig(len(self.genes), len(self.registry.perturbations), o.hidden, o.n_layers, o.n_heads, o.dropout)
        specs = covariate_specs(self._covariates(), embed_dim=_COVARIATE_DIM)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.network = StateTransition(sizes, specs)
        self.network.eval()

    def _pert_code(self, name: str) -> int:
        return self.registry.perturbations.index(name)

    def _pert_codes(self, adata: AnnData) -> np.ndarray:
        assert self.registry.pert_key is not None  # checked in __init__
        levels = CategoricalCovariate(self.registry.pert_key, tuple(self.registry.perturbations))
        return levels.encode(adata.obs[self.registry.pert_key])

    def _expression(self, adata: AnnData) -> sparse.csr_matrix:
        """log1p expression of the model's genes, CSR ``(n_cells, n_genes)``."""
        return take_columns(self.registry.log_expression(adata), match_genes(self.registry.var_names, self.genes))

    def train(
        self,
        max_epochs: int = 20,
        *,
        lr: float = 1e-3,
        batch_size: int | None = None,
        weight_decay: float = 0.01,
        warmup_steps: int = 20,
        **trainer: Any,
    ) -> None:
        """Train on the training cells; no cell of another split is used.

        Parameters
        ----------
        max_epochs
            Epochs of at least 20 steps each.
        lr, weight_decay, warmup_steps
            Of AdamW; the learning rate rises over the warm-up and then falls along a cosine.
        batch_size
            Sets a step; by default as many as make 512 cells on a CPU, and 16 on a GPU.
        trainer
            Options for Lightning, see :class:`~scstate_lora.training.runner.TrainerOptions`.

        Raises
        ------
        ValueError
            An accelerator is asked for that is absent, or an option is not allowed. Before any training.
        TypeError
            An option is unknown.
        FileNotFoundError, FileExistsError
            There is no checkpoint to resume from; the run's folder holds another run.
        KeyboardInterrupt
            Ctrl-C was pressed. The model keeps the best weights so far and their history, and ``resume_from`` goes on.

        Notes
        -----
        Extends ``.history``. Logs and checkpoints are written to ``<ssl.settings.run_dir>/STTransition/<number>``,
        see ``logger`` and ``run_folder``.
        """
        options = TrainerOptions.parse(trainer, further=TRAIN_ARGUMENTS)
        check_schedule(
            max_epochs=max_epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, warmup_steps=warmup_steps
        )
        if batch_size is None:
            batch_size = 16 if torch.cuda.is_available() else max(2, _CPU_CELLS // self.set_len)
        x = self._expression(self.adata)
        covariates = self.registry.encode(self.adata.obs, without=self.registry.pert_key)

        groups, unseen = self._groups("train", _MIN_GROUP), self._groups("val", 2)
        n_cells = sum(len(g.perturbed) for g in groups)
        train = SetSampler(
            x,
            covariates,
            groups,
            n_sets=batch_size,
            set_len=self.set_len,
            seed=self.seed,
            unknown=self.registry.unknown(),
            steps_per_epoch=max(_STEPS_PER_EPOCH, -(-n_cells // (batch_size * self.set_len))),
        )
        val = WholeGroups(x, covariates, unseen, set_len=self.set_len, seed=self.seed) if unseen else None
        if not self.is_trained:
            with torch.no_grad():
                self.network.shift.copy_(torch.from_numpy(mean_shifts(x, groups, len(self.registry.perturbations))))
        # Contexts of one cell type respond alike, so what they tell together counts, not what each does.
        types = self._groups("train", _MIN_GROUP, by_type=True)
        plan = STPlan(
            self.network,
            lr=lr,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            weights={"energy": 1.0, "deviation": self.options.shrinkage * shrinkage(x, types)},
        )
        fit(
            plan,
            train,
            val,
            max_epochs=max_epochs,
            options=options,
            title="STTransition",
            seed=self.seed,
            history=self.history,
            keep=partial(setattr, self, "history"),
        )

    def predict(
        self,
        adata: AnnData | None = None,
        *,
        target: str | Sequence[str],
        contexts: Mapping[str, Any] | None = None,
        covariates: Mapping[str, Any] | None = None,
    ) -> AnnData:
        """Predict the perturbed cells of control cells.

        Parameters
        ----------
        adata
            Cells whose controls are taken; the model's own by default. Genes are matched by name. Without the
            perturbation's column all cells count as controls.
        target
            Perturbation, or several.
        contexts
            Take only control cells with these values, for instance ``{"cell_type": ["B cells", "NK cells"]}``.
        covariates
            Counterfactual values for all cells, for instance ``{"timepoint": "day19"}``; None withholds a covariate.

        Returns
        -------
        AnnData of predicted cells, ``X`` float32 ``(n_cells, n_genes)`` as log1p of counts per 10,000. ``obs``: the
        control cell's name (``control_cell``), the target under the name of the perturbation's column, the context
        columns and covariates. ``uns["scstate_lora"]["predict"]``: scale, pert_key, control and target.

        Raises
        ------
        ValueError
            The model is not trained, a target or level was never seen, or no control cell is left.
        KeyError
            A column is missing.
        """
        self._require_trained("predict()")
        adata = self._cells(adata)
        registry = self.registry
        targets = _names(target)
        if not targets:
            msg = f"target names no perturbation. There are: {', '.join(map(repr, registry.targets))}."
            raise ValueError(msg)
        for name in targets:
            if name not in registry.targets:
                msg = f"target={name!r} is not a perturbation of this model. {did_you_mean(name, registry.targets)}"
                raise ValueError(msg)
        rows = self._control_rows(adata, contexts)
        cells = adata[rows]
        if covariates is not None and registry.pert_key in covariates:
            msg = f"covariates holds {registry.pert_key!r}, which is the perturbation: give it as target=."
            raise ValueError(msg)
        obs = move(cells.obs[[c for c in self._carried() if c in cells.obs]], registry, covariates)
        x = self._expression(cells)
        encoded = registry.encode(obs, without=registry.pert_key, allow_missing=covariates)
        context = registry.contexts(cells)  # cells are grouped as they were measured, whatever they are moved to
        predicted = [
            self._run(x, encoded, context, np.full(len(rows), self._pert_code(name)), title=name, head=True)
            for name in targets
        ]
        table = pd.concat([self._prediction_obs(obs, name) for name in targets])
        made = ad.AnnData(np.concatenate(predicted), obs=table, var=pd.DataFrame(index=self.genes))
        made.uns[UNS_KEY] = {
            "predict": {
                "scale": _SCALE,
                "pert_key": str(registry.pert_key),
                "control": str(registry.control),
                "target": ", ".join(targets),
            }
        }
        return made

    def _carried(self) -> list[str]:
        """Columns that travel from control cells to predicted ones."""
        keys = [*self.registry.context_keys, *(c.name for c in self._covariates())]
        keys += [k for k in (self.registry.cell_type_key, self.registry.batch_key) if k is not None]
        return [k for k in dict.fromkeys(keys) if k != self.registry.pert_key]

    def _prediction_obs(self, obs: pd.DataFrame, target: str) -> pd.DataFrame:
        made = obs.copy()
        made.insert(0, "control_cell", obs.index.astype(str))
        made.insert(1, str(self.registry.pert_key), target)
        made.index = [f"{name}|{target}" for name in obs.index]
        return made

    def _control_rows(self, adata: AnnData, contexts: Mapping[str, Any] | None) -> np.ndarray:
        registry = self.registry
        keep = np.ones(adata.n_obs, dtype=bool)
        if registry.pert_key in adata.obs:
            keep &= registry.labels(adata, str(registry.pert_key)) == registry.control
        for key, wanted in (contexts or {}).items():
            values = registry.labels(adata, key)
            names = _names(wanted)
            for name in names:
                if name not in set(values):
                    msg = f"contexts: {name!r} is not in adata.obs[{key!r}]. {did_you_mean(name, sorted(set(values)))}"
                    raise ValueError(msg)
            keep &= np.isin(values.astype(str), names)
        if not keep.any():
            msg = f"No control cell ({registry.pert_key} = {registry.control!r}) is left to predict from."
            raise ValueError(msg)
        return np.flatnonzero(keep)

    def _run(
        self,
        x: sparse.csr_matrix,
        covariates: dict[str, np.ndarray],
        contexts: np.ndarray,
        perts: np.ndarray,
        *,
        title: str,
        head: bool,
    ) -> np.ndarray:
        """Pass all cells through the network in sets of one context and perturbation; rows stay in order."""
        rng = np.random.default_rng(self.seed)
        sets: list[np.ndarray] = []
        for context, pert in sorted(set(zip(contexts, perts.tolist(), strict=True))):
            sets += windows(np.flatnonzero((contexts == context) & (perts == pert)), self.set_len, rng)
        width = len(self.genes) if head else self.options.hidden
        result = np.empty((x.shape[0], width), dtype=np.float32)
        self.network.eval()
        run = self.network.forward if head else self.network.represent
        with torch.inference_mode():
            for rows in progress_bar(sets, desc=title, unit="set", disable=len(sets) < 50):
                batch = {
                    "control": x[rows].toarray()[None],
                    "pert": perts[rows[:1]].astype(np.int64),
                    "covariates": {name: values[rows][None] for name, values in covariates.items()},
                }
                tensors = to_tensors(batch)
                result[rows] = run(tensors["control"], tensors["pert"], tensors["covariates"])[0].numpy()
        return result

    def get_latent_representation(self, adata: AnnData | None = None, *, key_added: str | None = OBSM_ST) -> np.ndarray:
        """Represent cells under their own perturbation as the network sees them before its head.

        Parameters
        ----------
        adata
            Cells; the model's own by default.
        key_added
            Where it is written in ``adata.obsm``; None to write nothing.

        Returns
        -------
        float32 ``(n_cells, hidden)``.

        Raises
        ------
        ValueError
            The model is not trained, or a level was never seen in training.
        KeyError
            A column is missing.

        Notes
        -----
        Adds ``adata.obsm["X_scstate_st"]``. A cell's representation depends on the set it is in: cells of its context
        and perturbation. So it was told both, and finding the cell type in it is no evidence.
        """
        self._require_trained("get_latent_representation()")
        adata = self._cells(adata)
        if self.registry.pert_key not in adata.obs:
            msg = (
                f"adata.obs[{self.registry.pert_key!r}] does not exist, and the model needs every cell's perturbation."
            )
            raise KeyError(msg)
        representation = self._run(
            self._expression(adata),
            self.registry.encode(adata.obs, without=self.registry.pert_key),
            self.registry.contexts(adata),
            self._pert_codes(adata),
            title="STTransition",
            head=False,
        )
        if key_added is not None:
            adata.obsm[key_added] = representation
        return representation

    def _parts(self) -> list[tuple[str, nn.Module | None, str]]:
        n, o = self.network, self.options
        perts = f"{len(self.registry.perturbations)} perturbations, one-hot"
        parts: list[tuple[str, nn.Module | None, str]] = [
            ("perturbation encoder", n.pert_encoder, perts),
            ("basal encoder", n.basal_encoder, self.gene_note),
        ]
        if n.covariate_encoder is not None:
            parts.append(("covariate encoder", n.covariate_encoder, ", ".join(c.name for c in self._covariates())))
        backbone = f"GPT-2, {o.n_layers} layers x {o.hidden}, {o.n_heads} heads; {self.set_note}"
        parts.append(("backbone", n.transformer_backbone, backbone))
        parts.append(("head", n.project_out, "deviation of a cell, starts at 0"))
        return [*parts, ("shift", nn.ParameterList([n.shift]), "of each perturbation, starts at the mean shift")]

    def _metadata(self) -> dict[str, Any]:
        notes = {"set_len": self.set_len, "set_note": self.set_note, "genes": self.genes, "gene_note": self.gene_note}
        return {"options": self.options.model_dump(), **notes}

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"weights": self.network.state_dict()}

    def _restore(self, metadata: dict[str, Any], tensors: dict[str, dict[str, Tensor]], **given: Any) -> None:
        self.options = STModelConfig.parse(metadata["options"], name="model")
        self.set_len, self.set_note = metadata["set_len"], metadata["set_note"]
        self.genes, self.gene_note = metadata["genes"], metadata["gene_note"]
        self._build()
        check_state(self.network.state_dict(), tensors["weights"], what="the network")
        self.network.load_state_dict(tensors["weights"])


def _names(wanted: Any) -> list[str]:
    """One value or several, as names of levels, each once."""
    several = wanted if hasattr(wanted, "__iter__") and not isinstance(wanted, str) else [wanted]
    return list(dict.fromkeys(label_of(value) for value in several))
