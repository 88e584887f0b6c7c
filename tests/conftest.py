from __future__ import annotations

import os

import pytest

# One thread, set before torch and numba are loaded: sums in one order, so that equal runs give equal bits. Numba as
# well, as its threads would raise torch's number again.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NUMBA_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _runs_go_elsewhere(tmp_path_factory):
    """No test writes logs and checkpoints into the working directory."""
    from scstate_lora import settings

    settings.run_dir = tmp_path_factory.mktemp("runs")
