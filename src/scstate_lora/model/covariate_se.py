"""LoRACovariateSE: a frozen SE base with LoRA adapters, conditioned on covariates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch

from scstate_lora._constants import OBSM_BASE, OBSM_SE
from scstate_lora._logging import logger
from scstate_lora._utils import did_you_mean
from scstate_lora.config import CompactBaseConfig, ConditioningConfig, LoraConfig, ObjectiveConfig
from scstate_lora.data.matrix import fingerprint, log_normalize
from scstate_lora.data.reader import SentenceReader
from scstate_lora.io.save_load import check_state
from scstate_lora.model._adapters import DEFAULT, Adapter, check_name
from scstate_lora.model._base import BaseModel, read_history
from scstate_lora.model._obsm_base import ObsmBase
from scstate_lora.model._se_base import SEBase, base_for, se_inputs
from scstate_lora.model._se_inputs import (
    batch_codes,
    cell_types,
    conditions,
    contrastive_labels,
    encode_inputs,
    extra_batch,
    inputs_of,
)
from scstate_lora.model._specs import covariate_specs
from scstate_lora.nn import lora as adapters
from scstate_lora.nn.conditioned_se import ConditionedSE
from scstate_lora.nn.conditioning import Conditioning
from scstate_lora.training.compact import fit_compact_base
from scstate_lora.training.embed import condition_cells, embed_conditioned
from scstate_lora.training.runner import TRAIN_ARGUMENTS, TrainerOptions, check_schedule, fit
from scstate_lora.training.se_batches import SEBatches, SECells
from scstate_lora.training.se_plan import SEPlan

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from anndata import AnnData
    from torch import Tensor, nn

_COMPACT = "compact SE, trained on these cells"
_OWN_LICENCE = "that of the data it was trained on"
_ADAPTED_EPOCHS = 5
# What comes before the adapters' training takes over of its options.
_FOR_ALL = ("accelerator", "devices", "strategy", "precision", "progress_bar")


class LoRACovariateSE(BaseModel):
    """Cell embeddings that know the experimental condition, and what they would be under another one.

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
        Options of the adapters, see :class:`scstate_lora.config.LoraConfig`. False: no adapters; only the conditioning
        is trained, on base embeddings that are computed once.
    conditioning
        How covariates enter, see :class:`scstate_lora.config.ConditioningConfig`.
    compact
        Options of the compact base, see :class:`scstate_lora.config.CompactBaseConfig`.
    objective
        Weights of the loss terms, see :class:`scstate_lora.config.ObjectiveConfig`.
    seed
        Seed of initialisation, of the cells' sentences and of training.

    Raises
    ------
    KeyError
        ``adata`` was not set up.
    ValueError
        There is no covariate, an option is not allowed, the base is damaged or holds code, or under 10 % of the genes
        are known to it.
    FileNotFoundError
        There is no base at the path given.
    TypeError
        ``adata`` is not an AnnData, or ``base`` neither a path nor an ``SEBase``.

    References
    ----------
    Adduri et al. 2025, STATE, doi:10.1101/2025.06.26.661135; Hu et al. 2021, LoRA, arXiv:2106.09685.
    """

    _histories = ("base_history",)
    base_history: pd.DataFrame
    """Losses of the compact base's training; empty for a base that came from elsewhere."""
    writes = f"adata.obsm['{OBSM_SE}'] and adata.obsm['{OBSM_BASE}']"

    def __init__(
        self,
        adata: AnnData,
        *,
        base: str | Path | SEBase | None = None,
        lora: LoraConfig | dict[str, Any] | Literal[False] | None = None,
        conditioning: ConditioningConfig | dict[str, Any] | None = None,
        compact: CompactBaseConfig | dict[str, Any] | None = None,
        objective: ObjectiveConfig | dict[str, Any] | None = None,
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
            msg = f"base= and embed_key={self.registry.embed_key!r} are both given; each is a base. Leave one out."
            raise ValueError(msg)
        self.lora = None if lora is False else LoraConfig.parse(lora, name="lora")
        self.conditioning = ConditioningConfig.parse(conditioning, name="conditioning")
        self.compact = CompactBaseConfig.parse(compact, name="compact")
        self.objective = ObjectiveConfig.parse(objective, name="objective")
        self._without_base()
        if self.registry.embed_key is not None:
            self._attach(ObsmBase.fit(adata, self.registry, self._rows("train")))
        elif base is not None:
            self._attach(base_for(base, self.registry, adata))

    def _without_base(self) -> None:
        self.base: SEBase | ObsmBase | None = None
        self.network: ConditionedSE | None = None
        self._adapters: dict[str, Adapter] = {}
        self._active = DEFAULT
        self._plain: tuple[int, np.ndarray] | None = None  # base embedding of the cells seen last, and their print

    def _attach(self, base: SEBase | ObsmBase) -> None:
        """Build the network around a base, with the first adapter."""
        self.base = base
        first = self._new_adapter(DEFAULT, self.lora)
        self.network = ConditionedSE(base.encoder if isinstance(base, SEBase) else None, first.conditioning)
        self._put_on(first)

    def _new_adapter(self, name: str, lora: LoraConfig | None) -> Adapter:
        assert self.base is not None  # only called with one
        dim = self.base.encoder.config.output_dim if isinstance(self.base, SEBase) else self.base.dim
        lora = lora if isinstance(self.base, SEBase) else None
        sizes = self.conditioning.model_dump(include={"combine", "hidden_dims"})
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return Adapter(name, lora, Conditioning(covariate_specs(inputs_of(self.registry)), dim, **sizes))

    def _put_on(self, adapter: Adapter) -> None:
        _, network = self._built()
        with torch.random.fork_rng():
            torch.manual_seed(self.seed + 1)
            adapter.put_on(network.encoder)
        self._adapters[adapter.name] = adapter
        self._activate(adapter)

    def _activate(self, adapter: Adapter) -> None:
        _, network = self._built()
        for other in self._adapters.values():
            other.conditioning.requires_grad_(other is adapter)
        network.conditioning = adapter.conditioning
        if network.encoder is not None:
            adapters.set_adapter(network.encoder, None if adapter.lora is None else adapter.name)
        self._active = adapter.name
        network.eval()

    @property
    def history(self) -> pd.DataFrame:
        """Losses of the active adapter's training, one row a step and one a validation epoch."""
        return self._adapters[self._active].history if self._adapters else pd.DataFrame()

    @history.setter
    def history(self, history: pd.DataFrame) -> None:
        self._adapters[self._active].history = history

    @property
    def adapter_names(self) -> list[str]:
        """Names of the adapters, in the order they were added."""
        return list(self._adapters)

    @property
    def active_adapter(self) -> str:
        """Name of the adapter that embeds and is trained."""
        return self._active

    def add_adapter(self, name: str, *, lora: LoraConfig | dict[str, Any] | Literal[False] | None = None) -> None:
        """Add an adapter, untrained, and activate it; those that are there keep what they learned.

        An adapter is the LoRA weights, the covariate encoder and the conditioning that are trained together.

        Parameters
        ----------
        name
            Letters, digits, ``-`` and ``_``.
        lora
            As in the class; the model's own options by default.

        Raises
        ------
        ValueError
            The model has no base yet, the name is taken or not allowed, or adapters are merged.
        """
        self._built()
        check_name(name, self.adapter_names)
        self._refuse_merged("add adapters")
        options = self.lora if lora is None else None if lora is False else LoraConfig.parse(lora, name="lora")
        self._put_on(self._new_adapter(name, options))

    def set_adapter(self, name: str) -> None:
        """Activate an adapter: it embeds from now on, and is the one that is trained.

        Raises
        ------
        KeyError
            There is none of that name.
        ValueError
            Adapters are merged.
        """
        adapter = self._adapter(name)
        self._refuse_merged("switch adapters")
        self._activate(adapter)

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter that is not the active one.

        Raises
        ------
        KeyError
            There is none of that name.
        ValueError
            It is the active one, or adapters are merged.
        """
        adapter = self._adapter(name)
        _, network = self._built()
        if name == self._active:
            others = [other for other in self.adapter_names if other != name]
            msg = f"The adapter {name!r} is the active one. Activate another first, set_adapter: {others}."
            raise ValueError(msg)
        if adapter.lora is not None and network.encoder is not None:
            adapters.delete_adapter(network.encoder, name)
        del self._adapters[name]

    def _adapter(self, name: str) -> Adapter:
        if name not in self._adapters:
            msg = f"There is no adapter {name!r}. {did_you_mean(name, self.adapter_names)}"
            raise KeyError(msg)
        return self._adapters[name]

    def merge_adapter(self) -> None:
        """Compute the active adapter's LoRA as one weight with the base's, for faster embedding; not in training.

        The base's weights stay as they are. Embeddings agree with those of the unmerged model to float32 rounding.

        Raises
        ------
        ValueError
            The active adapter has no LoRA.
        """
        _, network = self._built()
        if network.encoder is None or not self._adapts():
            msg = f"The adapter {self._active!r} has no LoRA: there is nothing to merge."
            raise ValueError(msg)
        adapters.merge(network.encoder)

    def unmerge_adapter(self) -> None:
        """Undo :meth:`merge_adapter`."""
        _, network = self._built()
        if network.encoder is not None:
            adapters.unmerge(network.encoder)

    def _refuse_merged(self, what: str) -> None:
        _, network = self._built()
        if network.encoder is not None and adapters.is_merged(network.encoder):
            msg = f"The adapter {self._active!r} is merged: cannot {what} now. Call unmerge_adapter() first."
            raise ValueError(msg)

    def _adapts(self) -> bool:
        """Whether the active adapter changes what the base computes."""
        return self._adapters[self._active].lora is not None

    def train_base(self, **trainer: Any) -> None:
        """Train the compact base on the training cells, without labels; :meth:`train` does this when it is needed.

        Parameters
        ----------
        trainer
            Options for Lightning, see :class:`~scstate_lora.training.runner.TrainerOptions`.

        Raises
        ------
        ValueError
            The model has a base already, an option is not allowed, or the cells are too few.
        TypeError
            An option is unknown.

        Notes
        -----
        Fills ``.base`` and ``.base_history``.
        """
        if self.base is not None:
            msg = f"This model has a base already ({self.base.name})."
            raise ValueError(msg)
        options = TrainerOptions.parse(trainer)
        x, seeds = se_inputs(self.adata, self.registry, self.seed)
        logged = log_normalize(self.registry.matrix(self.adata), self.registry.scale)
        encoder, self.base_history = fit_compact_base(
            x,
            logged,
            seeds,
            self._rows("train"),
            self._rows("val"),
            config=self.compact,
            options=options,
            seed=self.seed,
        )
        self._attach(SEBase(encoder, self.registry.var_names, _COMPACT, _OWN_LICENCE, seed=self.seed))

    def train(
        self,
        max_epochs: int | None = None,
        *,
        lr: float = 1e-3,
        batch_size: int = 128,
        weight_decay: float = 0.01,
        warmup_steps: int = 20,
        **trainer: Any,
    ) -> None:
        """Train the active adapter and its conditioning on the training cells; the base stays as it is.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; 5 by default. At first the conditioning is trained alone for 600 steps, on
            base embeddings that are computed once, which costs little
            (:attr:`ConditioningConfig.n_steps <scstate_lora.config.ConditioningConfig.n_steps>`). Without adapters
            there is nothing else, and by default there are as many passes as make those steps.
        lr, weight_decay, warmup_steps
            Of AdamW; the learning rate rises over the warm-up and then falls along a cosine.
        batch_size
            Cells a step.
        trainer
            Device, files and further options: ``accelerator``, ``devices``, ``strategy``, ``precision``,
            ``accumulate_grad_batches``, ``gradient_checkpointing``, ``early_stopping``, ``logger``, ``resume_from`` and
            more; see :class:`~scstate_lora.training.runner.TrainerOptions`.

        Raises
        ------
        ValueError
            An accelerator is asked for that is absent, an option is not allowed, or adapters are merged. Before any
            training.
        TypeError
            An option is unknown.

        Notes
        -----
        Extends ``.history``. Trains a compact base first where there is no base (``.base_history``).
        """
        options = TrainerOptions.parse(trainer, further=TRAIN_ARGUMENTS)
        check_schedule(
            max_epochs=1 if max_epochs is None else max_epochs,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
        )
        # What comes before writes no files, and callbacks and the like are meant for the model itself.
        shared = {name: value for name, value in trainer.items() if name in _FOR_ALL}
        if self.base is None:
            self.train_base(**shared, logger=False)
        _, network = self._built()
        self._refuse_merged("train")
        cells, weights = self._training_cells(self.adata), self._weights()
        network.conditioning.heads.requires_grad_("covariates" in weights)
        val_rows = self._rows("val")

        def run(options: TrainerOptions, n_epochs: int | None, *, sentences: bool, title: str) -> None:
            def batches(rows: np.ndarray, seed: int, withheld: float) -> SEBatches:
                return SEBatches(
                    cells,
                    rows,
                    batch_size=batch_size,
                    n_targets=self.objective.n_targets if "reconstruction" in weights else 0,
                    sentences=sentences,
                    withheld=withheld,
                    seed=seed,
                )

            train = batches(self._rows("train"), self.seed, self.conditioning.withheld)
            fit(
                SEPlan(
                    network,
                    contrastive=self.objective.contrastive_loss,
                    temperature=self.objective.temperature,
                    lr=lr,
                    weight_decay=weight_decay,
                    warmup_steps=warmup_steps,
                    weights=weights,
                ),
                train,
                batches(val_rows, self.seed + 1, 0.0) if len(val_rows) > 1 else None,
                max_epochs=n_epochs or max(1, -(-self.conditioning.n_steps // train.steps_per_epoch)),
                options=options,
                title=title,
                seed=self.seed,
                history=self.history,
                keep=lambda history: setattr(self, "history", history),
            )

        if not self._adapts():
            run(options, max_epochs, sentences=False, title="LoRACovariateSE")
            return
        if self.conditioning.n_steps and not self.is_trained and options.resume_from is None:
            run(TrainerOptions(**shared, logger=False), None, sentences=False, title="Conditioning")
        run(options, max_epochs or _ADAPTED_EPOCHS, sentences=True, title="LoRACovariateSE")

    def _weights(self) -> dict[str, float]:
        """Weights of the terms that this experiment and this base have."""
        absent = []
        if not isinstance(self.base, SEBase):  # no head for expression
            absent.append("reconstruction")
        if not self.registry.covariates:
            absent += ["covariates", "counterfactual"]
        if self.registry.batch is None:
            absent.append("batch")
        weights = {name: w for name, w in self.objective.weights.items() if w and name not in absent}
        if not weights:
            asked = [name for name, w in self.objective.weights.items() if w]
            msg = f"The objective asks for {', '.join(asked)}, and this experiment has nothing to compute it from."
            raise ValueError(msg)
        return weights

    def _training_cells(self, adata: AnnData) -> SECells:
        """Gather what training needs to know of the cells."""
        base, _ = self._built()
        registry, objective = self.registry, self.objective
        covariates = encode_inputs(registry, adata.obs)
        combinations = conditions(registry, covariates)
        batch = extra_batch(registry)
        described: dict[str, Any] = {
            "covariates": covariates,
            "unknown": {c.name: c.unknown for c in inputs_of(registry)},
            "kept": frozenset() if batch is None else frozenset({batch.name}),
            "labels": contrastive_labels(registry, adata, combinations, objective.contrastive_on),
            "types": cell_types(registry, adata),
            "conditions": combinations,
            "batches": None if registry.batch is None else batch_codes(registry, adata.obs),
        }
        if isinstance(base, ObsmBase):
            return SECells(base=base.embed(adata, registry), **described)
        x, seeds, tokenizer = base.inputs(adata, registry)
        plain = self._plain_embedding(SentenceReader.of_matrix(x, tokenizer, seeds), fingerprint(x, seeds))
        return SECells(base=plain, x=x, seeds=seeds, tokenizer=tokenizer, **described)

    def _plain_embedding(self, read: SentenceReader, key: int) -> np.ndarray:
        """Embed cells by the base alone, once for as long as they are the same."""
        base, _ = self._built()
        assert isinstance(base, SEBase)  # others have no sentences
        if self._plain is None or self._plain[0] != key:
            self._plain = key, base.embed_all(read)
        return self._plain[1]

    def _built(self) -> tuple[SEBase | ObsmBase, ConditionedSE]:
        if self.base is None or self.network is None:
            msg = "LoRACovariateSE has no base yet: call .train(), or .train_base()."
            raise ValueError(msg)
        return self.base, self.network

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        *,
        covariates: Mapping[str, Any] | pd.DataFrame | None = None,
        key_added: str | None = OBSM_SE,
    ) -> np.ndarray:
        """Embed cells under their own covariates, or under others.

        Parameters
        ----------
        adata
            Cells; the model's own by default. Another AnnData is matched by gene names and must hold the covariates.
        covariates
            Counterfactual values: a mapping from covariate to one value for all cells, or a DataFrame with one row a
            cell; None, or a missing value, withholds a covariate. Covariates not named keep the cells' own values.
        key_added
            Where the embedding is written in ``adata.obsm``; None to write nothing. A counterfactual embedding is
            written only when a key is given that differs from the default.

        Returns
        -------
        float32 ``(n_cells, output_dim)``, rows of unit length.

        Raises
        ------
        ValueError
            The model is not trained, or a value of a covariate was never seen in training.
        KeyError
            A covariate is unknown or missing.
        TypeError
            An argument is of the wrong type.

        Warns
        -----
        UserWarning
            A counterfactual number lies outside of the range seen in training.

        Notes
        -----
        Adds ``adata.obsm["X_scstate_lora"]``, the conditioned embedding, and ``adata.obsm["X_scstate_base"]``, the
        plain embedding of the base; nothing but the key asked for with `covariates`.
        """
        self._require_trained("get_latent_representation()")
        base, network = self._built()
        adata = self._cells(adata)
        encoded = encode_inputs(self.registry, adata.obs, covariates)
        plain: np.ndarray | None = None
        if isinstance(base, ObsmBase):
            embedding = condition_cells(network, base.embed(adata, self.registry), encoded)
        else:
            x, seeds, tokenizer = base.inputs(adata, self.registry)
            read = SentenceReader.of_matrix(x, tokenizer, seeds)
            if covariates is None or not self._adapts():
                plain = self._plain_embedding(read, fingerprint(x, seeds))
            if self._adapts():
                embedding = embed_conditioned(network, base.encoder, read, encoded)
            else:
                assert plain is not None  # just computed
                embedding = condition_cells(network, plain, encoded)
        if key_added is not None and (covariates is None or key_added != OBSM_SE):
            adata.obsm[key_added] = embedding
        if key_added is not None and covariates is None and plain is not None:
            adata.obsm[OBSM_BASE] = plain.copy()
        return embedding

    def _parts(self) -> list[tuple[str, nn.Module | None, str]]:
        if self.base is None or self.network is None:
            return [("base", None, f"{_COMPACT} by train(): {self.compact.n_layers} layers x {self.compact.d_model}")]
        active, conditioning = self._adapters[self._active], self.network.conditioning
        names = ", ".join(c.name for c in inputs_of(self.registry))
        parts: list[tuple[str, nn.Module | None, str]] = []
        if isinstance(self.base, SEBase):
            parts = self._base_parts(self.base, active)
        else:
            parts = [("base", None, f"{self.base.name}, {self.base.dim} columns")]
        parts += [
            ("covariate encoder", conditioning.covariate_encoder, names),
            ("projection", conditioning.conditioner, "concat(base, covariates) to the embedding"),
            ("covariate heads", conditioning.heads, "read the covariates back, in training"),
        ]
        others = [a for a in self._adapters.values() if a is not active]
        return parts + [(f"adapter {a.name!r}", a.conditioning, "not active; its LoRA not counted") for a in others]

    def _base_parts(self, base: SEBase, active: Adapter) -> list[tuple[str, nn.Module | None, str]]:
        c = base.encoder.config
        note = f"{base.name}: {c.n_layers} layers x {c.d_model}, {c.n_tokens} tokens, {len(base.genes)} genes"
        frozen = torch.nn.ParameterList(p for n, p in base.encoder.named_parameters() if "lora_" not in n)
        if active.lora is None:
            return [("base", frozen, note), ("LoRA", None, "none: the base embedding is taken as it is")]
        own = [p for n, p in base.encoder.named_parameters() if "lora_" in n and f".{active.name}." in n]
        lora = f"r={active.lora.r}, alpha={active.lora.alpha}, on {', '.join(active.lora.targets)}"
        return [("base", frozen, note), ("LoRA", torch.nn.ParameterList(own), lora)]

    def _metadata(self) -> dict[str, Any]:
        base, _ = self._built()
        options = {name: getattr(self, name).model_dump() for name in ("conditioning", "compact", "objective")}
        loras = {a.name: None if a.lora is None else a.lora.model_dump() for a in self._adapters.values()}
        own = None if self.lora is None else self.lora.model_dump()
        return {"base": base.metadata(), "lora": own, "adapters": loras, "active": self._active, **options}

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        base, network = self._built()
        files: dict[str, dict[str, Tensor]] = {}
        for adapter in self._adapters.values():
            files |= adapter.tensors(network.encoder)
        return files | ({"base": base.tensors()} if isinstance(base, SEBase) else {})

    def _texts(self) -> dict[str, str]:
        base, _ = self._built()
        notice = (
            "This directory holds a LoRACovariateSE, made with scstate_lora.\n"
            f"Base: {base.name}\nSHA-256 of the base: {base.sha256()}\nLicence of the base: {base.licence}\n"
            "An adaptation is a derivative work of its base and of the data it was trained on.\n"
        )
        histories = {f"history.{a.name}.csv": a.history.to_csv(index=False) for a in self._adapters.values()}
        return {**super()._texts(), **histories, "NOTICE": notice}

    def save(self, path: str | Path, *, save_base: bool | None = None) -> None:
        """Save the model as a directory of JSON and safetensors.

        Parameters
        ----------
        path
            Directory. A model saved there before is replaced, once the new one is complete.
        save_base
            Save the base's weights too. By default only those of a base that was trained here: one that was loaded
            is found again by its path or hub id, and recognised by its hash.

        Raises
        ------
        ValueError
            The model is not trained, or its base would be lost.
        FileExistsError
            ``path`` holds something else.
        OSError
            Writing failed; an older save is intact.
        """
        self._require_trained("save()")
        base, _ = self._built()
        tensors = self._tensors()
        source = base.source if isinstance(base, SEBase) else "obsm"
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
            The directory is missing, damaged, of a newer format, or holds another kind of model; its base is missing
            or another one.
        """
        return cls._load(path, adata, saved_at=path, base=base)

    def _restore(self, metadata: dict[str, Any], tensors: dict[str, dict[str, Tensor]], **given: Any) -> None:
        self.lora = None if metadata["lora"] is None else LoraConfig.parse(metadata["lora"], name="lora")
        self.conditioning = ConditioningConfig.parse(metadata["conditioning"], name="conditioning")
        self.compact = CompactBaseConfig.parse(metadata["compact"], name="compact")
        self.objective = ObjectiveConfig.parse(metadata["objective"], name="objective")
        self._without_base()
        self.base = self._restored_base(metadata["base"], tensors, **given)
        encoder = self.base.encoder if isinstance(self.base, SEBase) else None
        for name, options in metadata["adapters"].items():
            adapter = self._new_adapter(name, None if options is None else LoraConfig.parse(options, name="lora"))
            if self.network is None:
                self.network = ConditionedSE(encoder, adapter.conditioning)
            self._put_on(adapter)
            stored = tensors[f"conditioning.{name}"]
            check_state(adapter.conditioning.state_dict(), stored, what=f"the adapter {name!r}")
            adapter.conditioning.load_state_dict(stored)
            if adapter.lora is not None and encoder is not None:
                adapters.load_adapter_state(encoder, name, tensors[f"lora.{name}"])
            adapter.history = read_history(Path(given["saved_at"]) / f"history.{name}.csv")
        self.set_adapter(metadata["active"])
        logger.info("Loaded a LoRACovariateSE on %s.", metadata["base"]["name"])

    def _restored_base(
        self, metadata: dict[str, Any], tensors: dict[str, dict[str, Tensor]], **given: Any
    ) -> SEBase | ObsmBase:
        if "obsm" in metadata:
            if given["base"] is not None:
                msg = f"The model at {given['saved_at']} was trained on {metadata['name']}; it takes no base=."
                raise ValueError(msg)
            return ObsmBase.restore(metadata)
        if given["base"] is not None:
            base = base_for(given["base"], self.registry, self._adata)
            base.check_is(metadata, given["saved_at"])
        elif "base" in tensors:
            base = SEBase.restore(metadata, tensors["base"])
            base.source = None  # what was saved with its base is saved so again
        else:
            base = SEBase.load_again(metadata, given["saved_at"])
        base.seed = metadata["seed"]
        return base
