"""What models with a transformer tell of its hyper-connections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import pandas as pd

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
        """Give the transformer whose layers may be wrapped; None while there is none."""

    @abstractmethod
    def _on_some_cells(self) -> Callable[[], object] | None:
        """Give what computes the transformer on some of the model's own cells; None where it has none."""

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
            The model has no hyper-connections.

        References
        ----------
        Xie et al. 2025, arXiv:2512.24880.
        """
        kinds = [layer.kind for layer in mhc_layers(self._wrapped()).values()]
        rows = [
            {"layer": _number(found), "kind": kind, "size": len(found.matrix)}
            | {name: getattr(found, name) for name in _MEASURED}
            for kind, found in zip(kinds, self._diagnose(), strict=True)
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
            The model has no hyper-connections.
        """
        return {_number(found): found.matrix.numpy() for found in self._diagnose()}

    def _wrapped(self) -> nn.Module:
        transformer = self._transformer()
        if transformer is None or not mhc_layers(transformer):
            msg = f"This {type(self).__name__} has no hyper-connections: train it with .train(mhc=True)."
            raise ValueError(msg)
        return transformer

    def _diagnose(self) -> list[MHCDiagnostics]:
        transformer = self._wrapped()
        by_input = any(layer.mixing.input_part is not None for layer in mhc_layers(transformer).values())
        return mhc_diagnostics(transformer, self._on_some_cells() if by_input else None)


def describe_mhc(mhc: MHCConfig) -> str:
    """Say in a few words what hyper-connections are."""
    mixed = f"{mhc.n_streams} streams" if mhc.kind == "streams" else "mixed features"
    where = "all layers" if mhc.layer_indices is None else f"layers {', '.join(map(str, mhc.layer_indices))}"
    by_input = ", by the input" if mhc.dynamic else ""
    return f"{mixed}{by_input}, around {where}, {mhc.sinkhorn_iters} Sinkhorn iterations"


def refuse_other(asked: MHCConfig, there: MHCConfig) -> None:
    """Raise a ValueError when hyper-connections are asked for that differ from those there are."""
    differing = [
        f"{name}={getattr(there, name)!r} there, {getattr(asked, name)!r} asked for"
        for name in type(asked).model_fields
        if getattr(asked, name) != getattr(there, name)
    ]
    if differing:
        msg = (
            f"mhc: there are hyper-connections already, with other options: {'; '.join(differing)}. Leave mhc out to "
            "train them further."
        )
        raise ValueError(msg)


def _number(found: MHCDiagnostics) -> int:
    return int(found.layer.rpartition(".")[2])
