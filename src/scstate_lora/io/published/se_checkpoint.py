"""Read a published STATE embedding (SE) checkpoint: its file, its configuration and its protein embeddings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from scstate_lora._logging import logger
from scstate_lora._tensors import aligned
from scstate_lora.io.published.contents import Contents, find_se_file, latest_weights, open_contents, require_se
from scstate_lora.io.published.proteins import find_proteins, stack_proteins
from scstate_lora.io.published.se_tensors import take_arc_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from scstate_lora._tensors import ExpectedTensors

UNKNOWN_LICENCE = (
    "unknown; Arc's published SE weights are non-commercial (Arc Research Institute State Model Non-Commercial License)"
)
"""Licence of a checkpoint without a licence file."""

_BESIDE = re.compile(
    r"config\.yaml|protein_embeddings[^/]*|(README|(MODEL_)?LICEN[SC]E|MODEL_ACCEPTABLE_USE)[^/]*", re.IGNORECASE
)

# Sizes shown by the tensors and stated elsewhere, too: our name, in hyper_parameters, in the configuration.
_STATED = (
    ("token_dim", "token_dim", "embeddings.{current}.size"),
    ("d_model", "d_model", "model.emsize"),
    ("n_layers", "nlayers", "model.nlayers"),
    ("d_hid", "d_hid", "model.d_hid"),
    ("output_dim", "output_dim", "model.output_dim"),
    ("counts", "", "model.counts"),
    ("rda", "", "model.rda"),
    ("dataset_correction", "", "model.dataset_correction"),
)


@dataclass(frozen=True, eq=False)
class SECheckpoint:
    """A published SE network in plain values and tensors.

    Parameters
    ----------
    path
        File of the weights.
    name
        Folder and file, such as ``SE-600M (se600m_epoch16.ckpt)``.
    licence
        Licence beside the file, or a note that it is unknown.
    sizes
        Fields of :class:`~scstate_lora.nn.se_encoder.SEConfig`.
    state
        Tensors by our names, float32: exactly those of :class:`~scstate_lora.nn.se_encoder.SEEncoder`.
    genes
        Names of the vocabulary.
    gene_tokens
        Protein embeddings as stored, not normalised, float32 ``(n_genes, token_dim)``.
    """

    path: Path
    name: str
    licence: str
    sizes: dict[str, Any]
    state: dict[str, Tensor]
    genes: list[str]
    gene_tokens: Tensor


def files_to_fetch(names: Sequence[str]) -> list[str]:
    """Choose the files of a published model to fetch: the weights and the files that belong to them.

    Returns
    -------
    Names of the files; empty if none holds weights.
    """
    weights = latest_weights(names)
    return [*weights, *(name for name in names if _BESIDE.fullmatch(name))] if weights else []


def read_se_checkpoint(
    path: str | Path,
    expected_tensors: ExpectedTensors,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    protein_embeddings: str | Path | Mapping[str, Tensor] | None = None,
) -> SECheckpoint:
    """Read an SE checkpoint without running code in it.

    float32 weights stay mapped from the disk if they are aligned, as in a ``.ckpt``; others are copied.

    Parameters
    ----------
    path
        Folder, ``.ckpt`` or ``model.safetensors``. In a folder, the ``.ckpt`` with the highest epoch in its name, else
        the only ``.ckpt``, else ``model.safetensors``.
    expected_tensors
        State dict of an SE network of given sizes, see :func:`~scstate_lora.io.published.se_tensors.take_arc_state`.
    config
        Configuration, or its YAML file. By default that inside the checkpoint, else ``config.yaml`` beside it.
    protein_embeddings
        Vectors ``(token_dim,)`` by gene, or their file. By default, as in Arc's tool, for a folder
        ``protein_embeddings.pt`` in it, else those inside the checkpoint; for a file those inside it, else
        ``protein_embeddings.pt`` beside it.

    Raises
    ------
    FileNotFoundError
        If the file does not exist, or the folder holds no weights.
    ValueError
        If it is not an SE checkpoint, is damaged, incomplete, contradicts itself, or holds more than data.
    """
    file = find_se_file(path)
    contents = open_contents(file)
    require_se(contents)
    # Aligned before they are split, so that a model embeds the same from any format of its file.
    stored = {name: aligned(tensor) for name, tensor in contents.state.items()}
    sizes, state = take_arc_state(stored, expected_tensors, source=str(file))
    sizes = complete_sizes(sizes, contents, *find_config(contents, config))
    proteins, source = find_proteins(contents, protein_embeddings, beside_first=Path(path).is_dir())
    genes, gene_tokens = stack_proteins(proteins, sizes["token_dim"], source=source)
    logger.info(
        "SE checkpoint %s: %d layer(s) of %d, %d tokens per cell; protein embeddings of %d genes from %s.",
        file,
        sizes["n_layers"],
        sizes["d_model"],
        sizes["n_tokens"],
        len(genes),
        source,
    )
    state = {name: tensor.float() for name, tensor in state.items()}  # no copy of a float32 tensor
    return SECheckpoint(file, name_of(file), licence_beside(file), sizes, state, genes, gene_tokens)


def find_config(
    contents: Contents, override: str | Path | Mapping[str, Any] | None = None
) -> tuple[Mapping[str, Any], str]:
    """Find the configuration, and describe its source: `override`, the checkpoint, or a file beside it."""
    if isinstance(override, Mapping):
        return override, "config="
    if override is not None:
        path = Path(override).expanduser()
        if not path.is_file():
            msg = f"There is no configuration {path}. Give the config.yaml of the checkpoint."
            raise FileNotFoundError(msg)
        return _parse_yaml(path.read_text(encoding="utf-8"), str(path)), str(path)
    inside = _config_inside(contents)
    if inside is not None:
        return inside, f"the configuration inside {contents.file}"
    beside = contents.file.parent / "config.yaml"
    if beside.is_file():
        return _parse_yaml(beside.read_text(encoding="utf-8"), str(beside)), str(beside)
    msg = (
        f"{contents.file} has no configuration inside, and there is no {beside}; the tensors do not show the number of "
        "heads and the sentence length. Put the config.yaml of its training there, or give it: "
        "config='path/to/config.yaml'."
    )
    raise ValueError(msg)


def complete_sizes(
    sizes: Mapping[str, Any], contents: Contents, config: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """Add the sizes that only the configuration states; a ValueError if it contradicts those of the tensors."""
    hyper, inside = contents.hyper_parameters, f"hyper_parameters of {contents.file}"
    clashes = []
    for ours, in_hyper, in_config in _STATED:
        key = in_config.format(current=_look(config, "embeddings.current"))
        for name, value, where in ((in_hyper, hyper.get(in_hyper), inside), (key, _look(config, key), source)):
            # An interpolation is not resolved: the tensors show the size as well.
            if value is not None and not _is_interpolation(value) and value != sizes[ours]:
                clashes.append(f"{ours} is {sizes[ours]} by the tensors, {name} is {value} in {where}")
    built, configured = hyper.get("nhead"), _look(config, "model.nhead")
    if built is None:
        n_heads = _whole(configured, "model.nhead", source, least=1)
    else:
        n_heads = _whole(built, "nhead", inside, least=1)
        if configured is not None and not _is_interpolation(configured) and configured != n_heads:
            clashes.append(f"nhead is {n_heads} in {inside}, model.nhead is {configured} in {source}")
    if sizes["d_model"] % n_heads:
        clashes.append(f"d_model is {sizes['d_model']} by the tensors, which does not divide into {n_heads} heads")
    if clashes:
        listed = "\n  ".join(clashes)
        msg = (
            f"{contents.file} and its configuration contradict each other:\n  {listed}\n"
            "Give the configuration that it was trained with: config='path/to/config.yaml'."
        )
        raise ValueError(msg)
    return {
        **sizes,
        "n_heads": n_heads,
        "n_tokens": _whole(_look(config, "dataset.pad_length"), "dataset.pad_length", source, least=2),
        "cls_gene": _whole(_look(config, "dataset.cls_token_idx"), "dataset.cls_token_idx", source, least=0),
        "dropout": 0.0,
    }


def licence_beside(file: Path, *, otherwise: str = UNKNOWN_LICENCE) -> str:
    """Licence beside a file or in the model card there, or a note that it is unknown."""
    # First that of the weights: the code of a repository may have another licence.
    kinds = (r"model[_-]licen[cs]e", r"licen[cs]e", r"readme")
    files = sorted(path for path in file.parent.iterdir() if path.is_file())
    for path in (path for kind in kinds for path in files if re.match(kind, path.name.lower())):
        with path.open(encoding="utf-8", errors="replace") as stream:
            lines = [line.strip() for line in stream.read(1 << 16).splitlines()]
        if not path.name.lower().startswith("readme"):
            return f"{next((line.strip('# ') for line in lines if line.strip('# -=*')), 'empty')} ({path.name})"
        matches = [match for line in lines if (match := re.match(r"license(_name)?\s*:\s*(.+)", line))]
        if matches:  # the name is more specific than the kind, which may be "other"
            return f"{next((m for m in matches if m.group(1)), matches[0]).group(2)} ({path.name})"
    return otherwise


def name_of(file: Path) -> str:
    """Folder and file, such as ``SE-600M (se600m_epoch16.ckpt)``."""
    folder = file.absolute().parent
    if folder.name == "checkpoints":
        folder = folder.parent
    if folder.parent.name == "snapshots":  # a hub's cache: models--owner--name/snapshots/revision
        return f"{folder.parent.parent.name.removeprefix('models--').replace('--', '/')} ({file.name})"
    return f"{folder.name} ({file.name})"


def _parse_yaml(text: str, source: str) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        msg = f"{source} is not valid YAML ({error}). Give the config.yaml of the checkpoint."
        raise ValueError(msg) from error
    if not isinstance(config, Mapping):
        msg = f"{source} holds {type(config).__name__}, expected sections such as model: and dataset:. Give another."
        raise ValueError(msg)
    return config


def _look(config: Mapping[str, Any], dotted: str) -> Any:
    """Value at ``section.key``; None if it does not exist."""
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _whole(value: Any, name: str, source: str, *, least: int) -> int:
    if value is None:
        problem = f"{name} is missing in {source}"
    elif _is_interpolation(value):
        problem = f"{name} is {value!r} in {source}, a reference that is not followed here"
    elif isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        problem = f"{name} is {value!r} in {source}"
    else:
        return int(value)
    msg = f"{problem}; a whole number of at least {least} is needed. Write it there, or give another config=."
    raise ValueError(msg)


def _config_inside(contents: Contents) -> Mapping[str, Any] | None:
    for text in (contents.top.get("cfg_yaml"), contents.hyper_parameters.get("cfg_yaml")):
        if isinstance(text, str):
            return _parse_yaml(text, f"cfg_yaml inside {contents.file}")
    config = contents.hyper_parameters.get("cfg")
    return config if isinstance(config, Mapping) else None
