"""Files of a published state transition (ST) model: the weights to read or fetch, and the files beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from scstate_lora.io.pickle.reader import load_pickle, load_torch
from scstate_lora.io.published.hub import is_hub_id
from scstate_lora.io.save_load import holds_save

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_BEST_FIRST = ("checkpoints/final.ckpt", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "final.ckpt")
_STEP = re.compile(r"checkpoints/.*step=(\d+).*\.ckpt")
_BESIDE = re.compile(
    r"config\.yaml|var_dims\.pkl|(pert|cell_type|batch)_onehot_map\.(pt|torch|pkl)"
    r"|(README|(MODEL_)?LICEN[SC]E|MODEL_ACCEPTABLE_USE)[^/]*",
    re.IGNORECASE,
)
_IN_REPOSITORY = re.compile(r"([^/@]+/[^/@]+)/([^@]+?)/?(@\S+)?")
_ENDINGS = ("pt", "torch", "pkl")


def choose_weights(names: Sequence[str]) -> str | None:
    """Choose the checkpoint among the files of one model folder, by their paths relative to it.

    In order: ``final``, ``last`` or ``best`` in ``checkpoints/``; ``final.ckpt`` at the top, as in older models; the
    highest ``step=N``; the only ``.ckpt`` of another name.
    """
    for name in _BEST_FIRST:
        if name in names:
            return name
    steps = {name: int(match.group(1)) for name in names if (match := _STEP.fullmatch(name))}
    if steps:
        return max(steps, key=lambda name: (steps[name], name))
    others = [name for name in names if re.fullmatch(r"(checkpoints/)?[^/]+\.ckpt", name)]
    return others[0] if len(others) == 1 else None


def split_hub_id(path: str | Path) -> tuple[str, str] | None:
    """Split ``owner/name/folder@revision`` into the repository, with the revision, and the folder of the model.

    Returns
    -------
    ``owner/name@revision`` and the folder, which may be empty; None for a local path.
    """
    if is_hub_id(path):
        return str(path), ""
    match = _IN_REPOSITORY.fullmatch(path) if isinstance(path, str) else None
    if match is None or Path(path).exists() or Path(match[1]).parent.exists():  # probably a mistyped local path
        return None
    hub_id = match[1] + (match[3] or "")
    return (hub_id, match[2]) if is_hub_id(hub_id) and not match[2].endswith(".ckpt") else None


def files_to_fetch(names: Sequence[str], *, hub_id: str, folder: str = "") -> list[str]:
    """Choose the files of a repository to fetch: the weights and the files that belong to them.

    Parameters
    ----------
    names
        All files, relative to the repository.
    hub_id
        The repository, for the message.
    folder
        Folder of the model in it; empty for its top.

    Raises
    ------
    FileNotFoundError
        If the folder holds no model, but others in the repository do.
    """
    prefix = f"{folder}/" if folder else ""
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    weights = choose_weights(inside)
    if weights is None:
        folders = model_folders(names)
        if folders:
            where = f"the folder {folder!r} of {hub_id}" if folder else f"the top of {hub_id}"
            name, at, revision = hub_id.partition("@")
            msg = f"There is no ST checkpoint in {where}. {_take_one_of(folders, f'{name}/{folders[0]}{at}{revision}')}"
            raise FileNotFoundError(msg)
        return []
    return [prefix + name for name in (weights, *(name for name in inside if _BESIDE.fullmatch(name)))]


def model_folders(names: Sequence[str]) -> list[str]:
    """List the folders that hold an ST model: those with a ``var_dims.pkl`` or a checkpoint."""
    marks = [PurePosixPath(name) for name in names if name.endswith((".ckpt", "var_dims.pkl"))]
    parents = {mark.parent.parent if mark.parent.name == "checkpoints" else mark.parent for mark in marks}
    return sorted(str(parent) for parent in parents if str(parent) != ".")


def find_st_file(path: str | Path) -> tuple[Path, Path]:
    """Find the folder of a model and the checkpoint in it.

    Parameters
    ----------
    path
        Folder, or the checkpoint itself.

    Returns
    -------
    folder
        Folder of ``config.yaml`` and the maps.
    file
        The checkpoint.

    Raises
    ------
    FileNotFoundError
        If nothing is there, or no checkpoint is in the folder.
    ValueError
        If it is a model saved by this package.
    """
    path = Path(path).expanduser()
    if not path.exists():
        msg = (
            f"There is no file or folder {path}. Give the folder of an ST model, which holds config.yaml and "
            "checkpoints/final.ckpt, or the id of a model on the Hub."
        )
        raise FileNotFoundError(msg)
    if path.is_file():
        return (path.parent.parent if path.parent.name == "checkpoints" else path.parent), path
    if holds_save(path):
        msg = f"{path} is a model saved by scstate_lora, not a published one. Load it: ssl.STTransition.load({path})."
        raise ValueError(msg)
    names = [file.relative_to(path).as_posix() for depth in ("*", "*/*") for file in path.glob(depth) if file.is_file()]
    weights = choose_weights(names)
    if weights is not None:
        return (path.parent if path.name == "checkpoints" else path), path / weights
    checkpoints = sorted(name for name in names if re.fullmatch(r"(checkpoints/)?[^/]+\.ckpt", name))
    if checkpoints:
        listed = ", ".join(checkpoints)
        msg = f"{path} holds several checkpoints, none of them final, last, best or step=N: {listed}. Give the file."
        raise FileNotFoundError(msg)
    deeper = (file for file in path.rglob("*") if file.suffix in (".ckpt", ".pkl") and file.is_file())
    below = model_folders([file.relative_to(path).as_posix() for file in deeper])
    present = ", ".join(sorted(file.name for file in path.iterdir())[:10])
    fix = (
        _take_one_of(below, str(path / below[0]))
        if below
        else "Download or copy it again, or give the checkpoint itself."
    )
    msg = f"{path} holds neither checkpoints/final.ckpt nor another checkpoint; it holds: {present or 'nothing'}. {fix}"
    raise FileNotFoundError(msg)


def read_config(folder: Path) -> Mapping[str, Any]:
    """Read ``config.yaml``; empty if it does not exist."""
    file = folder / "config.yaml"
    if not file.is_file():
        return {}
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"{file} is not valid YAML ({error}). Download or copy it again."
        raise ValueError(msg) from error
    if not isinstance(config, Mapping):
        msg = f"{file} holds {type(config).__name__}, expected sections such as data: and model:. Download it again."
        raise ValueError(msg)
    return config


def read_var_dims(folder: Path) -> Mapping[str, Any]:
    """Read ``var_dims.pkl``, sizes and names of the training data; empty if it does not exist."""
    file = folder / "var_dims.pkl"
    if not file.is_file():
        return {}
    dims = load_pickle(file)
    if not isinstance(dims, Mapping):
        msg = f"{file} holds {type(dims).__name__}, expected sizes by name, such as input_dim. Download it again."
        raise ValueError(msg)
    return dims


def read_map(folder: Path, name: str) -> dict[str, Tensor] | None:
    """Read a map of names to one-hot or feature vectors; None if it does not exist.

    Parameters
    ----------
    folder
        Folder of the model.
    name
        ``pert``, ``cell_type`` or ``batch``.

    Returns
    -------
    Vectors by name, float32 ``(n,)``, all of one length.

    Raises
    ------
    ValueError
        If it is damaged, holds code, or anything other than vectors by name.
    """
    files = [folder / f"{name}_onehot_map.{ending}" for ending in _ENDINGS]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    stored = load_pickle(file) if file.suffix == ".pkl" else load_torch(file, mmap=False)
    if not isinstance(stored, Mapping):
        msg = f"{file} holds {type(stored).__name__}, expected a vector for each name. Download or copy it again."
        raise ValueError(msg)
    if stored and all(
        isinstance(value, int | np.integer) and value >= 0 for value in stored.values()
    ):  # codes in place of vectors
        one_hot = torch.eye(max(stored.values()) + 1)
        stored = {key: one_hot[int(value)] for key, value in stored.items()}
    vectors: dict[str, Tensor] = {}
    for key, value in stored.items():
        vector = torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype != object else value
        if not isinstance(vector, torch.Tensor) or vector.ndim != 1 or str(key) in vectors:
            problem = "stored twice" if str(key) in vectors else _described(value)
            msg = f"{file}: {str(key)!r} is {problem}, expected one vector for each name. Download it again."
            raise ValueError(msg)
        vectors[str(key)] = vector.float()
    lengths = sorted({len(vector) for vector in vectors.values()})
    if len(lengths) != 1:
        held = f"vectors of {', '.join(map(str, lengths))} entries" if lengths else "no names"
        msg = f"{file} holds {held}, expected one length for all. Download or copy it again."
        raise ValueError(msg)
    return vectors


def codes(vectors: Mapping[str, Tensor]) -> dict[str, int] | None:
    """Position of the one in each vector; None if the vectors are not one-hot, or two are equal."""
    positions = {name: int(vector.argmax()) for name, vector in vectors.items()}
    is_one_hot = all(float(v.max()) == 1 and float(v.abs().sum()) == 1 for v in vectors.values())
    return positions if is_one_hot and len(set(positions.values())) == len(positions) else None


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of shape {tuple(shape)}"


def _take_one_of(folders: Sequence[str], example: str) -> str:
    listed = ", ".join(folders[:10]) + (", …" if len(folders) > 10 else "")
    return f"ST models are in its folders: {listed}. Give one: {example!r}."
