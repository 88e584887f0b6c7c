"""What models with a transformer tell of its hyper-connections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import pandas as pd

from scstate_lora._tensors import in_float32
from scstate_lora.nn.connection_diagnostics import mhc_diagnostics
from scstate_lora.nn.hyper_connections import mhc_layers

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import nn

    from scstate_lora.config import MHCConfig
    from scstate_lora.nn.connection_diagnostics import MHCDiagnostics

_GAINS = ("forward_gain", "backward_gain", "composite_forward_gain", "composite_backward_gain")
_MEASURED = (*_GAINS, "distance_from_identity", "row_error", "column_error")


class HyperConnected(ABC):
    """A model whose transformer may have hyper-connections."""

    @abstractmethod
    def _transformer(self) -> nn.Module | None:
        """Return the transformer whose layers may be wrapped; None before it is made."""

    @abstractmethod
    def _on_some_cells(self) -> Callable[[], object] | None:
        """Return a call that runs the transformer on some training cells; None for a model without data."""

    def mhc_diagnostics(self) -> pd.DataFrame:
        """Look at the hyper-connections' residual mixing H_res, layer by layer.

        Connections that depend on the input (``MHCConfig(dynamic=True)``) are shown as their mean over the tokens of
        some training cells; of a model without data, without the part of the input.

        Returns
        -------
        One row a wrapped layer: ``layer`` (its number), ``kind``, ``size`` (of its matrix), ``forward_gain`` and
        ``backward_gain`` (how much a signal, and a gradient, can grow: the largest row and column sum of absolute
        values), ``composite_forward_gain`` and ``composite_backward_gain`` (of the product of all H_res from the first
        layer to this one), ``distance_from_identity`` (Frobenius norm of H_res - I by that of I), ``row_error`` and
        ``column_error`` (largest difference of a sum from one).

        Raises
        ------
        ValueError
            If the model has no hyper-connections.

        References
        ----------
        Xie et al. 2025, arXiv:2512.24880.
        """
        kinds = [layer.kind for layer in mhc_layers(self._wrapped()).values()]
        rows = [
            {"layer": _number(layer), "kind": kind, "size": len(layer.matrix)}
            | {name: getattr(layer, name) for name in _MEASURED}
            for kind, layer in zip(kinds, self._diagnose(), strict=True)
        ]
        return pd.DataFrame(rows)

    def mhc_matrices(self) -> dict[int, np.ndarray]:
        """Give the matrices H_res that :meth:`mhc_diagnostics` is about.

        Returns
        -------
        Number of each wrapped layer to its matrix, float32 ``(n_streams, n_streams)`` or ``(hidden, hidden)``.

        Raises
        ------
        ValueError
            If the model has no hyper-connections.
        """
        return {_number(layer): layer.matrix.numpy() for layer in self._diagnose()}

    def _wrapped(self) -> nn.Module:
        transformer = self._transformer()
        if transformer is None or not mhc_layers(transformer):
            msg = f"This {type(self).__name__} has no hyper-connections: train it with .train(mhc=True)."
            raise ValueError(msg)
        return transformer

    @in_float32()
    def _diagnose(self) -> list[MHCDiagnostics]:
        transformer = self._wrapped()
        by_input = any(layer.mixing.input_part is not None for layer in mhc_layers(transformer).values())
        return mhc_diagnostics(transformer, self._on_some_cells() if by_input else None)


def describe_mhc(mhc: MHCConfig) -> str:
    """Describe hyper-connections in a few words."""
    mixed = f"{mhc.n_streams} streams" if mhc.kind == "streams" else "mixed features"
    where = "all layers" if mhc.layer_indices is None else f"layers {', '.join(map(str, mhc.layer_indices))}"
    by_input = ", by the input" if mhc.dynamic else ""
    return f"{mixed}{by_input}, around {where}, {mhc.sinkhorn_iters} Sinkhorn iterations"


def refuse_other(requested: MHCConfig, existing: MHCConfig) -> None:
    """Raise a ValueError if the requested hyper-connections differ from the existing ones."""
    differing = [
        f"{name}={getattr(existing, name)!r} exists, {getattr(requested, name)!r} is requested"
        for name in type(requested).model_fields
        if getattr(requested, name) != getattr(existing, name)
    ]
    if differing:
        msg = (
            f"mhc: the model already has hyper-connections with other options: {'; '.join(differing)}. Leave mhc out "
            "to train them further."
        )
        raise ValueError(msg)


def _number(diagnostics: MHCDiagnostics) -> int:
    return int(diagnostics.layer.rpartition(".")[2])
