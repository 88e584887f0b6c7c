"""Tensor names and shapes of published STATE embedding (SE) checkpoints, and ours: the same but for the attention.

A published checkpoint stacks a layer's queries, keys and values in one ``qkv_proj`` of shape ``(3 d, d)``. Here they
are three linear layers, so that an adapter can sit on any of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

# Fixed in the published architecture: bins of the count encoding, its hidden width, numbers of the data set.
_N_BINS = 10
_COUNT_HIDDEN = 512
_N_DATASET = 10

_OURS = re.compile(r"^(transformer_encoder\.layers\.\d+\.)self_attn\.([qkv]|out)_proj\.(weight|bias)$")
_ARC = re.compile(r"^(transformer_encoder\.layers\.\d+\.)(qkv|out)_proj\.(weight|bias)$")
_LAYER = re.compile(r"^transformer_encoder\.layers\.(\d+)\.")
_FIRST = "transformer_encoder.layers.0."
_TIED = "gene_embedding_layer."


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
    for name, tensor in plain_arc_names(state).items():
        match = _ARC.match(name)
        if match is None:
            renamed[name] = tensor
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


def plain_arc_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the infix ``_orig_mod.`` that compiled models put into names; two names may not become one."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = name.replace("_orig_mod.", "")
        if short in plain:
            msg = f"{short} is there twice, with and without the infix _orig_mod. of a compiled model. Save it again."
            raise ValueError(msg)
        plain[short] = tensor
    return plain


def arc_sizes(state: Mapping[str, Tensor], *, what: str) -> dict[str, Any]:
    """Read off the tensors of a published SE checkpoint every size that they show.

    Parameters
    ----------
    state
        Tensors by published name, without ``_orig_mod.``.
    what
        What they are, for the message, such as a file's name.

    Returns
    -------
    ``token_dim``, ``d_model``, ``n_layers``, ``d_hid``, ``output_dim``, and whether it has ``counts``, ``rda`` and
    ``dataset_correction``. Heads and the length of a sentence leave no trace in the tensors.

    Raises
    ------
    ValueError
        If the tensors that show a size are missing.
    """

    def size(*where: tuple[str, int]) -> int:
        """Length of a tensor along a dimension: the first of these tensors that is there."""
        for name, dim in where:
            if name in state and state[name].ndim > dim:
                return state[name].shape[dim]
        names = " or ".join(name for name, _ in where)
        msg = f"{what} lacks {names}, so it is not a whole SE network. Download or copy it again, or give another."
        raise ValueError(msg)

    d_model = size(("encoder.1.weight", 0), ("gene_embedding_layer.1.weight", 0), ("bin_encoder.weight", 1))
    output_dim = size(("decoder.1.bias", 0), ("decoder.1.weight", 0))
    width = size(("binary_decoder.2.weight", 1), ("binary_decoder.0.layer_norm.weight", 0))
    dataset_correction = any(name.startswith(("dataset_token", "dataset_embedder.")) for name in state)
    return {
        "token_dim": size(("cls_token", 1), ("encoder.0.weight", 1), ("gene_embedding_layer.0.weight", 1)),
        "d_model": d_model,
        "n_layers": len({match.group(1) for name in state if (match := _LAYER.match(name))}),
        "d_hid": size((f"{_FIRST}linear1.bias", 0), (f"{_FIRST}linear1.weight", 0)),
        "output_dim": output_dim,
        "counts": any(name.startswith(("bin_encoder.", "count_encoder.")) for name in state),
        "rda": width > d_model + output_dim + _N_DATASET * dataset_correction,
        "dataset_correction": dataset_correction,
    }


def arc_shapes(sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the network of these sizes needs, as published.

    Parameters
    ----------
    sizes
        What :func:`arc_sizes` returns.
    """
    token, d, hid, out = (sizes[key] for key in ("token_dim", "d_model", "d_hid", "output_dim"))
    n_dataset = _N_DATASET * sizes["dataset_correction"]
    width = d + out + sizes["rda"] + n_dataset
    shapes = {"cls_token": (1, token), **_linear("encoder.0", token, d), **_norm("encoder.1", d)}
    for i in range(sizes["n_layers"]):
        layer = f"transformer_encoder.layers.{i}."
        shapes |= {**_linear(f"{layer}qkv_proj", d, 3 * d), **_linear(f"{layer}out_proj", d, d)}
        shapes |= {**_norm(f"{layer}norm1", d), **_norm(f"{layer}norm2", d)}
        shapes |= {**_linear(f"{layer}linear1", d, hid), **_linear(f"{layer}linear2", hid, d)}
    shapes |= {**_skip("decoder.0", d), **_linear("decoder.1", d, out)}
    if sizes["counts"]:
        shapes |= {"bin_encoder.weight": (_N_BINS, d)}
        shapes |= {**_linear("count_encoder.0", 1, _COUNT_HIDDEN), **_linear("count_encoder.2", _COUNT_HIDDEN, _N_BINS)}
    if sizes["dataset_correction"]:
        shapes |= {"dataset_token": (1, token), **_linear("dataset_embedder", out, n_dataset)}
    shapes |= {**_skip("binary_decoder.0", width), **_skip("binary_decoder.1", width)}
    return shapes | _linear("binary_decoder.2", width, 1)


