"""A linear layer with LoRA adapters, whose base is only ever read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as PeftLinear

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers.pytorch_utils import Conv1D


class AdaptedLinear(PeftLinear):
    """PEFT's LoRA layer, but a merged weight lies beside the base's.

    PEFT adds the adapter to the base's tensor in place and takes it out again by subtraction. Here models share that
    tensor, and its bits tell one base from another, so it is only read.
    """

    merged_weight: Tensor | None

    def __init__(self, base_layer: nn.Linear | Conv1D, adapter_name: str, **kwargs: Any) -> None:
        super().__init__(base_layer, adapter_name, **kwargs)
        # Not persistent: a state dict holds the base and the adapters, whether they are merged or not.
        self.register_buffer("merged_weight", None, persistent=False)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As PEFT's; merged, one matrix product."""
        if self.disable_adapters:
            return self.base_layer(x)
        if self.merged_weight is not None:
            return F.linear(x, self.merged_weight, self.base_layer.bias)
        return super().forward(x, *args, **kwargs)

    def merge(self, *_: Any, **__: Any) -> None:
        """Hold the weight that the active adapter makes of the base's, computed in float32 and rounded once."""
        (name,) = self.active_adapters
        stored = self.base_layer.weight
        # Wherever it is called from, it is the full precision, and a tensor that can be used everywhere.
        off = torch.autocast(stored.device.type, enabled=False)
        with torch.inference_mode(mode=False), torch.no_grad(), off:
            weight = stored.T if self.fan_in_fan_out else stored  # (out, in), which a Conv1D stores transposed
            a, b = self.lora_A[name].weight.float(), self.lora_B[name].weight.float()
            merged = weight.float() + self.scaling[name] * (b @ a)
            if name in self.lora_magnitude_vector:  # DoRA: every row has a length of its own
                length = self.lora_magnitude_vector[name].weight.float() / merged.norm(dim=1)
                merged = length[:, None] * merged
            self.merged_weight = merged.to(weight.dtype)
        self.merged_adapters = [name]

    def unmerge(self) -> None:
        """Let go of the merged weight."""
        self.merged_weight = None
        self.merged_adapters = []

    def train(self, mode: bool = True) -> AdaptedLinear:  # noqa: FBT001, FBT002 (torch's own signature)
        """As in torch, but a merged adapter is not trained."""
        if mode and self.merged_weight is not None:
            raise ValueError(while_merged("train"))
        return super().train(mode)


def while_merged(what: str) -> str:
    """Say that merged adapters do not let this be done."""
    return f"The adapters are merged into the weights: cannot {what} now. Unmerge them first, unmerge."
