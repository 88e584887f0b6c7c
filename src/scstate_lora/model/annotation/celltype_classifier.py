"""CellTypeClassifier: labels of cells, from a linear start on expression and what a pretrained encoder adds to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack

import numpy as np
import pandas as pd

from scstate_lora._logging import logger
from scstate_lora._tensors import in_float32
from scstate_lora._utils import did_you_mean, listed
from scstate_lora.config import (
    ClassifierTrainOptions,
    CompactBaseConfig,
    HeadConfig,
    LabelledDataConfig,
    LinearStartConfig,
    SELoraConfig,
)
from scstate_lora.data.results import ANNOTATE, write_result
from scstate_lora.inference.devices import check_accelerator
from scstate_lora.model.annotation.encoder_stage import ADAPTER, EncoderStage
from scstate_lora.model.annotation.encoders import choose_base, embed, find_base, own_encoder, token_reader
from scstate_lora.model.annotation.fitting import FittedTargets, fit_targets
from scstate_lora.model.annotation.labelling import (
    COVERAGE,
    Labelled,
    LabelRules,
    cluster_votes,
    label_cells,
    number_cells,
)
from scstate_lora.model.annotation.outputs import compute_outputs
from scstate_lora.model.annotation.target_model import TargetModel
from scstate_lora.model.base import BaseModel
from scstate_lora.model.se.compact import train_compact_base
from scstate_lora.model.se.obsm_embedding import ObsmBase
from scstate_lora.model.se.pretrained import SEBase
from scstate_lora.nn.classifier import ClassifierNetwork, ResidualHeads
from scstate_lora.nn.lora import adapter_state, add_lora, load_adapter_state
from scstate_lora.training.annotation.batches import LabelledCells

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from torch import Tensor, nn

    from scstate_lora.config.classifier import ClassifierTrainArguments, Strategy
    from scstate_lora.data.bound import BoundData
    from scstate_lora.model.annotation.encoders import AnyBase
    from scstate_lora.model.annotation.rank_base import RankBase

LABEL = "scstate_celltype"
"""Column of the predicted label, and the start of the names of all others."""
LATENT = "X_scstate_celltype"
"""Key of the encoder's embedding in ``adata.obsm``."""
_STRATEGIES = ("gradual", "full", "frozen", "lora")