def take_arc_state(state: Mapping[str, Tensor], *, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Take what the network needs from a published checkpoint's tensors, each of which is accounted for.

    What training alone needs is checked and left out: the classifier of data sets, the table of protein embeddings,
    and the second name of the token encoder. A file that keeps tied tensors once may have only that second name.

    Parameters
    ----------
    state
        Tensors by published name.
    what
        What they are, for the message, such as a file's name.

    Returns
    -------
    sizes
        As :func:`arc_sizes` gives them.
    tensors
        By our names (:func:`from_arc_names`), as they are stored.

    Raises
    ------
    ValueError
        Naming all missing, unexpected and differently shaped tensors, and those that are not floating point.
    """
    found = plain_arc_names(state)
    sizes = arc_sizes(found, what=what)
    needed = arc_shapes(sizes)
    twins = {name: _TIED + name.removeprefix("encoder.") for name in needed if name.startswith("encoder.")}
    untied = found | {name: found[twin] for name, twin in twins.items() if name not in found and twin in found}
    expected = _unneeded_shapes(sizes, found) | {twin: needed[name] for name, twin in twins.items()} | needed
    problems = [f"missing: {name} {shape}" for name, shape in needed.items() if name not in untied]
    problems += [f"unexpected: {name} {_shape(found[name])}" for name in found if name not in expected]
    problems += [
        f"shape: {name} is {_shape(tensor)}, expected {expected[name]}"
        for name, tensor in untied.items()
        if name in expected and not _fits(tensor, expected[name])
    ]
    problems += [
        f"type: {name} is {untied[name].dtype}, expected floating point"
        for name in needed
        if name in untied and not untied[name].is_floating_point()
    ]
    if not problems:
        problems = [
            f"values: {twin} differs from {name}; they are one module under two names"
            for name, twin in twins.items()
            if twin in found and not torch.equal(found[twin], untied[name])
        ]
    if problems:
        listed = "\n  ".join(problems)
        msg = (
            f"The tensors of {what} are not those of an SE network, nothing was loaded:\n  {listed}\n"
            f"Sizes read from the tensors: {', '.join(f'{key} {value}' for key, value in sizes.items())}. "
            "Download or copy the file again, or give another."
        )
        raise ValueError(msg)
    return sizes, from_arc_names({name: untied[name] for name in needed})


def _linear(name: str, n_in: int, n_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _skip(name: str, width: int) -> dict[str, tuple[int, ...]]:
    wide = _linear(f"{name}.intermediate_dense", width, 2 * width)
    return {**wide, **_linear(f"{name}.dense", 2 * width, width), **_norm(f"{name}.layer_norm", width)}


def _unneeded_shapes(sizes: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Tensors that only training needs; -1 is any length."""
    shapes: dict[str, tuple[int, ...]] = {"pe_embedding.weight": (-1, sizes["token_dim"])}
    if sizes["dataset_correction"]:
        d, out = sizes["d_model"], sizes["output_dim"]
        last = state.get("dataset_encoder.4.bias")
        n_datasets = -1 if last is None else last.numel()
        shapes |= {**_linear("dataset_encoder.0", out, d), **_norm("dataset_encoder.2", d)}
        shapes |= _linear("dataset_encoder.4", d, n_datasets)
    return shapes


def _fits(tensor: Tensor, expected: tuple[int, ...]) -> bool:
    return tensor.ndim == len(expected) and all(e in (-1, n) for e, n in zip(expected, tensor.shape, strict=True))


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
