"""Named adapters: LoRA on the base, the conditioning that was trained with it, and the history of that."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from scstate_lora.nn import lora as adapters

if TYPE_CHECKING:
    from torch import Tensor

    from scstate_lora.config import LoraConfig
    from scstate_lora.nn.conditioning import Conditioning
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
        Options of its LoRA; None where the base is left as it is and only the conditioning is trained.
    conditioning
        Covariate encoder and conditioner.
    history
        Losses of its training.
    """

    name: str
    lora: LoraConfig | None
    conditioning: Conditioning
    history: pd.DataFrame = field(default_factory=pd.DataFrame)

    def put_on(self, encoder: SEEncoder | None) -> None:
        """Put its LoRA on an encoder, with new weights."""
        if self.lora is not None and encoder is not None:
            adapters.add_lora(encoder, self.name, **self.lora.model_dump())

    def tensors(self, encoder: SEEncoder | None) -> dict[str, dict[str, Tensor]]:
        """Tensors by file: ``lora.<name>``, where there is LoRA, and ``conditioning.<name>``."""
        files = {f"conditioning.{self.name}": self.conditioning.state_dict()}
        if self.lora is not None and encoder is not None:
            files[f"lora.{self.name}"] = adapters.adapter_state(encoder, self.name)
        return files
