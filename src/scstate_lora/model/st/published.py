"""From a published ST model, as it was read, to our network and to what it knows of perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scstate_lora._utils import did_you_mean
from scstate_lora.data.perturbations import PerturbationTable
from scstate_lora.io.published.st_checkpoint import backbone_state
from scstate_lora.io.published.st_tensors import BACKBONE
from scstate_lora.io.save_load import check_state
from scstate_lora.nn.backbones import BackboneConfig, make_backbone
from scstate_lora.nn.transition import StateTransition, STConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scstate_lora.io.published.st_checkpoint import STCheckpoint
    from scstate_lora.nn.covariates import CovariateSpec

GENE_RANGE = (0.0, 14.0)
"""arc-state's ``tx infer`` clips the expression that it predicts to this; the network itself does not."""
_BACKBONE = ("backbone", "hidden", "n_layers", "n_heads", "head_dim", "intermediate")
_AS_THEY_ARE = ("n_inputs", "pert_dim", "dropout", "n_encoder_layers", "n_decoder_layers", "activation", "basal_mlp")
_COVARIATES, _PERTURBATIONS = "covariate_encoder.", "pert_encoder."


def backbone_config(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of :class:`~scstate_lora.nn.transition.STConfig` that describe the transformer."""
    return {name: sizes[name] for name in _BACKBONE}


def st_config(sizes: Mapping[str, Any]) -> STConfig:
    """Sizes and form of our network, from the sizes of a published model that was read whole."""
    decoder: dict[str, Any] = {}
    if sizes["decoder_dims"] is not None:
        decoder = {name: sizes[name] for name in ("decoder_dims", "decoder_dropout", "decoder_residual")}
        decoder["n_decoded"] = sizes["n_genes"]
    is_down_up = sizes["residual"] == "down_up"
    return STConfig(
        **backbone_config(sizes),
        **{name: sizes[name] for name in _AS_THEY_ARE},
        **decoder,
        residual="latent" if is_down_up else sizes["residual"],
        down_up=is_down_up,
        non_negative=sizes["non_negative"],
        n_batches=sizes["n_batches"] or None,
        batch_classes=sizes["batch_classes"] or None,
        confidence_token=sizes["confidence_token"],
    )


def st_tensors(sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    """State dict, on the meta device, of a network of these sizes: of its transformer alone if they are no more.

    Parameters
    ----------
    sizes
        As :func:`~scstate_lora.io.published.st_tensors.take_network` reads them, or ``take_backbone``.
    """
    with torch.device("meta"):  # nothing is allocated or drawn
        if "n_inputs" in sizes:
            return StateTransition(st_config(sizes), {}).state_dict()
        return make_backbone(BackboneConfig(**backbone_config(sizes))).state_dict(prefix=BACKBONE)


def st_network(checkpoint: STCheckpoint, specs: Mapping[str, CovariateSpec] | None = None) -> StateTransition:
    """Make the network of a published model, with its weights, in ``eval``.

    Parameters
    ----------
    checkpoint
        The model, read whole.
    specs
        Covariates to add to it. Their encoder is new, and says nothing until it is trained: the network predicts as the
        published one does.

    Raises
    ------
    ValueError
        A tensor is missing, unexpected or of another shape.
    """
    network = StateTransition(st_config(checkpoint.sizes), specs or {})
    load_network(network, checkpoint)
    return network.eval()


def load_network(network: StateTransition, checkpoint: STCheckpoint, *, own_perturbations: bool = False) -> None:
    """Give a network, made with :func:`st_config`, the weights of a published model.

    Parameters
    ----------
    network
        Changed in place. An encoder of covariates is new to the model, and made to say nothing until it is trained.
    checkpoint
        The model, read whole.
    own_perturbations
        Leave the encoder of perturbations, which may be of another width then, as it is: it is for others.

    Raises
    ------
    ValueError
        A tensor is missing, unexpected or of another shape.
    """
    if network.covariate_encoder is not None:
        last = list(network.covariate_encoder.combination.modules())[-1]  # a LayerNorm, so that all of it can be learnt
        torch.nn.init.zeros_(last.weight)  # type: ignore[arg-type]  # a LayerNorm has both
        torch.nn.init.zeros_(last.bias)  # type: ignore[arg-type]  # as above
    new = (_COVARIATES, _PERTURBATIONS) if own_perturbations else (_COVARIATES,)
    stored = dict(checkpoint.state)
    if own_perturbations:
        stored = {name: tensor for name, tensor in stored.items() if not name.startswith(_PERTURBATIONS)}
    expected = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(new)}
    check_state(expected, stored, source=str(checkpoint.path))
    _copy(stored, network)


def load_backbone(network: StateTransition, checkpoint: STCheckpoint) -> None:
    """Give a network, made with :func:`backbone_config`, the transformer of a published model; the rest stays as it is.

    Raises
    ------
    ValueError
        A tensor is missing, unexpected or of another shape.
    """
    stored = backbone_state(checkpoint)
    check_state(network.transformer_backbone.state_dict(), stored, source=str(checkpoint.path))
    _copy(stored, network.transformer_backbone)


def published_perturbations(checkpoint: STCheckpoint, control: str) -> PerturbationTable:
    """Vectors by which a published model knows its perturbations, its control under the name that the data give it.

    Parameters
    ----------
    checkpoint
        The model, read whole.
    control
        What the data call the unperturbed level.

    Raises
    ------
    ValueError
        The model has no vector for its control, or knows `control` as a perturbation.
    """
    known = checkpoint.perturbations
    if control in known and control != checkpoint.control:
        msg = (
            f"control={control!r} is a perturbation of {checkpoint.name}, whose control is {checkpoint.control!r}. "
            "Give control= the name of unperturbed cells."
        )
        raise ValueError(msg)
    if checkpoint.control not in known:
        near = did_you_mean(checkpoint.control, known)
        msg = f"{checkpoint.name} has no vector for its own control {checkpoint.control!r}. {near}"
        msg_0 = f"{msg} Its files do not agree: download or copy them again."
        raise ValueError(msg_0)
    others = [name for name in known if name != checkpoint.control]
    values = np.stack([known[name].numpy() for name in (checkpoint.control, *others)])
    return PerturbationTable((control, *others), values, from_features=False)


def _copy(stored: Mapping[str, Tensor], module: torch.nn.Module) -> None:
    # Copied, not assigned: what was read may be mapped from a file that others share.
    module.load_state_dict(stored, strict=False)  # every name and shape was compared before
