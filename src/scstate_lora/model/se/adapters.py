"""Named adapters on one base: LoRA, hyper-connections and the conditioning that are trained together."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import nn

from scstate_lora._utils import did_you_mean
from scstate_lora.io.save_load import check_state
from scstate_lora.model.hyper_connected import describe_mhc
from scstate_lora.nn import lora as adapters
from scstate_lora.nn.conditioned_se import ConditionedSE
from scstate_lora.nn.hyper_connections import apply_mhc_to_transformer, mhc_off, remove_mhc, restore_mhc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from scstate_lora.config import MHCConfig, SELoraConfig
    from scstate_lora.model.se.bases import Base
    from scstate_lora.nn.conditioning import Conditioning
    from scstate_lora.nn.hyper_connections import MHCTransformerLayer
    from scstate_lora.nn.se_encoder import SEEncoder

DEFAULT = "default"
"""Name of the adapter that every model starts with."""
LORA, CONNECTIONS = "LoRA", "hyper-connections"
"""Parts of an adapter that change what the base computes."""


@dataclass
class Adapter:
    """One adaptation of a base.

    Parameters
    ----------
    name
        Name within the model.
    lora
        Options of its LoRA; None for none.
    conditioning
        Covariate encoder and conditioner.
    history
        Losses of its training.
    mhc
        Options of its hyper-connections; None for none. Without LoRA and hyper-connections the base stays as it is,
        and only the conditioning is trained.
    wrapped
        The base's layers within its hyper-connections, by number. They are in the encoder while the adapter is active.
    """

    name: str
    lora: SELoraConfig | None
    conditioning: Conditioning
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    mhc: MHCConfig | None = None
    wrapped: dict[int, MHCTransformerLayer] = field(default_factory=dict)
    idle: set[str] = field(default_factory=set)
    """Parts that are as at their start, without effect, because the validation loss was the lowest without them:
    ``"LoRA"``, ``"hyper-connections"``."""

    @property
    def adapts_base(self) -> bool:
        """Whether it changes what the base computes, by LoRA or hyper-connections."""
        return self.lora is not None or self.mhc is not None

    def connect(self, encoder: SEEncoder, mhc: MHCConfig) -> None:
        """Put new hyper-connections on an encoder without any."""
        apply_mhc_to_transformer(encoder, **mhc.model_dump())
        self.mhc, self.wrapped = mhc, remove_mhc(encoder)
        restore_mhc(encoder, self.wrapped)

    def disconnect(self, encoder: SEEncoder) -> None:
        """Undo :meth:`connect`; the connections are lost."""
        remove_mhc(encoder)
        self.mhc, self.wrapped = None, {}

    def tensors(self, encoder: SEEncoder | None) -> dict[str, dict[str, Tensor]]:
        """Tensors by file: ``conditioning.<name>``, and ``lora.<name>`` and ``mhc.<name>`` if it has them."""
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

    def parts(self, base: Base) -> list[tuple[str, nn.Module | None, str]]:
        """Parts of the base's network while this adapter is active, for the summary."""
        if base.encoder is None:
            return [("base", None, base.note())]
        connections = [p for layer in self.wrapped.values() for p in layer.mixing.parameters()]
        own, ours = re.compile(rf"\.lora_\w+\.{self.name}(\.|$)"), {id(p) for p in connections}
        named = list(base.encoder.named_parameters())
        frozen = [p for name, p in named if "lora_" not in name and id(p) not in ours]
        lora, note = [p for name, p in named if own.search(name)], "none"
        if self.lora is not None:
            note = f"r={self.lora.r}, alpha={self.lora.alpha}, on {', '.join(self.lora.targets)}"
        elif self.mhc is None:
            note = "none: the base embedding is taken as it is"
        parts: list[tuple[str, nn.Module | None, str]] = [("base", nn.ParameterList(frozen), base.note())]
        parts.append((LORA, nn.ParameterList(lora), note + self._effect(LORA)))
        if self.mhc is not None:
            note = describe_mhc(self.mhc) + self._effect(CONNECTIONS)
            parts.append((CONNECTIONS, nn.ParameterList(connections), note))
        return parts

    def _effect(self, part: str) -> str:
        return "; without effect: the validation loss is lowest without it" if part in self.idle else ""

    def _connections(self) -> dict[str, Tensor]:
        return {
            f"layers.{i}.{name}": tensor
            for i, layer in self.wrapped.items()
            for name, tensor in layer.mixing.state_dict().items()
        }


