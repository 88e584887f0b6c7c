"""Named adapters: LoRA and connections on the base, the conditioning trained with them, and the history of that."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd
from torch import nn

from scstate_lora.io.save_load import check_state
from scstate_lora.model.hyper_connected import describe_mhc
from scstate_lora.nn import lora as adapters
from scstate_lora.nn.hyper_connections import apply_mhc_to_transformer, mhc_off, remove_mhc, restore_mhc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scstate_lora.config import MHCConfig, SELoraConfig
    from scstate_lora.model.se.pretrained import SEBase
    from scstate_lora.nn.conditioning import Conditioning
    from scstate_lora.nn.hyper_connections import MHCTransformerLayer
    from scstate_lora.nn.se_encoder import SEEncoder

DEFAULT = "default"
"""Name of the adapter that every model starts with."""


def check_name(name: str, taken: list[str]) -> None:
    """Raise a ValueError for a name that is taken, or cannot be part of a file's name."""
    if name in taken:
        msg = f"There is an adapter {name!r} already: {taken}. Choose another name, or delete it first."
        raise ValueError(msg)
    adapters.check_adapter_name(name)


@dataclass
class Adapter:
    """One adaptation of a base.

    Parameters
    ----------
    name
        What it is called.
    lora
        Options of its LoRA; None for none.
    conditioning
        Covariate encoder and conditioner.
    history
        Losses of its training.
    mhc
        Options of its hyper-connections; None for none. Without LoRA and hyper-connections the base is left as it is,
        and only the conditioning is trained.
    wrapped
        The base's layers in its hyper-connections, by number. They are in the encoder while the adapter is active.
    """

    name: str
    lora: SELoraConfig | None
    conditioning: Conditioning
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    mhc: MHCConfig | None = None
    wrapped: dict[int, MHCTransformerLayer] = field(default_factory=dict)

    def put_on(self, encoder: SEEncoder | None) -> None:
        """Put its LoRA on an encoder, with new weights."""
        if self.lora is not None and encoder is not None:
            adapters.add_lora(encoder, self.name, **self.lora.model_dump())

    def connect(self, encoder: SEEncoder, mhc: MHCConfig) -> None:
        """Put new hyper-connections on an encoder that has none on."""
        apply_mhc_to_transformer(encoder, **mhc.model_dump())
        self.mhc, self.wrapped = mhc, remove_mhc(encoder)
        restore_mhc(encoder, self.wrapped)

    def disconnect(self, encoder: SEEncoder) -> None:
        """Undo :meth:`connect`; what the connections learned is lost."""
        remove_mhc(encoder)
        self.mhc, self.wrapped = None, {}

    def tensors(self, encoder: SEEncoder | None) -> dict[str, dict[str, Tensor]]:
        """Tensors by file: ``conditioning.<name>``, and ``lora.<name>`` and ``mhc.<name>`` where there are such."""
        files = {f"conditioning.{self.name}": self.conditioning.state_dict()}
        if self.lora is not None and encoder is not None:
            with mhc_off(encoder):  # names without theirs, whichever adapter is active
                files[f"lora.{self.name}"] = adapters.adapter_state(encoder, self.name)
        if self.mhc is not None:
            files[f"mhc.{self.name}"] = self._connections()
        return files

    def load_connections(self, stored: Mapping[str, Tensor]) -> None:
        """Copy tensors into hyper-connections made with the same options, each checked by name and shape."""
        own = self._connections()
        check_state(own, stored, source=f"the hyper-connections of the adapter {self.name!r}")
        for name, tensor in own.items():
            tensor.copy_(stored[name])

    def parts(self, base: SEBase) -> list[tuple[str, nn.Module | None, str]]:
        """Parts of the base's network while this adapter is active, for the summary."""
        c = base.encoder.config
        note = f"{base.name}: {c.n_layers} layers x {c.d_model}, {c.n_tokens} tokens, {len(base.genes)} genes"
        connections = [p for layer in self.wrapped.values() for p in layer.mixing.parameters()]
        own, ours = re.compile(rf"\.lora_\w+\.{self.name}(\.|$)"), {id(p) for p in connections}
        named = list(base.encoder.named_parameters())
        frozen = [p for name, p in named if "lora_" not in name and id(p) not in ours]
        lora, told = [p for name, p in named if own.search(name)], "none"
        if self.lora is not None:
            told = f"r={self.lora.r}, alpha={self.lora.alpha}, on {', '.join(self.lora.targets)}"
        elif self.mhc is None:
            told = "none: the base embedding is taken as it is"
        parts: list[tuple[str, nn.Module | None, str]] = [("base", nn.ParameterList(frozen), note)]
        parts.append(("LoRA", nn.ParameterList(lora), told))
        if self.mhc is not None:
            parts.append(("hyper-connections", nn.ParameterList(connections), describe_mhc(self.mhc)))
        return parts

    def _connections(self) -> dict[str, Tensor]:
        return {
            f"layers.{i}.{name}": tensor
            for i, layer in self.wrapped.items()
            for name, tensor in layer.mixing.state_dict().items()
        }
