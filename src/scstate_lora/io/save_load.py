"""Save a model as a directory of JSON and safetensors, all of it or nothing, and load it with clear errors."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scstate_lora._tensors import compare_tensors
from scstate_lora.io.atomic import flush, in_place, interrupted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

FORMAT_VERSION = 1
"""Version of the directory's layout; a directory of a newer one is refused."""

_METADATA = "model.json"


def save_directory(
    path: str | Path,
    *,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write a model directory, whole or not at all. A model saved there before is replaced.

    Parameters
    ----------
    path
        Directory to write. Missing parents are made.
    metadata
        Content of ``model.json``, JSON-able; ``format_version``, ``package_version`` and ``files`` are added.
    tensors
        State dicts by name; each is written to ``<name>.safetensors``.
    texts
        Texts by file name, for instance ``NOTICE``.

    Raises
    ------
    FileExistsError
        If ``path`` exists and is not a directory that this function wrote, or holds further files.
    OSError
        If writing fails, for instance on a full disk; an older save is intact.
    """
    path = Path(path).expanduser().resolve()
    texts = texts or {}
    files = sorted([_METADATA, *texts, *(f"{name}.safetensors" for name in tensors)])
    document = json.dumps(
        {**metadata, "format_version": FORMAT_VERSION, "package_version": version("scstate-lora"), "files": files},
        indent=2,
        ensure_ascii=False,
        allow_nan=False,
    )
    _refuse_foreign(path)
    with in_place(path) as new:
        new.mkdir()
        for name, text in {**texts, _METADATA: document}.items():
            (new / name).write_text(text, encoding="utf-8")
        for name, state in tensors.items():
            file = new / f"{name}.safetensors"
            try:
                save_file(_storable(state), file)
            except SafetensorError as error:  # its own error for a full disk, without a number
                raise OSError(str(error)) from error
            # safetensors makes files that only their owner may read; they get the rights of the other files.
            file.chmod((new / _METADATA).stat().st_mode)
        for file in [*new.iterdir(), new]:
            flush(file)


def add_texts(path: str | Path, texts: Mapping[str, str]) -> None:
    """Add files of text to a directory that :func:`save_directory` wrote, as parts of the saved model.

    Parameters
    ----------
    path
        The directory.
    texts
        Texts by file name.

    Raises
    ------
    FileNotFoundError, ValueError
        If it is no saved model, or its description is damaged.
    OSError
        If writing fails; the model is intact.
    """
    folder = Path(path).expanduser().resolve()
    metadata = _read_metadata(folder / _METADATA)
    for name, text in texts.items():
        with in_place(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    metadata["files"] = sorted({*metadata["files"], *texts})
    with in_place(folder / _METADATA) as temporary:
        document = json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(document, encoding="utf-8")


def holds_save(path: str | Path) -> bool:
    """Whether a path looks like a directory that :func:`save_directory` wrote."""
    return (Path(path).expanduser() / _METADATA).is_file()


def load_directory(path: str | Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Read a directory that :func:`save_directory` wrote.

    Parameters
    ----------
    path
        The directory.

    Returns
    -------
    metadata
        Content of ``model.json``.
    tensors
        State dicts by name, on the CPU.

    Raises
    ------
    FileNotFoundError
        If the directory or one of its files is missing.
    ValueError
        If a file is damaged or the format is newer than this package.
    """
    path = Path(path).expanduser()
    if not path.exists():
        older = interrupted(path)
        hint = "" if older is None else f" A save was interrupted; the model before it is at {older}, rename that."
        msg = f"There is no directory {path}.{hint} Check the path given to load()."
        raise FileNotFoundError(msg)
    if not path.is_dir():
        msg = f"{path} is a file; a saved model is a directory that holds {_METADATA}. Give that."
        raise FileNotFoundError(msg)
    if not (path / _METADATA).is_file():
        msg = (
            f"{path} holds no {_METADATA}, so it is not a saved model. Give the directory that save() was called with."
        )
        raise FileNotFoundError(msg)
    metadata = _read_metadata(path / _METADATA)
    present = {file.name for file in path.iterdir()}
    missing = sorted(set(metadata["files"]) - present)
    if missing:
        msg = f"{path} lacks {', '.join(missing)}. Copy the whole directory, or save the model again."
        raise FileNotFoundError(msg)
    tensors = {}
    for name in metadata["files"]:
        if name.endswith(".safetensors"):
            try:
                tensors[name.removesuffix(".safetensors")] = load_file(path / name)
            except (SafetensorError, OSError) as error:
                msg = f"{path / name} is truncated or damaged ({error}). Copy it again, or save the model again."
                raise ValueError(msg) from error
    return metadata, tensors


def check_state(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor], *, source: str) -> None:
    """Compare all names and shapes before anything is copied.

    Parameters
    ----------
    expected
        State dict of the network that receives the tensors.
    stored
        Tensors that were read.
    source
        Source of the tensors for the error message, such as a file name.

    Raises
    ------
    ValueError
        If a tensor is missing, unexpected, of another shape or of another kind of number. All of them are named.
    """
    problems = compare_tensors(expected, stored)
    if problems:
        listed = "\n  ".join(problems)
        msg = (
            f"The tensors of {source} do not fit the model, nothing was loaded:\n  {listed}\n"
            "Load it with the class, settings and package version it was saved with."
        )
        raise ValueError(msg)


def _refuse_foreign(path: Path) -> None:
    """Raise unless `path` is free, an empty directory, or one of our saves without further files."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / _METADATA).is_file():
        msg = f"{path} exists and is not a saved model (no {_METADATA}). Choose another path, or remove it first."
        raise FileExistsError(msg)
    try:
        ours = set(_read_metadata(path / _METADATA)["files"])
    except ValueError as error:
        msg = f"{path} exists and is not recognised as a saved model: {error} Choose another path, or remove it first."
        raise FileExistsError(msg) from error
    further = sorted(file.name for file in path.iterdir() if file.name not in ours)
    if further:
        msg = (
            f"{path} holds more than a saved model, and saving would delete: {', '.join(further)}. "
            "Move them elsewhere, or choose another path."
        )
        raise FileExistsError(msg)


def _read_metadata(file: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # also bytes that are not text
        msg = f"{file} is not valid JSON ({error}). Copy it again, or save the model again."
        raise ValueError(msg) from error
    format_version = metadata.get("format_version") if isinstance(metadata, dict) else None
    if not isinstance(format_version, int):
        msg = f"{file} has no format_version, so scstate_lora did not write it. Give a directory made by save()."
        raise ValueError(msg)
    if format_version > FORMAT_VERSION:
        msg = (
            f"{file} has format version {format_version}, written by scstate-lora "
            f"{metadata.get('package_version', '?')}; this one, {version('scstate-lora')}, reads up to "
            f"{FORMAT_VERSION}. Upgrade scstate-lora."
        )
        raise ValueError(msg)
    files = metadata.get("files")
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        msg = f"{file} does not list its files under 'files'. Copy it again, or save the model again."
        raise ValueError(msg)
    return metadata


def _storable(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU, contiguous and each in its own storage, as safetensors requires."""
    seen: set[int] = set()
    result = {}
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        result[name] = plain
    return result
