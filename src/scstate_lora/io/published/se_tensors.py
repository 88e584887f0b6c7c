"""Tensors of published STATE embedding (SE) checkpoints: their names and sizes, and their translation to ours.

Names differ in the attention alone. A published checkpoint stacks the queries, keys and values of a layer in one
``qkv_proj`` of shape ``(3 d, d)``; here they are three linear layers, so that each can carry an adapter.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from scstate_lora._tensors import compare_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scstate_lora._tensors import ExpectedTensors

N_DATASET = 10
"""Entries of an embedding that describe the data set, in a model with dataset correction."""

_OURS = re.compile(r"^(transformer_encoder\.layers\.\d+\.)self_attn\.([qkv]|out)_proj\.(weight|bias)$")
_ARC = re.compile(r"^(transformer_encoder\.layers\.\d+\.)(qkv|out)_proj\.(weight|bias)$")
_LAYER = re.compile(r"^transformer_encoder\.layers\.(\d+)\.")
_FIRST = "transformer_encoder.layers.0."
_TIED = "gene_embedding_layer."


def to_arc_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and stack our tensors to the layout of a published checkpoint.

    Parameters
    ----------
    state
        State dict of a :class:`~scstate_lora.nn.se_encoder.SEEncoder` without adapters.

    Returns
    -------
    A new dict, with ``layers.i.qkv_proj`` ``(3 d, d)``, its bias ``(3 d,)``, and ``layers.i.out_proj``.

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


def from_arc_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and split the tensors of a published checkpoint to our layout, the inverse of :func:`to_arc_names`.

    Parameters
    ----------
    state
        Tensors by name; the infix ``_orig_mod.`` of compiled models is dropped.

    Returns
    -------
    A new dict, with ``layers.i.self_attn.{q,k,v,out}_proj``; queries, keys and values are views of the stacked tensor.

    Raises
    ------
    ValueError
        If the number of rows of a ``qkv_proj`` is not divisible by three.
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
    """Drop the infix ``_orig_mod.`` of compiled models from names; a ValueError if two names become one."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = name.replace("_orig_mod.", "")
        if short in plain:
            msg = f"{short} is stored twice, with and without the infix _orig_mod. of a compiled model. Save it again."
            raise ValueError(msg)
        plain[short] = tensor
    return plain


def arc_sizes(state: Mapping[str, Tensor], *, source: str) -> dict[str, Any]:
    """Infer the sizes of an SE network from the shapes of its tensors.

    Parameters
    ----------
    state
        Tensors by published name, without ``_orig_mod.``.
    source
        Source of the tensors for the error message, such as a file name.

    Returns
    -------
    ``token_dim``, ``d_model``, ``n_layers``, ``d_hid``, ``output_dim``, and whether the network has ``counts``, ``rda``
    and ``dataset_correction``. The number of heads and the sentence length cannot be inferred from shapes.

    Raises
    ------
    ValueError
        If the tensors that determine a size are missing.
    """

    def size(*where: tuple[str, int]) -> int:
        """Length along a dimension of the first of these tensors that exists."""
        for name, dim in where:
            if name in state and state[name].ndim > dim:
                return state[name].shape[dim]
        names = " or ".join(name for name, _ in where)
        msg = f"{source} lacks {names}, so it is not a whole SE network. Download or copy it again, or give another."
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
        "rda": width > d_model + output_dim + N_DATASET * dataset_correction,
        "dataset_correction": dataset_correction,
    }


def take_arc_state(
    state: Mapping[str, Tensor], expected_tensors: ExpectedTensors, *, source: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Take the network's tensors from a published checkpoint, accounting for every tensor in it.

    Tensors that only training needs are checked and dropped: the classifier of data sets, the table of protein
    embeddings, and the copy of the token encoder under a second name. A file that stores tied tensors once may hold
    them under the second name only.

    Parameters
    ----------
    state
        Tensors by published name.
    expected_tensors
        State dict of an SE network of given sizes, by our names: a function of what :func:`arc_sizes` returns.
    source
        Source of the tensors for the error message, such as a file name.

    Returns
    -------
    sizes
        As :func:`arc_sizes` gives them.
    tensors
        By our names (:func:`from_arc_names`), as they are stored.

    Raises
    ------
    ValueError
        If a tensor is missing, unexpected, of another shape or not floating point. All of them are named.
    """
    stored = plain_arc_names(state)
    sizes = arc_sizes(stored, source=source)
    needed = to_arc_names(expected_tensors(sizes))
    twins = {name: _TIED + name.removeprefix("encoder.") for name in needed if name.startswith("encoder.")}
    untied = stored | {name: stored[twin] for name, twin in twins.items() if name not in stored and twin in stored}
    optional = _training_tensors(sizes, stored) | {twin: needed[name] for name, twin in twins.items()}
    problems = compare_tensors({name: t for name, t in optional.items() if name in stored} | needed, untied)
    if not problems:
        problems = [
            f"values: {twin} differs from {name}; they are one module under two names"
            for name, twin in twins.items()
            if twin in stored and not torch.equal(stored[twin], untied[name])
        ]
    if problems:
        listed = "\n  ".join(problems)
        msg = (
            f"The tensors of {source} are not those of an SE network, nothing was loaded:\n  {listed}\n"
            f"Sizes read from the tensors: {', '.join(f'{key} {value}' for key, value in sizes.items())}. "
            "Download or copy the file again, or give another."
        )
        raise ValueError(msg)
    return sizes, from_arc_names({name: untied[name] for name in needed})


def _training_tensors(sizes: Mapping[str, Any], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors, on the meta device, that a published checkpoint may hold and only its training needs."""

    def rows(*names: str) -> int:
        """Length of the first of these tensors that is stored: the number of proteins or data sets is free."""
        return next((len(stored[name]) for name in names if name in stored and stored[name].ndim), 0)

    shapes: dict[str, tuple[int, ...]] = {"pe_embedding.weight": (rows("pe_embedding.weight"), sizes["token_dim"])}
    if sizes["dataset_correction"]:
        d, out, n = sizes["d_model"], sizes["output_dim"], rows("dataset_encoder.4.bias", "dataset_encoder.4.weight")
        weights = {"0.weight": (d, out), "2.weight": (d,), "4.weight": (n, d)}
        biases = {"0.bias": (d,), "2.bias": (d,), "4.bias": (n,)}
        shapes |= {f"dataset_encoder.{name}": shape for name, shape in (weights | biases).items()}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
