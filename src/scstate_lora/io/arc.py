"""Tensor names of published STATE embedding (SE) checkpoints, and ours: the same but for the attention.

A published checkpoint stacks a layer's queries, keys and values in one ``qkv_proj`` of shape ``(3 d, d)``. Here they
are three linear layers, so that an adapter can sit on any of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_OURS = re.compile(r"^(transformer_encoder\.layers\.\d+\.)self_attn\.([qkv]|out)_proj\.(weight|bias)$")
_ARC = re.compile(r"^(transformer_encoder\.layers\.\d+\.)(qkv|out)_proj\.(weight|bias)$")


def to_arc_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and stack our tensors as a published checkpoint has them.

    Parameters
    ----------
    state
        State dict of a :class:`~scstate_lora.nn.se_encoder.SEEncoder` without adapters.

    Returns
    -------
    A new dict; of the attention ``layers.i.qkv_proj`` ``(3 d, d)``, bias ``(3 d,)``, and ``layers.i.out_proj``.

    Raises
    ------
    ValueError
        If one of a layer's query, key and value tensors is missing.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _OURS.match(name)
        if match is None:
            renamed[name] = tensor
            continue
        layer, part, kind = match.groups()
        if part == "out":
            renamed[f"{layer}out_proj.{kind}"] = tensor
        elif f"{layer}qkv_proj.{kind}" not in renamed:
            parts = [f"{layer}self_attn.{p}_proj.{kind}" for p in "qkv"]
            missing = [p for p in parts if p not in state]
            if missing:
                msg = f"Queries, keys and values are stored together, but {', '.join(missing)} is missing."
                raise ValueError(msg)
            renamed[f"{layer}qkv_proj.{kind}"] = torch.cat([state[p] for p in parts])
    return renamed


def from_arc_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and split a published checkpoint's tensors to ours, the inverse of :func:`to_arc_names`.

    Parameters
    ----------
    state
        Tensors by name; the infix ``_orig_mod.`` of compiled models is dropped.

    Returns
    -------
    A new dict with ``layers.i.self_attn.{q,k,v,out}_proj``; the parts are views of the stacked tensors.

    Raises
    ------
    ValueError
        If the rows of a ``qkv_proj`` do not divide by three.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain = name.replace("_orig_mod.", "")
        match = _ARC.match(plain)
        if match is None:
            renamed[plain] = tensor
            continue
        layer, part, kind = match.groups()
        if part == "out":
            renamed[f"{layer}self_attn.out_proj.{kind}"] = tensor
            continue
        if tensor.shape[0] % 3:
            msg = (
                f"{name} has shape {tuple(tensor.shape)}; its rows must be queries, keys and values stacked, three "
                "equal parts. This is not the layout of a published SE checkpoint."
            )
            raise ValueError(msg)
        for p, chunk in zip("qkv", tensor.chunk(3), strict=True):
            renamed[f"{layer}self_attn.{p}_proj.{kind}"] = chunk
    return renamed
