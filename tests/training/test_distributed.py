from __future__ import annotations

import os
import subprocess
import sys

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scstate_lora.config import TrainerOptions
from scstate_lora.losses import supervised_contrastive
from scstate_lora.training.batches import make_loader
from scstate_lora.training.distributed import alone, gather, mean_over_processes, place, rows_of, share
from scstate_lora.training.plans import Plan
from scstate_lora.training.runner import TrainingRun
from tests.builders import NEEDS_FORK

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])


def test_one_process_works_on_what_it_has():
    values = {"x": torch.rand(3, 2, requires_grad=True), "more": {"y": torch.arange(3)}}
    gathered = gather(values)
    assert gathered["x"] is values["x"]
    assert gathered["more"]["y"] is values["more"]["y"]
    assert mean_over_processes(values["x"]) is values["x"]
    assert place() == (0, 1)


def test_tensors_of_any_kind_are_joined_in_the_order_of_ranks(in_processes):
    def held(rank):
        start = 2 * rank
        return {
            "numbers": torch.arange(start, start + 2, dtype=torch.float32)[:, None] * torch.ones(1, 3),
            "turned": torch.arange(6.0).reshape(3, 2).T + 10 * rank,  # not contiguous
            "codes": {"day": torch.tensor([rank, 7]), "known": torch.tensor([rank == 0, True])},
        }

    for result in in_processes(lambda rank: gather(held(rank))):
        first, second = held(0), held(1)
        for name in ("numbers", "turned"):
            assert torch.equal(result[name], torch.cat([first[name], second[name]]))
        for name in ("day", "known"):
            assert torch.equal(result["codes"][name], torch.cat([first["codes"][name], second["codes"][name]]))
            assert result["codes"][name].dtype == first["codes"][name].dtype


class _Coupled(nn.Module):
    """A network before the gathering, and a head after it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        self.head = nn.Linear(3, 3)

    def forward(self, x, labels):
        z, labels = gather(self.network(x)), gather(labels)
        z = nn.functional.normalize(z, dim=1)
        return supervised_contrastive(z, labels, temperature=0.5) + nn.functional.cross_entropy(self.head(z), labels)


def test_gradients_of_a_loss_in_which_cells_meet_are_those_of_one_process(in_processes):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))

    def gradients(rank):
        model = DistributedDataParallel(_Coupled())
        part = slice(4 * rank, 4 * rank + 4)
        loss = model(x[part], LABELS[part])
        loss.backward()
        return loss.detach(), [p.grad for p in model.parameters()]

    model = _Coupled()
    loss = model(x, LABELS)
    loss.backward()
    for found, grads in in_processes(gradients):
        assert torch.allclose(found, loss, atol=1e-6)
        for grad, parameter in zip(grads, model.parameters(), strict=True):
            assert torch.allclose(grad, parameter.grad, atol=1e-6)
            assert grad.abs().max() > 1e-3


def test_within_alone_a_process_keeps_to_itself(in_processes):
    def work(rank):
        mine = torch.tensor([float(rank)])
        with alone():
            kept = gather(mine), place()
        return kept, gather(mine), mean_over_processes(mine), place()

    for rank, result in enumerate(in_processes(work)):
        kept, joined, mean, where = result
        assert kept == (torch.tensor([float(rank)]), (0, 1))
        assert joined.tolist() == [0, 1]
        assert mean.tolist() == [0.5]
        assert where == (rank, 2)


class _Cells:
    steps_per_epoch = 2
    shared = frozenset({"target_genes"})

    def __getitem__(self, step):
        x = np.arange(4, dtype=np.float32) + 10 * step
        return {"x": x, "covariates": {"day": x[:, None] + 1}, "target_genes": np.arange(3)}


def test_loader_shares_training_batches_out_and_leaves_validation_batches_whole(in_processes):
    def read(rank):
        return [list(make_loader(_Cells(), train=train)) for train in (True, False)]

    for rank, (train, val) in enumerate(in_processes(read)):
        for step in range(2):
            mine = torch.arange(2.0) + 10 * step + 2 * rank
            assert torch.equal(train[step]["x"], mine)
            assert torch.equal(train[step]["covariates"]["day"], mine[:, None] + 1)
            assert torch.equal(train[step]["target_genes"], torch.arange(3))
            assert torch.equal(val[step]["x"], torch.arange(4.0) + 10 * step)


def test_batch_that_does_not_divide_raises():
    batch = {"target_genes": np.arange(4), "covariates": {"day": np.zeros(7)}}
    assert rows_of(batch, shared={"target_genes"}) == 7
    with pytest.raises(ValueError, match=r"batch of 7 does not divide .* devices=2 .* batch_size .* instance 6"):
        share(batch, shared={"target_genes"}, rank=0, n_processes=2)


class _Pairs:
    """Batches of eight labelled cells."""

    steps_per_epoch = 3

    def __init__(self, n=8, start=0):
        self.n, self.start = n, start

    def __getitem__(self, step):
        rng = np.random.default_rng([self.start, step])
        labels = rng.integers(3, size=self.n)
        x = rng.normal(size=(self.n, 4)) + labels[:, None]
        return {"x": x.astype(np.float32), "labels": labels}


class _PairsPlan(Plan):
    """A loss in which cells meet, and one in which they do not."""

    def __init__(self):
        super().__init__(lr=0.02, weight_decay=0.01, warmup_steps=1, weights={"contrastive": 1.0, "size": 0.1})
        self.coupled = _Coupled()

    def terms(self, batch):
        return {
            "contrastive": self.coupled(batch["x"], batch["labels"]),
            "size": self.coupled.network(batch["x"]).square().sum(1).mean(),
        }


def _train(n_cells=8, kept=None, **options):
    plan, kept = _PairsPlan(), [] if kept is None else kept
    options = TrainerOptions(accelerator="cpu", progress_bar=False, **options)
    # Five validation cells: a number that two processes cannot share.
    sources = _Pairs(n_cells), _Pairs(5, start=1)
    run = TrainingRun(plan, options=options, title="pairs", seed=0)
    try:
        run.fit(*sources, max_epochs=3)
    finally:
        kept.append(run.history)
    return plan, run.history


TWO = {"devices": 2, "strategy": "ddp_fork"}


@NEEDS_FORK
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_what_one_does(tmp_path, same_training, accumulate):
    one = _train(logger=False, accumulate_grad_batches=accumulate)
    two = _train(run_folder=tmp_path, accumulate_grad_batches=accumulate, **TWO)
    same_training(one, two)
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    pd.testing.assert_frame_equal(metrics, two[1], rtol=1e-6)
    assert {file.name for file in (tmp_path / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}


@NEEDS_FORK
def test_what_two_processes_began_one_can_finish(tmp_path, same_training):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 5:
                raise RuntimeError("stopped here")

    kept = []
    with pytest.raises(Exception, match="stopped here"):
        _train(run_folder=tmp_path, callbacks=Stop(), kept=kept, **TWO)
    assert kept[0].empty  # the weights are gone with the processes, so there is no history of them either
    same_training(_train(logger=False), _train(resume_from=tmp_path))


@NEEDS_FORK
def test_batch_size_that_devices_cannot_share_ends_before_training_raises(tmp_path):
    with pytest.raises(ValueError, match=r"batch of 7 .* devices=2 .* batch_size"):
        _train(n_cells=7, run_folder=tmp_path / "run", **TWO)
    assert not list(tmp_path.iterdir())


SCRIPT = """
import sys
import numpy as np, torch
from torch import nn
from scstate_lora.training.distributed import gather, place
from scstate_lora.training.plans import Plan
from scstate_lora.config import TrainerOptions
from scstate_lora.training.runner import TrainingRun

