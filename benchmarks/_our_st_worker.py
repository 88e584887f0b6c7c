"""The side of scstate_lora in ``st_against_arc.py``."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace
from typing import Any

import torch

from _random_sets import make_batches
from _serve import own_memory, peak_memory, serve
from scstate_lora.config import STObjectiveConfig
from scstate_lora.inference.arrays import to_tensors
from scstate_lora.nn.transition import StateTransition, STConfig
from scstate_lora.training.st.plan import STPlan


class Tasks:
    """What can be asked for."""

    def prepare(self, sizes: dict[str, Any]) -> dict[str, int]:
        """Make the model, its optimiser and batches; how many numbers it trains, and how many it has."""
        self.before = peak_memory()
        torch.manual_seed(0)
        network = StateTransition(make_config(**{k: sizes[k] for k in _NETWORK}), {}).train()
        network.transformer_backbone.gradient_checkpointing = sizes["checkpointing"]
        self.plan = STPlan(
            network, objective=STObjectiveConfig(), lr=1e-4, weight_decay=0.01, warmup_steps=0, weights={"energy": 1.0}
        ).train()
        self.plan.trainer = SimpleNamespace(estimated_stepping_batches=1000, precision="32-true")
        self.optimizer = self.plan.configure_optimizers()["optimizer"]
        made = make_batches(**{k: sizes[k] for k in ("n_sets", "set_len", "n_genes", "n_perts")})
        self.batches = [{**to_tensors(batch), "covariates": {}} for batch in made]
        return {
            "trained": sum(p.numel() for p in network.parameters() if p.requires_grad),
            "all": sum(p.numel() for p in network.parameters()),
        }

    def steps(self, n_steps: int) -> dict[str, float]:
        """Train for some steps; seconds, and the most memory so far and before the model was made."""
        start = time.perf_counter()
        for i in range(n_steps):
            loss = self.plan.training_step(self.batches[i % len(self.batches)], i)["loss"]
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()  # here, as the plan has it
        seconds = time.perf_counter() - start
        if not torch.isfinite(loss):
            msg = "The loss is not finite."
            raise ValueError(msg)
        return {"seconds": seconds, "before": self.before, "peak": peak_memory(), "own": own_memory()}


_NETWORK = ("n_genes", "n_perts", "hidden", "layers", "heads")


def make_config(*, n_genes: int, n_perts: int, hidden: int, layers: int, heads: int) -> STConfig:
    """Sizes of arc-state's ``state_sm``, as wide as asked: four linear layers around, one encodes the cells."""
    return STConfig(
        n_inputs=n_genes,
        pert_dim=n_perts,
        hidden=hidden,
        n_layers=layers,
        n_heads=heads,
        dropout=0.1,
        backbone="llama",
        head_dim=hidden // heads,
        intermediate=4 * hidden,
        n_encoder_layers=4,
        n_decoder_layers=4,
        basal_mlp=False,
        residual="latent",
    )


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(Tasks())
