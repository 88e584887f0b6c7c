"""Tensors of published state transition (ST) checkpoints: their names and sizes, and the options behind them.

PEFT adapters in the backbone are merged into its weights, tables that are never read are dropped, and every other
tensor is accounted for by name and shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scstate_lora._tensors import compare_tensors
from scstate_lora.io.published.se_tensors import plain_arc_names

if TYPE_CHECKING:
    from torch import Tensor

    from scstate_lora._tensors import ExpectedTensors

BACKBONE = "transformer_backbone."
_PEFT = f"{BACKBONE}base_model.model."
_LORA = re.compile(r"(.+)\.lora_([AB])\.([^.]+)\.weight")
# Token tables (the network is given vectors instead), GPT-2's masks, and rotations that are not applied.
_UNREAD = re.compile(
    rf"{re.escape(BACKBONE)}(embed_tokens\.weight|wte\.weight|wpe\.weight|h\.\d+\.attn\.(masked_)?bias"
    r"|(.+\.)?rotary_emb\.inv_freq)"
)
_BACKBONES = {"llama": "llama", "gpt2": "gpt2", "GPT2": "gpt2"}
_ACTIVATIONS = ("relu", "leakyrelu", "elu", "selu", "gelu")
# Options of transformers that change the result of a backbone, with the one value that ours supports.
_ONLY: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "mlp_bias": False,
        "bidirectional_attention": True,
    },
    "gpt2": {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "layer_norm_epsilon": 1e-5,
        "add_cross_attention": False,
    },
}


def take_backbone(
    state: Mapping[str, Tensor], hyper: Mapping[str, Any], expected_tensors: ExpectedTensors, *, source: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Take the transformer of a checkpoint, in float32 and with adapters merged.

    Parameters
    ----------
    state
        Tensors by published name.
    hyper
        Hyperparameters of the checkpoint.
    expected_tensors
        State dict of a network of given sizes, by our names: a function of the sizes that are returned.
    source
        Source of the tensors for the error message, such as a file name.

    Returns
    -------
    sizes
        ``backbone``, ``hidden``, ``n_layers``, ``n_heads``, ``head_dim``, ``intermediate``.
    tensors
        By our names, without those that are never read.

    Raises
    ------
    ValueError
        If the architecture or one of its options is not supported, if the checkpoint contradicts its tensors, or if a
        tensor is missing, unexpected or of another shape. All such tensors are named.
    """
    sizes, tensors = _backbone(state, hyper, source=source)
    _check(tensors, expected_tensors(sizes), source=source)
    return sizes, {name: tensor.float() for name, tensor in tensors.items()}


