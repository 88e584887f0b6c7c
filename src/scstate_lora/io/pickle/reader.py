"""Read torch checkpoints and pickles from others without running code in them.

The file formats are parsed here rather than by torch.load, which may pass a file on to other readers (TorchScript,
tar). Tensors are mapped from the file rather than copied. :mod:`scstate_lora.io.pickle.records` defines what a pickle
may hold.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from scstate_lora.io.pickle.records import Builder, RefusedError, StorageRecord, UnreadableError, unpickle

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""First values in a file of torch.save in the format before zip."""
_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors that reading random bytes as a pickle or a zip archive can raise."""


class UnsafePickleError(ValueError):
    """A file refers to something other than plain data, which was not run."""


def load_torch(path: str | Path, *, mmap: bool = True) -> Any:
    """Read a file of ``torch.save``, such as a ``.ckpt`` or ``.pt``, in the zip format or the one before it.

    Tensors are on the CPU, require no gradient, and share memory as they did when saved. Parameters become tensors;
    sizes become tuples; devices and paths, text; OmegaConf and Lightning containers, plain dicts and lists, with
    interpolations left as text; an enum, its value; a class used as a value, its full name.

    Parameters
    ----------
    path
        The file.
    mmap
        Map tensors from the file, so that only those used are read; writing to them does not change the file. Otherwise
        they are copied into memory.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    UnsafePickleError
        If it refers to anything but tensors, arrays and plain containers.
    ValueError
        If it is truncated, damaged or of another format.
    """
    with _opened(path) as (file, start):
        if start[257:262] == b"ustar":
            msg = "is in the tar format of torch before 0.2. Save it again with a newer torch."
            raise UnreadableError(msg)
        mapped = torch.UntypedStorage.from_file(file.name, shared=False, nbytes=Path(file.name).stat().st_size)
        read = _read_zip if start.startswith(b"PK") else _read_before_zip
        return read(file, _Cutter(mapped, copy=not mmap))


def load_pickle(path: str | Path) -> Any:
    """Read a plain pickle, as ``pickle.dump`` writes it, of plain containers and numpy arrays.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    UnsafePickleError
        If it refers to anything but arrays and plain containers.
    ValueError
        If it is truncated, damaged or of another format.
    """
    with _opened(path) as (file, start):
        record = _MAGIC if start.startswith(b"PK") else unpickle(file)
        if type(record) is int and record == _MAGIC:
            msg = "was written by torch.save and is not a plain pickle. Give one of pickle.dump."
            raise UnreadableError(msg)
        return Builder(_no_storage).build(record)


class _Cutter:
    """Cuts the storages of tensors out of a mapped file."""

    def __init__(self, mapped: Any, *, copy: bool) -> None:
        self._mapped = mapped
        self._copy = copy
        self._cut: dict[StorageRecord, torch.UntypedStorage] = {}

    def cut(self, record: StorageRecord, start: int) -> torch.UntypedStorage:
        if record not in self._cut:
            stop = start + record.numel * record.dtype.itemsize
            if stop > self._mapped.nbytes():
                msg = f"the file ends within tensor {record.key}"
                raise ValueError(msg)
            storage = self._mapped[start:stop] if stop > start else torch.UntypedStorage(0)
            if self._copy or start % record.dtype.itemsize:  # the format before zip does not align data
                storage = storage.clone()
            self._cut[record] = storage
        return self._cut[record]


def _no_storage(record: StorageRecord) -> torch.UntypedStorage:
    msg = "a plain pickle refers to tensor data outside of itself"
    raise ValueError(msg)


def _read_zip(file: IO[bytes], cutter: _Cutter) -> Any:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            msg = "is a zip archive that torch.save did not write: it has no data.pkl, or several."
            raise UnreadableError(msg)
        root = roots[0]
        if f"{root}constants.pkl" in entries:
            msg = "is a TorchScript archive, which holds code. Save the model's state_dict instead."
            raise UnreadableError(msg)
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder").decode() != sys.byteorder:
            msg = "has another byte order than this machine. Save it again on a machine like this one."
            raise UnreadableError(msg)
        record = unpickle(io.BytesIO(archive.read(f"{root}data.pkl")))

    def storage(part: StorageRecord) -> torch.UntypedStorage:
        entry = entries[f"{root}data/{part.key}"]
        if entry.compress_type != zipfile.ZIP_STORED:
            msg = "was compressed after torch.save wrote it. Get the original, or save it again."
            raise UnreadableError(msg)
        if part.numel * part.dtype.itemsize > entry.file_size:
            msg = f"tensor {part.key} is shorter than declared"
            raise ValueError(msg)
        file.seek(entry.header_offset)
        signature, n_name, n_extra = struct.unpack("<4s22xHH", file.read(30))
        if signature != b"PK\3\4":
            msg = f"tensor {part.key} is not at the position that the archive declares"
            raise ValueError(msg)
        return cutter.cut(part, entry.header_offset + 30 + n_name + n_extra)

    return Builder(storage).build(record)


def _read_before_zip(file: IO[bytes], cutter: _Cutter) -> Any:
    # Five pickles: two marks, the machine, the object, the order of storages. Then length and data of each storage.
    if unpickle(file) != _MAGIC or unpickle(file) != _PROTOCOL:
        msg = "it does not begin like a file of torch.save"
        raise ValueError(msg)
    if unpickle(file)["little_endian"] != (sys.byteorder == "little"):
        msg = "has another byte order than this machine. Save it again on a machine like this one."
        raise UnreadableError(msg)
    storages: dict[str, StorageRecord] = {}
    record = unpickle(file, storages)
    starts = {}
    for key in unpickle(file):
        (numel,) = struct.unpack("=q", file.read(8))
        if numel != storages[key].numel:
            msg = f"tensor {key} has {numel} elements, not {storages[key].numel}"
            raise ValueError(msg)
        starts[key] = file.tell()
        file.seek(numel * storages[key].dtype.itemsize, 1)
    return Builder(lambda part: cutter.cut(part, starts[part.key])).build(record)


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[IO[bytes], bytes]]:
    """Open a file, with its first bytes, and translate all errors of reading it."""
    path = Path(path).expanduser()
    if path.is_dir():
        msg = f"{path} is a directory. Give the file in it to read."
        raise FileNotFoundError(msg)
    if not path.exists():
        msg = f"There is no file {path}. Check the path."
        raise FileNotFoundError(msg)
    with path.open("rb") as file, _explained(path):
        start = file.read(512)
        file.seek(0)
        _refuse_others(start)
        yield file, start


def _refuse_others(start: bytes) -> None:
    if not start:
        msg = "it is empty"
        raise EOFError(msg)
    if start.startswith(b"version https://git-lfs"):
        msg = "is a pointer of Git LFS, not the data. Run `git lfs pull`, or download the file."
        raise UnreadableError(msg)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except RefusedError as error:
        msg = (
            f"{path} asks for {error}, which is not plain data and may be code. It was not run. Only tensors, numpy "
            "arrays, numbers, text, and lists and dicts of these are read. Get the file from its source as "
            "safetensors, or ask its owner to save plain tensors and dicts again with torch.save."
        )
        raise UnsafePickleError(msg) from error
    except UnreadableError as error:
        msg = f"{path} {error}"
        raise ValueError(msg) from error
    except _DAMAGE as error:
        msg = f"{path} is truncated or damaged ({type(error).__name__}: {error}). Download or copy it again."
        raise ValueError(msg) from error
