"""Read an encoder saved by scModelForge: its weights, its configuration and its gene vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from scstate_lora._logging import logger
from scstate_lora.io.published.contents import load_tensors
from scstate_lora.io.published.scmodelforge_config import Settings, find_settings, read_json
from scstate_lora.io.published.scmodelforge_tensors import (
    GENE_TABLE,
    architecture_of,
    encoder_sizes,
    plain_names,
    take_encoder,
)
from scstate_lora.io.published.se_checkpoint import licence_beside, name_of
from scstate_lora.io.save_load import holds_save

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scstate_lora._tensors import ExpectedTensors

    Vocabulary = str | Path | Sequence[str] | Mapping[str, int]

UNKNOWN_LICENCE = "unknown; no licence lies beside the weights"
"""Licence of an encoder without a licence file; that of scModelForge itself holds for its code."""

N_SPECIAL = 4
"""Ids before those of the genes: padding 0, unknown 1, mask 2, CLS 3."""
CLS_ID = 3
_WEIGHTS = ("model.safetensors", "model.pt")
_VOCABULARY = "gene_vocab.json"
_TO_FETCH = ("config.json", "config.yaml", _VOCABULARY)


@dataclass(frozen=True, eq=False)
class RankCheckpoint:
    """An encoder of scModelForge in plain values and tensors.

    Parameters
    ----------
    path
        File of the weights.
    name
        Folder and file, such as ``blood-encoder (model.safetensors)``.
    licence
        Licence beside the file, or a note that it is unknown.
    sizes
        Fields of :class:`~scstate_lora.nn.rank_encoder.RankConfig`.
    state
        Tensors by our names, float32: exactly those of :class:`~scstate_lora.nn.rank_encoder.RankEncoder`.
    genes
        Names of the vocabulary, in the order of their ids.
    tokens
        Options of :class:`~scstate_lora.data.rank_tokens.RankTokenizer`.
    config
        What was stated about it, in the form of scModelForge's configuration files.
    """

    path: Path
    name: str
    licence: str
    sizes: dict[str, Any]
    state: dict[str, Tensor]
    genes: list[str]
    tokens: dict[str, Any]
    config: dict[str, Any]


def rank_files_to_fetch(names: Sequence[str]) -> list[str]:
    """Choose the files of a model on a hub to fetch; empty if none holds weights."""
    weights = [name for name in _WEIGHTS if name in names][:1]
    beside = [name for name in names if name in _TO_FETCH or name.upper().startswith(("README", "LICEN"))]
    return [*weights, *beside] if weights else []


def is_rank_checkpoint(path: str | Path) -> bool:
    """Whether a path on this machine holds an encoder of scModelForge, by the names of its tensors."""
    try:
        return any(name.endswith(GENE_TABLE) for name in _tensors(find_rank_file(path)))
    except (OSError, ValueError):  # whoever reads it says why it cannot be read
        return False


def read_rank_checkpoint(
    path: str | Path,
    expected_tensors: ExpectedTensors,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    genes: Vocabulary | None = None,
) -> RankCheckpoint:
    """Read an encoder of scModelForge without running code in its files.

    Parameters
    ----------
    path
        Folder that its ``save_pretrained`` or ``export`` wrote, a Lightning ``.ckpt`` of its training, or one file of
        weights. In a folder ``model.safetensors``, else ``model.pt``, else the only ``.ckpt``.
    expected_tensors
        State dict of a network of given sizes.
    config
        Configuration, or its file: a ``config.json``, or the YAML file of its training. By default ``config.json``,
        else ``config.yaml`` beside the weights.
    genes
        Vocabulary, or its JSON file: ids by gene, or the genes in order. By default ``gene_vocab.json`` beside the
        weights.

    Raises
    ------
    FileNotFoundError
        If the file does not exist, or the folder holds no weights.
    ValueError
        If it is not such an encoder, is damaged, incomplete, contradicts itself, or holds more than data.
    """
    file = find_rank_file(path)
    state = _tensors(file)
    sizes = encoder_sizes(state, source=str(file))
    settings = find_settings(file, config)
    sizes = settings.complete(sizes, architecture_of(state), file)
    taken = take_encoder(state, sizes, expected_tensors, source=str(file))
    names, source = _find_genes(file, genes, sizes["n_ids"])
    logger.info(
        "scModelForge encoder %s: %d layer(s) of %d, up to %d tokens per cell, %s pooling; %d genes from %s.",
        file,
        sizes["n_layers"],
        sizes["d_model"],
        sizes["n_positions"],
        sizes["pooling"],
        len(names),
        source,
    )
    return RankCheckpoint(
        path=file,
        name=name_of(file),
        licence=licence_beside(file, otherwise=UNKNOWN_LICENCE),
        sizes=sizes,
        state={name: tensor.float() for name, tensor in taken.items()},  # no copy of a float32 tensor
        genes=names,
        tokens=_token_options(settings, sizes),
        config=settings.stated(),
    )


def find_rank_file(path: str | Path) -> Path:
    """Find the file of weights at a path."""
    path = Path(path).expanduser()
    if not path.exists():
        msg = f"There is no file or folder {path}. Give a folder of scModelForge with model.safetensors, or a .ckpt."
        raise FileNotFoundError(msg)
    folder = path if path.is_dir() else path.parent
    if holds_save(folder):
        msg = f"{folder} is a model saved by scstate_lora (it holds model.json). Load it with load() of its class."
        raise ValueError(msg)
    if path.is_file():
        return path
    present = sorted(file.name for file in path.iterdir())
    checkpoints = [name for name in present if name.endswith(".ckpt")]
    weights = [name for name in _WEIGHTS if name in present] or checkpoints
    if not weights:
        listed = ", ".join(present[:10]) + (", …" if len(present) > 10 else "")
        msg = (
            f"{path} holds none of {', '.join(_WEIGHTS)} and no .ckpt; it holds: {listed or 'nothing'}. Give the "
            "folder that save_pretrained of scModelForge wrote."
        )
        raise FileNotFoundError(msg)
    if weights == checkpoints and len(weights) > 1:
        # Its training keeps the best few, and the names of two may show the same loss.
        msg = f"{path} holds several checkpoints: {', '.join(weights)}. Give the file itself."
        raise ValueError(msg)
    return path / weights[0]


def _tensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a network by name, without the prefixes of its training."""
    top = load_tensors(file)
    named = top.get("state_dict", top) if isinstance(top, Mapping) else {}
    return plain_names({str(name): t for name, t in named.items() if isinstance(t, Tensor)})


