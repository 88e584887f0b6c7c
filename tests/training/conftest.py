from __future__ import annotations

import multiprocessing
import os
import traceback

import pytest
import torch
from torch import distributed as dist


def _work(function, rank, n, folder):
    torch.set_num_threads(1)  # OpenMP's others were left behind by the fork
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=n)
        torch.save(function(rank), folder / f"{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        raise


@pytest.fixture
def in_processes(tmp_path):
    """Run ``function(rank)`` in two processes that are joined by gloo, and give what they returned, by rank."""

    if not hasattr(os, "fork"):
        pytest.skip("Windows cannot fork")

    def run(function, n=2):
        folder = tmp_path / f"processes{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        context = multiprocessing.get_context("fork")  # functions of a test need no pickling
        started = [context.Process(target=_work, args=(function, rank, n, folder)) for rank in range(n)]
        for process in started:
            process.start()
        for process in started:
            process.join(60)
        hung = [process for process in started if process.is_alive()]
        for process in hung:
            process.kill()
        errors = [error.read_text() for error in sorted(folder.glob("*.error"))]
        assert not errors, errors[0]
        assert not hung, "a process waits for another for ever"
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(n)]

    return run
