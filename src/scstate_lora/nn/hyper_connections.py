"""Manifold-constrained hyper-connections (mHC): skip connections of a transformer that mix the residual."""

from __future__ import annotations

import operator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from scstate_lora._utils import did_you_mean
from scstate_lora.nn.mixing import FeatureMixing, StreamMixing, select

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from scstate_lora.nn.mixing import Mixing

Kind = Literal["streams", "features"]
_LISTS = ("h", "layers", "layer")
_HOLDERS = ("transformer_encoder", "transformer_backbone", "encoder")


class MHCTransformerLayer(nn.Module):
    """Wrap one transformer layer in ``x_out = H_res x + H_post^T F(H_pre x)`` (Xie et al. 2025, arXiv:2512.24880).

    F is the layer's residual branch, ``layer(x) - x``, so the skip connection is not there twice. H_res is doubly
    stochastic, H_pre and H_post are not negative. Connections are computed in float32, also under autocast, and the
    residual stays in the precision it comes in.

    Parameters
    ----------
    layer
        Takes ``(n, T, hidden)`` and gives the same, or a tuple of which that is the first; the rest of the tuple is
        passed on.
    hidden
        Width of the tokens.
    kind
        ``"streams"``: the residual is ``n_streams`` parallel streams, ``(n, T, n_streams, hidden)`` between wrapped
        layers. ``"features"``: one stream, whose features are mixed.
    n_streams
        Number of streams, at least two.
    sinkhorn_iters
        Iterations of :class:`~scstate_lora.nn.sinkhorn.SinkhornKnopp`.
    dynamic
        Whether the connections also depend on the token: on the streams' mean, normalised, by a linear map behind
        gates that are zero at first. With ``"features"`` that are three numbers a token.
    expands, contracts
        Whether the layer makes streams of one that it takes, ``(n, T, hidden)``, and one of the streams that it gives.
        Of several wrapped layers in a row only the first does the former, and only the last the latter.

    Raises
    ------
    ValueError
        Unknown kind, too few streams or iterations; in ``forward``, there are not as many streams, or the layer gives
        another shape than it takes.
    """

    def __init__(
        self,
        layer: nn.Module,
        *,
        hidden: int,
        kind: Kind,
        n_streams: int = 4,
        sinkhorn_iters: int = 10,
        dynamic: bool = False,
        expands: bool = True,
        contracts: bool = True,
    ) -> None:
        super().__init__()
        _check_kind(kind)
        self.inner = layer
        self.kind = kind
        self.mixing: StreamMixing | FeatureMixing
        if kind == "streams":
            self.mixing = StreamMixing(
                hidden,
                n_streams=n_streams,
                sinkhorn_iters=sinkhorn_iters,
                dynamic=dynamic,
                expands=expands,
                contracts=contracts,
            )
        else:
            self.mixing = FeatureMixing(hidden, sinkhorn_iters=sinkhorn_iters, dynamic=dynamic)

    def forward(self, x: Tensor, *args: Any, keep: Tensor | None = None, **kwargs: Any) -> Any:
        """Run the layer between its connections; further arguments are the layer's.

        With ``keep (K,)``, which the layer must then take, only those positions of the second axis are computed.
        """
        mixing = self.mixing
        with torch.autocast(x.device.type, enabled=False):
            if mixing.expands:
                x = mixing.expand(x)
            how = mixing(x)
            read = mixing.read(x, how).to(x.dtype)  # (n, T, hidden)
        out = self.inner(read, *args, **kwargs) if keep is None else self.inner(read, *args, keep=keep, **kwargs)
        y, *rest = out if isinstance(out, tuple) else (out,)
        if keep is not None:
            x, read, how = x[:, keep], read[:, keep], select(how, keep, by_token=mixing.input_part is not None)
        if y.shape != read.shape:
            msg = (
                f"The layer made {tuple(y.shape)} of {tuple(read.shape)}, so it has no residual branch layer(x) - x. "
                "Positions that are to be kept are given as keep=."
            )
            raise ValueError(msg)
        with torch.autocast(x.device.type, enabled=False):
            new = mixing.contract(mixing.write(x, y - read, how)).to(torch.promote_types(x.dtype, y.dtype))
        return (new, *rest) if isinstance(out, tuple) else new


