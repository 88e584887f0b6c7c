"""STTransition: from a set of control cells and a perturbation to the perturbed cells."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from scstate_lora._constants import OBSM_ST
from scstate_lora._utils import did_you_mean
from scstate_lora.config import MHCConfig, STLoraConfig, STModelConfig, STObjectiveConfig
from scstate_lora.data.perturbations import PerturbationTable
from scstate_lora.data.sets import SetData, SetSampler, WholeGroups
from scstate_lora.io.published.st_checkpoint import read_st_folder
from scstate_lora.model.hyper_connected import refuse_other
from scstate_lora.model.st.inputs import choose_genes, choose_set_len, expression, read_velocity
from scstate_lora.model.st.network import MIN_GROUP, NetworkModel
from scstate_lora.model.st.pretrained import Origin, Reuse, adopt
from scstate_lora.model.st.published import st_tensors
from scstate_lora.nn.context_shift import covariate_coordinates
from scstate_lora.nn.hyper_connections import remove_mhc
from scstate_lora.training.runner import TRAIN_ARGUMENTS, TrainerOptions, check_schedule, fit
from scstate_lora.training.st.context_prior import fit_contexts
from scstate_lora.training.st.plan import STPlan
from scstate_lora.training.st.shift_prior import group_statistics, mean_shifts, shrinkage

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

    from scstate_lora.data.sets import Group

# Cells a step on a CPU: more is slower without being better on data of a laptop's size.
_CPU_CELLS = 512
_STEPS_PER_EPOCH = 20


class STTransition(NetworkModel):
    """Predict what a perturbation does to a set of cells.

    Control cells of one context (cell type and covariates) and a perturbation enter a transformer over the set.
    Prediction = control + shift of the perturbation in the context + the cell's own deviation, in log1p expression or
    in an embedding; an untrained model says exactly "no change". The shift is solved for: the mean shift, and what
    contexts alike showed besides. The rest is trained by the energy distance between predicted and real
    cells of the same context; deviations are held back as far as differences between the contexts are noise.

    Parameters
    ----------
    adata
        Set up by :func:`scstate_lora.setup_anndata` or :meth:`setup_anndata`, with ``pert_key`` and ``control``.
    model
        Sizes and form, see :class:`scstate_lora.config.STModelConfig`.
    objective
        Weights of the loss terms, see :class:`scstate_lora.config.STObjectiveConfig`.
    pretrained
        A published ST model to start from: its folder, or its id on the Hugging Face hub. Its form, sizes and genes
        (matched by name) then go before ``model``. It predicts as it is, where it knows the perturbations; for others
        it is given a new encoder.
    reuse
        ``"all"`` of it, or the ``"backbone"`` alone, with new encoders and head: for data of other sizes.
    finetune
        ``"full"``: all of the backbone trains. ``"lora"``: adapters on its attention do. ``"frozen"``: nothing of it.
        Encoders and head always train. None: adapters on a pretrained backbone, all of a new one.
    lora
        Options of the adapters, see :class:`scstate_lora.config.STLoraConfig`; with ``finetune="lora"``.
    pert_features
        What describes perturbations, for instance embeddings of genes or drugs: a DataFrame of numbers indexed by their
        names. Any in it can be predicted, seen in training or not, and so can combinations (``"A+B"``). None: one-hot;
        then combinations of perturbations that were seen can be predicted as the sum of their parts.
    seed
        Seed of initialisation, of the drawn sets and of training.

    Raises
    ------
    KeyError
        ``adata`` was not set up.
    TypeError
        ``pert_features`` is not a DataFrame of numbers.
    ValueError
        It was set up without ``pert_key``, an option is not allowed, no context has enough training cells,
        ``cell_set_len`` is larger than any of them, a perturbation of the training cells has no features, or one has no
        training cells and there are no features. A pretrained model's sizes or genes are not those of the data; it is
        damaged or holds code.
    FileNotFoundError
        There is no pretrained model at the path.

    References
    ----------
    Adduri et al. 2025, STATE, doi:10.1101/2025.06.26.661135.
    """

    writes = f"predictions as a new AnnData, and adata.obsm['{OBSM_ST}']"

    def __init__(
        self,
        adata: AnnData,
        *,
        model: STModelConfig | dict[str, Any] | None = None,
        objective: STObjectiveConfig | dict[str, Any] | None = None,
        pretrained: str | Path | None = None,
        reuse: Reuse = "all",
        finetune: Literal["lora", "full", "frozen"] | None = None,
        lora: STLoraConfig | dict[str, Any] | None = None,
        pert_features: pd.DataFrame | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(adata, seed=seed)
        if self.registry.pert_key is None:
            msg = "STTransition needs a perturbation: ssl.setup_anndata(adata, pert_key=..., control=...)."
            raise ValueError(msg)
        self.options = STModelConfig.parse(model, name="model")
        self.objective = STObjectiveConfig.parse(objective, name="objective")
        _check_choice("reuse", reuse, get_args(Reuse))
        if finetune is None:
            finetune = "full" if pretrained is None else "lora"
        self.finetune = _check_finetune(finetune)
        self.lora = STLoraConfig.parse(lora, name="lora")
        if lora is not None and self.finetune != "lora":
            msg = f"lora= gives options of adapters, but finetune={self.finetune!r} has none: use finetune='lora'."
            raise ValueError(msg)
        self.mhc: MHCConfig | None = None
        self.prior_note = "not solved for yet"
        self.origin: Origin | None = None
        checkpoint = None if pretrained is None else read_st_folder(pretrained, st_tensors, reuse=reuse)
        adopted = None if checkpoint is None else adopt(checkpoint, adata, self.registry, self.options, reuse)
        if adopted is None or adopted.perts is None or pert_features is not None:
            self.perts = self._perturbations(pert_features)
        else:
            self.perts = adopted.perts
        groups = self._groups("train", MIN_GROUP)
        if not groups:
            keys = self.registry.context_keys
            where = f"No context ({' x '.join(keys)}) has" if keys else "There are not"
            advice = "Use coarser contexts (context_keys=[...]) or more cells." if keys else "Use more cells."
            msg = f"{where} {MIN_GROUP} control and {MIN_GROUP} perturbed training cells. {advice}"
            raise ValueError(msg)
        if adopted is not None:
            own = adopted.perts is None or pert_features is not None
            self.origin = replace(adopted.origin, own_perturbations=own)
            self.options = adopted.options
        if adopted is not None and adopted.sizes is not None:
            self.set_len = int(self.options.cell_set_len or 0)
            self.set_note = f"sets of {self.set_len} cells, as it was trained"
            self.genes, self.gene_note = (
                adopted.genes or [],
                f"{len(adopted.genes or [])} genes, those it was trained on",
            )
            self.sizes = replace(adopted.sizes, pert_dim=self.perts.dim)
        else:
            self.set_len, self.set_note = choose_set_len(groups, self.options.cell_set_len)
            self.genes, self.gene_note = choose_genes(adata, self.registry, self._rows("train"), self.options.n_genes)
            self.sizes = replace(self._sizes(), **({} if adopted is None else adopted.backbone))
        self._build(checkpoint)

    def _perturbations(self, features: pd.DataFrame | None) -> PerturbationTable:
        """Describe the perturbations; without features every one must have training cells."""
        key, control = str(self.registry.pert_key), str(self.registry.control)
        seen = set(self.registry.labels(self.adata, key)[self._rows("train")])
        if features is not None:
            return PerturbationTable.of_features(features, trained=seen - {control}, control=control)
        unseen = sorted(set(self.registry.perturbations) - seen)
        if unseen:
            msg = (
                f"No training cell has adata.obs[{key!r}] = {', '.join(map(repr, unseen[:5]))}, so nothing can be "
                "learnt of it. Hold out fewer cells, leave these cells out, or describe the perturbations: "
                "pert_features=DataFrame indexed by their names."
            )
            raise ValueError(msg)
        return PerturbationTable.one_hot(self.registry.perturbations, control)

    def _training_data(self) -> SetData:
        """Read the cells, and what only training asks for."""
        data = self._data(self.adata)
        trained = self._groups("train", MIN_GROUP) + self._groups("val", 2)
        perts = np.zeros((len(self.registry.perturbations), self.perts.dim), dtype=np.float32)
        for code in {group.pert for group in trained}:
            perts[code] = self.perts.encode([self.registry.perturbations[code]])[0]
        extra: dict[str, Any] = {"perts": perts}
        if self.sizes.n_decoded is not None and set(self.genes) <= set(self.registry.var_names):
            extra["genes"] = expression(self.adata, self.registry, self.genes)
        if self.objective.velocity_key is not None:
            genes = self.genes if self.options.space == "genes" else None
            found = read_velocity(self.adata, self.registry, self.objective, genes=genes)
            extra["velocity"], extra["velocity_confidence"] = found
        if self.sizes.batch_classes is not None and self.registry.batch is not None:
            extra["batch_labels"] = self.registry.batch_codes(self.adata.obs)
        return replace(data, **extra)

    def _weights(self, data: SetData) -> dict[str, float]:
        """Weight of every loss term that this model can have."""
        o = self.objective
        weights = {name: getattr(o, name) for name in ("energy", "sinkhorn", "mmd", "mse", "l1")}
        if self.sizes.residual == "output" and o.shrinkage:
            weights["deviation"] = o.shrinkage * self._shrinkage(data)
        if data.genes is not None:
            weights["decoder"] = o.decoder
        if data.velocity is not None:
            weights |= {"velocity": o.velocity, "velocity_regularization": o.velocity_regularization}
        if self.sizes.confidence_token:
            weights["confidence"] = o.confidence
        if data.batch_labels is not None:
            weights["batch"] = o.batch
        return weights

    def _shrinkage(self, data: SetData) -> float:
        # Contexts of one cell type respond alike, so what they tell together counts, not what each does.
        groups = self._groups("train", MIN_GROUP, by_type=True)
        stats, codes = group_statistics(data.x, groups), np.array([g.pert for g in groups])
        control, perts = (torch.from_numpy(a.astype(np.float32)) for a in (stats.control, data.perts[codes]))
        with torch.no_grad():
            expected = [
                self.network.common_shift(control[i : i + 1], perts[i : i + 1], _told(data, group))
                for i, group in enumerate(groups)
            ]
        return shrinkage(stats, codes, torch.cat(expected).numpy())

    def _places(self, data: SetData, groups: list[Group]) -> np.ndarray:
        """Coordinates of the covariates of each group's control cells, ``(n_groups, n_coordinates)``."""
        found = [covariate_coordinates(_told(data, group), self.network.specs).numpy().reshape(-1) for group in groups]
        return np.array(found, dtype=np.float64).reshape(len(groups), -1)

    def _start(self, data: SetData, groups: list[Group]) -> None:
        """Set the shift to what the training groups show."""
        assert self.network.shift is not None  # the caller has looked
        with torch.no_grad():
            self.network.shift.copy_(torch.from_numpy(mean_shifts(data.x, groups, data.perts)))
        if self.options.prior == "mean":
            return
        types = self.registry.contexts(self.adata)
        if self.registry.cell_type_key is not None:
            types = self.registry.labels(self.adata, self.registry.cell_type_key)
        where = self._places(data, groups)
        fitted = fit_contexts(data.x, groups, data.perts, where, [str(types[g.control[0]]) for g in groups])
        self.sizes = replace(self.sizes, n_references=len(fitted.points), n_directions=fitted.basis.shape[1])
        self.network.set_context_shift(
            self.sizes,
            {
                name: torch.as_tensor(getattr(fitted, name), dtype=torch.float32)
                for name in ("centre", "basis", "points", "perts", "alpha", "width", "slope", "reach")
            },
        )
        self.prior_note = fitted.note

    def train(
        self,
        max_epochs: int | None = None,
        *,
        lr: float | None = None,
        batch_size: int | None = None,
        weight_decay: float = 0.01,
        warmup_steps: int | None = None,
        mhc: bool | MHCConfig | dict[str, Any] = False,
        **trainer: Any,
    ) -> None:
        """Train on the training cells; no cell of another split is used.

        Parameters
        ----------
        max_epochs
            Epochs of at least 20 steps each; 10 of them by default, and 5 for a pretrained model.
        lr, weight_decay, warmup_steps
            Of AdamW; the learning rate rises over the warm-up and then falls along a cosine. By default 1e-3 after 20
            steps, and for a pretrained model 5e-5 after 100.
        batch_size
            Sets a step; by default as many as make 512 cells on a CPU, and 16 on a GPU.
        mhc
            Give the backbone hyper-connections before it is trained: True or options, see
            :class:`scstate_lora.config.MHCConfig`. At first they change nothing. Those that are there stay, and train
            further, when False.
        trainer
            Options for Lightning, see :class:`~scstate_lora.training.runner.TrainerOptions`.

        Raises
        ------
        ValueError
            An accelerator is asked for that is absent, an option is not allowed, or there are other hyper-connections
            already. Before any training.
        TypeError
            An option is unknown.
        KeyError
            There is no velocity of that name.
        FileNotFoundError, FileExistsError
            There is no checkpoint to resume from; the run's folder holds another run.
        KeyboardInterrupt
            Ctrl-C was pressed. The model keeps the best weights so far and their history, and ``resume_from`` goes on.

        Notes
        -----
        Extends ``.history``. Logs and checkpoints are written to ``<ssl.settings.run_dir>/STTransition/<number>``,
        see ``logger`` and ``run_folder``.
        """
        options = TrainerOptions.parse(trainer, further=(*TRAIN_ARGUMENTS, "mhc"))
        tunes = self.origin is not None and self.origin.reuse == "all"
        max_epochs = (5 if tunes else 10) if max_epochs is None else max_epochs
        lr = (5e-5 if tunes else 1e-3) if lr is None else lr
        warmup_steps = (100 if tunes else 20) if warmup_steps is None else warmup_steps
        check_schedule(
            max_epochs=max_epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, warmup_steps=warmup_steps
        )
        asked = MHCConfig.asked(mhc)
        if asked is not None and self.mhc is not None:
            refuse_other(asked, self.mhc)
        if batch_size is None:
            batch_size = 16 if torch.cuda.is_available() else max(2, _CPU_CELLS // self.set_len)
        data = self._training_data()
        groups, unseen = self._groups("train", MIN_GROUP), self._groups("val", 2)
        n_cells = sum(len(g.perturbed) for g in groups)
        train = SetSampler(
            data,
            groups,
            n_sets=batch_size,
            set_len=self.set_len,
            seed=self.seed,
            unknown={c.name: self.registry.unknown()[c.name] for c in self._covariates()},
            steps_per_epoch=max(_STEPS_PER_EPOCH, -(-n_cells // (batch_size * self.set_len))),
        )
        val = WholeGroups(data, unseen, set_len=self.set_len, seed=self.seed) if unseen else None
        if not self.is_trained and self.network.shift is not None:
            self._start(data, groups)
        connects = False
        if asked is not None and self.mhc is None:
            connects = True
            with torch.random.fork_rng():
                torch.manual_seed(self.seed + 2)
                self._connect(asked)
        n_rows = len(self.history)
        plan = STPlan(
            self.network,
            objective=self.objective,
            lr=lr,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            weights=self._weights(data),
        )
        try:
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
        finally:
            if connects and len(self.history) == n_rows:  # nothing was trained
                remove_mhc(self.network.transformer_backbone)
                self.mhc = None


def _told(data: SetData, group: Group) -> dict[str, torch.Tensor]:
    """Covariates of a group's control cells, as of one set: ``(1, n_cells)`` each."""
    return {name: torch.from_numpy(values[group.control])[None] for name, values in data.covariates.items()}


def _check_finetune(finetune: str) -> Literal["lora", "full", "frozen"]:
    _check_choice("finetune", finetune, ("lora", "full", "frozen"))
    return finetune  # type: ignore[return-value]  # one of them


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        msg = f"{name}={value!r} is unknown. {did_you_mean(str(value), known)}"
        raise ValueError(msg)
