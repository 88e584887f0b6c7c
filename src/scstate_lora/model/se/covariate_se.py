"""LoRACovariateSE: a frozen SE base with LoRA adapters, conditioned on covariates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import pandas as pd
import torch

from scstate_lora._constants import OBSM_BASE, OBSM_SE
from scstate_lora._logging import logger
from scstate_lora._tensors import in_float32
from scstate_lora.config import (
    CompactBaseConfig,
    ConditioningConfig,
    MHCConfig,
    SELoraConfig,
    SEObjectiveConfig,
    TrainerOptions,
    TrainOptions,
)
from scstate_lora.data.matrix import fingerprint
from scstate_lora.data.reader import SentenceReader
from scstate_lora.inference.devices import check_accelerator
from scstate_lora.model.base import BaseModel, read_history
from scstate_lora.model.covariate_specs import covariate_specs
from scstate_lora.model.hyper_connected import HyperConnected, refuse_other
from scstate_lora.model.se.adapters import CONNECTIONS, DEFAULT, LORA, AdapterSet
from scstate_lora.model.se.bases import restore_base
from scstate_lora.model.se.compact import COMPACT, train_compact_base
from scstate_lora.model.se.conditioned_cells import ConditionedCells
from scstate_lora.model.se.inputs import active_weights, describe_cells, encode_inputs, inputs_of
from scstate_lora.model.se.obsm_embedding import ObsmBase
from scstate_lora.model.se.pretrained import SEBase, load_base
from scstate_lora.nn.conditioning import Conditioning
from scstate_lora.nn.hyper_connections import choose_layers
from scstate_lora.training.runner import TrainingRun
from scstate_lora.training.se.batches import SEBatches, SECells
from scstate_lora.training.se.plan import SEPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    import numpy as np
    from anndata import AnnData
    from torch import Tensor, nn

    from scstate_lora.config.training import TrainArguments, TrainerArguments
    from scstate_lora.data.bound import BoundData
    from scstate_lora.model.se.bases import Base
    from scstate_lora.nn.conditioned_se import ConditionedSE

_ADAPTED_STEPS = 60
# On how many hyper-connections that depend on the input are looked at.
_SHOWN_TOKENS = 2**14


class LoRACovariateSE(HyperConnected, BaseModel):
    """Embeddings of cells conditioned on covariates, under their own condition or another one.

    A STATE embedding network (SE), frozen, with LoRA adapters on its attention; its embedding is joined with an
    encoding of the cell's covariates and projected to unit length.

    Parameters
    ----------
    adata
        Set up by :func:`scstate_lora.setup_anndata` or :meth:`setup_anndata`, with at least one covariate or a batch
        (``batch_key``), which is then an input too.
    base
        A base to adapt: a published SE checkpoint (a folder, a ``.ckpt``, a ``model.safetensors``, or the id of a
        repository on the Hugging Face hub), the directory of a saved LoRACovariateSE, or an ``SEBase``. None: the
        embedding of ``embed_key``, where that was set up; otherwise a compact SE of about a million parameters is first
        trained on the training cells, without labels.
    lora
        Options of the adapters, see :class:`scstate_lora.config.SELoraConfig`. False: no adapters; only the
        conditioning is trained, on base embeddings that are computed once. By default a base that is given gets
        adapters, and one that is trained here, on the same cells, none: there they change the scores by less than the
        seed does. ``lora={}`` puts them on either.
    conditioning
        How covariates enter, see :class:`scstate_lora.config.ConditioningConfig`.
    compact
        Options of the compact base, see :class:`scstate_lora.config.CompactBaseConfig`.
    objective
        Weights of the loss terms, see :class:`scstate_lora.config.SEObjectiveConfig`.
    seed
        Seed of initialisation, of the cells' sentences and of training.

    Raises
    ------
    KeyError
        If ``adata`` was not set up.
    ValueError
        If no covariate was set up, an option is not allowed, the base is damaged or holds code, or it knows under 10 %
        of the genes.
    FileNotFoundError
        If no base is found at the path.
    TypeError
        If ``adata`` is not an AnnData, or ``base`` neither a path nor an ``SEBase``.

    References
    ----------
    Adduri et al. 2025, STATE, doi:10.1101/2025.06.26.661135; Hu et al. 2021, LoRA, arXiv:2106.09685.
    """

    _histories = ("base_history",)
    base_history: pd.DataFrame
    """Losses of the compact base's training; empty for a base that came from elsewhere."""
    writes = f"adata.obsm['{OBSM_SE}'] and adata.obsm['{OBSM_BASE}']"

    @in_float32()
    def __init__(
        self,
        adata: AnnData,
        *,
        base: str | Path | SEBase | None = None,
        lora: SELoraConfig | dict[str, Any] | Literal[False] | None = None,
        conditioning: ConditioningConfig | dict[str, Any] | None = None,
        compact: CompactBaseConfig | dict[str, Any] | None = None,
        objective: SEObjectiveConfig | dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(adata, seed=seed)
        if not inputs_of(self.registry):
            msg = (
                "LoRACovariateSE needs at least one covariate, or several batches: "
                "ssl.setup_anndata(adata, covariate_keys=[...]), or batch_key=."
            )
            raise ValueError(msg)
        if base is not None and self.registry.embed_key is not None:
            msg = f"base= and embed_key={self.registry.embed_key!r} each name a base. Leave one out."
            raise ValueError(msg)
        is_given = base is not None or lora is not None
        self.lora = SELoraConfig.parse(lora, name="lora") if is_given and lora is not False else None
        self.conditioning = ConditioningConfig.parse(conditioning, name="conditioning")
        self.compact = CompactBaseConfig.parse(compact, name="compact")
        self.objective = SEObjectiveConfig.parse(objective, name="objective")
        self._adapters: AdapterSet | None = None
        self._plain: tuple[int, np.ndarray] | None = None  # base embedding of the cells last seen, and their checksum
        if self.registry.embed_key is not None:
            self._adapt(ObsmBase.fit(self._bind()))
        elif base is not None:
            loaded = load_base(base, self.registry, adata)
            self._warn_of_base(loaded)
            self._adapt(loaded)

    def _warn_of_base(self, base: SEBase) -> None:
        """Warn if the base was trained on cells that this model holds out, as that of another fold was."""
        if self._split is None or base.trained_on is None:
            return
        n = self._split.held_out_among(base.trained_on)
        if n:
            logger.warning(
                "The base was trained on %d of the cells that this model holds out: their embeddings and scores are "
                "not those of held-out cells. Leave base= out to train one on this split.",
                n,
            )

    @property
    def base(self) -> Base | None:
        """What is adapted; None until a compact base is trained."""
        return None if self._adapters is None else self._adapters.base

    @property
    def network(self) -> ConditionedSE | None:
        """The base's network with the active adapter; None without a base."""
        return None if self._adapters is None else self._adapters.network

    @property
    def adapters(self) -> AdapterSet:
        """The adapters on the base.

        Raises
        ------
        ValueError
            If the model has no base yet.
        """
        if self._adapters is None:
            msg = "LoRACovariateSE has no base yet: call .train(), or .train_base()."
            raise ValueError(msg)
        return self._adapters

    def _adapt(self, base: Base) -> None:
        """Put the first adapter on a base."""
        self._adapters = self._adapter_set(base, self.lora)

    def _adapter_set(self, base: Base, lora: SELoraConfig | None, **options: Any) -> AdapterSet:
        sizes = self.conditioning.model_dump(include={"combine", "hidden_dims"})

        def make_conditioning() -> Conditioning:
            return Conditioning(covariate_specs(inputs_of(self.registry)), base.dim, **sizes)

        return AdapterSet(base, make_conditioning, lora, seed=self.seed, **options)

    @property
    def history(self) -> pd.DataFrame:
        """Losses of the active adapter's training, one row per step and one per validation epoch."""
        return pd.DataFrame() if self._adapters is None else self._adapters.active.history

    @history.setter
    def history(self, history: pd.DataFrame) -> None:
        self.adapters.active.history = history

    @property
    def adapter_names(self) -> list[str]:
        """Names of the adapters, in the order in which they were added."""
        return [] if self._adapters is None else self._adapters.names

    @property
    def active_adapter(self) -> str:
        """Name of the adapter that embeds and is trained."""
        return DEFAULT if self._adapters is None else self._adapters.active.name

    @property
    def adapts_base(self) -> bool:
        """Whether the active adapter changes what the base computes, by LoRA or hyper-connections."""
        return self._adapters is not None and self._adapters.active.adapts_base

    @in_float32()
    def add_adapter(self, name: str, *, lora: SELoraConfig | dict[str, Any] | Literal[False] | None = None) -> None:
        """Add an untrained adapter and activate it; the others keep what they learned.

        An adapter is the LoRA weights, the hyper-connections, the covariate encoder and the conditioning that are
        trained together. A new one has no hyper-connections until it is trained with them.

        Parameters
        ----------
        name
            Letters, digits, ``-`` and ``_``.
        lora
            As in the class; the model's own options by default.

        Raises
        ------
        ValueError
            If the model has no base yet, the name is taken or not allowed, or adapters are merged.
        """
        options = self.lora if lora is None else None if lora is False else SELoraConfig.parse(lora, name="lora")
        self.adapters.add(name, options)

    def set_adapter(self, name: str) -> None:
        """Activate an adapter: it embeds from now on, and is the one that is trained.

        Raises
        ------
        KeyError
            If no adapter has that name.
        ValueError
            If the model has no base yet, or adapters are merged.
        """
        self.adapters.activate(name)

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter that is not the active one.

        Raises
        ------
        KeyError
            If no adapter has that name.
        ValueError
            If it is the active one, or the model has no base yet.
        """
        self.adapters.delete(name)

    def merge_adapter(self) -> None:
        """Compute the active adapter's LoRA as one weight with the base's, for faster embedding; not in training.

        The base's weights and hyper-connections stay as they are. Embeddings agree with those of the unmerged model to
        float32 rounding.

        Raises
        ------
        ValueError
            If the active adapter has no LoRA.
        """
        self.adapters.merge()

    def unmerge_adapter(self) -> None:
        """Undo :meth:`merge_adapter`."""
        self.adapters.unmerge()

    @in_float32()
    def train_base(self, **arguments: Unpack[TrainerArguments]) -> None:
        """Train the compact base on the training cells, without labels; :meth:`train` does this if necessary.

        Parameters
        ----------
        arguments
            Device, files and more: the fields of :class:`~scstate_lora.config.TrainerOptions`.

        Raises
        ------
        ValueError
            If the model has a base already, an option is not allowed, there are too few cells, or their split is not
            the one that the model keeps (``.split``).
        TypeError
            If an option is unknown.

        Notes
        -----
        Fills ``.base`` and ``.base_history``.
        """
        if self.base is not None:
            msg = f"This model has a base already ({self.base.name})."
            raise ValueError(msg)
        options = TrainerOptions.of_call(arguments, function="train_base()")
        check_accelerator(options.accelerator)
        self._train_base(self._bind_to_train(), options)

    def _train_base(self, cells: BoundData, options: TrainerOptions) -> None:
        base, self.base_history = train_compact_base(
            cells, self._split, config=self.compact, options=options, seed=self.seed
        )
        self._adapt(base)

    @in_float32()
    def train(self, max_epochs: int | None = None, **arguments: Unpack[TrainArguments]) -> None:
        """Train the active adapter and its conditioning on the training cells; the base stays as it is.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; by default as many as make 60 steps. Before that, the conditioning is
            trained alone for 600 steps (``n_steps`` of :class:`scstate_lora.config.ConditioningConfig`), on base
            embeddings that are computed once, which costs little. Without adapters this is the only stage, and by
            default as many passes as make those steps. The weights with the lowest validation loss of both stages are
            kept: where adapters do not lower it, they are left without effect, and :meth:`summary` says so.
        arguments
            See :class:`~scstate_lora.config.TrainOptions`. ``lr`` is 1e-3 by default, after ``warmup_steps`` of 20,
            with a ``weight_decay`` of 0.01; ``batch_size`` is 128 cells per step. ``mhc`` puts hyper-connections around
            the base's layers and trains them with the adapter, to which they then belong: True, or options, see
            :class:`~scstate_lora.config.MHCConfig`. They change nothing at first. Further training keeps existing ones,
            requested or not, and the plain embedding of the base is computed without them.

        Raises
        ------
        ValueError
            If the requested accelerator is absent, an option is not allowed, the cells' split is not the one that the
            model keeps (``.split``), adapters are merged, or hyper-connections are requested but the adapter has
            different ones or the base is an embedding; all before any training.
        TypeError
            If an option is unknown.

        Notes
        -----
        Extends ``.history``. Trains a compact base first if there is no base (``.base_history``).
        """
        options = TrainOptions.of_call({"max_epochs": max_epochs, **arguments}, function="train()")
        check_accelerator(options.accelerator)
        # Whatever these refuse is refused before anything is trained.
        connections = self._new_connections(options.mhc)
        reads = self.registry.embed_key is None
        weights = active_weights(self.objective, self.registry, reads=reads)
        cells = self._bind_to_train()
        described = describe_cells(cells, contrastive_on=self.objective.contrastive_on)
        if self.base is None:
            self._train_base(cells, _before(options, "base"))
        adapters = self.adapters
        adapters.refuse_merged("train")
        adapters.network.conditioning.heads.requires_grad_("covariates" in weights)
        stage = _Stage(
            cells=self._training_cells(cells, described),
            rows=cells.rows("train"),
            val_rows=cells.rows("val"),
            weights=weights,
            batch_size=options.batch_size or 128,
            optimiser=options.schedule(lr=1e-3, warmup_steps=20),
        )
        n_steps = self.conditioning.n_steps
        if not self.adapts_base and connections is None:
            if len(self.base_history):
                logger.info("The base was trained on these cells and stays as it is; lora={} would adapt it.")
            self._train_stage(stage, options, options.max_epochs, n_steps, sentences=False, title="LoRACovariateSE")
            return
        # Parts that have no effect yet.
        started = adapters.active.idle | ({CONNECTIONS} if connections is not None else set())
        if not self.is_trained and adapters.active.lora is not None:
            started |= {LORA}
        if n_steps and not self.is_trained and options.resume_from is None:
            # Adapters are off here; DDP requires a gradient for every trainable parameter.
            with adapters.lora_off():
                self._train_stage(
                    stage, _before(options, "conditioning"), None, n_steps, sentences=False, title="Conditioning"
                )
        with adapters.connected(connections):
            self._train_stage(
                stage,
                options,
                options.max_epochs,
                _ADAPTED_STEPS,
                sentences=True,
                title="LoRACovariateSE",
                started=started,
            )

    def _train_stage(
        self,
        stage: _Stage,
        options: TrainerOptions,
        n_epochs: int | None,
        n_steps: int,
        *,
        sentences: bool,
        title: str,
        started: Collection[str] = (),
    ) -> None:
        """Train the active parameters for a number of epochs, or for as many as make a number of steps.

        Of a model that was trained before, be it in an earlier stage, the weights with the lowest validation loss
        of all are kept; the parts of the adapter that are started here then may stay without effect.
        """
        objective = self.objective

        def batches(rows: np.ndarray, seed: int, withheld: float) -> SEBatches:
            return SEBatches(
                stage.cells,
                rows,
                batch_size=stage.batch_size,
                n_targets=objective.n_targets if "reconstruction" in stage.weights else 0,
                sentences=sentences,
                withheld=withheld,
                seed=seed,
            )

        train = batches(stage.rows, self.seed, self.conditioning.withheld)
        plan = SEPlan(
            self.adapters.network,
            contrastive=objective.contrastive_loss,
            temperature=objective.temperature,
            weights=stage.weights,
            **stage.optimiser,
        )
        val = batches(stage.val_rows, self.seed + 1, 0.0) if len(stage.val_rows) > 1 else None
        run = TrainingRun(
            plan,
            options=options,
            title=title,
            seed=self.seed,
            history=self.history,
            cells=self._fingerprint,
            keep_start=self.is_trained,
        )
        try:
            run.fit(train, val, max_epochs=n_epochs or max(1, -(-n_steps // train.steps_per_epoch)))
        finally:
            self.history = run.history
            self.adapters.active.idle = set(started) if run.kept_start else set()
        if run.kept_start and started:
            parts = " and ".join(sorted(started))
            logger.info("The validation loss is lowest without %s: left without effect.", parts)

    def _new_connections(self, mhc: Any) -> MHCConfig | None:
        """Check the hyper-connections requested by ``train(mhc=)``; None where none are to be added."""
        requested = MHCConfig.requested(mhc)
        if requested is None:
            return None
        if self.registry.embed_key is not None:
            msg = (
                f"mhc: hyper-connections go around the layers of an SE network, and the base here is the embedding "
                f"adata.obsm[{self.registry.embed_key!r}]. Leave mhc out, or set up without embed_key."
            )
            raise ValueError(msg)
        existing = None if self._adapters is None else self._adapters.active.mhc
        if existing is not None:
            refuse_other(requested, existing)
            return None
        encoder = None if self.base is None else self.base.encoder
        depth = self.compact.n_layers if encoder is None else encoder.config.n_layers
        try:
            choose_layers(requested.layer_indices, depth)
        except IndexError as error:
            msg = f"mhc: {error}"
            raise ValueError(msg) from error
        return requested

    def _training_cells(self, cells: BoundData, described: dict[str, Any]) -> SECells:
        """Add the cells' expression and base embedding to their description."""
        base = self.adapters.base
        plain = self._plain_embedding(cells)
        if not isinstance(base, SEBase):
            return SECells(base=plain, **described)
        x, seeds, tokenizer = base.inputs(cells)
        return SECells(base=plain, x=x, seeds=seeds, tokenizer=tokenizer, **described)

    def _plain_embedding(self, cells: BoundData) -> np.ndarray:
        """Embed cells by the base alone; a network does so once for as long as the cells are the same."""
        base = self.adapters.base
        if not isinstance(base, SEBase):
            return base.embed(cells)
        x, seeds, tokenizer = base.inputs(cells)
        key = fingerprint(x, seeds)
        if self._plain is None or self._plain[0] != key:
            self._plain = key, base.embed_all(SentenceReader.of_matrix(x, tokenizer, seeds))
        return self._plain[1]

    @in_float32()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        covariates: Mapping[str, Any] | pd.DataFrame | None = None,
        key_added: str | None = OBSM_SE,
    ) -> np.ndarray:
        """Embed cells under their own covariates, or under counterfactual ones.

        Parameters
        ----------
        adata
            Cells; the model's own by default. Another AnnData is matched by gene names and must hold the covariates.
        covariates
            Counterfactual values: a mapping from covariate to one value for all cells, or a DataFrame with one row per
            cell; None, or a missing value, withholds a covariate. Covariates not named keep the cells' own values.
        key_added
            Key of ``adata.obsm`` that the embedding is written to; None writes nothing. A counterfactual embedding is
            written only under a key other than the default.

        Returns
        -------
        float32 ``(n_cells, output_dim)``, rows of unit length.

        Raises
        ------
        ValueError
            If the model is not trained, or a value of a covariate was never seen in training.
        KeyError
            If a covariate is unknown or missing.
        TypeError
            If an argument is of the wrong type.

        Warns
        -----
        UserWarning
            If a counterfactual number lies outside the range seen in training.

        Notes
        -----
        Adds ``adata.obsm["X_scstate_lora"]``, the conditioned embedding, and ``adata.obsm["X_scstate_base"]``, the
        plain embedding of the base; with `covariates`, `key_added` alone.
        """
        self._require_trained("get_latent_representation()")
        adata = self.adata if adata is None else adata
        cells = self._bind(adata).under(covariates)
        inputs = encode_inputs(cells)  # refuses values before any long work
        is_own = covariates is None
        plain = self._plain_embedding(cells) if is_own or not self.adapts_base else None
        embedding = ConditionedCells(self.adapters, cells, plain=plain).condition(inputs)
        if key_added is not None and (is_own or key_added != OBSM_SE):
            adata.obsm[key_added] = embedding
        if key_added is not None and is_own and self.adapters.base.encoder is not None:
            assert plain is not None  # just computed
            adata.obsm[OBSM_BASE] = plain.copy()
        return embedding

    def _parts(self) -> list[tuple[str, nn.Module | None, str]]:
        if self._adapters is None:
            return [("base", None, f"{COMPACT} by train(): {self.compact.n_layers} layers x {self.compact.d_model}")]
        active, conditioning = self._adapters.active, self._adapters.network.conditioning
        parts = [
            *active.parts(self._adapters.base),
            ("covariate encoder", conditioning.covariate_encoder, ", ".join(c.name for c in inputs_of(self.registry))),
            ("projection", conditioning.conditioner, "concat(base, covariates) to the embedding"),
            ("covariate heads", conditioning.heads, "read the covariates back, in training"),
        ]
        note = "not active; its LoRA on the base is not counted"
        return parts + [(f"adapter {a.name!r}", a.conditioning, note) for a in self._adapters if a is not active]

    def _transformer(self) -> nn.Module | None:
        return None if self.network is None else self.network.encoder

    def _on_some_cells(self) -> Callable[[], object] | None:
        base, network = self.adapters.base, self.adapters.network
        if self._adata is None or not isinstance(base, SEBase):
            return None
        cells = self._bind()
        n_cells = max(1, _SHOWN_TOKENS // base.encoder.config.n_tokens)
        sentences = base.reader(cells.take(cells.rows("train")[:n_cells]))(0, n_cells)
        device = base.encoder.cls_token.device
        genes, values = (torch.from_numpy(part).to(device) for part in (sentences.genes, sentences.values))
        return lambda: network.adapt(genes, values)

    def _metadata(self) -> dict[str, Any]:
        options = {name: getattr(self, name).model_dump() for name in ("conditioning", "compact", "objective")}
        loras = {a.name: None if a.lora is None else a.lora.model_dump() for a in self.adapters}
        own = None if self.lora is None else self.lora.model_dump()
        mhc = {a.name: a.mhc.model_dump() for a in self.adapters if a.mhc is not None}
        idle = {a.name: sorted(a.idle) for a in self.adapters if a.idle}
        further = {name: value for name, value in (("mhc", mhc), ("idle", idle)) if value}
        adapted = {"lora": own, "adapters": loras, "active": self.active_adapter, **further}
        return {"base": self.adapters.base.metadata(), **adapted, **options}

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        files: dict[str, dict[str, Tensor]] = {}
        for adapter in self.adapters:
            files |= adapter.tensors(self.adapters.network.encoder)
        base = self.adapters.base
        tensors = base.tensors()
        files |= {"base": tensors} if tensors else {}
        return files | (base.cells() if isinstance(base, SEBase) else {})

    def _texts(self) -> dict[str, str]:
        base = self.adapters.base
        notice = (
            "This directory holds a LoRACovariateSE, made with scstate_lora.\n"
            f"Base: {base.name}\nSHA-256 of the base: {base.sha256()}\nLicence of the base: {base.licence}\n"
            "An adaptation is a derivative work of its base and of the data it was trained on.\n"
        )
        histories = {f"history.{a.name}.csv": a.history.to_csv(index=False) for a in self.adapters}
        return {**super()._texts(), **histories, "NOTICE": notice}

    def save(self, path: str | Path, *, save_base: bool | None = None) -> None:
        """Save the model as a directory of JSON and safetensors.

        Parameters
        ----------
        path
            Directory. A model saved there before is replaced, once the new one is complete.
        save_base
            Save the base's weights too. By default only those of a base that was trained here: one that was loaded
            is read again from its path or hub id, and recognised by its hash.

        Raises
        ------
        ValueError
            If the model is not trained, or its base would be lost.
        FileExistsError
            If ``path`` holds something else.
        OSError
            If writing failed; an older save is intact.
        """
        self._require_trained("save()")
        tensors, source = self._tensors(), self.adapters.base.source
        if save_base is False and source is None:
            msg = "save_base=False, but this base was trained here and is nowhere else. Leave save_base out."
            raise ValueError(msg)
        if not save_base and source is not None:
            tensors.pop("base", None)
        self._write(path, tensors)

    @classmethod
    def load(
        cls, path: str | Path, *, adata: AnnData | None = None, base: str | Path | SEBase | None = None
    ) -> LoRACovariateSE:
        """Load a saved model.

        Parameters
        ----------
        path
            Directory written by :meth:`save`.
        adata
            Cells to use by default; validated against the model's registry when used.
        base
            Where the base is, if it was not saved with the model and is not where it was; or the base itself.

        Raises
        ------
        FileNotFoundError, ValueError
            If the directory is missing, damaged, of a newer format, or holds another kind of model; its base is missing
            or another one.
        """
        return cls._load(path, adata, saved_at=path, base=base)

    def _restore(self, metadata: dict[str, Any], tensors: dict[str, dict[str, Tensor]], **options: Any) -> None:
        self.lora = None if metadata["lora"] is None else SELoraConfig.parse(metadata["lora"], name="lora")
        self.conditioning = ConditioningConfig.parse(metadata["conditioning"], name="conditioning")
        self.compact = CompactBaseConfig.parse(metadata["compact"], name="compact")
        self.objective = SEObjectiveConfig.parse(metadata["objective"], name="objective")
        self._plain = self._adapters = None
        base = restore_base(
            metadata["base"],
            tensors,
            path=options["saved_at"],
            replacement=options["base"],
            registry=self.registry,
            adata=self._adata,
        )
        for name, lora_options in metadata["adapters"].items():
            lora = None if lora_options is None else SELoraConfig.parse(lora_options, name="lora")
            if self._adapters is None:
                self._adapters = self._adapter_set(base, lora, first=name)
            else:
                self._adapters.add(name, lora)
            mhc = metadata.get("mhc", {}).get(name)
            self._adapters.load(
                name,
                tensors,
                mhc=None if mhc is None else MHCConfig.parse(mhc, name="mhc"),
                history=read_history(Path(options["saved_at"]) / f"history.{name}.csv"),
            ).idle = set(metadata.get("idle", {}).get(name, ()))
        self.set_adapter(metadata["active"])
        logger.info("Loaded a LoRACovariateSE on %s.", metadata["base"]["name"])


@dataclass(frozen=True)
class _Stage:
    """What the stages of one training share.

    Parameters
    ----------
    cells
        All cells.
    rows, val_rows
        Row indices of those that train and validate.
    weights
        Weight of each loss term.
    batch_size
        Cells per step.
    optimiser
        Options of the optimiser, by name.
    """

    cells: SECells
    rows: np.ndarray
    val_rows: np.ndarray
    weights: dict[str, float]
    batch_size: int
    optimiser: dict[str, Any]


def _before(options: TrainerOptions, name: str) -> TrainerOptions:
    """Options for a stage before the adapters', which loggers and callbacks of the user are meant for."""
    own = isinstance(options.logger, (bool, str))
    changes = {"logger": options.logger if own else False, "callbacks": (), "compile": False}
    return options.part(name).model_copy(update=changes)