def apply_mhc_to_transformer(
    transformer: nn.Module,
    *,
    kind: Kind = "streams",
    sinkhorn_iters: int = 10,
    layer_indices: Iterable[int] | None = None,
    n_streams: int = 4,
    dynamic: bool = False,
) -> nn.Module:
    """Wrap layers of a transformer in hyper-connections, in place; at first it computes what it did.

    Of layers that follow each other the first makes streams of its input, and the last makes one stream of them, so
    the loop over the layers stays as it is and may checkpoint them. In a state dict a layer's own tensors are then
    below ``inner`` and the connections below ``mixing``.

    Parameters
    ----------
    transformer
        Has its layers in ``.h`` (GPT-2), ``.layers`` (LLaMA, the SE encoder's) or ``.layer`` (BERT), or holds such a
        module as ``transformer_encoder``, ``transformer_backbone`` or ``encoder``.
    kind, sinkhorn_iters, n_streams, dynamic
        As in :class:`MHCTransformerLayer`.
    layer_indices
        Layers to wrap; negative ones count from the end. None: all.

    Returns
    -------
    The transformer.

    Raises
    ------
    TypeError
        The module has no layers in a known place.
    ValueError
        Unknown kind, too few streams or iterations, no layers chosen, or some are wrapped already.
    IndexError
        There is no layer of that number.
    """
    _check_kind(kind)
    layers = _layer_list(transformer)
    if any(isinstance(layer, MHCTransformerLayer) for layer in layers):
        msg = "Layers of this transformer are wrapped in hyper-connections already. Choose all layers in one call."
        raise ValueError(msg)
    chosen = choose_layers(layer_indices, len(layers))
    # All are made before any is put in place, so that an error leaves the transformer as it was.
    wrapped = {
        i: MHCTransformerLayer(
            layers[i],
            hidden=_width(layers[i]),
            kind=kind,
            n_streams=n_streams,
            sinkhorn_iters=sinkhorn_iters,
            dynamic=dynamic,
            expands=i - 1 not in chosen,
            contracts=i + 1 not in chosen,
        )
        for i in chosen
    }
    for i, layer in wrapped.items():
        layer.mixing.to(next(layers[i].parameters()).device)
        layers[i] = layer.train(layers[i].training)
    return transformer


def remove_mhc(transformer: nn.Module) -> dict[int, MHCTransformerLayer]:
    """Put the layers themselves in the place of the wrapped ones: the transformer is what it was before, to the bit.

    Parameters
    ----------
    transformer
        As in :func:`apply_mhc_to_transformer`; changed in place.

    Returns
    -------
    The wrapped layers by number, for :func:`restore_mhc`; none, where none was wrapped.
    """
    layers = _layer_list(transformer)
    removed = {i: layer for i, layer in enumerate(layers) if isinstance(layer, MHCTransformerLayer)}
    for i, wrapped in removed.items():
        layers[i] = wrapped.inner
    return removed


def restore_mhc(transformer: nn.Module, removed: Mapping[int, MHCTransformerLayer]) -> None:
    """Put wrapped layers back in place, with what their connections learned.

    Parameters
    ----------
    transformer
        That they were removed from, without any other connections; changed in place.
    removed
        As :func:`remove_mhc` gave them.

    Raises
    ------
    ValueError
        The layers are not those that were wrapped, or are wrapped.
    """
    layers = _layer_list(transformer)
    if any(i >= len(layers) or layers[i] is not wrapped.inner for i, wrapped in removed.items()):
        msg = "These hyper-connections are around other layers. Give the transformer that they were removed from."
        raise ValueError(msg)
    for i, wrapped in removed.items():
        wrapped.mixing.to(next(layers[i].parameters()).device)  # it may have moved meanwhile
        layers[i] = wrapped


@contextmanager
def mhc_off(transformer: nn.Module) -> Iterator[None]:
    """Within this context no layer is wrapped: names, state dict and results are those of the plain transformer.

    Parameters
    ----------
    transformer
        Module that may hold wrapped layers.
    """
    removed = remove_mhc(transformer)
    try:
        yield
    finally:
        restore_mhc(transformer, removed)


def mhc_layers(transformer: nn.Module) -> dict[str, MHCTransformerLayer]:
    """Find the wrapped layers in a module, by where they are and in their order."""
    return {where: child for where, child in transformer.named_modules() if isinstance(child, MHCTransformerLayer)}


def mhc_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """Find the connections' parameters, by their names in the module: what to train, or store, beside a frozen base.

    Parameters
    ----------
    transformer
        Module that may hold wrapped layers.
    """
    return {
        f"{where}.mixing.{name}" if where else f"mixing.{name}": parameter
        for where, layer in mhc_layers(transformer).items()
        for name, parameter in layer.mixing.named_parameters()
    }


