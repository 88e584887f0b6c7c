"""A linear layer with LoRA adapters that never writes to its base weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as PeftLinear

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers.pytorch_utils import Conv1D


class AdaptedLinear(PeftLinear):
    """PEFT's LoRA layer, but with the merged weight beside that of the base.

    PEFT adds the adapter to the weight of the base in place and subtracts it again. Here models share that tensor, and
    its bits identify the base, so it is only read.
    """

    merged_weight: Tensor | None

    def __init__(self, base_layer: nn.Linear | Conv1D, adapter_name: str, **kwargs: Any) -> None:
        super().__init__(base_layer, adapter_name, **kwargs)
        # Not persistent: a state dict holds base and adapters, merged or not.
        self.register_buffer("merged_weight", None, persistent=False)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As in PEFT, but a single matrix product if merged."""
        if self.disable_adapters:
            return self.base_layer(x)
        if self.merged_weight is not None:
            return F.linear(x, self.merged_weight, self.base_layer.bias)
        return super().forward(x, *args, **kwargs)

    def merge(self, *_: Any, **__: Any) -> None:
        """Store the weight of base and active adapter together, computed in float32 and rounded once."""
        (name,) = self.active_adapters
        stored = self.base_layer.weight
        # Whatever the context of the caller: full precision, and a tensor that can be used in any context.
        off = torch.autocast(stored.device.type, enabled=False)
        with torch.inference_mode(mode=False), torch.no_grad(), off:
            weight = stored.T if self.fan_in_fan_out else stored  # (out, in), which a Conv1D stores transposed
            a, b = self.lora_A[name].weight.float(), self.lora_B[name].weight.float()
            merged = weight.float() + self.scaling[name] * (b @ a)
            if name in self.lora_magnitude_vector:  # DoRA: the norm of each row is a parameter
                gain = self.lora_magnitude_vector[name].weight.float() / merged.norm(dim=1)  # (out,)
                merged = gain[:, None] * merged
            self.merged_weight = merged.to(weight.dtype)
        self.merged_adapters = [name]

    def unmerge(self) -> None:
        """Drop the merged weight."""
        self.merged_weight = None
        self.merged_adapters = []

    def train(self, mode: bool = True) -> AdaptedLinear:  # noqa: FBT001, FBT002 (torch's own signature)
        """As in torch, but a ValueError if merged adapters are to be trained."""
        if mode and self.merged_weight is not None:
            raise ValueError(while_merged("train"))
        return super().train(mode)


def while_merged(action: str) -> str:
    """Compose the error message for an action that merged adapters do not allow."""
    return f"The adapters are merged into the weights: cannot {action} now. Unmerge them first, unmerge."
