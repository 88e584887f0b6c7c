"""Tensor names, shapes and options of published state transition (ST) checkpoints.

Adapters of PEFT in the backbone are merged into its weights, tables that are never read are dropped, and every other
tensor is accounted for by name and shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scstate_lora.io.published.se_tensors import plain_arc_names

if TYPE_CHECKING:
    from torch import Tensor

BACKBONE = "transformer_backbone."
_PEFT = f"{BACKBONE}base_model.model."
_LORA = re.compile(r"(.+)\.lora_([AB])\.([^.]+)\.weight")
# Token tables, which nothing reads as the network is given vectors; GPT-2's masks; rotations that are not applied.
_UNREAD = re.compile(
    rf"{re.escape(BACKBONE)}(embed_tokens\.weight|wte\.weight|wpe\.weight|h\.\d+\.attn\.(masked_)?bias"
    r"|(.+\.)?rotary_emb\.inv_freq)"
)
_BACKBONES = {"llama": "llama", "gpt2": "gpt2", "GPT2": "gpt2"}
_ACTIVATIONS = ("relu", "leakyrelu", "elu", "selu", "gelu")
# Options of transformers that change what a backbone computes, and the one value that ours computes.
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
    state: Mapping[str, Tensor], hyper: Mapping[str, Any], *, what: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Take the transformer of a checkpoint, float32, adapters merged.

    Parameters
    ----------
    state
        Tensors by published name.
    hyper
        The checkpoint's hyper parameters.
    what
        What they are of, for the message.

    Returns
    -------
    sizes
        ``backbone``, ``hidden``, ``n_layers``, ``n_heads``, ``head_dim``, ``intermediate``.
    tensors
        By published name, without what is not read.

    Raises
    ------
    ValueError
        Its architecture, or an option of it, is not one of ours; or it contradicts its tensors.
    """
    plain = {name.replace(_PEFT, BACKBONE, 1): tensor for name, tensor in plain_arc_names(state).items()}
    found = {name: tensor for name, tensor in plain.items() if name.startswith(BACKBONE)}
    positions = found.get(f"{BACKBONE}wpe.weight")
    if positions is not None and bool(positions.any()):
        msg = f"{what} has learned positions (wpe), so its result depends on the order of cells. It is not supported."
        raise ValueError(msg)
    merged = _merged({name: t for name, t in found.items() if not _UNREAD.fullmatch(name)}, hyper, what=what)
    sizes = _backbone_sizes(merged, hyper, what=what)
    check_tensors(merged, backbone_shapes(sizes), what=what)
    return sizes, {name: tensor.float() for name, tensor in merged.items()}


