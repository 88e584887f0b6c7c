"""Build our network and its table of perturbations from a published ST model that was read."""

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

GENE_RANGE = (0.0, 14.0)
"""Range to which arc-state's ``tx infer`` clips predicted expression; the network itself does not."""
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
    """State dict, on the meta device, of a network of these sizes, or of its transformer if only its sizes are given.

    Parameters
    ----------
    sizes
        Sizes as :func:`~scstate_lora.io.published.st_tensors.take_network` or ``take_backbone`` reads them.
    """
    with torch.device("meta"):  # nothing is allocated or drawn
        if "n_inputs" in sizes:
            return StateTransition(st_config(sizes), {}).state_dict()
        return make_backbone(BackboneConfig(**backbone_config(sizes))).state_dict(prefix=BACKBONE)


def load_network(network: StateTransition, checkpoint: STCheckpoint, *, own_perturbations: bool = False) -> None:
    """Copy the weights of a published model into a network made with :func:`st_config`.

    Parameters
    ----------
    network
        Changed in place. A covariate encoder, which the published model does not have, gives zeros until it is trained.
    checkpoint
        The model, read whole.
    own_perturbations
        Keep the perturbation encoder of the network, which is for other perturbations and may have another width.

    Raises
    ------
    ValueError
        If a tensor is missing, unexpected or of another shape.
    """
    if network.covariate_encoder is not None:
        last = list(network.covariate_encoder.combination.modules())[-1]  # a LayerNorm, so that the encoder can learn
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
    """Copy the transformer of a published model into a network made with :func:`backbone_config`.

    Raises
    ------
    ValueError
        If a tensor is missing, unexpected or of another shape.
    """
    stored = backbone_state(checkpoint)
    check_state(network.transformer_backbone.state_dict(), stored, source=str(checkpoint.path))
    _copy(stored, network.transformer_backbone)


def published_perturbations(checkpoint: STCheckpoint, control: str) -> PerturbationTable:
    """Perturbation vectors of a published model, with its control under the name that the data use.

    Parameters
    ----------
    checkpoint
        The model, read whole.
    control
        Name of the control in the data.

    Raises
    ------
    ValueError
        If the model has no vector for its control, or has a perturbation named `control`.
    """
    known = checkpoint.perturbations
    if control in known and control != checkpoint.control:
        msg = (
            f"control={control!r} is a perturbation of {checkpoint.name}, whose control is {checkpoint.control!r}. "
            "Give the name of unperturbed cells as control=."
        )
        raise ValueError(msg)
    if checkpoint.control not in known:
        near = did_you_mean(checkpoint.control, known)
        msg = (
            f"{checkpoint.name} has no vector for its own control {checkpoint.control!r}. {near} "
            "Its files do not agree: download or copy them again."
        )
        raise ValueError(msg)
    others = [name for name in known if name != checkpoint.control]
    values = np.stack([known[name].numpy() for name in (checkpoint.control, *others)])
    return PerturbationTable((control, *others), values, from_features=False)


def _copy(stored: Mapping[str, Tensor], module: torch.nn.Module) -> None:
    # Copied, not assigned: the stored tensors may be mapped from a file that others share.
    module.load_state_dict(stored, strict=False)  # every name and shape was compared before
