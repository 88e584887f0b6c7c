"""The names a pickle from others may use, as inert records, and the plain data built from these.

A pickle is a program. Here it only reaches our records: no name in it is imported, and every name that is not in the
table below is refused. Tensors and arrays are built afterwards, from checked values.
"""

from __future__ import annotations

import copyreg
import datetime
import math
import pickle
import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

_INERT_PACKAGES = ("omegaconf", "lightning", "lightning_fabric", "lightning_utilities", "pytorch_lightning")
# Objects that the training of others leaves among the hyperparameters: Arc's, a collator of batches and a loss without
# state; scModelForge's, its options of the optimiser.
_INERT_CLASSES = (
    "argparse.Namespace",
    "scmodelforge.config.schema.OptimizerConfig",
    "scmodelforge.config.schema.SchedulerConfig",
    "state.emb.data.loader.VCIDatasetSentenceCollator",
    "torch.nn.modules.loss.MSELoss",
    "vci.data.loader.VCIDatasetSentenceCollator",
)
_ARRAY_TYPES = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[US]\d+|O8?")


class RefusedError(Exception):
    """A pickle asked for something that is refused; the message is its full name."""


class UnreadableError(Exception):
    """A file cannot be read; the message is a sentence whose subject is the file."""


class _Global:
    """Stands for a name in a pickle: calls a function of ours or, without one, only holds the name."""

    __slots__ = ("full_name", "make")

    def __init__(self, full_name: str, make: Callable[..., Any] | None = None) -> None:
        self.full_name = full_name
        self.make = make

    def __call__(self, *args: Any) -> Any:
        if self.make is None:
            raise RefusedError(self.full_name)
        return self.make(*args)

    def __setstate__(self, state: Any) -> None:  # a pickle may set the state of any object it holds
        msg = f"a change of {self.full_name}"
        raise RefusedError(msg)


class StorageRecord(NamedTuple):
    """The data of one or more tensors: its name in the file, type and number of elements."""

    key: str
    dtype: torch.dtype
    numel: int


