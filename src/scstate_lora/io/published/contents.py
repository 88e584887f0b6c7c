"""Find and open a file of published weights, and recognise it: an SE or ST checkpoint, or protein embeddings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scstate_lora.io.pickle.reader import load_torch
from scstate_lora.io.save_load import holds_save

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_ST_PARTS = ("pert_encoder.", "basal_encoder.", "transformer_backbone.", "project_out.")
_EPOCH = re.compile(r"epoch[=_-]?(\d+)", re.IGNORECASE)
_HEAD_BYTES = 512


@dataclass(frozen=True, eq=False)
class Contents:
    """Contents of one file of weights, before anything is checked.

    Parameters
    ----------
    file
        The file.
    kind
        ``se``, ``st``, ``proteins`` (embeddings by gene) or ``other``.
    top
        Top level of the file.
    state
        Tensors of the network by stored name; empty for protein embeddings.
    """

    file: Path
    kind: str
    top: Mapping[Any, Any] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def hyper_parameters(self) -> Mapping[str, Any]:
        """Hyperparameters that the network was built with, from a Lightning checkpoint; else empty."""
        return _mapping(self.top.get("hyper_parameters"))

    @property
    def proteins(self) -> Mapping[Any, Any]:
        """Protein embeddings by gene, if the file holds any; else empty."""
        return self.top if self.kind == "proteins" else _mapping(self.top.get("protein_embeds_dict"))


def find_se_file(path: str | Path) -> Path:
    """Find the file of weights at a path, as ``read_se_checkpoint`` does."""
    path = Path(path).expanduser()
    if not path.exists():
        msg = (
            f"There is no file or folder {path}. Give the folder of a checkpoint, a .ckpt, a model.safetensors, or an "
            "id on the Hugging Face hub, such as arcinstitute/SE-600M."
        )
        raise FileNotFoundError(msg)
    if path.is_file():
        return path
    present = sorted(file.name for file in path.iterdir())
    if holds_save(path):
        raise ValueError(_ours(path))
    if path.suffix == ".zarr" or {".zgroup", "zarr.json"} & set(present):
        msg = f"{path} holds cells (zarr), not a model. Give the checkpoint here and the cells as adata."
        raise ValueError(msg)
    latest = latest_weights(present)
    if len(latest) > 1:
        msg = (
            f"{path} holds several checkpoints, and their names do not show which is the last: {', '.join(latest)}. "
            "Give the file itself."
        )
        raise ValueError(msg)
    if latest:
        return path / latest[0]
    if {"var_dims.pkl", "checkpoints"} & set(present):
        raise ValueError(_st(path))
    listed = ", ".join(present[:10]) + (", …" if len(present) > 10 else "")
    msg = f"{path} holds neither a .ckpt nor a model.safetensors; it holds: {listed or 'nothing'}. Give an SE folder."
    raise FileNotFoundError(msg)


def latest_weights(names: Sequence[str]) -> list[str]:
    """Choose the file of weights in a folder: that of the last epoch, and as in Arc's tool a ``.ckpt`` before others.

    Returns
    -------
    One name; several if the names do not show which is the last; or none.
    """
    checkpoints = [name for name in names if name.endswith(".ckpt") and "/" not in name]
    epochs = {name: int(match.group(1)) for name in checkpoints if (match := _EPOCH.search(name))}
    latest = [name for name in epochs if epochs[name] == max(epochs.values())] or checkpoints
    return latest or [name for name in names if name == "model.safetensors"]


def open_contents(file: Path) -> Contents:
    """Read a file of weights, with its tensors mapped from the disk, and recognise its kind.

    Raises
    ------
    ValueError
        If it is part of a model saved by this package, not a file of tensors, damaged, or holds more than data.
    """
    if holds_save(file.parent):
        raise ValueError(_ours(file.parent))
    top = load_tensors(file)
    if not isinstance(top, Mapping):
        return Contents(file, "other")
    if top and all(is_vector(value) for value in top.values()):
        return Contents(file, "proteins", top)
    named = _mapping(top.get("state_dict", top))
    state = {str(name): tensor for name, tensor in named.items() if isinstance(tensor, Tensor)}
    return Contents(file, _kind(state), top, state)


def require_se(contents: Contents) -> None:
    """Raise a ValueError that names the kind of a file, unless it is an SE checkpoint."""
    file = contents.file
    if contents.kind == "st":
        raise ValueError(_st(file))
    if contents.kind == "proteins":
        msg = (
            f"{file} holds protein embeddings of {len(contents.proteins)} genes, not a model. Give the checkpoint, and "
            f"these as protein_embeddings={str(file)!r}."
        )
        raise ValueError(msg)
    if contents.kind == "other":
        held = ", ".join(list(contents.state)[:3]) + ", …" if contents.state else "no tensors by name"
        msg = (
            f"{file} is not an SE (state embedding) checkpoint: it holds {held}. An SE checkpoint holds cls_token, "
            "encoder.0.weight, transformer_encoder.layers.0.qkv_proj.weight and so on. Give one such as SE-600M."
        )
        raise ValueError(msg)


def load_tensors(file: Path) -> Any:
    """Read a file of tensors, mapped from the disk; a ValueError for files recognised as something else."""
    with file.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if head.startswith(b"\x89HDF"):
        msg = f"{file} is an HDF5 file (cells), not a model. Give the checkpoint here, the cells as adata."
        raise ValueError(msg)
    if head.startswith(b"version https://git-lfs"):
        msg = f"{file} is a pointer of git LFS, not the file itself. Fetch it: git lfs pull, or download it again."
        raise ValueError(msg)
    if file.suffix != ".safetensors":
        # Accepted: a zip archive, a pickle, or the old tar format, for which load_torch has a better message.
        if head and not head.startswith((b"PK", b"\x80")) and b"ustar" not in head:
            msg = f"{file} is not a file of tensors, such as a .ckpt, .pt or .safetensors. Give one of these."
            raise ValueError(msg)
        return load_torch(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        msg = f"{file} is truncated or damaged, or not a safetensors file ({error}). Download or copy it again."
        raise ValueError(msg) from error


def is_vector(value: Any, width: int | None = None) -> bool:
    """Whether a value is a vector of floating-point numbers, of this width unless None."""
    if isinstance(value, Tensor):
        floating = value.is_floating_point()
    else:
        floating = isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)
    return floating and value.ndim == 1 and width in (None, value.shape[0])


def _st(path: Path) -> str:
    return (
        f"{path} is an ST (state transition) model, which predicts the effect of perturbations, not an SE (state "
        "embedding) checkpoint. ssl.STTransition is the class for it; give an SE checkpoint here, such as SE-600M."
    )


def _ours(folder: Path) -> str:
    return (
        f"{folder} is a model saved by scstate_lora (it holds model.json), not a published checkpoint. Load it with "
        "load() of its class, such as ssl.LoRACovariateSE.load(...)."
    )


def _kind(state: Iterable[str]) -> str:
    plain = {name.replace("_orig_mod.", "") for name in state}
    if any(name.startswith(_ST_PARTS) for name in plain):
        return "st"
    return "se" if "cls_token" in plain or any(name.endswith(".qkv_proj.weight") for name in plain) else "other"


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
