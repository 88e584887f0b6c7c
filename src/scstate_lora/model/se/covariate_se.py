"""LoRACovariateSE: a frozen SE base with LoRA adapters, conditioned on covariates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from scstate_lora._constants import OBSM_BASE, OBSM_SE
from scstate_lora._logging import logger
from scstate_lora.config import CompactBaseConfig, ConditioningConfig, MHCConfig, SELoraConfig, SEObjectiveConfig
from scstate_lora.data.matrix import fingerprint, log_normalize
from scstate_lora.data.reader import SentenceReader
from scstate_lora.inference.embed import condition_cells, embed_conditioned
from scstate_lora.io.save_load import check_state
from scstate_lora.model.base import read_history
from scstate_lora.model.se.adapted import AdaptedModel
from scstate_lora.model.se.inputs import active_weights, describe_cells, encode_inputs, inputs_of
from scstate_lora.model.se.obsm_embedding import ObsmBase
from scstate_lora.model.se.pretrained import SEBase, base_for, se_inputs
from scstate_lora.nn import lora as adapters
from scstate_lora.nn.conditioned_se import ConditionedSE
from scstate_lora.training.runner import TRAIN_ARGUMENTS, TrainerOptions, check_schedule, fit
from scstate_lora.training.se.batches import SEBatches, SECells
from scstate_lora.training.se.compact_base import fit_compact_base
from scstate_lora.training.se.plan import SEPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from torch import Tensor, nn

_COMPACT = "compact SE, trained on these cells"
_OWN_LICENCE = "that of the data it was trained on"
_ADAPTED_STEPS = 60
# On how many hyper-connections that depend on the input are looked at.
_SHOWN_TOKENS = 2**14


class LoRACovariateSE(AdaptedModel):
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
        Options of the adapters, see :class:`scstate_lora.config.SELoraConfig`. False: no adapters; only the
        conditioning is trained, on base embeddings that are computed once.
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
            msg = f"base= and embed_key={self.registry.embed_key!r} are both given; each is a base. Leave one out."
            raise ValueError(msg)
        self.lora = None if lora is False else SELoraConfig.parse(lora, name="lora")
        self.conditioning = ConditioningConfig.parse(conditioning, name="conditioning")
        self.compact = CompactBaseConfig.parse(compact, name="compact")
        self.objective = SEObjectiveConfig.parse(objective, name="objective")
        self._without_base()
        self._plain: tuple[int, np.ndarray] | None = None  # base embedding of the cells seen last, and their print
        if self.registry.embed_key is not None:
            self._attach(ObsmBase.fit(adata, self.registry, self._rows("train")))
        elif base is not None:
            self._attach(base_for(base, self.registry, adata))

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
        self._train_base(TrainerOptions.parse(trainer))

    def _train_base(self, options: TrainerOptions) -> None:
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
        mhc: bool | MHCConfig | dict[str, Any] = False,
        **trainer: Any,
    ) -> None:
        """Train the active adapter and its conditioning on the training cells; the base stays as it is.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; by default as many as make 60 steps. At first the conditioning is trained
            alone for 600 steps (``n_steps`` of :class:`scstate_lora.config.ConditioningConfig`), on base embeddings
            that are computed once, which costs little. Without adapters this is the only stage, and by default there
            are as many passes as make those steps.
        lr, weight_decay, warmup_steps
            Of AdamW; the learning rate rises over the warm-up and then falls along a cosine.
        batch_size
            Cells a step.
        mhc
            Put hyper-connections around the base's layers, and train them with the adapter they then belong to: True,
            or options, see :class:`scstate_lora.config.MHCConfig`. At first they change nothing. Further training
            keeps those there are, whether or not it is asked for them again. The plain embedding of the base stays
            without them.
        trainer
            Device, files and further options: ``accelerator``, ``devices``, ``strategy``, ``precision``,
            ``accumulate_grad_batches``, ``gradient_checkpointing``, ``early_stopping``, ``logger``, ``resume_from`` and
            more; see :class:`~scstate_lora.training.runner.TrainerOptions`.

        Raises
        ------
        ValueError
            An accelerator is asked for that is absent, an option is not allowed, adapters are merged, or
            hyper-connections are asked for where the adapter has others, or where the base is an embedding. Before any
            training.
        TypeError
            An option is unknown.

        Notes
        -----
        Extends ``.history``. Trains a compact base first where there is no base (``.base_history``).
        """
        options = TrainerOptions.parse(trainer, further=(*TRAIN_ARGUMENTS, "mhc"))
        check_schedule(
            max_epochs=1 if max_epochs is None else max_epochs,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
        )
        # Whatever these refuse is refused before anything is trained.
        connections = self._new_connections(mhc)
        weights = active_weights(self.objective, self.registry, reads=not isinstance(self.base, ObsmBase))
        described = describe_cells(self.registry, self.adata, contrastive_on=self.objective.contrastive_on)
        if self.base is None:
            self._train_base(_before(options, "base"))
        _, network = self._built()
        self._refuse_merged("train")
        cells = self._training_cells(self.adata, described)
        network.conditioning.heads.requires_grad_("covariates" in weights)
        val_rows = self._rows("val")

        def run(options: TrainerOptions, n_epochs: int | None, n_steps: int, *, sentences: bool, title: str) -> None:
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
                max_epochs=n_epochs or max(1, -(-n_steps // train.steps_per_epoch)),
                options=options,
                title=title,
                seed=self.seed,
                history=self.history,
                keep=lambda history: setattr(self, "history", history),
            )

        n_steps = self.conditioning.n_steps
        if not self.adapts_base and connections is None:
            run(options, max_epochs, n_steps, sentences=False, title="LoRACovariateSE")
            return
        if n_steps and not self.is_trained and options.resume_from is None:
            # Adapters have no part in it, and several processes want a gradient of all that is trained.
            with self._lora_off():
                run(_before(options, "conditioning"), None, n_steps, sentences=False, title="Conditioning")
        with self._connected(connections):
            run(options, max_epochs, _ADAPTED_STEPS, sentences=True, title="LoRACovariateSE")

    def _training_cells(self, adata: AnnData, described: dict[str, Any]) -> SECells:
        """Add the cells' expression, and their base embedding, to what else is known of them."""
        base, _ = self._built()
        if isinstance(base, ObsmBase):
            return SECells(base=base.embed(adata, self.registry), **described)
        x, seeds, tokenizer = base.inputs(adata, self.registry)
        plain = self._plain_embedding(SentenceReader.of_matrix(x, tokenizer, seeds), fingerprint(x, seeds))
        return SECells(base=plain, x=x, seeds=seeds, tokenizer=tokenizer, **described)

    def _plain_embedding(self, read: SentenceReader, key: int) -> np.ndarray:
        """Embed cells by the base alone, once for as long as they are the same."""
        base, _ = self._built()
        assert isinstance(base, SEBase)  # others have no sentences
        if self._plain is None or self._plain[0] != key:
            self._plain = key, base.embed_all(read)
        return self._plain[1]

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
            if covariates is None or not self.adapts_base:
                plain = self._plain_embedding(read, fingerprint(x, seeds))
            if self.adapts_base:
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
            parts = active.parts(self.base)
        else:
            parts = [("base", None, f"{self.base.name}, {self.base.dim} columns")]
        parts += [
            ("covariate encoder", conditioning.covariate_encoder, names),
            ("projection", conditioning.conditioner, "concat(base, covariates) to the embedding"),
            ("covariate heads", conditioning.heads, "read the covariates back, in training"),
        ]
        others = [a for a in self._adapters.values() if a is not active]
        note = "not active; what it has on the base not counted"
        return parts + [(f"adapter {a.name!r}", a.conditioning, note) for a in others]

    def _on_some_cells(self) -> Callable[[], object] | None:
        base, network = self._built()
        if self._adata is None or not isinstance(base, SEBase):
            return None
        n_cells = max(1, _SHOWN_TOKENS // base.encoder.config.n_tokens)
        sentences = base.reader(self.adata[self._rows("train")[:n_cells]], self.registry)(0, n_cells)
        device = base.encoder.cls_token.device
        genes, values = (torch.from_numpy(part).to(device) for part in (sentences.genes, sentences.values))
        return lambda: network.adapt(genes, values)

    def _metadata(self) -> dict[str, Any]:
        base, _ = self._built()
        options = {name: getattr(self, name).model_dump() for name in ("conditioning", "compact", "objective")}
        loras = {a.name: None if a.lora is None else a.lora.model_dump() for a in self._adapters.values()}
        own = None if self.lora is None else self.lora.model_dump()
        mhc = {a.name: a.mhc.model_dump() for a in self._adapters.values() if a.mhc is not None}
        adapted = {"lora": own, "adapters": loras, "active": self._active, **({"mhc": mhc} if mhc else {})}
        return {"base": base.metadata(), **adapted, **options}

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
        self.lora = None if metadata["lora"] is None else SELoraConfig.parse(metadata["lora"], name="lora")
        self.conditioning = ConditioningConfig.parse(metadata["conditioning"], name="conditioning")
        self.compact = CompactBaseConfig.parse(metadata["compact"], name="compact")
        self.objective = SEObjectiveConfig.parse(metadata["objective"], name="objective")
        self._without_base()
        self._plain = None
        self.base = self._restored_base(metadata["base"], tensors, **given)
        encoder = self.base.encoder if isinstance(self.base, SEBase) else None
        for name, options in metadata["adapters"].items():
            adapter = self._new_adapter(name, None if options is None else SELoraConfig.parse(options, name="lora"))
            if self.network is None:
                self.network = ConditionedSE(encoder, adapter.conditioning)
            self._put_on(adapter)
            stored = tensors[f"conditioning.{name}"]
            check_state(adapter.conditioning.state_dict(), stored, source=f"the adapter {name!r}")
            adapter.conditioning.load_state_dict(stored)
            if adapter.lora is not None and encoder is not None:
                adapters.load_adapter_state(encoder, name, tensors[f"lora.{name}"])
            mhc = metadata.get("mhc", {}).get(name)
            if mhc is not None and encoder is not None:
                adapter.connect(encoder, MHCConfig.parse(mhc, name="mhc"))
                adapter.load_connections(tensors[f"mhc.{name}"])
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


def _before(options: TrainerOptions, name: str) -> TrainerOptions:
    """Options for what is trained before the adapters: loggers and callbacks of the user's are meant for these."""
    own = isinstance(options.logger, (bool, str))
    return replace(options.part(name), logger=options.logger if own else False, callbacks=(), compile=False)
