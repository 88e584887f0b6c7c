"""Manifold-constrained hyper-connections (mHC): skip connections of a transformer that mix the residual."""

from __future__ import annotations

import operator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from scstate_lora._utils import did_you_mean
from scstate_lora.nn.mixing import FeatureMixing, StreamMixing, select

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Kind = Literal["streams", "features"]
_LISTS = ("h", "layers", "layer")
_HOLDERS = ("transformer_encoder", "transformer_backbone", "encoder")


class MHCTransformerLayer(nn.Module):
    """Wrap one transformer layer in ``x_out = H_res x + H_post^T F(H_pre x)`` (Xie et al. 2025, arXiv:2512.24880).

    F is the residual branch of the layer, ``layer(x) - x``, so that the skip connection does not count twice. H_res is
    doubly stochastic, H_pre and H_post are non-negative. Connections are computed in float32, also under autocast, and
    the residual keeps its precision.

    Parameters
    ----------
    layer
        Maps ``(n, T, hidden)`` to the same shape, or to a tuple with that first; the rest of the tuple is passed on.
    hidden
        Width of the tokens.
    kind
        ``"streams"``: the residual consists of ``n_streams`` parallel streams, ``(n, T, n_streams, hidden)`` between
        wrapped layers. ``"features"``: the residual is one stream, whose features are mixed.
    n_streams
        Number of streams, at least two.
    sinkhorn_iters
        Iterations of :class:`~scstate_lora.nn.sinkhorn.SinkhornKnopp`.
    dynamic
        Whether the connections also depend on the token: on the normalised mean of its streams, by a linear map behind
        gates that are zero at first. With ``"features"`` these are three numbers per token.
    expands, contracts
        Whether the layer takes one stream ``(n, T, hidden)`` and makes several from it, and whether it returns one. In
        a run of wrapped layers only the first expands and only the last contracts.

    Raises
    ------
    ValueError
        If the kind is unknown, or streams or iterations are too few; in ``forward``, if the number of streams differs,
        or the layer changes the shape.
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
        """Run the layer between its connections; further arguments are passed to the layer.

        With ``keep (K,)``, which the layer must then accept, only those positions of the second axis are computed.
        """
        mixing = self.mixing
        with torch.autocast(x.device.type, enabled=False):
            if mixing.expands:
                x = mixing.expand(x)
            connections = mixing(x)
            read = mixing.read(x, connections).to(x.dtype)  # (n, T, hidden)
        out = self.inner(read, *args, **kwargs) if keep is None else self.inner(read, *args, keep=keep, **kwargs)
        y, *rest = out if isinstance(out, tuple) else (out,)
        if keep is not None:
            x, read = x[:, keep], read[:, keep]  # (n, K, [n_streams,] hidden), (n, K, hidden)
            connections = select(connections, keep, by_token=mixing.input_part is not None)
        if y.shape != read.shape:
            msg = (
                f"The layer turned {tuple(read.shape)} into {tuple(y.shape)}, so it has no residual branch "
                "layer(x) - x. To compute only some positions, give them as keep=."
            )
            raise ValueError(msg)
        with torch.autocast(x.device.type, enabled=False):
            new = mixing.contract(mixing.write(x, y - read, connections)).to(torch.promote_types(x.dtype, y.dtype))
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
    """Wrap layers of a transformer in hyper-connections, in place; initially its result does not change.

    In a run of consecutive layers, the first makes streams from its input and the last makes one stream from them, so
    that the loop over the layers stays the same and may checkpoint them. In a state dict, the tensors of a layer are
    then below ``inner`` and its connections below ``mixing``.

    Parameters
    ----------
    transformer
        Has its layers in ``.h`` (GPT-2), ``.layers`` (LLaMA, SE encoder) or ``.layer`` (BERT), or holds such a module
        as ``transformer_encoder``, ``transformer_backbone`` or ``encoder``.
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
        If the module has no layers under these names.
    ValueError
        If the kind is unknown, streams or iterations are too few, no layers are chosen, or some are wrapped already.
    IndexError
        If a layer does not exist.
    """
    _check_kind(kind)
    layers = _layer_list(transformer)
    if any(isinstance(layer, MHCTransformerLayer) for layer in layers):
        msg = "Layers of this transformer are wrapped in hyper-connections already. Choose all layers in one call."
        raise ValueError(msg)
    chosen = choose_layers(layer_indices, len(layers))
    # All are made before the first is put in place, so that an error leaves the transformer unchanged.
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
    """Unwrap all layers: the transformer is again what it was before, to the bit.

    Parameters
    ----------
    transformer
        As in :func:`apply_mhc_to_transformer`; changed in place.

    Returns
    -------
    The wrapped layers by number, for :func:`restore_mhc`; empty if none was wrapped.
    """
    layers = _layer_list(transformer)
    removed = {i: layer for i, layer in enumerate(layers) if isinstance(layer, MHCTransformerLayer)}
    for i, wrapped in removed.items():
        layers[i] = wrapped.inner
    return removed


def restore_mhc(transformer: nn.Module, removed: Mapping[int, MHCTransformerLayer]) -> None:
    """Put wrapped layers back in place, with the learned state of their connections.

    Parameters
    ----------
    transformer
        The transformer that they were removed from, without other connections; changed in place.
    removed
        Wrapped layers as :func:`remove_mhc` returned them.

    Raises
    ------
    ValueError
        If the layers are not those that were wrapped, or are wrapped already.
    """
    layers = _layer_list(transformer)
    if any(i >= len(layers) or layers[i] is not wrapped.inner for i, wrapped in removed.items()):
        msg = "These hyper-connections belong to other layers. Give the transformer that they were removed from."
        raise ValueError(msg)
    for i, wrapped in removed.items():
        wrapped.mixing.to(next(layers[i].parameters()).device)  # it may have moved in the meantime
        layers[i] = wrapped


@contextmanager
def mhc_off(transformer: nn.Module) -> Iterator[None]:
    """Unwrap all layers within this context: names, state dict and results are those of the plain transformer.

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
    """List the wrapped layers of a module by name, in order."""
    return {where: child for where, child in transformer.named_modules() if isinstance(child, MHCTransformerLayer)}


