"""SIGTERM ends a process of ours with status 143 and a word, wherever it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from scstate_lora._termination import Terminated, sigterm_raises
from tests.builders import SMALL_SE, wound

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a process can catch")

_SCRIPT = """
import anndata as ad, scstate_lora as ssl
adata = ad.read_h5ad("wound.h5ad")
ssl.LoRACovariateSE.setup_anndata(adata, covariate_keys=["condition"])
se = ssl.LoRACovariateSE(adata, compact={compact})
try:
    se.train(max_epochs=100000, run_folder="logs", accelerator="cpu", progress_bar=False)
except Exception:
    pass
print("went on")
"""


def _wait_for(path, process):
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    pytest.fail(f"{path} was never written")


def _terminated(folder, arguments, *, once):
    """Start Python, send SIGTERM once a file is there; return the status and what was said."""
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            _wait_for(folder / once, process)
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        return process.returncode, said


@pytest.mark.slow
def test_a_script_ends_with_status_143_and_does_not_go_on(tmp_path):
    wound(200).write_h5ad(tmp_path / "wound.h5ad")
    (tmp_path / "script.py").write_text(_SCRIPT.format(compact=SMALL_SE))
    status, said = _terminated(tmp_path, ["script.py"], once="logs/checkpoints/last.ckpt")
    assert status == 143, said
    assert "went on" not in said
    assert "Stopped by SIGTERM: resume from logs/checkpoints/last.ckpt." in said


@pytest.mark.slow
def test_a_command_outside_of_training_ends_with_status_143_and_a_word(tmp_path):
    script = (
        "import sys, time, pathlib, scstate_lora.cli.application as a\n"
        "@a.app.command()\n"
        "def wait():\n"
        "    pathlib.Path('begun').touch(); time.sleep(60)\n"
        "sys.argv = ['scstate-lora', 'wait']\n"
        "a.main()\n"
    )
    status, said = _terminated(tmp_path, ["-c", script], once="begun")
    assert status == 143, said
    assert said.strip() == "Stopped by SIGTERM."


def test_the_handler_is_restored():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as stopped, sigterm_raises():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_handler_stays():
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: received.append(number))
    try:
        with sigterm_raises():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