class CellTypeClassifier(BaseModel):
    """Labels of cells, by fine-tuning a pretrained encoder on cells that have labels.

    A multinomial logistic regression on log expression is the start; heads on the encoder's embedding add to its
    logits, from zero. How much they add, how long anything is trained, and how far confidence can be believed is
    decided on cells that were left out: whole batches where there are several.

    Parameters
    ----------
    adata
        Set up by :meth:`setup_anndata`.
    base
        The encoder, as in :class:`scstate_lora.LoRACovariateSE`: a published SE checkpoint, the directory of a saved
        model, or an ``SEBase``; or an encoder that scModelForge saved, or a :class:`scstate_lora.RankBase`. None: the
        embedding of ``embed_key``, where that was set up; otherwise a compact SE is first trained on the training
        cells, without labels.
    linear_start
        Options of the start, see :class:`scstate_lora.config.LinearStartConfig`. False: none, a plain head.
    head
        Options of the heads, see :class:`scstate_lora.config.HeadConfig`.
    lora
        Options of the adapters of ``strategy="lora"``, see :class:`scstate_lora.config.SELoraConfig`.
    compact
        Options of the compact base, see :class:`scstate_lora.config.CompactBaseConfig`.
    seed
        Seed of initialisation and training.

    Raises
    ------
    KeyError
        If ``adata`` was not set up.
    ValueError
        If it was set up without ``labels_key``, fewer than two labels have training cells, an option is not allowed,
        or the base does not know the genes.
    TypeError, FileNotFoundError
        As in :class:`scstate_lora.LoRACovariateSE`.

    References
    ----------
    Adduri et al. 2025, STATE, doi:10.1101/2025.06.26.661135; Hu et al. 2021, LoRA, arXiv:2106.09685.

    Examples
    --------
    >>> import scstate_lora as ssl
    >>> ssl.CellTypeClassifier.setup_anndata(reference, labels_key="cell_type", batch_key="donor")
    >>> model = ssl.CellTypeClassifier(reference)
    >>> model.train()
    >>> model.predict(query)
    """

    writes = f"adata.obs['{LABEL}'] and further columns that begin so"
    _data_options: ClassVar[type[LabelledDataConfig]] = LabelledDataConfig
    _histories = ("history", "base_history", "scores", "unknown_check")
    base_history: pd.DataFrame
    """Losses of the compact base's training; empty for a base that came from elsewhere."""
    scores: pd.DataFrame
    """Accuracy of the model and of baselines on cells that were left out, one row a target and method."""
    unknown_check: pd.DataFrame
    """How well each known type is found when it is left out of training, one row a type."""

    @in_float32()
    def __init__(
        self,
        adata: AnnData,
        *,
        base: str | Path | SEBase | RankBase | None = None,
        linear_start: LinearStartConfig | dict[str, Any] | Literal[False] | None = None,
        head: HeadConfig | dict[str, Any] | None = None,
        lora: SELoraConfig | dict[str, Any] | None = None,
        compact: CompactBaseConfig | dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(adata, seed=seed)
        if not self.registry.label_targets:
            msg = (
                "CellTypeClassifier needs labels. Set up with its own method: "
                "ssl.CellTypeClassifier.setup_anndata(adata, labels_key=...)."
            )
            raise ValueError(msg)
        if base is not None and self.registry.embed_key is not None:
            msg = f"base= and embed_key={self.registry.embed_key!r} each name a base. Leave one out."
            raise ValueError(msg)
        self.linear_start = (
            None if linear_start is False else LinearStartConfig.parse(linear_start, name="linear_start")
        )
        self.head = HeadConfig.parse(head, name="head")
        self.lora = SELoraConfig.parse(lora, name="lora")
        self.compact = CompactBaseConfig.parse(compact, name="compact")
        self.strategy: str | None = None
        self.targets: dict[str, TargetModel] = {}
        self._network: ClassifierNetwork | None = None
        self._base: AnyBase | None = None
        if self.registry.embed_key is not None:
            self._base = ObsmBase.fit(self._bind())
        elif base is not None:
            self._base = choose_base(base, self.registry, adata)

    @property
    def base(self) -> AnyBase | None:
        """The encoder before any training; None until a compact base is trained."""
        return self._base

    @property
    def _trained_base(self) -> AnyBase:
        assert self._base is not None  # every trained model has one
        return self._base

    @property
    def network(self) -> ClassifierNetwork | None:
        """The encoder as it is used, and the heads; None before training."""
        return self._network

    @property
    def is_trained(self) -> bool:
        """Whether the model has been trained."""
        return bool(self.targets)

    @property
    def adapts_encoder(self) -> bool:
        """Whether training changed what the encoder computes."""
        return self._network is not None and self._network.encoder is not self._trained_base.encoder

    @property
    def labels(self) -> list[str]:
        """Labels that are predicted, of the first target."""
        self._require_trained("labels")
        return next(iter(self.targets.values())).classes

    @in_float32()
    def train(self, strategy: Strategy | None = None, **arguments: Unpack[ClassifierTrainArguments]) -> None:
        """Train on the labelled training cells; anything learned before is replaced.

        First the linear start and the heads are fitted, on an embedding that is computed once. Each batch is left out
        in turn (or a fifth of the cells, where there are no batches), to choose how tightly genes are bounded and how
        much the heads add, and to measure confidence. Then, except for ``"frozen"``, the encoder is trained without the
        first fold, and again without the second. Where that lowers the loss of each fold by more than twice its
        standard error, it is trained for as many epochs on all cells; otherwise it is left as it was.

        Parameters
        ----------
        strategy
            ``"gradual"``: the heads alone first, the encoder too from ``unfreeze_epoch`` on; the default. ``"full"``:
            both from the start. ``"lora"``: LoRA adapters on the encoder. ``"frozen"``: the heads alone, the only one
            for an embedding of ``embed_key``, and its default.
        arguments
            Learning rates, epochs and more: the fields of :class:`~scstate_lora.config.ClassifierTrainOptions`.

        Raises
        ------
        ValueError
            If an option is not allowed, the strategy needs an encoder that the base does not have, or the split is not
            the one that the model keeps.
        TypeError
            If an option is unknown.

        Notes
        -----
        Fills ``.targets``, ``.history``, ``.scores`` and ``.unknown_check``.
        """
        options = ClassifierTrainOptions.of_call(arguments, function="train()")
        chosen = self._checked(strategy)
        check_accelerator(options.accelerator)
        cells = self._bind_to_train()
        if self._base is None:
            trainer = options.part("base").model_copy(update={"callbacks": (), "early_stopping": False})
            self._base, self.base_history = train_compact_base(
                cells, self._split, config=self.compact, options=trainer, seed=self.seed
            )
        embedding = embed(self._base, self._base.encoder, cells)
        fitted = fit_targets(
            cells,
            self.split_of(cells),
            embedding,
            start=self.linear_start,
            head=self.head,
            options=options,
            seed=self.seed,
        )
        heads = {key: fit.heads for key, fit in fitted.fits.items()}
        network = ClassifierNetwork(self._base.encoder, self._base.dim, heads)
        history = fitted.history()
        if chosen != "frozen":
            network, further = self._train_encoder(chosen, cells, fitted, network, options)
            history = pd.concat([history, further], ignore_index=True)
        self._network = network.eval()
        self.targets = fitted.models()
        self.strategy, self.history = chosen, history
        self.scores = fitted.scores()
        self.unknown_check = fitted.unknown_check() if options.check_unknown else pd.DataFrame()
        self._report()

    def _train_encoder(
        self,
        strategy: str,
        cells: BoundData,
        fitted: FittedTargets,
        network: ClassifierNetwork,
        options: ClassifierTrainOptions,
    ) -> tuple[ClassifierNetwork, pd.DataFrame]:
        rows = fitted.rows
        read = token_reader(self._trained_base, cells)
        folds = fitted.folds()
        stage = EncoderStage(
            self._base,
            LabelledCells(lambda chosen: read(rows[chosen]), fitted.head_cells()),
            folds,
            strategy,
            self.lora,
            options,
            self.seed,
            self._fingerprint,
        )
        trial, trained, history = stage.run(
            [fitted.calibrated_heads(without=fold) for fold in range(len(folds))], fitted.calibrated_heads()
        )
        if trial is None or trained is None:
            return network, history
        labelled = cells.take(rows)
        fitted.take_over(
            embed(self._trained_base, trial.eval().encoder, labelled),
            trial.heads_by_target(),
            embed(self._trained_base, trained.eval().encoder, labelled),
            trained.heads_by_target(),
        )
        return trained, history

    def _checked(self, strategy: str | None) -> str:
        """Return the strategy, or the default of the base."""
        without = self.registry.embed_key is not None
        if strategy is None:
            return "frozen" if without else "gradual"
        if strategy not in _STRATEGIES:
            msg = f"strategy={strategy!r} is unknown. {did_you_mean(strategy, _STRATEGIES, limit=4)}"
            raise ValueError(msg)
        if without and strategy != "frozen":
            msg = (
                f"strategy={strategy!r} trains an encoder, and the base here is "
                f"adata.obsm[{self.registry.embed_key!r}]. Use strategy='frozen', or set up without embed_key."
            )
            raise ValueError(msg)
        return strategy

    def _report(self) -> None:
        """Log what was chosen and what it achieves on left-out cells."""
        for model in self.targets.values():
            choice = model.choice
            effect = f"count {choice['strength']:g} times" if choice["strength"] else "add nothing"
            logger.info(
                "%s: on %s the loss is %.4g from the linear start alone and %.4g with heads, which %s.",
                model.key,
                model.folds,
                choice["start_loss"],
                choice["loss"],
                effect,
            )
        logger.info("On cells that were left out:\n%s", self.scores.round(3).to_string(index=False))
        if len(self.unknown_check):
            auroc = self.unknown_check["auroc"]
            logger.info("Types left out of training are found as unknown with a mean AUROC of %.3f.", auroc.mean())

    @in_float32()
    def predict(
        self,
        adata: AnnData | None = None,
        *,
        reject_below: float | None = None,
        max_error: float | None = None,
        reject_unknown: float | None = None,
        sets: bool | float = False,
        adapt: bool = True,
        allow: Sequence[str] | None = None,
        block: Sequence[str] = (),
        clusters: str | None = None,
        key_added: str | None = LABEL,
    ) -> pd.DataFrame:
        """Label cells.

        Parameters
        ----------
        adata
            Cells; the model's own by default. Genes are matched by name; absent ones count as average.
        reject_below
            Smallest probability of a label that is given. In a tree a cell gets the deepest label that reaches it;
            ``"Unknown"`` where none does. By default every cell gets its likeliest label.
        max_error
            Largest share of wrong labels among those given, such as 0.05: the probability from which labels are given
            is the one that keeps this promise on left-out cells.
        reject_unknown
            Share of cells of known types that may be rejected as unlike all of them, such as 0.05.
        sets
            Add the set of labels that holds the true one with a probability of 0.95, or of the number given.
        adapt
            Subtract the shift of each batch (``batch_key``, where these cells have it; otherwise all are one batch),
            as far as it can be told from an unusual mix of types.
        allow, block
            Labels of any level that may be given alone, or that may not.
        clusters
            Column of ``adata.obs``: each cluster is labelled by the mean probability of its cells as well.
        key_added
            Start of the names that are written; None writes nothing.

        Returns
        -------
        One row a cell, as written to ``adata.obs``.

        Raises
        ------
        ValueError
            If the model is not trained, an option is not allowed, or hardly a gene of the model is in the data.
        KeyError
            If a column does not exist.

        Notes
        -----
        Adds to ``adata.obs``, for the first target: ``scstate_celltype``, ``scstate_celltype_level`` (1 for the
        coarsest labels), ``_confidence`` (calibrated probability of the label), ``_unknown_score`` (0 for a usual known
        cell), ``_set_size``, ``_rejected`` (why there is no label), and, where there are any, ``_id``, ``_set``,
        ``_cluster_label`` and ``_cluster_share``. To ``adata.obsm``: ``scstate_celltype_probability``, one column a
        label, in whose name "/" is replaced by "_". Of a further target, ``scstate_<column>`` takes the place of
        ``scstate_celltype``; of numbers it is the value, with ``_low`` and ``_high``. To
        ``adata.uns["scstate_lora"]["annotate"]``: thresholds and shifts (JSON).
        """
        self._require_trained("predict()")
        coverage = (COVERAGE if sets else None) if isinstance(sets, bool) else sets
        adata = self.adata if adata is None else adata
        tables = []
        for number, (labelled, model, outputs) in enumerate(
            self._labelled(
                adata, LabelRules(reject_below, max_error, reject_unknown, coverage, allow, block), adapt=adapt
            )
        ):
            name = key_added or LABEL
            name = name if number == 0 else f"scstate_{model.key}"
            if labelled is None:
                table, facts = number_cells(model, outputs, coverage=coverage or COVERAGE)
            else:
                table, facts = labelled.table, labelled.facts
                for batch, note in facts["shift"].items():
                    logger.info("Shift of %r: %s.", batch, note)
                if not sets:
                    table = table.drop(columns="set")
                if clusters is not None:
                    table = table.join(cluster_votes(labelled, model, _column(adata, clusters)))
            table = table.set_axis(adata.obs_names).rename(columns=lambda c: _named(c, name))  # noqa: B023
            tables.append(table)
            if key_added is not None:
                self._write_labels(adata, table, labelled, model, facts, name)
        return pd.concat(tables, axis=1)

    def _write_labels(
        self,
        adata: AnnData,
        table: pd.DataFrame,
        labelled: Labelled | None,
        model: TargetModel,
        facts: dict[str, Any],
        name: str,
    ) -> None:
        for column in table:
            values = table[column]
            adata.obs[column] = pd.Categorical(values) if values.dtype == object else values.to_numpy()
        if labelled is not None:
            columns = [label.replace("/", "_") for label in model.classes]  # "/" divides groups in a file
            columns = columns if len(set(columns)) == len(columns) else [f"{i} {c}" for i, c in enumerate(columns)]
            adata.obsm[f"{name}_probability"] = pd.DataFrame(
                labelled.probabilities.astype(np.float32), index=adata.obs_names, columns=columns
            )
        facts = {**facts, "labels_key": model.key, "model": type(self).__name__}
        # JSON has no infinity, which a threshold is that no label reaches, and no NaN.
        facts = {key: None if isinstance(v, float) and not np.isfinite(v) else v for key, v in facts.items()}
        write_result(adata, ANNOTATE, json.dumps(facts, allow_nan=False), key=name)

    @in_float32()
    def predict_proba(
        self,
        adata: AnnData | None = None,
        *,
        target: str | None = None,
        all_levels: bool = False,
        adapt: bool = True,
        allow: Sequence[str] | None = None,
        block: Sequence[str] = (),
    ) -> pd.DataFrame:
        """Compute the calibrated probability of every label; nothing is written.

        Parameters
        ----------
        adata, adapt, allow, block
            As in :meth:`predict`.
        target
            Column of the labels, if there are several; the first by default.
        all_levels
            Give all labels of the tree; that of a coarser one is the sum of those below it.

        Returns
        -------
        ``(n_cells, n_labels)``.

        Raises
        ------
        KeyError
            If no such labels were learned.
        ValueError
            As in :meth:`predict`.
        """
        self._require_trained("predict_proba()")
        kinds = [key for key, model in self.targets.items() if model.target.tree is not None]
        if not kinds or (target is not None and target not in kinds):
            msg = f"target={target!r} is not among the labels of this model. {did_you_mean(str(target), kinds)}"
            raise KeyError(msg)
        chosen = target or kinds[0]
        adata = self.adata if adata is None else adata
        for labelled, model, _ in self._labelled(adata, LabelRules(allow=allow, block=block), adapt=adapt, of=chosen):
            if model.key == chosen and labelled is not None:
                nodes, names = (labelled.nodes[:, 1:], list(model.tree.names[1:])) if all_levels else (None, None)
                values = labelled.probabilities if nodes is None else nodes
                return pd.DataFrame(values, index=adata.obs_names, columns=names or model.classes)
        raise AssertionError  # one of them was chosen

    def _labelled(
        self, adata: AnnData, rules: LabelRules, *, adapt: bool, of: str | None = None
    ) -> list[tuple[Labelled | None, TargetModel, np.ndarray]]:
        """Label cells by every target, None in place of labels for numbers; rules are `of` the first, or another."""
        of = next(iter(self.targets)) if of is None else of
        outputs = compute_outputs(self.registry, adata, self._base, self.network, self.targets)
        batches = self._batches(adata)
        found: list[tuple[Labelled | None, TargetModel, np.ndarray]] = []
        for key, model in self.targets.items():
            logits, distance = outputs[key]
            if model.target.tree is None:
                found.append((None, model, logits))
                continue
            own = rules if key == of else LabelRules(coverage=rules.coverage)
            found.append((label_cells(model, logits, distance, batches, own, adapt=adapt), model, logits))
        return found

    def _batches(self, adata: AnnData) -> np.ndarray:
        key = self.registry.batch_key
        if key is None or key not in adata.obs:
            return np.full(adata.n_obs, "all", dtype=object)
        return adata.obs[key].astype(object).where(adata.obs[key].notna(), "(missing)").astype(str).to_numpy()

    @in_float32()
    def get_latent_representation(self, adata: AnnData | None = None, *, key_added: str | None = LATENT) -> np.ndarray:
        """Embed cells by the encoder as it was trained.

        Parameters
        ----------
        adata
            Cells; the model's own by default.
        key_added
            Key of ``adata.obsm`` that the embedding is written to; None writes nothing.

        Returns
        -------
        float32 ``(n_cells, dim)``.

        Raises
        ------
        ValueError
            If the model is not trained.

        Notes
        -----
        Adds ``adata.obsm["X_scstate_celltype"]``.
        """
        self._require_trained("get_latent_representation()")
        assert self._network is not None  # trained
        adata = self.adata if adata is None else adata
        embedding = embed(self._trained_base, self._network.encoder, self._bind(adata))
        if key_added is not None:
            adata.obsm[key_added] = embedding
        return embedding

    def _parts(self) -> list[tuple[str, nn.Module | None, str]]:
        if self._base is None:
            return [("base", None, f"compact SE by train(): {self.compact.n_layers} layers x {self.compact.d_model}")]
        parts: list[tuple[str, nn.Module | None, str]] = [
            ("base", None if self._network is None else self._network.encoder, self._base.note())
        ]
        for key, model in self.targets.items():
            assert self._network is not None  # trained with the targets
            start = (
                "no linear start" if model.expression is None else f"start on {len(model.expression.start.genes)} genes"
            )
            n = len(model.classes)
            what = "a number" if model.target.tree is None else f"{n} labels"
            note = f"{what}; {start}; chosen on {model.folds}: heads count {model.choice['strength']:g} times"
            parts.append((key, self._network.heads_by_target()[key], note))
        return parts

    def _metadata(self) -> dict[str, Any]:
        options = {name: getattr(self, name).model_dump() for name in ("head", "lora", "compact")}
        start = None if self.linear_start is None else self.linear_start.model_dump()
        return {
            "base": self._trained_base.metadata(),
            "linear_start": start,
            **options,
            "strategy": self.strategy,
            "adapts_encoder": self.adapts_encoder,
            "targets": [model.metadata() for model in self.targets.values()],
        }

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        assert self._network is not None  # trained
        files = {}
        for number, (key, model) in enumerate(self.targets.items()):
            files[f"target.{number}"] = model.tensors()
            files[f"heads.{number}"] = self._network.heads_by_target()[key].state_dict()
        if self.adapts_encoder:
            assert self._network.encoder is not None  # it is not the base's
            encoder = self._network.encoder
            files["encoder"] = adapter_state(encoder, ADAPTER) if self.strategy == "lora" else encoder.state_dict()
        tensors = self._trained_base.tensors()
        files |= {"base": tensors} if tensors else {}
        return files | (self._base.cells() if isinstance(self._base, SEBase) else {})

    def _texts(self) -> dict[str, str]:
        notice = (
            "This directory holds a CellTypeClassifier, made with scstate_lora.\n"
            f"Base: {self._trained_base.name}\nSHA-256 of the base: {self._trained_base.sha256()}\n"
            f"Licence of the base: {self._trained_base.licence}\n"
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
            Save the base's weights too. By default only those of a base that was trained here; one that was loaded is
            read again from its path or hub id, and recognised by its hash. Weights that ``"full"`` or ``"gradual"``
            trained are always saved; of ``"lora"`` the adapters are.

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
        tensors, source = self._tensors(), self._trained_base.source
        if save_base is False and source is None:
            msg = "save_base=False, but this base was trained here and is nowhere else. Leave save_base out."
            raise ValueError(msg)
        if not save_base and source is not None:
            tensors.pop("base", None)
        self._write(path, tensors)

    @classmethod
    def load(
        cls, path: str | Path, *, adata: AnnData | None = None, base: str | Path | SEBase | RankBase | None = None
    ) -> CellTypeClassifier:
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
        start = metadata["linear_start"]
        self.linear_start = None if start is None else LinearStartConfig.parse(start, name="linear_start")
        self.head = HeadConfig.parse(metadata["head"], name="head")
        self.lora = SELoraConfig.parse(metadata["lora"], name="lora")
        self.compact = CompactBaseConfig.parse(metadata["compact"], name="compact")
        self.strategy = metadata["strategy"]
        self._base = find_base(
            metadata["base"],
            tensors,
            path=options["saved_at"],
            replacement=options["base"],
            registry=self.registry,
            adata=self._adata,
        )
        self.targets, heads = {}, {}
        for number, saved in enumerate(metadata["targets"]):
            model = TargetModel.restore(saved, tensors[f"target.{number}"])
            self.targets[model.key] = model
            heads[model.key] = ResidualHeads(
                self._base.dim,
                len(model.classes),
                hidden_dim=self.head.hidden_dim,
                dropout=self.head.dropout,
                n_members=self.head.n_members,
            )
            heads[model.key].load_state_dict(tensors[f"heads.{number}"])
        encoder = self._base.encoder
        if metadata["adapts_encoder"]:
            encoder = own_encoder(self._base)
            if self.strategy == "lora":
                add_lora(encoder, ADAPTER, **self.lora.model_dump())
                load_adapter_state(encoder, ADAPTER, tensors["encoder"])
            else:
                encoder.load_state_dict(tensors["encoder"])
        self._network = ClassifierNetwork(encoder, self._base.dim, heads).requires_grad_(requires_grad=False).eval()
        logger.info("Loaded a CellTypeClassifier of %s.", listed(list(self.targets)))


def _named(column: str, name: str) -> str:
    return name if column in ("label", "value") else f"{name}_{column}"


def _column(adata: AnnData, key: str) -> pd.Series:
    if key not in adata.obs:
        msg = f"clusters={key!r} is not a column of adata.obs. {did_you_mean(key, adata.obs.columns)}"
        raise KeyError(msg)
    return adata.obs[key].reset_index(drop=True)