def mhc_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """List the parameters of all connections by their names in the module, to train or store beside a frozen base.

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


def _check_kind(kind: str) -> None:
    if kind not in get_args(Kind):
        msg = f"kind={kind!r} is not a kind of hyper-connections. {did_you_mean(kind, get_args(Kind))}"
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
    """Resolve which of `depth` layers to wrap, as in :func:`apply_mhc_to_transformer`, to sorted numbers."""
    if layer_indices is None:
        return list(range(depth))
    requested = [operator.index(i) for i in layer_indices]
    if not requested:
        msg = f"layer_indices is empty. Give some of 0 to {depth - 1}, or None for all layers."
        raise ValueError(msg)
    beyond = [i for i in requested if not -depth <= i < depth]
    if beyond:
        msg = (
            f"layer_indices has {beyond}, but the transformer has {depth} layers: give 0 to {depth - 1}, or "
            f"{-depth} to -1 from the end."
        )
        raise IndexError(msg)
    return sorted({i % depth for i in requested})


def _width(layer: nn.Module) -> int:
    """Width of the tokens of a layer: that of its widest norm, as attention may have narrower norms of its heads."""
    norms = [m for m in layer.modules() if type(m).__name__.endswith("Norm")]
    widths = [weight.numel() for norm in norms for weight in norm.parameters(recurse=False)]
    if not widths:
        msg = f"{type(layer).__name__} has no norm that shows its width. Wrap it by MHCTransformerLayer(..., hidden=)."
        raise TypeError(msg)
    return max(widths)
