"""Read torch checkpoints and pickles of others without running anything that is in them.

The file formats are read here and not by torch.load, which may hand a file on to other readers (TorchScript, tar).
Tensors are mapped from the file rather than copied. :mod:`scstate_lora.io.pickle.records` says what a pickle may hold.
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
"""What a file of torch.save in the format before zip begins with."""
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
"""What reading random bytes as a pickle or a zip archive was seen to raise, or may."""


class UnsafePickleError(ValueError):
    """A file names something that is not plain data. It was not run."""


def load_torch(path: str | Path, *, mmap: bool = True) -> Any:
    """Read a file of ``torch.save``, such as a ``.ckpt`` or ``.pt``, in the zip format or the one before it.

    Tensors lie on the CPU wherever they were saved, need no gradient, and share memory where they shared it. Parameters
    become tensors; sizes tuples; devices and paths text; OmegaConf and Lightning containers plain dicts and lists, with
    interpolations as the text they are; an enum its value; a class named as a value its full name.

    Parameters
    ----------
    path
        The file.
    mmap
        Leave tensors in the file and map them, so that only what is used is read. Writing to them does not change the
        file. Otherwise they are copied into memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    UnsafePickleError
        If it names anything but tensors, arrays and plain containers.
    ValueError
        If it is truncated, damaged or of another format.
    """
    path = _existing(path)
    with path.open("rb") as file, _explained(path):
        start = file.read(512)
        file.seek(0)
        _refuse_others(start)
        if start[257:262] == b"ustar":
            msg = "is in the tar format of torch before 0.2. Save it again with a newer torch."
            raise UnreadableError(msg)
        mapped = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
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
        If there is no such file.
    UnsafePickleError
        If it names anything but arrays and plain containers.
    ValueError
        If it is truncated, damaged or of another format.
    """
    path = _existing(path)
    with path.open("rb") as file, _explained(path):
        start = file.read(512)
        file.seek(0)
        _refuse_others(start)
        record = _MAGIC if start.startswith(b"PK") else unpickle(file)
        if type(record) is int and record == _MAGIC:
            msg = "was written by torch.save and is not a plain pickle. Give one of pickle.dump."
            raise UnreadableError(msg)
        return Builder(_no_storage).build(record)


class _Cutter:
    """Cuts storages out of a mapped file."""

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
            if self._copy or start % record.dtype.itemsize:  # the format before zip does not align numbers
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
            msg = "has the other byte order than this machine. Save it again on one like this."
            raise UnreadableError(msg)
        record = unpickle(io.BytesIO(archive.read(f"{root}data.pkl")))

    def storage(wanted: StorageRecord) -> torch.UntypedStorage:
        entry = entries[f"{root}data/{wanted.key}"]
        if entry.compress_type != zipfile.ZIP_STORED:
            msg = "was compressed after torch.save wrote it. Get the original, or save it again."
            raise UnreadableError(msg)
        if wanted.numel * wanted.dtype.itemsize > entry.file_size:
            msg = f"tensor {wanted.key} is shorter than said"
            raise ValueError(msg)
        file.seek(entry.header_offset)
        signature, n_name, n_extra = struct.unpack("<4s22xHH", file.read(30))
        if signature != b"PK\3\4":
            msg = f"tensor {wanted.key} is not where the archive says"
            raise ValueError(msg)
        return cutter.cut(wanted, entry.header_offset + 30 + n_name + n_extra)

    return Builder(storage).build(record)


def _read_before_zip(file: IO[bytes], cutter: _Cutter) -> Any:
    # Five pickles: two marks, the machine, the object, the order of the storages. Then each one's length and numbers.
    if unpickle(file) != _MAGIC or unpickle(file) != _PROTOCOL:
        msg = "it does not begin as torch.save writes"
        raise ValueError(msg)
    if unpickle(file)["little_endian"] != (sys.byteorder == "little"):
        msg = "has the other byte order than this machine. Save it again on one like this."
        raise UnreadableError(msg)
    storages: dict[str, StorageRecord] = {}
    record = unpickle(file, storages)
    starts = {}
    for key in unpickle(file):
        (numel,) = struct.unpack("=q", file.read(8))
        if numel != storages[key].numel:
            msg = f"tensor {key} has {numel} numbers, not {storages[key].numel}"
            raise ValueError(msg)
        starts[key] = file.tell()
        file.seek(numel * storages[key].dtype.itemsize, 1)
    return Builder(lambda wanted: cutter.cut(wanted, starts[wanted.key])).build(record)


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if path.is_dir():
        msg = f"{path} is a directory. Give the file in it that is to be read."
        raise FileNotFoundError(msg)
    if not path.exists():
        msg = f"There is no file {path}. Check the path."
        raise FileNotFoundError(msg)
    return path


def _refuse_others(start: bytes) -> None:
    if not start:
        msg = "it is empty"
        raise EOFError(msg)
    if start.startswith(b"version https://git-lfs"):
        msg = "is a pointer of Git LFS and not the data. Run `git lfs pull`, or download the file."
        raise UnreadableError(msg)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except RefusedError as error:
        msg = (
            f"{path} asks for {error}, which is not plain data and may be code. It was not run. Only tensors, numpy "
            "arrays, numbers, text, and lists and dicts of them are read. Get the file from its source as safetensors, "
            "or have its owner save plain tensors and dicts again with torch.save."
        )
        raise UnsafePickleError(msg) from error
    except UnreadableError as error:
        msg_0 = f"{path} {error}"
        raise ValueError(msg_0) from error
    except _DAMAGE as error:
        msg = f"{path} is truncated or damaged ({type(error).__name__}: {error}). Download or copy it again."
        raise ValueError(msg) from error
