"""LoRACovariateSE: a frozen SE base with LoRA adapters, conditioned on covariates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scstate_lora._constants import OBSM_BASE, OBSM_SE
from scstate_lora._logging import logger
from scstate_lora.config import CompactBaseConfig, LoraConfig, ObjectiveConfig
from scstate_lora.data.genes import match_vocabulary
from scstate_lora.data.matrix import log_normalize
from scstate_lora.data.reader import SentenceReader
from scstate_lora.io.save_load import check_state
from scstate_lora.model._base import BaseModel
from scstate_lora.model._counterfactual import move
from scstate_lora.model._se_base import SEBase, se_inputs
from scstate_lora.model._specs import covariate_specs
from scstate_lora.nn.conditioned_se import ConditionedSE
from scstate_lora.nn.lora import add_lora, split_adapters
from scstate_lora.training.cell_batches import CellBatches
from scstate_lora.training.compact import fit_compact_base
from scstate_lora.training.embed import embed_conditioned
from scstate_lora.training.runner import TRAIN_ARGUMENTS, TrainerOptions, check_schedule, fit
from scstate_lora.training.se_plan import SEPlan

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData
    from torch import Tensor, nn

_COMPACT = "compact SE, trained on these cells"
_OWN_LICENCE = "that of the data it was trained on"
_WITHHELD = 0.1  # share of covariates hidden in training, so that "unknown" is learned


class LoRACovariateSE(BaseModel):
    """Cell embeddings that know the experimental condition, and what they would be under another one.

    A STATE embedding network (SE), frozen, with LoRA adapters on its attention; its embedding is joined with an
    encoding of the cell's covariates and projected to unit length.

    Parameters
    ----------
    adata
        Set up by :func:`scstate_lora.setup_anndata` or :meth:`setup_anndata`, with at least one covariate.
    base
        A base to adapt: a published SE checkpoint (a folder, a ``.ckpt``, a ``model.safetensors``, or the id of a
        repository on the Hugging Face hub), the directory of a saved LoRACovariateSE, or an ``SEBase``. None: a compact
        SE of about a million parameters is first trained on the training cells, without labels.
    lora
        Options of the adapters, see :class:`scstate_lora.config.LoraConfig`.
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

    _histories = ("history", "base_history")
    base_history: pd.DataFrame
    """Losses of the compact base's training; empty for a base that came from elsewhere."""
    writes = f"adata.obsm['{OBSM_SE}'] and adata.obsm['{OBSM_BASE}']"

    def __init__(
        self,
        adata: AnnData,
        *,
        base: str | Path | SEBase | None = None,
        lora: LoraConfig | dict[str, Any] | None = None,
        compact: CompactBaseConfig | dict[str, Any] | None = None,
        objective: ObjectiveConfig | dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(adata, seed=seed)
        if not self.registry.covariates:
            msg = "LoRACovariateSE needs at least one covariate: ssl.setup_anndata(adata, covariate_keys=[...])."
            raise ValueError(msg)
        self.lora = LoraConfig.parse(lora, name="lora")
        self.compact = CompactBaseConfig.parse(compact, name="compact")
        self.objective = ObjectiveConfig.parse(objective, name="objective")
        self.base: SEBase | None = None
        self.network: ConditionedSE | None = None
        if base is not None:
            self._attach(self._given(base))

    def _given(self, base: Any) -> SEBase:
        """Check and copy, or load, the base a user gave."""
        if not isinstance(base, (str, Path, SEBase)):
            msg = f"base must be a path, a hub id or an SEBase (such as model.base), found {type(base).__name__}."
            raise TypeError(msg)
        base = base.copy() if isinstance(base, SEBase) else SEBase.load(base)
        try:
            logger.info("%s.", base.match(self.registry))
        except ValueError as error:
            if self._adata is None or self.registry.gene_key is not None:
                raise
            better = match_vocabulary(self._adata, base.genes)  # raises, with advice, where no other names fit either
            key = better.source.removeprefix("adata.var[").removesuffix("]")
            msg = f"The base does not know the genes by adata.var_names, but {better}: set up with gene_key={key}."
            raise ValueError(msg) from error
        return base

    def _attach(self, base: SEBase) -> None:
        """Put adapters on a base and build the rest of the network around it."""
        self.base = base
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            add_lora(
                base.encoder,
                r=self.lora.r,
                alpha=self.lora.alpha,
                dropout=self.lora.dropout,
                targets=self.lora.targets,
            )
            self.network = ConditionedSE(base.encoder, covariate_specs(self.registry.covariates))
        self.network.eval()

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
        max_epochs: int = 10,
        *,
        lr: float = 1e-3,
        batch_size: int = 64,
        weight_decay: float = 0.01,
        warmup_steps: int = 20,
        **trainer: Any,
    ) -> None:
        """Train adapters, covariate encoder and conditioning on the training cells; the base stays as it is.

        Parameters
        ----------
        max_epochs
            Passes over the training cells.
        lr, weight_decay, warmup_steps
            Of AdamW; the learning rate rises over the warm-up and then falls along a cosine.
        batch_size
            Cells a step.
        trainer
            Options for Lightning: ``accelerator``, ``devices``, ``strategy``, ``precision``,
            ``accumulate_grad_batches``, ``early_stopping``, ``logger``, ``callbacks``, ``progress_bar``; see
            :class:`~scstate_lora.training.runner.TrainerOptions`.

        Raises
        ------
        ValueError
            An accelerator is asked for that is absent, or an option is not allowed. Before any training.
        TypeError
            An option is unknown.

        Notes
        -----
        Extends ``.history``. Trains a compact base first where there is no base (``.base_history``).
        """
        options = TrainerOptions.parse(trainer, further=TRAIN_ARGUMENTS)
        check_schedule(
            max_epochs=max_epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, warmup_steps=warmup_steps
        )
        if self.base is None:
            self.train_base(**trainer)
        base, network = self._built()
        adata = self.adata
        x, seeds, tokenizer = base.inputs(adata, self.registry)
        extra = {
            "covariates": self.registry.encode(adata.obs),
            "labels": self._labels(adata),
            "base": base.embed_all(SentenceReader.of_matrix(x, tokenizer, seeds)),
        }

        def batches(rows: np.ndarray, seed: int, *, withheld: float = 0.0) -> CellBatches:
            return CellBatches(
                x,
                seeds,
                rows,
                tokenizer=tokenizer,
                batch_size=batch_size,
                n_targets=self.objective.n_targets,
                seed=seed,
                extra=extra,
                withhold=(self.registry.unknown(), withheld) if withheld else None,
            )

        val_rows = self._rows("val")
        plan = SEPlan(
            network,
            temperature=self.objective.temperature,
            lr=lr,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            weights=self.objective.model_dump(include={"reconstruction", "contrastive", "preservation"}),
        )
        self.history = fit(
            plan,
            batches(self._rows("train"), self.seed, withheld=_WITHHELD),
            batches(val_rows, self.seed + 1) if len(val_rows) > 1 else None,
            max_epochs=max_epochs,
            options=options,
            title="LoRACovariateSE",
            seed=self.seed,
            history=self.history,
        )

    def _labels(self, adata: AnnData) -> np.ndarray:
        """Labels of the contrastive term: the cell type, or else the combination of categorical covariates."""
        keys = [self.registry.cell_type_key] if self.registry.cell_type_key is not None else []
        if not keys:
            keys = [c.name for c in self.registry.covariates if c.kind == "categorical"]
        if not keys:  # only continuous covariates: no two cells share a label, and the term is zero
            return np.arange(adata.n_obs)
        columns = [self.registry.labels(adata, key) for key in keys]
        combined = ["\x00".join(values) for values in zip(*columns, strict=True)]
        return np.unique(combined, return_inverse=True)[1].astype(np.int64)

    def _built(self) -> tuple[SEBase, ConditionedSE]:
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
        present = [c.name for c in self.registry.covariates if c.name in adata.obs]
        obs = move(adata.obs[present], self.registry, covariates)
        encoded = self.registry.encode(obs, allow_missing=covariates)
        read = base.reader(adata, self.registry)
        embedding = embed_conditioned(network, base.encoder, read, encoded)
        if key_added is not None and (covariates is None or key_added != OBSM_SE):
            adata.obsm[key_added] = embedding
        if key_added is not None and covariates is None:
            adata.obsm[OBSM_BASE] = base.embed_all(read)
        return embedding

    def _parts(self) -> list[tuple[str, nn.Module | None, str]]:
        if self.base is None or self.network is None:
            return [("base", None, f"{_COMPACT} by train(): {self.compact.n_layers} layers x {self.compact.d_model}")]
        c = self.base.encoder.config
        note = f"{self.base.name}: {c.n_layers} layers x {c.d_model}, {c.n_tokens} tokens, {len(self.base.genes)} genes"
        adapters = torch.nn.ParameterList(p for n, p in self.base.encoder.named_parameters() if "lora_" in n)
        frozen = torch.nn.ParameterList(p for n, p in self.base.encoder.named_parameters() if "lora_" not in n)
        lora = f"r={self.lora.r}, alpha={self.lora.alpha}, on {', '.join(self.lora.targets)}"
        names = ", ".join(c.name for c in self.registry.covariates)
        return [
            ("base", frozen, note),
            ("LoRA", adapters, lora),
            ("covariate encoder", self.network.covariate_encoder, names),
            ("conditioning", self.network.conditioner, "concat(base, covariates) to the embedding"),
        ]

    def _metadata(self) -> dict[str, Any]:
        base, _ = self._built()
        options = {name: getattr(self, name).model_dump() for name in ("lora", "compact", "objective")}
        return {"base": base.metadata(), **options}

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        base, network = self._built()
        _, adapters = split_adapters(network.encoder.state_dict())
        rest = {k: v for k, v in network.state_dict().items() if not k.startswith("encoder.")}
        return {"adapters": {**{f"encoder.{k}": v for k, v in adapters.items()}, **rest}, "base": base.tensors()}

    def _texts(self) -> dict[str, str]:
        base, _ = self._built()
        notice = (
            "This directory holds a LoRACovariateSE, made with scstate_lora.\n"
            f"Base: {base.name}\nSHA-256 of the base: {base.sha256()}\nLicence of the base: {base.licence}\n"
            "An adaptation is a derivative work of its base and of the data it was trained on.\n"
        )
        return {**super()._texts(), "NOTICE": notice}

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
        if save_base is False and base.source is None:
            msg = "save_base=False, but this base was trained here and is nowhere else. Leave save_base out."
            raise ValueError(msg)
        if not save_base and base.source is not None:
            del tensors["base"]
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
        self.lora = LoraConfig.parse(metadata["lora"], name="lora")
        self.compact = CompactBaseConfig.parse(metadata["compact"], name="compact")
        self.objective = ObjectiveConfig.parse(metadata["objective"], name="objective")
        if given["base"] is not None:
            base = self._given(given["base"])
            base.check_is(metadata["base"], given["saved_at"])
        elif "base" in tensors:
            base = SEBase.restore(metadata["base"], tensors["base"])
            base.source = None  # what was saved with its base is saved so again
        else:
            base = SEBase.load_again(metadata["base"], given["saved_at"])
        base.seed = metadata["base"]["seed"]
        self._attach(base)
        _, network = self._built()
        own = {k: v for k, v in network.state_dict().items() if not k.startswith("encoder.") or "lora_" in k}
        check_state(own, tensors["adapters"], what="the adapters")
        network.load_state_dict(tensors["adapters"], strict=False)
        logger.info("Loaded a LoRACovariateSE on %s.", metadata["base"]["name"])
