"""Write a file or folder whole or not at all: it is built beside its place, flushed to the disk, and moved there."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@contextmanager
def in_place(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; it replaces `path` at the end, or is deleted on an error.

    Parameters
    ----------
    path
        File or folder to write. Missing parents are made.

    Raises
    ------
    OSError
        If writing fails, for instance on a full disk; `path` is unchanged.
    """
    work: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        new = work / "new"
        yield new
        if new.is_dir():  # a folder cannot be replaced by another in one step
            _swap(new, path, work / "old")
        else:
            flush(new)
            new.replace(path)
    except OSError as error:
        msg = f"Writing {path} failed: {error}. Existing content is unchanged. Free some space or write elsewhere."
        raise OSError(error.errno or 0, msg) from error  # OSError picks its subclass by number
    else:
        flush(path.parent)
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def beside(path: Path) -> Path:
    """Folder in which the successor of a folder of results is built, under a name that shows what it is."""
    return path.with_name(f"{path.name}.new")


def replace_folder(path: Path, new: Path, *, keep: Iterable[Path]) -> None:
    """Replace a folder by another beside it.

    Parameters
    ----------
    path, new
        The folder, and its successor, which has moved there afterwards.
    keep
        Files and folders to keep, relative to `path`.
    """
    for name in keep:
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).rename(new / name)
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        _swap(new, path, old / "old")
        flush(path.parent)
    finally:
        shutil.rmtree(old, ignore_errors=True)


def interrupted(path: Path) -> Path | None:
    """Where a process that was killed between the two moves of a folder has left the folder before; None if nowhere."""
    left = sorted(path.parent.glob(f".{glob.escape(path.name)}.*/old")) if path.parent.is_dir() else []
    return left[-1] if left else None


def flush(path: Path) -> None:
    """Have the system write a file or folder to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    # Windows flushes only what is open for writing; a folder opens only for reading.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(new: Path, path: Path, old: Path) -> None:
    """Move `new` to `path`, and what was there to `old`; back again if that fails."""
    replaces = path.exists()
    if replaces:
        path.rename(old)
    try:
        new.rename(path)
    except BaseException:  # Ctrl-C too
        if replaces:
            old.rename(path)
        raise