class AdapterSet:
    """The named adapters on one base. One is active: it embeds, and it is trained.

    Parameters
    ----------
    base
        The base; adapters go on its network and leave its weights as they are.
    make_conditioning
        Makes the covariate encoder and conditioner of a new adapter.
    lora
        LoRA options of the first adapter.
    seed
        Seed of all initialisation.
    first
        Name of the first adapter.
    """

    def __init__(
        self,
        base: Base,
        make_conditioning: Callable[[], Conditioning],
        lora: SELoraConfig | None,
        *,
        seed: int,
        first: str = DEFAULT,
    ) -> None:
        self.base = base
        self.seed = seed
        self._make_conditioning = make_conditioning
        self._adapters: dict[str, Adapter] = {}
        adapter = self._new(first, lora)
        self.network = ConditionedSE(base.encoder, adapter.conditioning)
        self._put_on(adapter)

    def __iter__(self) -> Iterator[Adapter]:
        return iter(self._adapters.values())

    @property
    def names(self) -> list[str]:
        """Names of the adapters, in the order in which they were added."""
        return list(self._adapters)

    @property
    def active(self) -> Adapter:
        """The adapter that embeds and is trained."""
        return self._adapters[self._active]

    def add(self, name: str, lora: SELoraConfig | None) -> Adapter:
        """Add an untrained adapter and activate it.

        Raises
        ------
        ValueError
            If the name is taken or not allowed, or adapters are merged.
        """
        if name in self._adapters:
            msg = f"The adapter {name!r} exists already: {self.names}. Choose another name, or delete it first."
            raise ValueError(msg)
        adapters.check_adapter_name(name)
        self.refuse_merged("add adapters")
        adapter = self._new(name, lora)
        self._put_on(adapter)
        return adapter

    def activate(self, name: str) -> None:
        """Make another adapter the one that embeds and is trained.

        Raises
        ------
        KeyError
            If no adapter has that name.
        ValueError
            If adapters are merged.
        """
        adapter = self._named(name)
        self.refuse_merged("switch adapters")
        self._activate(adapter)

    def delete(self, name: str) -> None:
        """Remove an adapter.

        Raises
        ------
        KeyError
            If no adapter has that name.
        ValueError
            If it is the active one, or adapters are merged.
        """
        adapter = self._named(name)
        if adapter is self.active:
            others = [other for other in self.names if other != name]
            msg = f"The adapter {name!r} is the active one. Activate another first, set_adapter: {others}."
            raise ValueError(msg)
        encoder = self.network.encoder
        if adapter.lora is not None and encoder is not None:
            with mhc_off(encoder):
                adapters.delete_adapter(encoder, name)
        del self._adapters[name]

    def merge(self) -> None:
        """Compute the active adapter's LoRA as one weight with the base's.

        Raises
        ------
        ValueError
            If the active adapter has no LoRA.
        """
        if self.network.encoder is None or self.active.lora is None:
            msg = f"The adapter {self._active!r} has no LoRA: there is nothing to merge."
            raise ValueError(msg)
        adapters.merge(self.network.encoder)

    def unmerge(self) -> None:
        """Undo :meth:`merge`."""
        if self.network.encoder is not None:
            adapters.unmerge(self.network.encoder)

    def refuse_merged(self, action: str) -> None:
        """Raise a ValueError if the active adapter is merged."""
        if self.network.encoder is not None and adapters.is_merged(self.network.encoder):
            msg = f"The adapter {self._active!r} is merged: cannot {action} now. Call unmerge_adapter() first."
            raise ValueError(msg)

    @contextmanager
    def lora_off(self) -> Iterator[None]:
        """Within this context no LoRA computes or is trained."""
        assert self.network.encoder is not None  # the caller has one
        adapters.set_adapter(self.network.encoder, None)
        try:
            yield
        finally:
            self._switch_lora()

    @contextmanager
    def connected(self, mhc: MHCConfig | None) -> Iterator[None]:
        """Give the active adapter hyper-connections, and take them back if it is not trained within this context."""
        adapter, encoder = self.active, self.network.encoder
        if mhc is None:
            yield
            return
        assert encoder is not None  # the caller has looked
        n_rows = len(adapter.history)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed + 2)
            adapter.connect(encoder, mhc)
        try:
            yield
        except BaseException:
            if len(adapter.history) == n_rows:
                adapter.disconnect(encoder)
            raise

    def load(
        self,
        name: str,
        tensors: Mapping[str, Mapping[str, Tensor]],
        *,
        mhc: MHCConfig | None,
        history: pd.DataFrame,
    ) -> Adapter:
        """Give a new adapter the tensors of :meth:`Adapter.tensors`, each checked by name and shape; return it."""
        adapter, encoder = self._named(name), self.network.encoder
        stored = tensors[f"conditioning.{name}"]
        check_state(adapter.conditioning.state_dict(), stored, source=f"the adapter {name!r}")
        adapter.conditioning.load_state_dict(stored)
        if adapter.lora is not None and encoder is not None:
            adapters.load_adapter_state(encoder, name, tensors[f"lora.{name}"])
        if mhc is not None and encoder is not None:
            adapter.connect(encoder, mhc)
            adapter.load_connections(tensors[f"mhc.{name}"])
        adapter.history = history
        return adapter

    def _new(self, name: str, lora: SELoraConfig | None) -> Adapter:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return Adapter(name, lora if self.base.encoder is not None else None, self._make_conditioning())

    def _put_on(self, adapter: Adapter) -> None:
        encoder = self.network.encoder
        if encoder is not None:
            remove_mhc(encoder)  # another adapter's
            with torch.random.fork_rng():
                torch.manual_seed(self.seed + 1)
                if adapter.lora is not None:
                    adapters.add_lora(encoder, adapter.name, **adapter.lora.model_dump())
        self._adapters[adapter.name] = adapter
        self._activate(adapter)

    def _activate(self, adapter: Adapter) -> None:
        for other in self:
            other.conditioning.requires_grad_(other is adapter)
        self._active = adapter.name
        self.network.conditioning = adapter.conditioning
        if self.network.encoder is not None:
            remove_mhc(self.network.encoder)
            self._switch_lora()
            restore_mhc(self.network.encoder, adapter.wrapped)
        self.network.eval()

    def _switch_lora(self) -> None:
        assert self.network.encoder is not None  # the callers have looked
        adapters.set_adapter(self.network.encoder, None if self.active.lora is None else self._active)

    def _named(self, name: str) -> Adapter:
        if name not in self._adapters:
            msg = f"This model has no adapter {name!r}. {did_you_mean(name, self.names)}"
            raise KeyError(msg)
        return self._adapters[name]
