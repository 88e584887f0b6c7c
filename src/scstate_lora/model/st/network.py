"""The network of a transition model, made by its design: adapters and hyper-connections put on, weights loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from scstate_lora.model.covariate_specs import covariate_specs
from scstate_lora.nn.hyper_connections import apply_mhc_to_transformer
from scstate_lora.nn.lora import add_lora
from scstate_lora.nn.transition import StateTransition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scstate_lora.config import MHCConfig, STLoraConfig
    from scstate_lora.data.fields import Covariate
    from scstate_lora.io.published.st_checkpoint import STCheckpoint
    from scstate_lora.model.st.design import STDesign

Finetune = Literal["lora", "full", "frozen"]
"""How the backbone is trained."""
_COVARIATE_DIM = 64  # width of every covariate's own vector


def make_network(
    design: STDesign,
    covariates: Iterable[Covariate],
    *,
    finetune: Finetune,
    lora: STLoraConfig,
    mhc: MHCConfig | None,
    checkpoint: STCheckpoint | None,
    seed: int,
) -> StateTransition:
    """Make a network, in ``eval``.

    Parameters
    ----------
    design
        Its form.
    covariates
        Covariates that it reads.
    finetune, lora
        How its backbone is trained, and the options of adapters.
    mhc
        Options of hyper-connections; None for none.
    checkpoint
        The published model it starts from; None starts from random weights.
    seed
        Seed of initialisation.
    """
    specs = covariate_specs(covariates, embed_dim=_COVARIATE_DIM)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = StateTransition(design.sizes, specs)
        if design.origin is not None and checkpoint is not None:
            design.origin.load_into(network, checkpoint)
        backbone = network.transformer_backbone
        if finetune != "full":
            backbone.requires_grad_(requires_grad=False)
        if finetune == "lora":
            add_lora(backbone, **lora.model_dump())
        if mhc is not None:
            connect(network, mhc)
    return network.eval()


def connect(network: StateTransition, mhc: MHCConfig) -> None:
    """Put new hyper-connections around the layers of a network's backbone."""
    options = mhc.model_dump()
    backbone = network.transformer_backbone
    apply_mhc_to_transformer(backbone, layer_indices=options.pop("layer_indices"), **options)


def backbone_parameters(network: StateTransition) -> nn.ParameterList:
    """Parameters of the backbone, without adapters and hyper-connections."""
    return _parameters(network, lambda name: "lora_" not in name and ".mixing." not in name)


def lora_parameters(network: StateTransition) -> nn.ParameterList:
    """Parameters of the adapters on the backbone."""
    return _parameters(network, lambda name: "lora_" in name)


def _parameters(network: StateTransition, belongs: Callable[[str], bool]) -> nn.ParameterList:
    return nn.ParameterList([p for name, p in network.transformer_backbone.named_parameters() if belongs(name)])