class _Tensor(NamedTuple):
    storage: StorageRecord
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _DType:
    """A numpy dtype by its code. The state of numpy's own dtype has flags that can forge pointers."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not _ARRAY_TYPES.fullmatch(code):
            msg = f"numpy.dtype({code!r})"
            raise RefusedError(msg)
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, order, subtype, names, fields = state[:5]
        if order not in ("<", ">", "|", "=") or (subtype, names, fields) != (None, None, None):
            msg = f"numpy.dtype with the state {state!r}"
            raise RefusedError(msg)
        self.order = order

    def build(self) -> np.dtype:
        return np.dtype(self.code if self.order == "|" else self.order + self.code)


class _Array:
    __slots__ = ("data", "dtype", "order", "shape")

    def __init__(self, *_: Any) -> None:
        self.__setstate__((1, (0,), _DType("f8"), False, b""))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, self.shape, self.dtype, fortran, self.data = state
        self.order = "F" if fortran else "C"


class _Mapping(dict):
    """An OrderedDict, defaultdict or Counter, without their attributes (PyTorch's ``_metadata``)."""

    __hash__ = object.__hash__  # type: ignore[assignment]  # an enum may be a key before it is recognised

    def __setstate__(self, state: Any) -> None:
        pass


class _Inert(_Mapping):
    """Stands in for an object of OmegaConf or Lightning, and only stores its arguments, items and state."""

    full_name = ""

    def __init__(self, *args: Any) -> None:
        if len(args) > 1:
            raise RefusedError(self.full_name)
        self.args = args
        self.state: dict[str, Any] | None = None

    def __new__(cls, *_: Any) -> _Inert:
        self = super().__new__(cls)
        self.args, self.state = (), None  # the pickle's NEWOBJ does not call __init__
        return self

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            msg = f"{self.full_name} with a state that is not a dict"
            raise RefusedError(msg)
        self.state = state


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Tensor:
    counts = all(type(n) is int and n >= 0 for n in (offset, *size, *stride))
    if type(storage) is not StorageRecord or not counts or len(size) != len(stride):
        msg = "a tensor has no sensible storage, size or stride"
        raise ValueError(msg)
    if len(rest) > 2 and rest[2]:
        msg = "holds a conjugated or negated view. Save it again after resolve_conj().resolve_neg()."
        raise UnreadableError(msg)
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _parameter(data: Any, *_: Any) -> _Tensor:
    if type(data) is not _Tensor:
        msg = "a parameter holds no tensor"
        raise ValueError(msg)
    return data


def _scalar(dtype: Any, data: Any) -> Any:
    if type(dtype) is not _DType or type(data) is not bytes or dtype.code.startswith("O"):
        msg = "a numpy scalar has no sensible type or bytes"
        raise ValueError(msg)
    return _filled(dtype, (), "C", data)[()]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


def _filled(dtype: _DType, shape: tuple[int, ...], order: Any, data: bytes) -> np.ndarray:
    numpy_dtype = dtype.build()
    n = math.prod(shape)
    if len(data) != n * numpy_dtype.itemsize:
        msg = f"an array of shape {shape} and type {numpy_dtype} comes with {len(data)} bytes"
        raise ValueError(msg)
    if not data and n > 1:
        msg = f"an array of shape {shape} and type {numpy_dtype} has items of no bytes"
        raise ValueError(msg)
    # numpy gives text of width 0 a width of one, so an empty text cannot be read from zero bytes
    flat = np.frombuffer(data, numpy_dtype).copy() if data else np.zeros(n, numpy_dtype)
    return flat.reshape(shape, order=order)


def _encoded(text: str, encoding: str = "") -> bytes:
    if encoding not in ("latin1", "latin-1"):  # how protocol 2 writes bytes; other codecs may run anything
        msg = f"_codecs.encode to {encoding!r}"
        raise RefusedError(msg)
    return text.encode("latin1")


def _bytes_array(data: Any = b"", encoding: str = "latin-1") -> bytearray:
    if not isinstance(data, bytes | str):  # a number would allocate that much memory
        msg = f"builtins.bytearray of {type(data).__name__}"
        raise RefusedError(msg)
    return bytearray(_encoded(data, encoding) if isinstance(data, str) else data)


def _mapping(items: Any = ()) -> _Mapping:
    return _Mapping(items)


def _table() -> dict[str, Any]:
    """Every name that a file may use, and its substitute."""
    functions: dict[str, Callable[..., Any]] = {
        "_codecs.encode": _encoded,
        "builtins.bytearray": _bytes_array,
        "builtins.bytes": lambda: b"",
        "builtins.complex": complex,
        "builtins.frozenset": lambda items=(): frozenset(items),
        "builtins.set": lambda items=(): set(items),
        "collections.Counter": _mapping,
        "collections.OrderedDict": _mapping,
        "collections.defaultdict": lambda factory=None, items=(): _mapping(items),
        "datetime.date": datetime.date,
        "datetime.datetime": datetime.datetime,
        "datetime.timedelta": datetime.timedelta,
        "numpy._core.multiarray._reconstruct": _Array,
        "numpy._core.multiarray.scalar": _scalar,
        "numpy._core.numeric._frombuffer": _from_buffer,
        "numpy.dtype": _DType,
        "torch.Size": tuple,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch.device": lambda *parts: ":".join(str(part) for part in parts),
    }
    for module in ("pathlib", "pathlib._local"):
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath"):
            functions[f"{module}.{name}"] = lambda *parts: str(PurePosixPath(*parts))
        for name in ("WindowsPath", "PureWindowsPath"):
            functions[f"{module}.{name}"] = lambda *parts: str(PureWindowsPath(*parts))
    storages = {
        "BFloat16": torch.bfloat16,
        "Bool": torch.bool,
        "Byte": torch.uint8,
        "Char": torch.int8,
        "ComplexDouble": torch.complex128,
        "ComplexFloat": torch.complex64,
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "Int": torch.int32,
        "Long": torch.int64,
        "Short": torch.int16,
    }
    only_names = ["builtins." + name for name in ("bool", "dict", "float", "int", "list", "object", "str", "tuple")]
    only_names += ["numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter", "typing.Any"]
    return {
        "builtins.long": _Global("builtins.int"),  # protocol 2 uses the type names of Python 2
        "builtins.unicode": _Global("builtins.str"),
        **{f"torch.{name}": dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)},
        **{f"torch.{name}Storage": dtype for name, dtype in storages.items()},
        **{name: _Global(name) for name in only_names},
        **{name: _Global(name, make) for name, make in functions.items()},
    }


_TABLE = _table()


class _Unpickler(pickle.Unpickler):
    """Resolves names in the table and storages to records, and nothing else."""

    def __init__(self, file: IO[bytes], storages: dict[str, StorageRecord]) -> None:
        super().__init__(file, encoding="utf-8")
        self._storages = storages
        self._inert: dict[str, type[_Inert]] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module_name, module_name)
        if module == "numpy.core" or module.startswith("numpy.core."):  # its name in numpy 1
            module = module.replace("numpy.core", "numpy._core", 1)
        full_name = f"{module}.{global_name}"
        if full_name in _TABLE:
            return _TABLE[full_name]
        # Only names written like a class, so that a function is refused rather than taken for data.
        is_class = global_name.rpartition(".")[2][:1].isupper()
        if full_name in _INERT_CLASSES or (is_class and module.partition(".")[0] in _INERT_PACKAGES):
            return self._inert.setdefault(full_name, type("_Inert", (_Inert,), {"full_name": full_name}))
        raise RefusedError(full_name)

    def persistent_load(self, pid: Any) -> StorageRecord:
        """Resolve torch's reference to the data of a tensor: ("storage", type, key, device, count)."""
        kind, dtype, key, _device, numel, *view = pid
        if kind != "storage" or type(dtype) is not torch.dtype or type(key) is not str or any(view):
            msg = "a reference to the data of a tensor is not as torch writes it"
            raise ValueError(msg)
        if type(numel) is not int or numel < 0:
            msg = "a tensor's storage has no sensible length"
            raise ValueError(msg)
        record = StorageRecord(key, dtype, numel)
        if self._storages.setdefault(key, record) != record:
            msg = f"a tensor's storage {key} has two types or lengths"
            raise ValueError(msg)
        return record


