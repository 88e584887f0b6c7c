"""A model of which several adaptations are kept side by side, each under a name: added, switched, merged, deleted."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch

from scstate_lora._utils import did_you_mean
from scstate_lora.config import MHCConfig, SELoraConfig
from scstate_lora.model.base import BaseModel
from scstate_lora.model.covariate_specs import covariate_specs
from scstate_lora.model.hyper_connected import HyperConnected, refuse_other
from scstate_lora.model.se.adapters import DEFAULT, Adapter, check_name
from scstate_lora.model.se.inputs import inputs_of
from scstate_lora.model.se.pretrained import SEBase
from scstate_lora.nn import lora as adapters
from scstate_lora.nn.conditioned_se import ConditionedSE
from scstate_lora.nn.conditioning import Conditioning
from scstate_lora.nn.hyper_connections import choose_layers, mhc_off, remove_mhc, restore_mhc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scstate_lora.config import CompactBaseConfig, ConditioningConfig
    from scstate_lora.model.se.obsm_embedding import ObsmBase


class AdaptedModel(HyperConnected, BaseModel):
    """A base with named adapters, of which one is active: it embeds, and it is trained."""

    lora: SELoraConfig | None
    conditioning: ConditioningConfig
    compact: CompactBaseConfig
    base: SEBase | ObsmBase | None
    """What is adapted; None until a compact base is trained."""
    network: ConditionedSE | None

    def _without_base(self) -> None:
        self.base = None
        self.network = None
        self._adapters: dict[str, Adapter] = {}
        self._active = DEFAULT

    def _attach(self, base: SEBase | ObsmBase) -> None:
        """Build the network around a base, with the first adapter."""
        self.base = base
        first = self._new_adapter(DEFAULT, self.lora)
        self.network = ConditionedSE(base.encoder if isinstance(base, SEBase) else None, first.conditioning)
        self._put_on(first)

    def _new_adapter(self, name: str, lora: SELoraConfig | None) -> Adapter:
        assert self.base is not None  # only called with one
        dim = self.base.encoder.config.output_dim if isinstance(self.base, SEBase) else self.base.dim
        lora = lora if isinstance(self.base, SEBase) else None
        sizes = self.conditioning.model_dump(include={"combine", "hidden_dims"})
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return Adapter(name, lora, Conditioning(covariate_specs(inputs_of(self.registry)), dim, **sizes))

    def _put_on(self, adapter: Adapter) -> None:
        _, network = self._built()
        if network.encoder is not None:
            remove_mhc(network.encoder)  # another adapter's
        with torch.random.fork_rng():
            torch.manual_seed(self.seed + 1)
            adapter.put_on(network.encoder)
        self._adapters[adapter.name] = adapter
        self._activate(adapter)

    def _activate(self, adapter: Adapter) -> None:
        _, network = self._built()
        for other in self._adapters.values():
            other.conditioning.requires_grad_(other is adapter)
        network.conditioning = adapter.conditioning
        if network.encoder is not None:
            remove_mhc(network.encoder)
            adapters.set_adapter(network.encoder, None if adapter.lora is None else adapter.name)
            restore_mhc(network.encoder, adapter.wrapped)
        self._active = adapter.name
        network.eval()

    @contextmanager
    def _lora_off(self) -> Iterator[None]:
        """Within this context no LoRA computes or is trained."""
        _, network = self._built()
        assert network.encoder is not None  # the caller has one
        adapters.set_adapter(network.encoder, None)
        try:
            yield
        finally:
            adapters.set_adapter(network.encoder, None if self._adapters[self._active].lora is None else self._active)

    def _new_connections(self, mhc: Any) -> MHCConfig | None:
        """Check what ``train(mhc=)`` was given; None where there is nothing to add."""
        asked = MHCConfig.asked(mhc)
        if asked is None:
            return None
        if self.registry.embed_key is not None:
            msg = (
                f"mhc: hyper-connections go around the layers of an SE network, and the base here is the embedding "
                f"adata.obsm[{self.registry.embed_key!r}]. Leave mhc out, or set up without embed_key."
            )
            raise ValueError(msg)
        if self._adapters and (there := self._adapters[self._active].mhc) is not None:
            refuse_other(asked, there)
            return None
        depth = self.base.encoder.config.n_layers if isinstance(self.base, SEBase) else self.compact.n_layers
        try:
            choose_layers(asked.layer_indices, depth)
        except IndexError as error:
            msg = f"mhc: {error}"
            raise ValueError(msg) from error
        return asked

    @contextmanager
    def _connected(self, mhc: MHCConfig | None) -> Iterator[None]:
        """Give the active adapter hyper-connections; where it is not trained within this context, take them back."""
        _, network = self._built()
        adapter = self._adapters[self._active]
        if mhc is None:
            yield
            return
        assert network.encoder is not None  # checked by _new_connections
        n_rows = len(adapter.history)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed + 2)
            adapter.connect(network.encoder, mhc)
        try:
            yield
        except BaseException:
            if len(adapter.history) == n_rows:
                adapter.disconnect(network.encoder)
            raise

    def _built(self) -> tuple[SEBase | ObsmBase, ConditionedSE]:
        if self.base is None or self.network is None:
            msg = "LoRACovariateSE has no base yet: call .train(), or .train_base()."
            raise ValueError(msg)
        return self.base, self.network

    @property
    def history(self) -> pd.DataFrame:
        """Losses of the active adapter's training, one row a step and one a validation epoch."""
        return self._adapters[self._active].history if self._adapters else pd.DataFrame()

    @history.setter
    def history(self, history: pd.DataFrame) -> None:
        self._adapters[self._active].history = history

    @property
    def adapter_names(self) -> list[str]:
        """Names of the adapters, in the order they were added."""
        return list(self._adapters)

    @property
    def active_adapter(self) -> str:
        """Name of the adapter that embeds and is trained."""
        return self._active

    def add_adapter(self, name: str, *, lora: SELoraConfig | dict[str, Any] | Literal[False] | None = None) -> None:
        """Add an adapter, untrained, and activate it; those that are there keep what they learned.

        An adapter is the LoRA weights, the hyper-connections, the covariate encoder and the conditioning that are
        trained together. A new one has no hyper-connections until it is trained with them.

        Parameters
        ----------
        name
            Letters, digits, ``-`` and ``_``.
        lora
            As in the class; the model's own options by default.

        Raises
        ------
        ValueError
            The model has no base yet, the name is taken or not allowed, or adapters are merged.
        """
        self._built()
        check_name(name, self.adapter_names)
        self._refuse_merged("add adapters")
        options = self.lora if lora is None else None if lora is False else SELoraConfig.parse(lora, name="lora")
        self._put_on(self._new_adapter(name, options))

    def set_adapter(self, name: str) -> None:
        """Activate an adapter: it embeds from now on, and is the one that is trained.

        Raises
        ------
        KeyError
            There is none of that name.
        ValueError
            Adapters are merged.
        """
        adapter = self._adapter(name)
        self._refuse_merged("switch adapters")
        self._activate(adapter)

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter that is not the active one.

        Raises
        ------
        KeyError
            There is none of that name.
        ValueError
            It is the active one, or adapters are merged.
        """
        adapter = self._adapter(name)
        _, network = self._built()
        if name == self._active:
            others = [other for other in self.adapter_names if other != name]
            msg = f"The adapter {name!r} is the active one. Activate another first, set_adapter: {others}."
            raise ValueError(msg)
        if adapter.lora is not None and network.encoder is not None:
            with mhc_off(network.encoder):
                adapters.delete_adapter(network.encoder, name)
        del self._adapters[name]

    def _adapter(self, name: str) -> Adapter:
        if name not in self._adapters:
            msg = f"There is no adapter {name!r}. {did_you_mean(name, self.adapter_names)}"
            raise KeyError(msg)
        return self._adapters[name]

    def merge_adapter(self) -> None:
        """Compute the active adapter's LoRA as one weight with the base's, for faster embedding; not in training.

        The base's weights stay as they are, and so do hyper-connections. Embeddings agree with those of the unmerged
        model to float32 rounding.

        Raises
        ------
        ValueError
            The active adapter has no LoRA.
        """
        _, network = self._built()
        if network.encoder is None or self._adapters[self._active].lora is None:
            msg = f"The adapter {self._active!r} has no LoRA: there is nothing to merge."
            raise ValueError(msg)
        adapters.merge(network.encoder)

    def unmerge_adapter(self) -> None:
        """Undo :meth:`merge_adapter`."""
        _, network = self._built()
        if network.encoder is not None:
            adapters.unmerge(network.encoder)

    def _refuse_merged(self, what: str) -> None:
        _, network = self._built()
        if network.encoder is not None and adapters.is_merged(network.encoder):
            msg = f"The adapter {self._active!r} is merged: cannot {what} now. Call unmerge_adapter() first."
            raise ValueError(msg)

    @property
    def adapts_base(self) -> bool:
        """Whether the active adapter changes what the base computes, by LoRA or hyper-connections."""
        active = self._adapters.get(self._active)
        return active is not None and (active.lora is not None or active.mhc is not None)

    def _transformer(self) -> torch.nn.Module | None:
        return None if self.network is None else self.network.encoder
