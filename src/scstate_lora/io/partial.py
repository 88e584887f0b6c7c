"""A matrix on disk that is filled from the front, and filled on after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DONE = "progress.json"
_ROWS = "rows.f32"
# Seconds between two flushes to the disk: what at most is computed again after a kill.
_INTERVAL = 1.0


class PartialMatrix:
    """Rows of a float32 matrix, appended in order to a folder; what was flushed outlives the process.

    Parameters
    ----------
    folder
        Made where it does not exist.
    shape
        Of the finished matrix.
    made_from
        What the matrix depends on, JSON-able. A folder with another one is refused.

    Raises
    ------
    ValueError
        The folder holds something else, or rows made from something else.
    OSError
        The folder cannot be written to.
    """

    def __init__(self, folder: str | Path, *, shape: tuple[int, int], made_from: Mapping[str, Any]) -> None:
        self.folder = Path(folder).expanduser()
        self.shape = shape
        self._made_from = {**made_from, "shape": list(shape)}
        self.done = self._read_done()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = (self.folder / _ROWS).open("r+b" if (self.folder / _ROWS).exists() else "w+b")
        # What was lost is computed again; rows after the last flush may be torn.
        self.done = min(self.done, (self.folder / _ROWS).stat().st_size // self._row_bytes)
        self._file.truncate(self.done * self._row_bytes)
        self._file.seek(0, os.SEEK_END)
        self._flushed = time.monotonic()

    @property
    def _row_bytes(self) -> int:
        return 4 * self.shape[1]

    def append(self, rows: np.ndarray) -> None:
        """Add the next rows, ``(n, shape[1])``."""
        self._file.write(np.ascontiguousarray(rows, dtype=np.float32).data)
        self.done += len(rows)
        if time.monotonic() - self._flushed > _INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Make sure that the rows so far outlive a crash: first the rows, then their number."""
        self._file.flush()
        os.fsync(self._file.fileno())
        text = json.dumps({"made_from": self._made_from, "done": self.done})
        temporary = self.folder / f"{_DONE}.new"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.folder / _DONE)
        self._flushed = time.monotonic()

    def blocks(self, n_rows: int = 4096) -> Iterator[tuple[int, np.ndarray]]:
        """Read the rows so far, some at a time: the first row's number and the rows."""
        self.flush()
        for start in range(0, self.done, n_rows):
            count = min(n_rows, self.done - start) * self.shape[1]
            rows = np.fromfile(self.folder / _ROWS, dtype=np.float32, count=count, offset=start * self._row_bytes)
            yield start, rows.reshape(-1, self.shape[1])

    def remove(self) -> None:
        """Delete the folder, once the matrix is where it belongs."""
        self._file.close()
        shutil.rmtree(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._file.closed:
            self.flush()
            self._file.close()

    def _read_done(self) -> int:
        """Find how many rows are there already."""
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return 0
        if not self.folder.is_dir() or {f.name for f in self.folder.iterdir()} - {_DONE, _ROWS, f"{_DONE}.new"}:
            msg = f"{self.folder} holds something else than an interrupted embedding. Name another folder."
            raise ValueError(msg)
        try:
            stored = json.loads((self.folder / _DONE).read_text(encoding="utf-8"))
        except FileNotFoundError:  # interrupted before the first flush
            return 0
        found = stored["made_from"]
        differing = [key for key in {**found, **self._made_from} if found.get(key) != self._made_from.get(key)]
        if differing:
            listed = "; ".join(f"{key} was {found.get(key)}, is {self._made_from.get(key)}" for key in differing[:3])
            msg = (
                f"{self.folder} holds an interrupted embedding of something else ({listed}). Delete it to start "
                "afresh, or name another folder."
            )
            raise ValueError(msg)
        return int(stored["done"])