def _token_options(settings: Settings, sizes: Mapping[str, Any]) -> dict[str, Any]:
    n_tokens = settings.max_genes
    if n_tokens > sizes["n_positions"]:
        logger.info(
            "Sentences have at most %d tokens (max_seq_len), not %d (max_genes in %s): there are no more positions.",
            sizes["n_positions"],
            n_tokens,
            settings.source,
        )
        n_tokens = sizes["n_positions"]
    return {
        "n_tokens": n_tokens,
        "cls_id": CLS_ID if settings.prepend_cls else None,
        "target_sum": settings.target_sum,
        "log": settings.log,
    }


def _find_genes(file: Path, given: Vocabulary | None, n_ids: int) -> tuple[list[str], str]:
    """Find the vocabulary in the order of its ids, and describe its source."""
    beside = file.parent / _VOCABULARY
    if given is None and not beside.is_file():
        msg = (
            f"The genes that {file} reads are not known: scModelForge stores no vocabulary in a .ckpt, and in a folder "
            f"({_VOCABULARY}) only if it was given gene_vocab=. Its ids are those of the genes of its training data, "
            "in their order. Give them: genes=list(training_adata.var_names), or the path of that file."
        )
        raise ValueError(msg)
    if given is None or isinstance(given, (str, Path)):
        path = beside if given is None else Path(given).expanduser()
        stored, source = read_json(path, what="vocabulary"), str(path)
    else:
        stored, source = given, "genes="
    ids = _ids(stored, source)
    if len(ids) + N_SPECIAL != n_ids or sorted(ids.values()) != list(range(N_SPECIAL, n_ids)):
        low, high = (min(ids.values()), max(ids.values())) if ids else (0, 0)
        msg = (
            f"vocab_size is {n_ids} by the tensors of {file} ({n_ids - N_SPECIAL:,} genes after {N_SPECIAL} special "
            f"tokens, ids {N_SPECIAL} to {n_ids - 1}), but {len(ids) + N_SPECIAL} by {source} ({len(ids):,} genes, "
            f"ids {low} to {high}). Give the vocabulary of its training: genes='path/to/{_VOCABULARY}', or its genes "
            "in order."
        )
        raise ValueError(msg)
    return sorted(ids, key=ids.__getitem__), source


def _ids(stored: Any, source: str) -> dict[str, int]:
    if isinstance(stored, Mapping):
        wrong = [item for item in stored.items() if not isinstance(item[1], int) or isinstance(item[1], bool)]
        if wrong:
            msg = f"The id of {wrong[0][0]!r} in {source} is {wrong[0][1]!r}, not a whole number. Give another file."
            raise ValueError(msg)
        return {str(name): id_ for name, id_ in stored.items()}
    if isinstance(stored, str) or not hasattr(stored, "__iter__"):
        msg = f"{source} holds {type(stored).__name__}, not a vocabulary: expected ids by gene, or genes in order."
        raise ValueError(msg)
    first = dict.fromkeys(str(name) for name in stored)  # as there, a repeated name counts once
    return {name: N_SPECIAL + i for i, name in enumerate(first)}