class Cells:
    steps_per_epoch = 2
    def __getitem__(self, step):
        return {"x": np.random.default_rng(step).normal(size=(6, 3)).astype(np.float32)}

class Spread(Plan):
    def __init__(self):
        super().__init__(lr=0.02, weight_decay=0, warmup_steps=0, weights={"spread": 1.0})
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 2)
    def terms(self, batch):
        z = gather(self.linear(batch["x"]))
        return {"spread": torch.cdist(z, z).mean()}

def train(**options):
    plan = Spread()
    options = TrainerOptions(accelerator="cpu", progress_bar=False, logger=False, **options)
    run = TrainingRun(plan, options=options, title="t", seed=0)
    run.fit(Cells(), Cells(), max_epochs=2)
    return plan.linear.weight.detach(), run.history

if __name__ == "__main__":
    two, its = train(devices=2, strategy=sys.argv[1])
    one, history = train()  # with the other processes still there, but alone
    assert torch.allclose(one, two, atol=1e-5), (one, two)
    assert np.allclose(history["loss"], its["loss"], atol=1e-5)
    assert history["best"].tolist() == its["best"].tolist()
    print(f"process {place()[0]} agrees")
"""


@pytest.mark.slow  # starts an interpreter
@NEEDS_FORK
def test_forked_processes_do_not_wait_for_threads_left_in_the_caller(tmp_path):
    parallel = "torch.ones(1_000_000).exp()"  # needs OpenMP's second thread, which a forked process does not have
    script = tmp_path / "script.py"
    text = SCRIPT.replace("def train(", f"{parallel}\n\ndef train(").replace("z = ", f"{parallel}; z = ")
    script.write_text(text)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    run = subprocess.run(
        [sys.executable, script, "ddp_fork"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("agrees") == 1


@pytest.mark.slow  # up to seven interpreters are started
@pytest.mark.parametrize(("strategy", "n_scripts"), [("ddp", 2), ("ddp_spawn", 1)])
def test_a_script_gets_weights_and_history_whichever_way_processes_start(tmp_path, strategy, n_scripts):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, script, strategy], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("agrees") == n_scripts
    assert [file.name for file in tmp_path.iterdir()] == ["script.py"]
