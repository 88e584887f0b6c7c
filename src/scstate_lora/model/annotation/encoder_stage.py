"""The stage that trains an encoder: first without the first fold, which says for how long, then on all cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scstate_lora._logging import logger
from scstate_lora.model.annotation.encoders import own_encoder
from scstate_lora.nn.classifier import ClassifierNetwork
from scstate_lora.nn.lora import add_lora
from scstate_lora.training.annotation.batches import LabelledBatches, LabelledCells, LeftOutBatches
from scstate_lora.training.annotation.plan import ClassifierPlan
from scstate_lora.training.runner import TrainingRun

if TYPE_CHECKING:
    from scstate_lora.config import ClassifierTrainOptions, SELoraConfig
    from scstate_lora.nn.classifier import ResidualHeads

_EPOCHS, _STEPS = 4, 15
_MOST_LEFT_OUT = 2000
ADAPTER = "default"


@dataclass(frozen=True)
class EncoderStage:
    """Training of the encoder of one classifier.

    Parameters
    ----------
    base
        The base, which stays as it is.
    cells
        The labelled cells.
    inside, outside
        Rows of them that train first, and that are left out meanwhile.
    strategy
        ``"full"``, ``"gradual"`` or ``"lora"``.
    lora
        Options of the adapters.
    options
        Of the training.
    seed, fingerprint
        As in :class:`~scstate_lora.training.runner.TrainingRun`.
    """

    base: Any
    cells: LabelledCells
    inside: np.ndarray
    outside: np.ndarray
    strategy: str
    lora: SELoraConfig
    options: ClassifierTrainOptions
    seed: int
    fingerprint: str

    def run(
        self, without_fold: dict[str, ResidualHeads], with_all: dict[str, ResidualHeads]
    ) -> tuple[ClassifierNetwork | None, ClassifierNetwork | None, pd.DataFrame]:
        """Train.

        Parameters
        ----------
        without_fold
            Heads that were trained without the left-out rows, by target; the first training starts at copies.
        with_all
            Heads that were trained on all rows; the second training starts at them.

        Returns
        -------
        The network that has not seen the left-out rows, the one trained on all, both None where the loss of left-out
        cells is lowest at the start, and the history of both.
        """
        outside = self.outside
        if len(outside) > _MOST_LEFT_OUT:
            outside = np.sort(np.random.default_rng(self.seed).choice(outside, _MOST_LEFT_OUT, replace=False))
        trial = self._network(without_fold)
        options = self.options
        history, kept_start = self._fit(trial, self.inside, outside, self._n_epochs(len(self.inside)), options)
        history = history.assign(cells="without the first fold")
        if kept_start:
            logger.info("No epoch lowers the loss of left-out cells: the encoder is left as it was.")
            return None, None, history
        best = history["best"].fillna(value=False).astype(bool) if "best" in history else pd.Series(dtype=bool)
        last = history["epoch"].max() if not best.any() else history.loc[best.to_numpy(), "epoch"].max()
        network = self._network(with_all)
        rows = np.sort(np.concatenate([self.inside, self.outside]))
        again, _ = self._fit(network, rows, None, int(last) + 1, options.part("all_cells"))
        again = again.assign(cells="all")
        return trial, network, pd.concat([history, again], ignore_index=True)

    def _network(self, heads: dict[str, ResidualHeads]) -> ClassifierNetwork:
        encoder = own_encoder(self.base)
        if self.strategy == "lora":
            with torch.random.fork_rng():
                torch.manual_seed(self.seed + 1)
                add_lora(encoder, ADAPTER, **self.lora.model_dump())
        else:
            encoder.requires_grad_(requires_grad=True)
        return ClassifierNetwork(encoder, self.base.dim, heads)

    def _n_epochs(self, n_cells: int) -> int:
        return self.options.max_epochs or max(_EPOCHS, self._frozen_epochs + 2)

    @property
    def _frozen_epochs(self) -> int:
        return self.options.unfreeze_epoch if self.strategy == "gradual" else 0

    def _fit(
        self,
        network: ClassifierNetwork,
        rows: np.ndarray,
        outside: np.ndarray | None,
        n_epochs: int,
        options: ClassifierTrainOptions,
    ) -> tuple[pd.DataFrame, bool]:
        train = LabelledBatches(
            self.cells,
            rows,
            batch_size=options.batch_size,
            seed=self.seed,
            steps_per_epoch=None if options.max_epochs else min(_STEPS, max(1, len(rows) // options.batch_size)),
            frozen_epochs=self._frozen_epochs,
        )
        plan = ClassifierPlan(
            network,
            backbone_lr=options.backbone_lr,
            adapter_lr=options.adapter_lr,
            unfreeze_epoch=self._frozen_epochs,
            lr=options.head_lr,
            weight_decay=options.weight_decay,
            warmup_steps=options.warmup_steps,
        )
        run = TrainingRun(
            plan,
            options=options,
            title="CellTypeClassifier",
            seed=self.seed,
            cells=self.fingerprint,
            keep_start=True,
        )
        val = None if outside is None else LeftOutBatches(self.cells, outside, batch_size=256)
        run.fit(train, val, max_epochs=n_epochs)
        return run.history, run.kept_start
