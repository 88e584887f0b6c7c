"""Tensors of encoders saved by scModelForge: their names and sizes, and their translation to ours.

torch's encoder layer stacks the queries, keys and values of a layer in one ``in_proj_weight`` ``(3 d, d)``; here they
are three linear layers, so that each can carry an adapter.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from scstate_lora._tensors import aligned, compare_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scstate_lora._tensors import ExpectedTensors

ARCHITECTURES = {
    "transformer_encoder": "head.",
    "autoregressive_transformer": "gene_head.",
    "masked_autoencoder": "enc_to_dec.",
}
"""Their architectures, all with the same encoder, and how the tensors begin that only one of them has."""

_HEADS = (*ARCHITECTURES.values(), "expression_head.", "decoder.", "decoder_position_embedding.", "mask_token")
_PAIRS = (
    ("embedding.gene_embedding.", "gene_embedding."),
    ("embedding.position_embedding.", "position_embedding."),
    ("embedding.expression_proj.", "value_proj."),
    ("embedding.layer_norm.", "norm."),
    ("encoder.layers.", "transformer_encoder.layers."),
)
_STACKED = re.compile(r"(encoder\.layers\.\d+\.self_attn\.)in_proj_(weight|bias)")
_OURS = re.compile(r"(encoder\.layers\.\d+\.self_attn\.)([qkv])_proj\.(weight|bias)")
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
GENE_TABLE = "embedding.gene_embedding.weight"


def to_scmodelforge_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and stack our tensors as scModelForge stores them.

    Parameters
    ----------
    state
        State dict of a :class:`~scstate_lora.nn.rank_encoder.RankEncoder` without adapters.
    """
    renamed: dict[str, Tensor] = {}
    for ours, tensor in state.items():
        name = _rename(ours, [(new, old) for old, new in _PAIRS])
        match = _OURS.fullmatch(name)
        if match is None:
            renamed[name] = tensor
        elif match[2] == "q":
            parts = [state[ours.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            renamed[f"{match[1]}in_proj_{match[3]}"] = torch.cat(parts)
    return renamed


def from_scmodelforge_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and split the tensors of an encoder to our layout, the inverse of :func:`to_scmodelforge_names`.

    Queries, keys and values are views of the stacked tensor.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _STACKED.fullmatch(name)
        if match is None:
            renamed[_rename(name, _PAIRS)] = tensor
            continue
        for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
            renamed[_rename(f"{match[1]}{part}_proj.{match[2]}", _PAIRS)] = chunk
    return renamed


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as in a folder of scModelForge: without the prefixes of Lightning, fine-tuning and compilation.

    Of a fine-tuned model, the backbone is taken; its head for the labels of that training is left out.
    """
    short = {name.replace("_orig_mod.", "").removeprefix("model."): tensor for name, tensor in state.items()}
    backbone = {name.removeprefix("backbone."): t for name, t in short.items() if name.startswith("backbone.")}
    return backbone or short


def encoder_sizes(state: Mapping[str, Tensor], *, source: str) -> dict[str, Any]:
    """Infer the sizes of an encoder from the shapes of its tensors.

    Returns
    -------
    ``n_ids``, ``n_positions``, ``d_model``, ``n_layers``, ``d_hid`` and ``values`` of
    :class:`~scstate_lora.nn.rank_encoder.RankConfig`. The number of heads cannot be inferred from shapes.

    Raises
    ------
    ValueError
        If it is no encoder of scModelForge, carries adapters, or lacks a tensor that determines a size.
    """
    if any(".lora_" in name for name in state):
        msg = (
            f"{source} was fine-tuned by scModelForge with LoRA, whose adapters fit their own layers only. Give the "
            "checkpoint that it was fine-tuned from, or merge the adapters there (merge_and_unload) and save it again."
        )
        raise ValueError(msg)
    if GENE_TABLE not in state:
        held = ", ".join(list(state)[:3]) + ", …" if state else "no tensors by name"
        msg = (
            f"{source} is not an encoder of scModelForge: it holds {held}. One holds {GENE_TABLE}, "
            "encoder.layers.0.self_attn.in_proj_weight and so on. Give the folder of save_pretrained, or a .ckpt."
        )
        raise ValueError(msg)

    def size(name: str, dim: int) -> int:
        if name in state and state[name].ndim > dim:
            return state[name].shape[dim]
        msg = f"{source} lacks {name}, so it is not a whole encoder. Download or copy it again, or give another."
        raise ValueError(msg)

    return {
        "n_ids": size(GENE_TABLE, 0),
        "n_positions": size("embedding.position_embedding.weight", 0),
        "d_model": size(GENE_TABLE, 1),
        "n_layers": len({match[1] for name in state if (match := _LAYER.match(name))}),
        "d_hid": size("encoder.layers.0.linear1.weight", 0),
        "values": any(name.startswith("embedding.expression_proj.") for name in state),
    }


def architecture_of(state: Mapping[str, Tensor]) -> str | None:
    """Architecture that the heads beside an encoder show; None without heads."""
    architectures = [name for name, head in ARCHITECTURES.items() if any(stored.startswith(head) for stored in state)]
    return architectures[0] if architectures else None


def take_encoder(
    state: Mapping[str, Tensor], sizes: Mapping[str, Any], expected_tensors: ExpectedTensors, *, source: str
) -> dict[str, Tensor]:
    """Take the encoder's tensors by our names, accounting for every tensor; heads of the pretraining are left out.

    Parameters
    ----------
    state
        Tensors from :func:`plain_names`.
    sizes
        From :func:`encoder_sizes`.
    expected_tensors
        State dict of a network of given sizes, by our names.
    source
        Source of the tensors for the error message.

    Raises
    ------
    ValueError
        If a tensor is missing, unexpected, of another shape or not floating point. All of them are named.
    """
    stored = {name: tensor for name, tensor in state.items() if not name.startswith(_HEADS)}
    problems = compare_tensors(to_scmodelforge_names(expected_tensors(sizes)), stored)
    if problems:
        listed = "\n  ".join(problems)
        msg = (
            f"The tensors of {source} are not those of an encoder of scModelForge, nothing was loaded:\n  {listed}\n"
            f"Sizes read from the tensors: {', '.join(f'{key} {value}' for key, value in sizes.items())}. "
            "Download or copy the file again, or give another."
        )
        raise ValueError(msg)
    # Aligned before they are split, so that a model embeds the same from any format of its file.
    return from_scmodelforge_names({name: aligned(tensor) for name, tensor in stored.items()})


def _rename(name: str, pairs: Any) -> str:
    for old, new in pairs:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
