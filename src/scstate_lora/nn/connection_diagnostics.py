"""Diagnostics of hyper-connections: how far each residual mapping is from the plain skip connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scstate_lora.nn.hyper_connections import mhc_layers

if TYPE_CHECKING:
    from collections.abc import Callable

    from scstate_lora.nn.hyper_connections import MHCTransformerLayer
    from scstate_lora.nn.mixing import Mixing


@dataclass(frozen=True)
class MHCDiagnostics:
    """State of the residual mapping of one wrapped layer.

    Parameters
    ----------
    layer
        Name of the layer in the module.
    matrix
        H_res, ``(n_streams, n_streams)`` or ``(hidden, hidden)``, on the CPU.
    pre, post
        H_pre and H_post, ``(n_streams,)`` or ``(hidden,)``, on the CPU.
    forward_gain, backward_gain
        Largest absolute row sum, and column sum, of H_res: how much a signal, and a gradient, can grow ("Amax gain" in
        the paper). One if H_res is doubly stochastic.
    composite_forward_gain, composite_backward_gain
        The same for the product of all H_res from the first layer to this one; for streams, from the layer that makes
        them.
    distance_from_identity
        Frobenius norm of H_res - I, divided by that of I: 0 is the plain skip connection.
    row_error, column_error
        Largest deviation of a row sum, and of a column sum, from one.
    """

    layer: str
    matrix: Tensor
    pre: Tensor
    post: Tensor
    forward_gain: float
    backward_gain: float
    composite_forward_gain: float
    composite_backward_gain: float
    distance_from_identity: float
    row_error: float
    column_error: float


def mhc_diagnostics(transformer: nn.Module, run: Callable[[], object] | None = None) -> list[MHCDiagnostics]:
    """Examine the residual mappings of all wrapped layers.

    Parameters
    ----------
    transformer
        Module with layers wrapped by :func:`apply_mhc_to_transformer`.
    run
        Runs the module on some input, for instance ``lambda: backbone(cells)``. Connections that depend on the input
        are then averaged over the tokens; without `run`, the contribution of the input is left out.

    Returns
    -------
    One record per wrapped layer, in order; an empty list if no layer is wrapped.

    Raises
    ------
    ValueError
        If `run` does not run a wrapped layer.
    """
    layers = mhc_layers(transformer)
    seen: dict[str, Mixing] = {}
    with torch.no_grad():
        if run is None:
            seen = {where: layer.mixing(None) for where, layer in layers.items()}
        else:
            hooks = [
                layer.mixing.register_forward_hook(lambda _, __, mixing, where=where: seen.update({where: mixing}))
                for where, layer in layers.items()
            ]
            try:
                run()
            finally:
                for hook in hooks:
                    hook.remove()
        diagnoses = []
        product: Tensor | None = None
        for where, layer in layers.items():
            if where not in seen:
                msg = f"run() did not run the layer {where}. Let it run the whole module."
                raise ValueError(msg)
            diagnosis, product = _diagnose(where, layer, seen[where], None if layer.mixing.expands else product)
            diagnoses.append(diagnosis)
    return diagnoses


def _diagnose(
    where: str, layer: MHCTransformerLayer, mixing: Mixing, before: Tensor | None
) -> tuple[MHCDiagnostics, Tensor]:
    """Diagnose a layer; also give the product of H_res from the first layer to this one."""
    matrix = layer.mixing.residual_matrix(mixing).cpu()
    product = matrix if before is None else matrix @ before
    eye = torch.eye(len(matrix))
    diagnosis = MHCDiagnostics(
        layer=where,
        matrix=matrix,
        pre=mixing.pre.reshape(-1, mixing.pre.shape[-1]).mean(0).cpu(),  # (..., n) -> (tokens, n) -> (n,)
        post=mixing.post.reshape(-1, mixing.post.shape[-1]).mean(0).cpu(),
        forward_gain=_gain(matrix, -1),
        backward_gain=_gain(matrix, -2),
        composite_forward_gain=_gain(product, -1),
        composite_backward_gain=_gain(product, -2),
        distance_from_identity=((matrix - eye).norm() / eye.norm()).item(),
        row_error=(matrix.sum(-1) - 1).abs().max().item(),
        column_error=(matrix.sum(-2) - 1).abs().max().item(),
    )
    return diagnosis, product


def _gain(matrix: Tensor, axis: int) -> float:
    return matrix.abs().sum(axis).max().item()