def unpickle(file: IO[bytes], storages: dict[str, StorageRecord] | None = None) -> Any:
    """Read one pickle as records.

    Parameters
    ----------
    file
        Open at the beginning of the pickle; left after its end.
    storages
        Filled with every storage that the pickle refers to, by key.

    Raises
    ------
    RefusedError
        If it uses a name that is not in the table.
    """
    # Python would return objects in this cache without find_class; nor may our records stay in it.
    copyreg.clear_extension_cache()
    try:
        return _Unpickler(file, {} if storages is None else storages).load()
    finally:
        copyreg.clear_extension_cache()


class Builder:
    """Turns records into plain data; each record once, so that shared objects stay shared."""

    def __init__(self, storage: Callable[[StorageRecord], torch.UntypedStorage]) -> None:
        self._storage = storage
        self._built: dict[int, Any] = {}

    def build(self, record: Any) -> Any:
        """Build the plain data of a record and everything in it.

        Raises
        ------
        RefusedError
            If anything in it is neither plain data nor one of our records.
        """
        kind = type(record)
        if kind in _PLAIN or isinstance(record, np.generic):
            return record
        if id(record) not in self._built:
            # Lists and dicts register themselves before they are filled, as they may contain themselves.
            self._built[id(record)] = self._make(record, kind)
        return self._built[id(record)]

    def _make(self, record: Any, kind: type) -> Any:
        if kind is list:
            built = self._built[id(record)] = []
            built.extend(self.build(item) for item in record)
            return built
        if kind is dict or kind is _Mapping:
            return self._dict(record, record)
        if kind in (tuple, set, frozenset):
            return kind(self.build(item) for item in record)
        if kind is _Tensor:
            return self._tensor(record)
        if kind is _Array:
            return self._array(record)
        if kind is _DType:
            return record.build()
        if kind is _Global or (kind is type and issubclass(record, _Inert)):
            return record.full_name
        if issubclass(kind, _Inert):
            return self._inert(record)
        msg = f"{kind.__name__.strip('_')} in place of plain data"
        raise RefusedError(msg)

    def _dict(self, record: Any, items: Mapping[Any, Any]) -> dict[Any, Any]:
        built: dict[Any, Any] = {}
        self._built[id(record)] = built
        built.update((self.build(key), self.build(value)) for key, value in items.items())
        return built

    def _inert(self, record: _Inert) -> Any:
        state = record.state
        if record.args and not record and state is None:
            return self.build(record.args[0])  # an enum
        if state is None:
            return self._dict(record, record)
        for holder in ("_content", "_val"):  # of OmegaConf's containers and values
            if holder in state:
                return self.build(state[holder])
        return self._dict(record, record or state)

    def _tensor(self, record: _Tensor) -> Tensor:
        dtype = record.storage.dtype
        storage = self._storage(record.storage)
        last = record.offset + sum((n - 1) * step for n, step in zip(record.size, record.stride, strict=True))
        if 0 not in record.size and (last + 1) * dtype.itemsize > storage.nbytes():
            msg = f"a tensor of size {record.size} reaches beyond its {storage.nbytes()} bytes"
            raise ValueError(msg)
        return torch.empty(0, dtype=dtype).set_(storage, record.offset, record.size, record.stride)

    def _array(self, record: _Array) -> np.ndarray:
        dtype, shape, data = record.dtype, record.shape, record.data
        if type(dtype) is not _DType or type(shape) is not tuple or any(type(n) is not int or n < 0 for n in shape):
            msg = "a numpy array has no sensible type or shape"
            raise ValueError(msg)
        if not dtype.code.startswith("O"):
            return _filled(dtype, shape, record.order, bytes(data) if isinstance(data, bytes | bytearray) else b"?")
        if type(data) is not list or len(data) != math.prod(shape):
            msg = "a numpy array of objects lacks some of them"
            raise ValueError(msg)
        items = np.empty(len(data), dtype=object)
        for i, item in enumerate(data):
            items[i] = self.build(item)
        return items.reshape(shape, order="F" if record.order == "F" else "C")


_PLAIN = {type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype}
_PLAIN |= {datetime.date, datetime.datetime, datetime.timedelta}