def take_network(
    state: Mapping[str, Tensor], hyper: Mapping[str, Any], expected_tensors: ExpectedTensors, *, source: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Take the whole network of a checkpoint, in float32 and with adapters merged, accounting for every tensor.

    Parameters
    ----------
    state, hyper, expected_tensors, source
        As in :func:`take_backbone`.

    Returns
    -------
    sizes
        Those of the backbone and ``n_inputs``, ``pert_dim``, ``n_encoder_layers``, ``n_decoder_layers``,
        ``basal_mlp``, ``activation``, ``dropout``, ``residual`` (``latent``, ``none``, or ``down_up``: the change is
        added to the cells and passed through a narrow layer), ``non_negative``, ``decoder_dims`` and ``n_genes`` (None
        without a gene decoder), ``decoder_residual``, ``decoder_dropout``, ``n_batches`` (0 without a batch encoder),
        ``batch_classes`` (0 without a batch token), ``confidence_token``.
    tensors
        By our names, without those that are never read.

    Raises
    ------
    ValueError
        If any condition of :func:`take_backbone` holds, or the network predicts other features than it reads.
    """
    sizes, tensors = _backbone(state, hyper, source=source)
    rest = {name: tensor for name, tensor in plain_arc_names(state).items() if not name.startswith(BACKBONE)}
    if hyper.get("mask_attn"):
        msg = f"{source} masks the attention between cells (mask_attn), which is not supported. {_REUSE}"
        raise ValueError(msg)
    if any(name.startswith(("gene_decoder.finetune.", "gene_decoder.latent_decoder.")) for name in rest):
        msg = f"{source} decodes genes by an SE network inside it (finetune_vci_decoder): not supported. {_REUSE}"
        raise ValueError(msg)
    sizes |= _network_sizes(rest, hyper, source=source)
    unread = _unread_prefixes(sizes, hyper)
    rest = {name: tensor for name, tensor in rest.items() if not name.startswith(unread)}
    if any(name.startswith("gene_decoder.") for name in unread):
        sizes |= {"decoder_dims": None, "n_genes": None, "decoder_residual": False}
    # The token of the batch is a module of its own in our network.
    tensors |= {"batch_token.batch_token" if name == "batch_token" else name: tensor for name, tensor in rest.items()}
    _check(tensors, expected_tensors(sizes), source=source)
    return sizes, {name: tensor.float() for name, tensor in tensors.items()}


_REUSE = "Its transformer alone can be used: reuse='backbone'."


def _backbone(
    state: Mapping[str, Tensor], hyper: Mapping[str, Any], *, source: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Sizes and tensors of the transformer, adapters merged, before they are compared with those of a network."""
    plain = {name.replace(_PEFT, BACKBONE, 1): tensor for name, tensor in plain_arc_names(state).items()}
    tensors = {name: tensor for name, tensor in plain.items() if name.startswith(BACKBONE)}
    positions = tensors.get(f"{BACKBONE}wpe.weight")
    if positions is not None and bool(positions.any()):
        msg = f"{source} has learned positions (wpe), so its result depends on the order of cells: not supported."
        raise ValueError(msg)
    merged = _merged({name: t for name, t in tensors.items() if not _UNREAD.fullmatch(name)}, hyper, source=source)
    return _backbone_sizes(merged, hyper, source=source), merged


def _check(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str) -> None:
    problems = compare_tensors(expected, tensors)
    if problems:
        listed = "\n  ".join(problems)
        msg = (
            f"The tensors of {source} are not those of an ST network, nothing was loaded:\n  {listed}\n"
            "Download or copy the file again, or give another."
        )
        raise ValueError(msg)


def _merged(state: Mapping[str, Tensor], hyper: Mapping[str, Any], *, source: str) -> dict[str, Tensor]:
    """Add ``alpha / r`` times the product of each adapter's matrices to the weight that it adapts."""
    adapters: dict[str, dict[str, Tensor]] = {}
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _LORA.fullmatch(name)
        if match is None:
            merged[name.replace(".base_layer.", ".")] = tensor
        elif match.group(3) != "default":
            msg = f"{source} holds the adapter {match.group(3)!r}; only 'default' is supported. Merge it first."
            raise ValueError(msg)
        else:
            adapters.setdefault(match.group(1), {})[match.group(2)] = tensor
    lora = _section(hyper, "lora")
    alpha = float(lora.get("alpha", 32))
    for module, pair in adapters.items():
        weight = merged.get(f"{module}.weight")
        if set(pair) != {"A", "B"} or weight is None:
            msg = f"{source}: the adapter on {module} lacks a matrix or its weight. Download or copy the file again."
            raise ValueError(msg)
        rank = pair["A"].shape[0]
        change = (alpha / rank) * (pair["B"].float() @ pair["A"].float())  # (out, in)
        if weight.shape != change.shape or ".h." in module:  # GPT-2's are (in, out), some of them square
            change = change.T
        if weight.shape != change.shape:
            shapes = f"changes {tuple(change.shape)}, its weight is {tuple(weight.shape)}"
            msg = f"{source}: the adapter on {module} {shapes}. Download or copy the file again."
            raise ValueError(msg)
        merged[f"{module}.weight"] = weight.float() + change
    return merged


def _backbone_sizes(state: Mapping[str, Tensor], hyper: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    key = hyper.get("transformer_backbone_key")
    if key not in _BACKBONES:
        msg = f"{source} has the backbone {key!r}; supported are llama and GPT2 (transformer_backbone_key)."
        raise ValueError(msg)
    kind = _BACKBONES[key]
    options = _section(hyper, "transformer_backbone_kwargs")
    for name, only in _ONLY[kind].items():
        if options.get(name, only) != only:
            msg = f"{source} has {name}={options[name]!r} in its backbone; only {only!r} is supported. Give another."
            raise ValueError(msg)
    is_llama = kind == "llama"
    norm, query = ("norm", "layers.0.self_attn.q_proj") if is_llama else ("ln_f", "h.0.attn.c_attn")
    wide = "layers.0.mlp.gate_proj" if is_llama else "h.0.mlp.c_fc"
    layers = {match.group(1) for name in state if (match := re.match(rf"{BACKBONE}(?:layers|h)\.(\d+)\.", name))}
    hidden = _size(state, f"{BACKBONE}{norm}.weight", 0, source)
    n_heads = int(options.get("num_attention_heads" if is_llama else "n_head", 32 if is_llama else 12))
    grouped = options.get("num_key_value_heads") or n_heads
    if is_llama and grouped != n_heads:
        msg = f"{source} shares {grouped} keys and values among {n_heads} heads, which is not supported."
        raise ValueError(msg)
    width = _size(state, f"{BACKBONE}{query}.weight", 0, source) if is_llama else hidden
    if n_heads < 1 or width % n_heads:
        msg = f"{source}: {n_heads} heads do not divide a width of {width}. Download or copy the file again."
        raise ValueError(msg)
    return {
        "backbone": kind,
        "hidden": hidden,
        "n_layers": len(layers),
        "n_heads": n_heads,
        "head_dim": width // n_heads,
        "intermediate": _size(state, f"{BACKBONE}{wide}.weight", 0 if is_llama else 1, source),
    }


def _network_sizes(state: Mapping[str, Tensor], hyper: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    basal_mlp = "basal_encoder.weight" not in state
    first = "basal_encoder.0.weight" if basal_mlp else "basal_encoder.weight"
    n_encoder_layers, n_decoder_layers = (
        len({name.split(".")[1] for name in state if name.startswith(f"{part}.")})
        for part in ("pert_encoder", "project_out")
    )
    activation = str(hyper.get("activation") or "gelu").lower()
    if activation not in _ACTIVATIONS:
        msg = f"{source} has the activation {activation!r}; supported are {', '.join(_ACTIVATIONS)}. {_REUSE}"
        raise ValueError(msg)
    decoder = {name: tensor for name, tensor in state.items() if name.startswith("gene_decoder.")}
    has_residual_blocks = "gene_decoder.final_layer.0.weight" in decoder
    in_genes = hyper.get("embed_key") in (None, "X_hvg")
    residual = "latent" if hyper.get("predict_residual", True) else "none"
    if residual == "latent" and hyper.get("output_space", "gene") == "all":
        residual = "down_up"
    sizes = {
        "n_inputs": _size(state, first, 1, source),
        "pert_dim": _size(state, "pert_encoder.0.weight", 1, source),
        "n_encoder_layers": n_encoder_layers,
        "n_decoder_layers": n_decoder_layers,
        "basal_mlp": basal_mlp,
        "activation": activation,
        "dropout": float(hyper.get("dropout", 0.1)),
        "residual": residual,
        "non_negative": in_genes or not decoder,  # Arc's rule: embeddings are rectified in a model without a decoder
        "decoder_dims": None,
        "n_genes": None,
        "decoder_residual": has_residual_blocks,
        "decoder_dropout": float(_section(hyper, "decoder_cfg").get("dropout", 0.1)),
        "n_batches": len(state["batch_encoder.weight"]) if "batch_encoder.weight" in state else 0,
        "batch_classes": len(state["batch_classifier.0.weight"]) if "batch_classifier.0.weight" in state else 0,
        "confidence_token": "confidence_token.confidence_token" in state,
    }
    if decoder:
        sizes |= _decoder_sizes(decoder, residual=has_residual_blocks, source=source)
    n_outputs = _size(state, f"project_out.{3 * max(n_decoder_layers - 1, 0)}.weight", 0, source)
    dims = {"input_dim": sizes["n_inputs"], "output_dim": n_outputs, "pert_dim": sizes["pert_dim"]}
    clashes = [
        f"{name} is {hyper[name]} in its hyper_parameters, {size} by its tensors"
        for name, size in dims.items()
        if hyper.get(name) is not None and int(hyper[name]) != size
    ]
    if clashes:
        msg = f"{source} contradicts itself: {'; '.join(clashes)}. Download or copy the file again."
        raise ValueError(msg)
    if n_outputs != sizes["n_inputs"]:
        msg = (
            f"{source} reads {sizes['n_inputs']:,} features per cell and predicts {n_outputs:,}. "
            f"A model must predict the features that it reads. {_REUSE}"
        )
        raise ValueError(msg)
    return sizes


def _decoder_sizes(state: Mapping[str, Tensor], *, residual: bool, source: str) -> dict[str, Any]:
    pattern = r"gene_decoder\.blocks\.(\d+)\.0\.weight" if residual else r"gene_decoder\.decoder\.(\d+)\.weight"
    numbered = {int(match.group(1)): name for name in state if (match := re.fullmatch(pattern, name))}
    linear = [state[numbered[i]] for i in sorted(numbered) if state[numbered[i]].ndim == 2]
    if residual:
        linear.append(state["gene_decoder.final_layer.0.weight"])
    if not linear:
        msg = f"{source} has a gene decoder of an unknown form: {', '.join(list(state)[:3])}. {_REUSE}"
        raise ValueError(msg)
    *hidden, last = (weight.shape[0] for weight in linear)
    return {"decoder_dims": tuple(hidden), "n_genes": last}


def _unread_prefixes(sizes: Mapping[str, Any], hyper: Mapping[str, Any]) -> tuple[str, ...]:
    """List prefixes of tensors that a published network holds but does not read for its predictions."""
    unread = []
    if sizes["residual"] != "down_up":
        unread.append("final_down_then_up.")
    embed_key, output_space = hyper.get("embed_key"), hyper.get("output_space", "gene")
    if embed_key is None or (embed_key == "X_hvg" and output_space != "all"):  # the network's own output is of genes
        unread.append("gene_decoder.")
    return tuple(unread)


def _size(state: Mapping[str, Tensor], name: str, dim: int, source: str) -> int:
    if name in state and state[name].ndim > dim:
        return state[name].shape[dim]
    msg = f"{source} lacks {name}, so it is not a whole ST network. Download or copy it again, or give another."
    raise ValueError(msg)


def _section(hyper: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = hyper.get(name)
    return section if isinstance(section, Mapping) else {}
