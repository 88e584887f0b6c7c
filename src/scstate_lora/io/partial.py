"""A matrix on disk that is filled row by row and can be resumed after an interruption."""

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
_INTERVAL = 1.0
"""Seconds between two flushes to the disk: a killed process loses at most this much work."""


class PartialMatrix:
    """Rows of a float32 matrix, appended in order to a folder; flushed rows survive the process.

    Parameters
    ----------
    folder
        Created if it does not exist.
    shape
        Shape of the finished matrix.
    made_from
        Description of everything the matrix depends on, JSON-able. A folder with another description is refused.

    Raises
    ------
    ValueError
        If the folder holds other files, or rows made from something else.
    OSError
        If the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, *, shape: tuple[int, int], made_from: Mapping[str, Any]) -> None:
        self.folder = Path(folder).expanduser()
        self.shape = shape
        self._made_from = {**made_from, "shape": list(shape)}
        self.done = self._read_done()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = (self.folder / _ROWS).open("r+b" if (self.folder / _ROWS).exists() else "w+b")
        # Rows after the last flush may be torn, and are computed again.
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
        """Write the rows so far to the disk, then their number, so that both survive a crash."""
        self._file.flush()
        os.fsync(self._file.fileno())
        text = json.dumps({"made_from": self._made_from, "done": self.done})
        temporary = self.folder / f"{_DONE}.new"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.folder / _DONE)
        self._flushed = time.monotonic()

    def blocks(self, n_rows: int = 4096) -> Iterator[tuple[int, np.ndarray]]:
        """Read the rows so far in blocks: the number of the first row, and the rows ``(n, shape[1])``."""
        self.flush()
        for start in range(0, self.done, n_rows):
            count = min(n_rows, self.done - start) * self.shape[1]
            rows = np.fromfile(self.folder / _ROWS, dtype=np.float32, count=count, offset=start * self._row_bytes)
            yield start, rows.reshape(-1, self.shape[1])

    def remove(self) -> None:
        """Delete the folder, once the matrix has been copied to its destination."""
        self._file.close()
        shutil.rmtree(self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._file.closed:
            self.flush()
            self._file.close()

    def _read_done(self) -> int:
        """Read the number of rows done already."""
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return 0
        if not self.folder.is_dir() or {f.name for f in self.folder.iterdir()} - {_DONE, _ROWS, f"{_DONE}.new"}:
            msg = f"{self.folder} holds something other than an interrupted embedding. Choose another folder."
            raise ValueError(msg)
        try:
            stored = json.loads((self.folder / _DONE).read_text(encoding="utf-8"))
        except FileNotFoundError:  # interrupted before the first flush
            return 0
        before, now = stored["made_from"], self._made_from
        differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if differing:
            listed = "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in differing[:3])
            msg = (
                f"{self.folder} holds an interrupted embedding of something else ({listed}). Delete it to start "
                "afresh, or choose another folder."
            )
            raise ValueError(msg)
        return int(stored["done"])
