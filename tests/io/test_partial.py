from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from scstate_lora.io import partial
from scstate_lora.io.partial import PartialMatrix

if TYPE_CHECKING:
    from pathlib import Path

ROWS = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
MADE_FROM = {"base": "abc", "seed": 0}


def _open(folder: Path, **changes: object) -> PartialMatrix:
    return PartialMatrix(folder, shape=(20, 3), made_from={**MADE_FROM, **changes})


def _all(matrix: PartialMatrix) -> np.ndarray:
    return np.concatenate([rows for _, rows in matrix.blocks(7)])


def test_rows_are_there_after_closing_and_filled_on(tmp_path: Path) -> None:
    with _open(tmp_path / "a" / "b") as matrix:
        assert matrix.done == 0
        matrix.append(ROWS[:4])
        matrix.append(ROWS[4:9])
    with _open(tmp_path / "a" / "b") as matrix:
        assert matrix.done == 9
        matrix.append(ROWS[9:])
        np.testing.assert_array_equal(_all(matrix), ROWS)
        assert [start for start, _ in matrix.blocks(7)] == [0, 7, 14]
        matrix.remove()
    assert not (tmp_path / "a" / "b").exists()


def test_rows_after_the_last_flush_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "_INTERVAL", 1e9)
    matrix = _open(tmp_path)
    matrix.append(ROWS[:5])
    matrix.flush()
    matrix.append(ROWS[5:8] + 1)
    matrix._file.close()  # as if half of it had reached the disk when the machine went down
    with _open(tmp_path) as again:
        assert again.done == 5
        again.append(ROWS[5:])
        np.testing.assert_array_equal(_all(again), ROWS)


def test_it_is_flushed_by_itself_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "_INTERVAL", 0.0)
    with _open(tmp_path) as matrix:
        matrix.append(ROWS[:6])
        assert json.loads((tmp_path / "progress.json").read_text())["done"] == 6


_WRITER = """
import sys, time, numpy as np
from scstate_lora.io import partial
partial._INTERVAL = 0.0
matrix = partial.PartialMatrix(sys.argv[1], shape=(10**9, 3), made_from={})
row = 0
while True:
    matrix.append(np.full((1, 3), row))
    row += 1
"""


def test_a_killed_process_leaves_whole_rows(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (tmp_path / "progress.json").exists() and json.loads((tmp_path / "progress.json").read_text())["done"] > 20:
            break
        time.sleep(0.02)
    process.kill()
    process.wait()
    with PartialMatrix(tmp_path, shape=(10**9, 3), made_from={}) as matrix:
        assert matrix.done > 20
        np.testing.assert_array_equal(_all(matrix)[:, 1], np.arange(matrix.done))


def test_interrupted_before_the_first_flush_starts_afresh(tmp_path: Path) -> None:
    (tmp_path / "rows.f32").write_bytes(b"\x00" * 50)
    with _open(tmp_path) as matrix:
        assert matrix.done == 0


def test_rows_of_another_base_or_shape_raises(tmp_path: Path) -> None:
    with _open(tmp_path) as matrix:
        matrix.append(ROWS[:2])
    with pytest.raises(ValueError, match=r"something else \(base was abc, is xyz\)\. Delete it"):
        _open(tmp_path, base="xyz")
    with pytest.raises(ValueError, match=r"shape was \[20, 3\], is \[30, 3\]"):
        PartialMatrix(tmp_path, shape=(30, 3), made_from=MADE_FROM)
    with _open(tmp_path) as matrix:
        assert matrix.done == 2


def test_a_folder_of_something_else_raises(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(ValueError, match="holds something other than an interrupted embedding"):
        _open(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.docx"]
