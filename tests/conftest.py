from __future__ import annotations

import contextlib
import io
import logging
import os
import sys

import pytest

# One thread, set before torch and numba are loaded: sums in one order, so that equal runs give equal bits. Numba as
# well, as its threads would raise torch's number again.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NUMBA_NUM_THREADS"] = "1"


@pytest.hookimpl(tryfirst=True)  # before slow tests are deselected
def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that processes side by side end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _runs_go_elsewhere(tmp_path_factory):
    """No test writes logs and checkpoints into the working directory."""
    from scstate_lora import settings

    settings.run_dir = tmp_path_factory.mktemp("runs")


@pytest.fixture
def caplog(caplog):
    """As pytest's own, also before version 9, which would not see loggers that do not propagate, as the package's."""
    logger = logging.getLogger("scstate_lora")
    is_added = caplog.handler not in logger.handlers
    if is_added:
        logger.addHandler(caplog.handler)
    yield caplog
    if is_added:
        logger.removeHandler(caplog.handler)


@pytest.fixture(scope="session")
def same_training():
    """Compare two trainings, each ``(network, history)``: equal weights and history but for rounding."""
    import pandas as pd
    import torch

    def compare(one, two, *, tolerance=1e-5):
        for (name, first), second in zip(one[0].state_dict().items(), two[0].state_dict().values(), strict=True):
            assert torch.allclose(first, second, atol=tolerance), name
        first, second = (history.drop(columns=["seconds", "peak_memory_mb"]) for _, history in (one, two))
        pd.testing.assert_frame_equal(first, second, rtol=tolerance, atol=tolerance)

    return compare


@pytest.fixture(scope="session")
def call():
    """Run the command line in this process with arguments; gives exit code, stdout, stderr."""
    from scstate_lora import cli

    def run(*arguments):
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["scstate-lora", *map(str, arguments)])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
                cli.main()
        return stopped.value.code or 0, out.getvalue(), err.getvalue()

    return run
