"""Run tasks in another process: jobs in by standard input, answers out by standard output, one line of JSON each.

Imported on both sides, under two Pythons, so it needs nothing but the standard library. Linux only (``/proc``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

FOLDER = Path(__file__).parent


def serve(tasks: Any) -> None:
    """Answer jobs by calling the methods of `tasks`, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        job = json.loads(line)
        result = getattr(tasks, job["task"])(**job["arguments"])
        print(json.dumps(result), file=answers, flush=True)


def peak_memory() -> int:
    """Most bytes that were resident in this process at any time, pages of mapped files included.

    ``VmHWM``, because ``ru_maxrss`` of a process starts at that of the process that started it.
    """
    return _status("VmHWM")


def own_memory() -> int:
    """Bytes resident in this process now that are no pages of a file, which the system may drop."""
    return _status("RssAnon")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    msg = f"/proc/self/status has no {field}: this needs Linux."
    raise RuntimeError(msg)


class Worker:
    """A process that runs a worker script.

    Parameters
    ----------
    python, script
        Which Python runs which script of this folder.
    threads
        Number of threads of its numerical libraries.
    log
        Where what it prints is appended.
    """

    def __init__(self, python: str, script: str, *, threads: int, log: Path) -> None:
        numbers = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), str(threads))
        environment = {**os.environ, **numbers, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        self.log = log
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [python, str(FOLDER / script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __call__(self, task: str, **arguments: Any) -> Any:
        """Run one task and wait for its answer."""
        print(json.dumps({"task": task, "arguments": arguments}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            msg = f"The worker stopped at {task!r}; see the end of {self.log}."
            raise RuntimeError(msg)
        return json.loads(line)