def take_network(
    state: Mapping[str, Tensor], hyper: Mapping[str, Any], *, what: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Take the whole network of a checkpoint, float32, adapters merged, each tensor accounted for.

    Parameters
    ----------
    state, hyper, what
        As in :func:`take_backbone`.

    Returns
    -------
    sizes
        Those of the backbone and ``n_inputs``, ``n_outputs``, ``pert_dim``, ``n_encoder_layers``,
        ``n_decoder_layers``, ``basal_mlp``, ``activation``, ``dropout``, ``residual`` (``latent``, ``none``, or
        ``down_up``: the change added to the cells and passed through a narrow layer), ``non_negative``,
        ``decoder_dims`` and ``n_genes`` (None without a gene decoder), ``decoder_residual``,
        ``decoder_dropout``, ``n_batches`` (0 without
        a batch encoder), ``batch_classes`` (0 without a batch token), ``confidence_token``, ``confidence_scale``.
    tensors
        By published name, without what is not read.

    Raises
    ------
    ValueError
        Naming all missing, unexpected and differently shaped tensors, or the option that is not supported.
    """
    backbone, kept = take_backbone(state, hyper, what=what)
    rest = {name: tensor for name, tensor in plain_arc_names(state).items() if not name.startswith(BACKBONE)}
    if hyper.get("mask_attn"):
        msg = f"{what} masks the attention between cells (mask_attn), which is not supported. {_REUSE}"
        raise ValueError(msg)
    if any(name.startswith(("gene_decoder.finetune.", "gene_decoder.latent_decoder.")) for name in rest):
        msg = f"{what} decodes genes by an SE network inside of it (finetune_vci_decoder), which is not supported. "
        raise ValueError(msg + _REUSE)
    sizes = backbone | _network_sizes(rest, hyper, what=what)
    unread = _unread_prefixes(sizes, hyper)
    rest = {name: tensor for name, tensor in rest.items() if not name.startswith(unread)}
    if any(name.startswith("gene_decoder.") for name in unread):
        sizes |= {"decoder_dims": None, "n_genes": None, "decoder_residual": False}
    check_tensors(rest, network_shapes(sizes), what=what)
    return sizes, kept | {name: tensor.float() for name, tensor in rest.items()}


_REUSE = "Its transformer can be used: reuse='backbone'."


def backbone_shapes(sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a backbone of these sizes, as published."""
    hidden, wide, heads = sizes["hidden"], sizes["intermediate"], sizes["n_heads"] * sizes["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(sizes["n_layers"]):
        if sizes["backbone"] == "llama":
            layer = f"{BACKBONE}layers.{i}."
            shapes |= {f"{layer}self_attn.{part}_proj.weight": (heads, hidden) for part in "qkv"}
            shapes |= {f"{layer}self_attn.o_proj.weight": (hidden, heads)}
            shapes |= {f"{layer}mlp.{part}_proj.weight": (wide, hidden) for part in ("gate", "up")}
            shapes |= {f"{layer}mlp.down_proj.weight": (hidden, wide)}
            shapes |= {f"{layer}{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}
        else:  # GPT-2's matrices are (in, out)
            layer = f"{BACKBONE}h.{i}."
            shapes |= {**_norm(f"{layer}ln_1", hidden), **_norm(f"{layer}ln_2", hidden)}
            parts = {"attn.c_attn": (hidden, 3 * hidden), "attn.c_proj": (hidden, hidden)}
            parts |= {"mlp.c_fc": (hidden, wide), "mlp.c_proj": (wide, hidden)}
            for part, shape in parts.items():
                shapes |= {f"{layer}{part}.weight": shape, f"{layer}{part}.bias": shape[1:]}
    if sizes["backbone"] == "llama":
        return shapes | {f"{BACKBONE}norm.weight": (hidden,)}
    return shapes | _norm(f"{BACKBONE}ln_f", hidden)


def network_shapes(sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a network of these sizes besides the backbone's, as published."""
    hidden, n_in, n_out = sizes["hidden"], sizes["n_inputs"], sizes["n_outputs"]
    shapes = _mlp("pert_encoder", sizes["pert_dim"], hidden, hidden, sizes["n_encoder_layers"])
    if sizes["basal_mlp"]:
        shapes |= _mlp("basal_encoder", n_in, hidden, hidden, sizes["n_encoder_layers"])
    else:
        shapes |= _linear("basal_encoder", n_in, hidden)
    shapes |= _mlp("project_out", hidden, n_out, hidden, sizes["n_decoder_layers"])
    if sizes["residual"] == "down_up":
        shapes |= _linear("final_down_then_up.0", n_out, n_out // 8) | _linear(
            "final_down_then_up.2", n_out // 8, n_out
        )
    if sizes["n_batches"]:
        shapes |= {"batch_encoder.weight": (sizes["n_batches"], hidden)}
    if sizes["batch_classes"]:
        shapes |= {"batch_token": (1, 1, hidden), **_linear("batch_classifier.0", hidden, sizes["batch_classes"])}
    if sizes["confidence_token"]:
        token, widths = "confidence_token.", (hidden, hidden // 2, hidden // 4)
        head = f"{token}confidence_projection."
        shapes |= {f"{token}confidence_token": (1, 1, hidden)}
        for i in (0, 1):
            shapes |= _linear(f"{head}{4 * i}", widths[i], widths[i + 1]) | _norm(f"{head}{4 * i + 1}", widths[i + 1])
        shapes |= _linear(f"{head}8", widths[2], 1)
    if sizes["decoder_dims"] is not None:
        shapes |= _decoder(n_out, sizes["decoder_dims"], sizes["n_genes"], residual=sizes["decoder_residual"])
    return shapes


def check_tensors(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], *, what: str) -> None:
    """Raise a ValueError that names every missing, unexpected and differently shaped tensor."""
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in state]
    problems += [f"unexpected: {name} {tuple(t.shape)}" for name, t in state.items() if name not in expected]
    problems += [
        f"shape: {name} is {tuple(tensor.shape)}, expected {expected[name]}"
        for name, tensor in state.items()
        if name in expected and tuple(tensor.shape) != expected[name]
    ]
    problems += [
        f"type: {name} is {tensor.dtype}, expected floating point"
        for name, tensor in state.items()
        if name in expected and not tensor.is_floating_point()
    ]
    if problems:
        listed = "\n  ".join(problems)
        msg = (
            f"The tensors of {what} are not those of an ST network, nothing was loaded:\n  {listed}\n"
            "Download or copy the file again, or give another."
        )
        raise ValueError(msg)


def _merged(state: Mapping[str, Tensor], hyper: Mapping[str, Any], *, what: str) -> dict[str, Tensor]:
    """Add ``alpha / r`` times the product of each adapter's matrices to the weight that it is on."""
    adapters: dict[str, dict[str, Tensor]] = {}
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _LORA.fullmatch(name)
        if match is None:
            merged[name.replace(".base_layer.", ".")] = tensor
        elif match.group(3) != "default":
            msg = f"{what} holds the adapter {match.group(3)!r}; only one, named 'default', is known. Merge it first."
            raise ValueError(msg)
        else:
            adapters.setdefault(match.group(1), {})[match.group(2)] = tensor
    lora = _section(hyper, "lora")
    alpha = float(lora.get("alpha", 32))
    for module, pair in adapters.items():
        weight = merged.get(f"{module}.weight")
        if set(pair) != {"A", "B"} or weight is None:
            msg = f"{what}: the adapter on {module} lacks a matrix or its weight. Download or copy the file again."
            raise ValueError(msg)
        rank = pair["A"].shape[0]
        change = (alpha / rank) * (pair["B"].float() @ pair["A"].float())  # (out, in)
        if weight.shape != change.shape or ".h." in module:  # GPT-2's are (in, out), some of them square
            change = change.T
        if weight.shape != change.shape:
            msg = f"{what}: the adapter on {module} changes {tuple(change.shape)}, its weight is {tuple(weight.shape)}."
            raise ValueError(msg + " Download or copy the file again.")
        merged[f"{module}.weight"] = weight.float() + change
    return merged


def _backbone_sizes(state: Mapping[str, Tensor], hyper: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    key = hyper.get("transformer_backbone_key")
    if key not in _BACKBONES:
        msg = f"{what} has the backbone {key!r}. Known are llama and GPT2 (transformer_backbone_key)."
        raise ValueError(msg)
    kind = _BACKBONES[key]
    options = _section(hyper, "transformer_backbone_kwargs")
    for name, only in _ONLY[kind].items():
        if options.get(name, only) != only:
            msg = f"{what} has {name}={options[name]!r} in its backbone; only {only!r} is supported. Give another."
            raise ValueError(msg)
    is_llama = kind == "llama"
    norm, query = ("norm", "layers.0.self_attn.q_proj") if is_llama else ("ln_f", "h.0.attn.c_attn")
    wide = "layers.0.mlp.gate_proj" if is_llama else "h.0.mlp.c_fc"
    layers = {match.group(1) for name in state if (match := re.match(rf"{BACKBONE}(?:layers|h)\.(\d+)\.", name))}
    hidden = _size(state, f"{BACKBONE}{norm}.weight", 0, what)
    n_heads = int(options.get("num_attention_heads" if is_llama else "n_head", 32 if is_llama else 12))
    grouped = options.get("num_key_value_heads") or n_heads
    if is_llama and grouped != n_heads:
        msg = f"{what} shares {grouped} keys and values among {n_heads} heads, which is not supported."
        raise ValueError(msg)
    width = _size(state, f"{BACKBONE}{query}.weight", 0, what) if is_llama else hidden
    if n_heads < 1 or width % n_heads:
        msg_0 = f"{what}: {n_heads} heads do not divide a width of {width}. Download or copy the file again."
        raise ValueError(msg_0)
    return {
        "backbone": kind,
        "hidden": hidden,
        "n_layers": len(layers),
        "n_heads": n_heads,
        "head_dim": width // n_heads,
        "intermediate": _size(state, f"{BACKBONE}{wide}.weight", 0 if is_llama else 1, what),
    }


def _network_sizes(state: Mapping[str, Tensor], hyper: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    basal_mlp = "basal_encoder.weight" not in state
    first = "basal_encoder.0.weight" if basal_mlp else "basal_encoder.weight"
    n_encoder_layers, n_decoder_layers = (
        len({name.split(".")[1] for name in state if name.startswith(f"{part}.")})
        for part in ("pert_encoder", "project_out")
    )
    activation = str(hyper.get("activation") or "gelu").lower()
    if activation not in _ACTIVATIONS:
        msg = f"{what} has the activation {activation!r}. Known are {', '.join(_ACTIVATIONS)}. {_REUSE}"
        raise ValueError(msg)
    decoder = {name: tensor for name, tensor in state.items() if name.startswith("gene_decoder.")}
    has_residual_blocks = "gene_decoder.final_layer.0.weight" in decoder
    in_genes = hyper.get("embed_key") in (None, "X_hvg")
    residual = "latent" if hyper.get("predict_residual", True) else "none"
    if residual == "latent" and hyper.get("output_space", "gene") == "all":
        residual = "down_up"
    sizes = {
        "n_inputs": _size(state, first, 1, what),
        "n_outputs": _size(state, f"project_out.{3 * max(n_decoder_layers - 1, 0)}.weight", 0, what),
        "pert_dim": _size(state, "pert_encoder.0.weight", 1, what),
        "n_encoder_layers": n_encoder_layers,
        "n_decoder_layers": n_decoder_layers,
        "basal_mlp": basal_mlp,
        "activation": activation,
        "dropout": float(hyper.get("dropout", 0.1)),
        "residual": residual,
        "non_negative": in_genes or not decoder,  # Arc's rule, which rectifies embeddings where there is no decoder
        "decoder_dims": None,
        "n_genes": None,
        "decoder_residual": has_residual_blocks,
        "decoder_dropout": float(_section(hyper, "decoder_cfg").get("dropout", 0.1)),
        "n_batches": len(state["batch_encoder.weight"]) if "batch_encoder.weight" in state else 0,
        "batch_classes": len(state["batch_classifier.0.weight"]) if "batch_classifier.0.weight" in state else 0,
        "confidence_token": "confidence_token.confidence_token" in state,
        "confidence_scale": float(hyper.get("confidence_target_scale", 10.0)),
    }
    if decoder:
        sizes |= _decoder_sizes(decoder, residual=has_residual_blocks, what=what)
    clashes = [
        f"{theirs} is {hyper[theirs]} in its hyper_parameters, {sizes[ours]} by its tensors"
        for ours, theirs in (("n_inputs", "input_dim"), ("n_outputs", "output_dim"), ("pert_dim", "pert_dim"))
        if hyper.get(theirs) is not None and int(hyper[theirs]) != sizes[ours]
    ]
    if clashes:
        msg_0 = f"{what} contradicts itself: {'; '.join(clashes)}. Download or copy the file again."
        raise ValueError(msg_0)
    return sizes


def _decoder_sizes(state: Mapping[str, Tensor], *, residual: bool, what: str) -> dict[str, Any]:
    pattern = r"gene_decoder\.blocks\.(\d+)\.0\.weight" if residual else r"gene_decoder\.decoder\.(\d+)\.weight"
    numbered = {int(match.group(1)): name for name in state if (match := re.fullmatch(pattern, name))}
    linear = [state[numbered[i]] for i in sorted(numbered) if state[numbered[i]].ndim == 2]
    if residual:
        linear.append(state["gene_decoder.final_layer.0.weight"])
    if not linear:
        msg = f"{what} has a gene decoder of an unknown form: {', '.join(list(state)[:3])}. {_REUSE}"
        raise ValueError(msg)
    *hidden, last = (weight.shape[0] for weight in linear)
    return {"decoder_dims": tuple(hidden), "n_genes": last}


def _unread_prefixes(sizes: Mapping[str, Any], hyper: Mapping[str, Any]) -> tuple[str, ...]:
    """List what a published network holds and its predictions do not read."""
    unread = []
    if sizes["residual"] != "down_up":
        unread.append("final_down_then_up.")
    embed_key, output_space = hyper.get("embed_key"), hyper.get("output_space", "gene")
    if embed_key is None or (embed_key == "X_hvg" and output_space != "all"):  # the network's own output is of genes
        unread.append("gene_decoder.")
    return tuple(unread)


def _decoder(n_in: int, hidden: tuple[int, ...], n_genes: int, *, residual: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    widths = (n_in, *hidden)
    for i, (before, width) in enumerate(zip(widths, hidden, strict=False)):
        linear, norm = (f"blocks.{i}.0", f"blocks.{i}.1") if residual else (f"decoder.{4 * i}", f"decoder.{4 * i + 1}")
        shapes |= _linear(f"gene_decoder.{linear}", before, width) | _norm(f"gene_decoder.{norm}", width)
    last = "final_layer.0" if residual else f"decoder.{4 * len(hidden)}"
    return shapes | _linear(f"gene_decoder.{last}", widths[-1], n_genes)


def _mlp(name: str, n_in: int, n_out: int, hidden: int, n_layers: int) -> dict[str, tuple[int, ...]]:
    widths = [n_in, *[hidden] * (n_layers - 1), n_out]
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(n_layers):
        shapes |= _linear(f"{name}.{3 * i}", widths[i], widths[i + 1])
    return shapes


def _linear(name: str, n_in: int, n_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _size(state: Mapping[str, Tensor], name: str, dim: int, what: str) -> int:
    if name in state and state[name].ndim > dim:
        return state[name].shape[dim]
    msg = f"{what} lacks {name}, so it is not a whole ST network. Download or copy it again, or give another."
    raise ValueError(msg)


def _section(hyper: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = hyper.get(name)
    return section if isinstance(section, Mapping) else {}
