"""The stage that trains an encoder: first without the first fold, which says for how long, then on all cells."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scstate_lora._logging import logger
from scstate_lora.losses.labels import label_loss
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
_AT_ONCE = 128
_ORDER = ("first", "second")
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
    folds
        Rows of them that train first, and that are left out meanwhile, once or twice.
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
    folds: list[tuple[np.ndarray, np.ndarray]]
    strategy: str
    lora: SELoraConfig
    options: ClassifierTrainOptions
    seed: int
    fingerprint: str

    def run(
        self, without_fold: list[dict[str, ResidualHeads]], with_all: dict[str, ResidualHeads]
    ) -> tuple[ClassifierNetwork | None, ClassifierNetwork | None, pd.DataFrame]:
        """Train.

        Parameters
        ----------
        without_fold
            Heads that were trained without each fold, by target; trials start at copies.
        with_all
            Heads that were trained on all rows; the training on all starts at copies.

        Returns
        -------
        The network that has not seen the first fold, the one trained on all, both None where training does not lower
        the loss of each fold that was left out by more than its error, and the history of all.
        """
        options = self.options
        trials, histories = [], []
        for number, (heads, (inside, left_out)) in enumerate(zip(without_fold, self.folds, strict=True)):
            outside = left_out
            if len(outside) > _MOST_LEFT_OUT:
                outside = np.sort(np.random.default_rng(self.seed).choice(outside, _MOST_LEFT_OUT, replace=False))
            trials.append(self._network(heads))
            of_trial = options if number == 0 else options.part("second_fold")
            history, kept_start = self._fit(trials[-1], inside, outside, self._n_epochs, of_trial)
            histories.append(history.assign(cells=f"without the {_ORDER[number]} fold"))
            if not options.restore_best:
                break
            if kept_start or not self._pays(trials[-1], heads, outside):
                logger.info(
                    "No epoch lowers the loss of left-out cells beyond its error: the encoder is left as it was."
                )
                return None, None, pd.concat(histories, ignore_index=True)
        first = histories[0]
        last = first.loc[first["best"], "epoch"].max() if first["best"].any() else first["epoch"].max()
        network = self._network(with_all)
        rows = np.sort(np.concatenate(self.folds[0]))
        again, _ = self._fit(network, rows, None, int(last) + 1, options.part("all_cells"))
        return trials[0], network, pd.concat([*histories, again.assign(cells="all")], ignore_index=True)

    def _pays(self, trial: ClassifierNetwork, start: dict[str, ResidualHeads], outside: np.ndarray) -> bool:
        """Whether the loss of left-out cells is lower than at the start by more than twice its standard error.

        A smaller gain on one fold is as likely to be a loss on new batches.
        """
        trial.eval()
        gains = []
        for rows in np.array_split(outside, -(-len(outside) // _AT_ONCE)):
            batch = {key: torch.from_numpy(array) for key, array in self.cells.tokens(rows).items()}
            with torch.inference_mode():
                embedding = trial.embed(batch)
                after = self._losses(trial.heads_by_target(), embedding, rows)
                first = next(iter(self.cells.targets.values()))
                before = self._losses(start, torch.from_numpy(first.embedding[rows]), rows)
            gains.append((before - after).numpy())
        gain = np.concatenate(gains)
        return bool(gain.mean() > 2 * gain.std() / np.sqrt(len(gain)))

    def _losses(self, heads: dict[str, ResidualHeads], embedding: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """Loss of cells, summed over the targets of which they have a label, ``(n_rows,)``."""
        losses = torch.zeros(len(rows))
        for key, target in self.cells.targets.items():
            start, goal, weights = (torch.from_numpy(getattr(target, n)[rows]) for n in ("start", "goal", "weights"))
            losses += label_loss(start + heads[key].eval()(embedding).mean(0), goal) * weights.sign()
        return losses

    def _network(self, heads: dict[str, ResidualHeads]) -> ClassifierNetwork:
        encoder = own_encoder(self.base)
        if self.strategy == "lora":
            with torch.random.fork_rng():
                torch.manual_seed(self.seed + 1)
                add_lora(encoder, ADAPTER, **self.lora.model_dump())
        else:
            encoder.requires_grad_(requires_grad=True)
        return ClassifierNetwork(encoder, self.base.dim, copy.deepcopy(heads))

    @property
    def _n_epochs(self) -> int:
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