@dataclass(frozen=True)
class MHCDiagnostics:
    """State of one wrapped layer's residual mapping.

    Parameters
    ----------
    layer
        Where the layer is in the module.
    matrix
        H_res, ``(n_streams, n_streams)`` or ``(hidden, hidden)``, on the CPU.
    pre, post
        H_pre and H_post, ``(n_streams,)`` or ``(hidden,)``, on the CPU.
    forward_gain, backward_gain
        Largest sum of absolute values of a row, and of a column, of H_res: how much a signal, and a gradient, can grow
        ("Amax gain" in the paper). One, where H_res is doubly stochastic.
    composite_forward_gain, composite_backward_gain
        The same of the product of all H_res from the first layer to this one. Of streams: from the layer in which they
        begin.
    distance_from_identity
        Frobenius norm of H_res - I, divided by that of I: 0 is the plain skip connection.
    row_error, column_error
        Largest difference of a row's, and a column's, sum from one.
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
    """Look at the residual mappings of all wrapped layers.

    Parameters
    ----------
    transformer
        Module with layers wrapped by :func:`apply_mhc_to_transformer`.
    run
        Computes the module on some input, ``lambda: backbone(cells)``. Connections that depend on the input are then
        shown as their mean over the tokens; without it, without the part of the input.

    Returns
    -------
    One for each wrapped layer, in their order; none, where none is wrapped.
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
        found = []
        product: Tensor | None = None
        for where, layer in layers.items():
            if where not in seen:
                msg = f"run() did not compute the layer {where}. Let it compute the whole of the module."
                raise ValueError(msg)
            found.append(_diagnose(where, layer, seen[where], None if layer.mixing.expands else product))
            product = found[-1][1]
    return [diagnosis for diagnosis, _ in found]


def _diagnose(
    where: str, layer: MHCTransformerLayer, mixing: Mixing, before: Tensor | None
) -> tuple[MHCDiagnostics, Tensor]:
    """Diagnosis of a layer, and the product of H_res from the first layer to it."""
    matrix = layer.mixing.residual_matrix(mixing).cpu()
    product = matrix if before is None else matrix @ before
    eye = torch.eye(len(matrix))
    diagnosis = MHCDiagnostics(
        layer=where,
        matrix=matrix,
        pre=mixing.pre.reshape(-1, mixing.pre.shape[-1]).mean(0).cpu(),
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


def _check_kind(kind: str) -> None:
    if kind not in get_args(Kind):
        msg = f"kind={kind!r} is no kind of hyper-connections. {did_you_mean(kind, get_args(Kind))}"
        raise ValueError(msg)


def _layer_list(transformer: nn.Module) -> nn.ModuleList:
    for holder in (transformer, *(getattr(transformer, name, None) for name in _HOLDERS)):
        for name in _LISTS:
            layers = getattr(holder, name, None)
            if isinstance(layers, nn.ModuleList):
                return layers
    msg = (
        f"{type(transformer).__name__} has no list of layers in .h (GPT-2), .layers (LLaMA, the SE encoder's "
        "transformer) or .layer (BERT). Give the module that has."
    )
    raise TypeError(msg)


def choose_layers(layer_indices: Iterable[int] | None, depth: int) -> list[int]:
    """Choose the numbers of the layers to wrap, of `depth`, as :func:`apply_mhc_to_transformer` does."""
    if layer_indices is None:
        return list(range(depth))
    asked = [operator.index(i) for i in layer_indices]
    if not asked:
        msg = f"layer_indices is empty. Give some of 0 to {depth - 1}, or None for all layers."
        raise ValueError(msg)
    beyond = [i for i in asked if not -depth <= i < depth]
    if beyond:
        msg = (
            f"layer_indices has {beyond}, but the transformer has {depth} layers: give 0 to {depth - 1}, or "
            f"{-depth} to -1 from the end."
        )
        raise IndexError(msg)
    return sorted({i % depth for i in asked})


def _width(layer: nn.Module) -> int:
    """Width of a layer's tokens: that of its norms, the widest of them, as attention may have norms of its heads."""
    norms = [m for m in layer.modules() if type(m).__name__.endswith("Norm")]
    widths = [weight.numel() for norm in norms for weight in norm.parameters(recurse=False)]
    if not widths:
        msg = f"{type(layer).__name__} has no norm that tells its width. Wrap it by MHCTransformerLayer(..., hidden=)."
        raise TypeError(msg)
    return max(widths)
