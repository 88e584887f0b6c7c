"""STTransition: from a set of control cells and a perturbation to the perturbed cells."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, get_args

import numpy as np
import pandas as pd
import torch
from torch import nn

from scstate_lora._constants import OBSM_ST
from scstate_lora._tensors import in_float32
from scstate_lora._utils import did_you_mean, progress_bar, warn_user
from scstate_lora.config import MHCConfig, STLoraConfig, STModelConfig, STObjectiveConfig, TrainOptions
from scstate_lora.data.perturbations import PerturbationTable
from scstate_lora.data.results import LIBRARY_SIZE
from scstate_lora.data.sets import SetData, SetSampler, WholeGroups
from scstate_lora.inference.devices import check_accelerator, choose_device
from scstate_lora.io.published.st_checkpoint import read_st_folder
from scstate_lora.io.save_load import check_state
from scstate_lora.model.base import BaseModel, check_anndata
from scstate_lora.model.hyper_connected import HyperConnected, describe_mhc, refuse_other
from scstate_lora.model.st.design import STDesign
from scstate_lora.model.st.groups import MIN_GROUP, split_groups, training_groups
from scstate_lora.model.st.inputs import covariates_of, read_velocity
from scstate_lora.model.st.network import Finetune, backbone_parameters, connect, lora_parameters, make_network
from scstate_lora.model.st.predict import (
    CountSource,
    Output,
    SetPredictor,
    as_anndata,
    control_rows,
    describe_predicted,
    names_of,
)
from scstate_lora.model.st.pretrained import Origin, Reuse
from scstate_lora.model.st.published import st_tensors
from scstate_lora.nn.hyper_connections import mhc_parameters, remove_mhc
from scstate_lora.training.runner import TrainingRun
from scstate_lora.training.st.plan import STPlan
from scstate_lora.training.st.shift import deviation_weight, solve_shift

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from scipy import sparse
    from torch import Tensor

    from scstate_lora.config.training import TrainArguments
    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.sets import Group
    from scstate_lora.io.published.st_checkpoint import STCheckpoint
    from scstate_lora.nn.transition import StateTransition

# Cells per step on a CPU: more is slower without being better on data of a laptop's size.
_CPU_CELLS = 512
_STEPS_PER_EPOCH = 20


class STTransition(HyperConnected, BaseModel):
    """Predict what a perturbation does to a set of cells.

    Control cells of one context (cell type and covariates) and a perturbation enter a transformer over the set.
    Prediction = control + shift of the perturbation in the context + the cell's own deviation, in log1p expression or
    in an embedding; an untrained model predicts exactly "no change". The shift is solved for in closed form: the mean
    shift, and a Gaussian process over contexts for what similar contexts showed beyond it. The deviations are trained
    on the energy distance between predicted and real cells of the same context, and penalised as far as differences
    between contexts are noise.

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
        (matched by name) then take precedence over ``model``. If it knows the perturbations it predicts without further
        training; for others it receives a new encoder.
    reuse
        ``"all"``: the whole published model. ``"backbone"``: its transformer alone, with new encoders and head, for
        data of other sizes.
    finetune
        ``"full"``: the whole backbone trains. ``"lora"``: adapters on its attention do. ``"frozen"``: none of it does.
        Encoders and head always train. None: adapters on a pretrained backbone, all of a new one.
    lora
        Options of the adapters, see :class:`scstate_lora.config.STLoraConfig`; with ``finetune="lora"``.
    pert_features
        Features of the perturbations, for instance embeddings of genes or drugs: a DataFrame of numbers indexed by
        perturbation. Any perturbation in it can be predicted, seen in training or not, and so can combinations
        (``"A+B"``). None: one-hot vectors; combinations of trained perturbations are then sums of their parts.
    seed
        Seed of initialisation, of the drawn sets and of training.

    Raises
    ------
    KeyError
        If ``adata`` was not set up.
    TypeError
        If ``pert_features`` is not a DataFrame of numbers.
    ValueError
        If ``adata`` was set up without ``pert_key``, an option is not allowed, no context has enough training cells,
        ``cell_set_len`` exceeds the largest context, a perturbation of the training cells has no features, or, without
        features, one has no training cells. If a pretrained model is damaged, holds code, or has sizes or genes other
        than those of the data.
    FileNotFoundError
        If no pretrained model is found at the path.

    Warns
    -----
    UserWarning
        If a perturbation has training cells, but no context with 5 of them and 5 control cells: it is then not
        predicted or, with ``pert_features``, predicted as one never seen.

    References
    ----------
    Adduri et al. 2025, STATE, doi:10.1101/2025.06.26.661135.
    """

    writes = f"predictions as a new AnnData, and adata.obsm['{OBSM_ST}']"

    @in_float32()
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
        options = STModelConfig.parse(model, name="model")
        self.objective = STObjectiveConfig.parse(objective, name="objective")
        _check_choice("reuse", reuse, get_args(Reuse))
        if finetune is None:
            finetune = "full" if pretrained is None else "lora"
        _check_choice("finetune", finetune, get_args(Finetune))
        self.finetune: Finetune = finetune
        self.lora = STLoraConfig.parse(lora, name="lora")
        if lora is not None and self.finetune != "lora":
            msg = f"lora= gives options of adapters, but finetune={self.finetune!r} has none: use finetune='lora'."
            raise ValueError(msg)
        self.mhc: MHCConfig | None = None
        self.prior_note = "not solved for yet"
        cells = self._bind()
        checkpoint = None
        if pretrained is None:
            self.design = STDesign.from_data(cells, options, pert_features)
        else:
            checkpoint = read_st_folder(pretrained, st_tensors, reuse=reuse)
            self.design = STDesign.from_published(cells, options, pert_features, checkpoint=checkpoint, reuse=reuse)
        self.network = self._make_network(checkpoint)

    @property
    def options(self) -> STModelConfig:
        """Sizes and form; those that a published model decides are its own."""
        return self.design.options

    @property
    def genes(self) -> list[str]:
        """Genes that are predicted, or decoded from an embedding."""
        return self.design.genes

    @property
    def perts(self) -> PerturbationTable:
        """Perturbation vectors by name."""
        return self.design.perts

    @property
    def origin(self) -> Origin | None:
        """The published model that this one starts from."""
        return self.design.origin

    @property
    def targets(self) -> list[str]:
        """Perturbations of the data that the model can predict: those with too few training cells are left out."""
        return [name for name in self.registry.targets if name not in self.perts.untrained]

    def _make_network(self, checkpoint: STCheckpoint | None = None) -> StateTransition:
        return make_network(
            self.design,
            covariates_of(self.registry),
            finetune=self.finetune,
            lora=self.lora,
            mhc=self.mhc,
            checkpoint=checkpoint,
            seed=self.seed,
        )

    @in_float32()
    def train(self, max_epochs: int | None = None, **arguments: Unpack[TrainArguments]) -> None:
        """Train on the training cells; no cell of another split is used.

        Parameters
        ----------
        max_epochs
            Epochs of at least 20 steps each; 10 of them by default, and 5 for a pretrained model.
        arguments
            See :class:`~scstate_lora.config.TrainOptions`. By default ``lr`` is 1e-3 after ``warmup_steps`` of 20, for
            a pretrained model 5e-5 after 100, with a ``weight_decay`` of 0.01; ``batch_size`` is as many sets per step
            as make 512 cells on a CPU, and 16 on a GPU. ``mhc`` gives the backbone hyper-connections before it is
            trained: True, or options, see :class:`~scstate_lora.config.MHCConfig`. They change nothing at first;
            existing ones are kept and trained further, requested or not.

        Raises
        ------
        ValueError
            If the requested accelerator is absent, an option is not allowed, the cells' split is not the one that the
            model keeps (``.split``), or the backbone has different hyper-connections; all before any training.
        TypeError
            If an option is unknown.
        KeyError
            If the velocity that the objective names does not exist.
        FileNotFoundError, FileExistsError
            If the checkpoint to resume from does not exist, or the run's folder holds another run.
        KeyboardInterrupt
            If Ctrl-C was pressed. The model keeps the best weights so far and their history; ``resume_from`` continues
            the run.
        SystemExit
            If the process received SIGTERM, as from a scheduler: the same, with exit status 143.

        Notes
        -----
        Extends ``.history``. Logs and checkpoints are written to ``<ssl.settings.run_dir>/STTransition/<number>``,
        see ``logger`` and ``run_folder``.
        """
        options = TrainOptions.of_call({"max_epochs": max_epochs, **arguments}, function="train()")
        check_accelerator(options.accelerator)
        tunes = self.origin is not None and self.origin.reuse == "all"
        requested = MHCConfig.requested(options.mhc)
        if requested is not None and self.mhc is not None:
            refuse_other(requested, self.mhc)
        set_len = self.design.set_len
        n_sets = options.batch_size or (16 if torch.cuda.is_available() else max(2, _CPU_CELLS // set_len))
        cells = self._bind_to_train()
        groups, val_groups = training_groups(cells), self._validation_groups(cells)
        data = self._training_data(cells, groups + val_groups)
        n_cells = sum(len(g.perturbed) for g in groups)
        train = SetSampler(
            data,
            groups,
            n_sets=n_sets,
            set_len=set_len,
            seed=self.seed,
            unknown={c.name: c.unknown for c in covariates_of(self.registry)},
            steps_per_epoch=max(_STEPS_PER_EPOCH, -(-n_cells // (n_sets * set_len))),
        )
        val = WholeGroups(data, val_groups, set_len=set_len, seed=self.seed) if val_groups else None
        if not self.is_trained and self.network.shift is not None:
            types = cells.contexts if cells.cell_types is None else cells.cell_types
            note = solve_shift(self.network, data, groups, types, by_context=self.options.prior != "mean")
            self.prior_note = note or self.prior_note
        with self._connected(requested):
            plan = STPlan(
                self.network,
                objective=self.objective,
                weights=self._weights(cells, data, groups),
                **options.schedule(lr=5e-5 if tunes else 1e-3, warmup_steps=100 if tunes else 20),
            )
            run = TrainingRun(
                plan,
                options=options,
                title="STTransition",
                seed=self.seed,
                history=self.history,
                cells=self._fingerprint,
            )
            try:
                run.fit(train, val, max_epochs=options.max_epochs or (5 if tunes else 10))
            finally:
                self.history = run.history

    @contextmanager
    def _connected(self, mhc: MHCConfig | None) -> Iterator[None]:
        """Give the backbone hyper-connections, and take them back if it is not trained within this context."""
        if mhc is None or self.mhc is not None:
            yield
            return
        n_rows = len(self.history)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed + 2)
            connect(self.network, mhc)
        self.mhc = mhc
        try:
            yield
        finally:
            if len(self.history) == n_rows:
                remove_mhc(self.network.transformer_backbone)
                self.mhc = None

    def _validation_groups(self, cells: BoundData) -> list[Group]:
        """Pair the validation split's cells, without perturbations that no training group holds."""
        names, untrained = self.registry.perturbations, self.perts.untrained
        return [g for g in split_groups(cells, "val", min_cells=2) if names[g.pert] not in untrained]

    def _set_data(self, cells: BoundData) -> SetData:
        """Read cells for the network, their perturbations excepted."""
        encoded = cells.encode(without=self.registry.pert_key)
        table = self.origin is not None and self.network.config.n_batches is not None
        codes = self.origin.batch_codes(cells) if self.origin is not None and table else None
        further = cells.logged_genes(self.design.further_genes) if self.design.further_genes else None
        return SetData(self._in_space(cells), self.perts.values[:0], encoded, further=further, batch_codes=codes)

    def _in_space(self, cells: BoundData) -> sparse.csr_matrix | np.ndarray:
        return cells.embedding if self.options.space == "embedding" else cells.logged_genes(self.design.read_genes)

    def _training_data(self, cells: BoundData, groups: list[Group]) -> SetData:
        """Read the cells, with the arrays that only training needs, and the perturbation vectors of its groups."""
        registry, config, objective = self.registry, self.network.config, self.objective
        perts = np.zeros((len(registry.perturbations), self.perts.dim), dtype=np.float32)
        for code in {group.pert for group in groups}:
            perts[code] = self.perts.encode([registry.perturbations[code]])[0]
        extra: dict[str, Any] = {"perts": perts}
        if config.n_decoded is not None and set(self.genes) <= set(registry.var_names):
            extra["genes"] = cells.logged_genes(self.genes)
        if objective.velocity_key is not None:
            genes = self.design.read_genes if self.options.space == "genes" else None
            extra["velocity"], extra["velocity_confidence"] = read_velocity(cells, objective, genes=genes)
        if config.batch_classes is not None and registry.batch is not None:
            extra["batch_labels"] = cells.batch_codes
        return replace(self._set_data(cells), **extra)

    def _weights(self, cells: BoundData, data: SetData, groups: list[Group]) -> dict[str, float]:
        """Weight of every loss term that this model can have."""
        o, config = self.objective, self.network.config
        weights = {name: getattr(o, name) for name in ("energy", "sinkhorn", "mmd", "mse", "l1")}
        if config.residual == "output" and o.shrinkage:
            key, trained = self.registry.cell_type_key, {group.pert for group in groups}
            by_type = split_groups(cells, "train", min_cells=MIN_GROUP, by=None if key is None else [key])
            by_type = [group for group in by_type if group.pert in trained]
            weights["deviation"] = o.shrinkage * deviation_weight(self.network, data, by_type)
        if data.genes is not None:
            weights["decoder"] = o.decoder
        if data.velocity is not None:
            weights |= {"velocity": o.velocity, "velocity_regularization": o.velocity_regularization}
        if config.confidence_token:
            weights["confidence"] = o.confidence
        if data.batch_labels is not None:
            weights["batch"] = o.batch
        return weights

    @property
    def predicts_untrained(self) -> bool:
        """Whether it is a published model as a whole, which predicts without training."""
        return self.origin is not None and self.origin.is_whole

    @property
    def _predictor(self) -> SetPredictor:
        design, order = self.design, None
        if design.further_genes:
            order = pd.Index([*design.read_genes, *design.further_genes]).get_indexer(pd.Index(design.genes))
        return SetPredictor(self.network, design.set_len, self.seed, clips=self.predicts_untrained, order=order)

    def _require_ready(self, action: str) -> None:
        if not self.predicts_untrained:
            self._require_trained(action)

    @in_float32()
    def predict(
        self,
        adata: AnnData | None = None,
        *,
        target: str | Sequence[str],
        contexts: Mapping[str, Any] | None = None,
        covariates: Mapping[str, Any] | None = None,
        output: Output = "mean",
        device: str | None = None,
        allow_untrained: bool = False,
    ) -> AnnData:
        """Predict the perturbed cells of control cells.

        Parameters
        ----------
        adata
            Cells whose controls are taken; the model's own by default. Genes are matched by name. Without the
            perturbation's column all cells count as controls.
        target
            Perturbation, or several; with ``pert_features`` any that has features. Combinations are written ``"A+B"``.
        contexts
            Take only control cells with these values, for instance ``{"cell_type": ["B cells", "NK cells"]}``.
        covariates
            Counterfactual values for all cells, for instance ``{"timepoint": "day19"}``; None withholds a covariate.
        output
            ``"mean"``: the expected expression of each cell, for scores and effects. ``"counts"``: whole numbers drawn
            with the control cell's depth, so that zeros and spread are those of measured cells, for
            ``sc.tl.rank_genes_groups`` and all else that is made for counts; the data must be counts.
        device
            ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; None: CUDA where there is one, else the CPU.
        allow_untrained
            Predict with the random start of an untrained model, for comparison.

        Returns
        -------
        AnnData of predicted cells, ``X`` float32 ``(n_cells, n_genes)``: log1p of counts per 10,000, or on the
        scale of log1p data, or sparse counts, with the cell's counts over all genes, predicted or not, in
        ``obs["library_size"]``. Of a model that works in an embedding, ``obsm`` holds the predicted one under
        its key, and ``X`` is decoded from it; without a gene decoder the result has no genes. ``obs``: the
        control cell's name (``control_cell``), the target under the name of the perturbation's column, the
        context columns and covariates, and with a confidence token the loss that the model expects of the
        cell's set (``expected_loss``). ``uns["scstate_lora"]["predict"]``: scale, pert_key, control, target (a
        list) and space.

        Raises
        ------
        ValueError
            If the model is not trained, a target has neither enough training cells nor features, a level was never
            seen, no control cell is left, `output` is unknown or cannot be had of these data, or the device is absent.
        KeyError
            If a column is missing.
        """
        if not allow_untrained:
            self._require_ready("predict()")
        _check_choice("output", output, get_args(Output))
        if output == "counts" and self.options.space == "embedding":
            msg = "output='counts' needs a model of genes; this one predicts an embedding. Use output='mean'."
            raise ValueError(msg)
        on = choose_device(device)
        registry = self.registry
        targets = registry.targets_of(names_of(target))
        if not targets:
            msg = f"target names no perturbation. Choose from {', '.join(map(repr, self.perts.names[1:]))}."
            raise ValueError(msg)
        if registry.control in targets:
            msg = f"target={registry.control!r} is the control, from which cells are predicted. Leave it out."
            raise ValueError(msg)
        pert_vectors = self.perts.encode(targets)
        if covariates is not None and registry.pert_key in covariates:
            msg = f"covariates holds {registry.pert_key!r}, which is the perturbation: give it as target=."
            raise ValueError(msg)
        cells = self._bind(adata)
        rows = control_rows(cells, contexts)
        controls = cells.take(rows).under(covariates)
        data = self._set_data(controls)
        source = CountSource.of(controls, self.genes, seed=self.seed) if output == "counts" else None
        predictor, tables, outputs = self._predictor, {}, []
        with predictor.on(on):
            for name, vector in progress_bar(
                list(zip(targets, pert_vectors, strict=True)),
                desc="STTransition",
                unit="target",
                disable=len(targets) < 5,
            ):
                # Cells are grouped by the contexts in which they were measured, under whatever covariates.
                repeated = np.broadcast_to(vector, (len(rows), self.perts.dim))
                computed = predictor.run(data, controls.contexts, repeated)
                tables[name] = describe_predicted(controls, name, computed.expected_loss)
                if source is not None:
                    computed = computed._replace(cells=source.draw(np.asarray(computed.cells)))
                    tables[name][LIBRARY_SIZE] = source.sizes_of(computed.cells)
                outputs.append(computed)
        return as_anndata(registry, self.design, tables, outputs, train_cells=self.training_cells_of(targets))

    def training_cells_of(self, targets: Sequence[str]) -> np.ndarray:
        """Hashes of the names of those cells of some perturbations that the model was trained on, uint64 ``(n,)``."""
        known = self.registry.perturbations
        codes = [known.index(name) for name in self.registry.targets_of(targets) if name in known]
        if self._split is None or not self.is_trained:
            return np.zeros(0, dtype=np.uint64)
        return self._split.training_cells(codes)

    @in_float32()
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
        float32 ``(n_cells, hidden)``; zero for cells under a perturbation with too few training cells.

        Raises
        ------
        ValueError
            If the model is not trained, a level was never seen in training, or the device is absent.
        KeyError
            If a column is missing.

        Warns
        -----
        UserWarning
            If cells are under a perturbation with too few training cells.

        Notes
        -----
        Adds ``adata.obsm["X_scstate_st"]``. A cell's representation depends on the set it is in: cells of its context
        and perturbation. Both enter the network, so finding the cell type in it is no evidence.
        """
        self._require_ready("get_latent_representation()")
        on = choose_device(device)
        adata = self.adata if adata is None else check_anndata(adata)
        key = str(self.registry.pert_key)
        if key not in adata.obs:
            msg = f"adata.obs[{key!r}] does not exist, and the model needs every cell's perturbation."
            raise KeyError(msg)
        cells = self._bind(adata)
        labels = cells.perturbations.astype(str)
        is_known = ~np.isin(labels, list(self.perts.untrained))
        represented = np.zeros((len(cells), self.network.config.hidden), dtype=np.float32)
        if not is_known.all():
            without = ", ".join(map(repr, sorted(set(labels[~is_known].tolist()))))
            warn_user(
                f"{(~is_known).sum()} cells under {without} are represented by zeros: these perturbations had too few "
                "training cells."
            )
        if is_known.any():
            known = cells if is_known.all() else cells.take(np.flatnonzero(is_known))
            names, codes = np.unique(labels[is_known], return_inverse=True)
            pert_vectors = self.perts.encode(names.tolist(), source=f"adata.obs[{key!r}]")[codes]
            predictor, data = self._predictor, self._set_data(known)
            with predictor.on(on):
                represented[is_known] = predictor.run(data, known.contexts, pert_vectors, represent=True).cells
        if key_added is not None:
            adata.obsm[key_added] = represented
        return represented

    def _transformer(self) -> nn.Module:
        return self.network.transformer_backbone

    def _on_some_cells(self) -> Callable[[], object] | None:
        if self._adata is None:
            return None
        cells = self._bind()
        data, rows = self._set_data(cells), training_groups(cells)[0].control[: self.design.set_len]
        return lambda: self._predictor.compute(data, rows[None], self.perts.values[:1], represent=True)

    def _parts(self) -> list[tuple[str, nn.Module | None, str]]:
        n, o, s = self.network, self.options, self.network.config
        n_perts = len(self.perts.names) - 1
        perts = f"{n_perts} perturbations, one-hot"
        if self.perts.from_features:
            perts = f"features of {n_perts} perturbations"
        if self.perts.untrained:
            perts += f"; {len(self.perts.untrained)} with too few training cells left out"
        cells = self.design.gene_note if o.space == "genes" else f"adata.obsm[{self.registry.embed_key!r}]"
        parts: list[tuple[str, nn.Module | None, str]] = [
            ("perturbation encoder", n.pert_encoder, perts),
            ("basal encoder", n.basal_encoder, cells),
        ]
        if n.covariate_encoder is not None:
            parts.append(
                ("covariate encoder", n.covariate_encoder, ", ".join(c.name for c in covariates_of(self.registry)))
            )
        names = {"gpt2": "GPT-2", "llama": "LLaMA", "bert": "BERT"}
        backbone = f"{names[s.backbone]}, {s.n_layers} layers x {s.hidden}, {s.n_heads} heads; {self.design.set_note}"
        backbone += "" if self.origin is None else f"; of {self.origin.name}"
        parts.append(("backbone", backbone_parameters(n), backbone))
        if self.finetune == "lora":
            note = f"rank {self.lora.r}, alpha {self.lora.alpha}"
            parts.append(("LoRA", lora_parameters(n), note))
        if self.mhc is not None:
            connections = nn.ParameterList(list(mhc_parameters(n.transformer_backbone).values()))
            parts.append(("hyper-connections", connections, describe_mhc(self.mhc)))
        head = "deviation of a cell, starts at 0" if s.residual == "output" else "the cell"
        parts.append(("head", n.project_out, head))
        if n.gene_decoder is not None:
            parts.append(("gene decoder", n.gene_decoder, self.design.gene_note))
        tokens = [m for m in (n.confidence_token, n.batch_token, n.batch_classifier) if m is not None]
        if tokens:
            parts.append(("tokens beside the cells", nn.ModuleList(tokens), "confidence, batch"))
        if n.shift is not None:
            start = "ridge regression on features" if self.perts.from_features else "mean shift"
            parts.append(("shift", None, f"of each perturbation, solved for: the {start}"))
            if o.prior == "context":
                parts.append(("shift by context", None, self.prior_note))
        return parts

    def _metadata(self) -> dict[str, Any]:
        return {
            **self.design.to_dict(),
            "sizes": self.network.config.to_dict(),
            "objective": self.objective.model_dump(),
            "finetune": self.finetune,
            "lora": self.lora.model_dump(),
            "mhc": None if self.mhc is None else self.mhc.model_dump(),
            "prior_note": self.prior_note,
        }

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"weights": self.network.state_dict(), "perturbations": {"values": torch.from_numpy(self.perts.values)}}

    def _texts(self) -> dict[str, str]:
        return super()._texts() | ({} if self.origin is None else {"NOTICE": self.origin.notice()})

    def save(self, path: str | Path, *, save_base: bool = False) -> None:
        """Save the model as a directory of JSON and safetensors.

        Parameters
        ----------
        path
            Directory. A model saved there before is replaced, once the new one is complete.
        save_base
            Save the frozen weights of a pretrained model, too; otherwise they are read again from its source.

        Raises
        ------
        ValueError
            If the model is not trained.
        FileExistsError
            If ``path`` holds something else.
        OSError
            If writing failed; an older save is intact.
        """
        self._require_trained("save()")
        tensors = self._tensors()
        if self.origin is not None and not save_base:
            frozen = {name for name, p in self.network.named_parameters() if not p.requires_grad}
            tensors["weights"] = {name: t for name, t in tensors["weights"].items() if name not in frozen}
        self._write(path, tensors)

    @classmethod
    def load(cls, path: str | Path, *, adata: AnnData | None = None, pretrained: str | Path | None = None) -> Self:
        """Load a saved model.

        Parameters
        ----------
        path
            Directory written by :meth:`save`.
        adata
            Cells to use by default; validated against the model's registry when used.
        pretrained
            Where the pretrained model is that this one was trained on, if it is not where it was.

        Raises
        ------
        FileNotFoundError, ValueError
            If the directory is missing, damaged, of a newer format, or holds another kind of model, or if the
            pretrained model is missing or another one.
        """
        return cls._load(path, adata, pretrained=pretrained)

    def _restore(self, metadata: dict[str, Any], tensors: dict[str, dict[str, Tensor]], **options: Any) -> None:
        self.objective = STObjectiveConfig.parse(metadata["objective"], name="objective")
        self.finetune = metadata["finetune"]
        self.lora = STLoraConfig.parse(metadata["lora"], name="lora")
        self.mhc = None if metadata["mhc"] is None else MHCConfig.parse(metadata["mhc"], name="mhc")
        perts = PerturbationTable.from_dict(metadata["perturbations"], tensors["perturbations"]["values"].numpy())
        model = STModelConfig.parse(metadata["options"], name="model")
        self.design = STDesign.from_dict(metadata, model, perts)
        self.prior_note = metadata["prior_note"]
        stored = tensors["weights"]
        self.network = self._make_network()
        expected = self.network.state_dict()
        frozen = {name for name, p in self.network.named_parameters() if not p.requires_grad}
        if self.origin is not None and frozen and not frozen & set(stored):
            self.network = self._make_network(self.origin.read_again(options["pretrained"]))
            expected = {name: tensor for name, tensor in expected.items() if name not in frozen}
        check_state(expected, stored, source="the network")
        self.network.load_state_dict(stored, strict=False)  # names and shapes were compared


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        msg = f"{name}={value!r} is unknown. {did_you_mean(str(value), choices)}"
        raise ValueError(msg)
