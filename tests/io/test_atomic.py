from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from scstate_lora.io.atomic import in_place, interrupted

if TYPE_CHECKING:
    from pathlib import Path


def _fill(path: Path, text: str, *, folder: bool, failure: BaseException | None = None) -> None:
    with in_place(path) as new:
        if folder:
            new.mkdir()
            (new / "part").write_text(text)
        else:
            new.write_text(text)
        if failure is not None:
            raise failure


def _content(path: Path) -> str:
    return (path / "part" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_replaces_the_content_and_makes_parents(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "results" / "out"
    for text in ("first", "second"):
        _fill(path, text, folder=folder)
        assert _content(path) == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["os", "ctrl-c"])
def test_a_failure_leaves_the_old_content_raises(tmp_path: Path, folder: bool, failure: BaseException) -> None:
    path = tmp_path / "out"
    _fill(path, "old", folder=folder)
    with pytest.raises(type(failure)):
        _fill(path, "half", folder=folder, failure=failure)
    assert _content(path) == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_keeps_its_number_and_names_the_path_raises(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match=r"Writing .*out failed: .*denied.*unchanged"), in_place(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "denied")


def test_the_old_folder_of_a_killed_process_is_located(tmp_path: Path) -> None:
    assert interrupted(tmp_path / "out") is None
    (tmp_path / ".out.abc" / "old").mkdir(parents=True)
    assert interrupted(tmp_path / "out") == tmp_path / ".out.abc" / "old"
    assert interrupted(tmp_path / "absent" / "out") is None
