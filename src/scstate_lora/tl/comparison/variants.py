"""The variants of STTransition that a comparison trains: from names and options to models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scstate_lora._utils import did_you_mean
from scstate_lora.config import MHCConfig, STLoraConfig, STModelConfig, STObjectiveConfig, TrainOptions
from scstate_lora.config.compare import VariantConfig
from scstate_lora.inference.devices import check_accelerator
from scstate_lora.model import STTransition

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

ZERO_SHOT = "zero-shot"
USUAL = {
    ZERO_SHOT: VariantConfig(finetune="full", train=False),
    "ST": VariantConfig(finetune="full"),
    "ST-LoRA": VariantConfig(finetune="lora"),
    "ST-LoRA-mHC": VariantConfig(finetune="lora", mhc=True),
}
"""The variants that are compared by default."""


@dataclass(frozen=True)
class Shared:
    """Options of all variants, unless a variant has its own.

    Parameters
    ----------
    model, objective, lora
        Options as mappings.
    pretrained, reuse, pert_features
        As in :class:`scstate_lora.STTransition`.
    train
        Arguments of ``train()``.
    """

    model: Mapping[str, Any]
    objective: Mapping[str, Any]
    lora: Mapping[str, Any]
    pretrained: str | Path | None
    reuse: str
    pert_features: pd.DataFrame | None
    train: Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """One variant, its options checked.

    Parameters
    ----------
    name
        Its name.
    arguments
        Of :class:`scstate_lora.STTransition`.
    training
        Arguments of ``train()``; None if it is not trained.
    """

    name: str
    arguments: dict[str, Any]
    training: dict[str, Any] | None

    def make(self, adata: AnnData, *, seed: int) -> STTransition:
        """Build the model, not trained yet.

        Raises
        ------
        ValueError
            As :class:`scstate_lora.STTransition`, and if it is to predict untrained and cannot.
        """
        model = STTransition(adata, **self.arguments, seed=seed)
        if self.training is None and "pretrained" in self.arguments and not model.predicts_untrained:
            msg = (
                "the pretrained model predicts nothing before it is trained here: it is reused in part, or does not "
                "know these perturbations"
            )
            raise ValueError(msg)
        return model

    def train(self, model: STTransition, folder: Path | None) -> None:
        """Train it; logs go into ``folder``, or nowhere."""
        if self.training is not None:
            logs: dict[str, Any] = {"logger": False} if folder is None else {"run_folder": folder}
            model.train(**{**logs, **self.training})

    def predict(self, model: STTransition, target: str) -> AnnData:
        """Predict a perturbation, also by a model that is not to be trained."""
        return model.predict(target=target, allow_untrained=self.training is None)

    @property
    def folder_name(self) -> str:
        """Its name as the name of a folder."""
        return re.sub(r"[^\w.+-]+", "_", self.name)


def variants_of(
    variants: Mapping[str, Any] | Iterable[str] | None, shared: Shared, *, reserved: Iterable[str]
) -> list[Variant]:
    """Check the variants that a user named.

    Parameters
    ----------
    variants
        Options by name, added to the usual ones (None leaves one out); names of the usual ones; None for all of those.
    shared
        Options of all variants.
    reserved
        Names that are taken.

    Raises
    ------
    TypeError
        If something is of another type.
    ValueError
        If a name or an option is unknown or not allowed, or no variant is left.
    """
    chosen = {name: options for name, options in _chosen(variants).items() if options is not None}
    for name in chosen:
        if not str(name).strip() or name in set(reserved):
            msg = f"variants: {name!r} is the name of a baseline, or empty. Give the variant another name."
            raise ValueError(msg)
    checked = [_variant(str(name), options, shared) for name, options in chosen.items()]
    if not checked:
        msg = f"variants leaves nothing to compare. The usual ones: {', '.join(USUAL)}."
        raise ValueError(msg)
    folders = [variant.folder_name.lower() for variant in checked]
    same = [variant.name for variant, folder in zip(checked, folders, strict=True) if folders.count(folder) > 1]
    if same:
        msg = f"variants: {' and '.join(map(repr, same))} share one name of a folder. Rename one of them."
        raise ValueError(msg)
    return checked


def _chosen(variants: Mapping[str, Any] | Iterable[str] | None) -> dict[str, Any]:
    if variants is None:
        return dict(USUAL)
    if isinstance(variants, Mapping):
        return {**USUAL, **variants}
    names = [variants] if isinstance(variants, str) else list(variants)
    for name in names:
        if name not in USUAL:
            msg = (
                f"variants: {name!r} is none of the usual ones. {did_you_mean(str(name), USUAL)} "
                "A variant of your own is a mapping from its name to options: {'mine': {'model': {...}}}."
            )
            raise ValueError(msg)
    return {name: USUAL[name] for name in names}


def _variant(name: str, options: Any, shared: Shared) -> Variant:
    label = f"variants[{name!r}]"
    own = VariantConfig.parse(options, name=label)
    pretrained = shared.pretrained if own.pretrained is None else own.pretrained
    finetune = own.finetune or ("lora" if pretrained else "full")
    arguments: dict[str, Any] = {
        "model": STModelConfig.parse({**shared.model, **own.model}, name=f"{label}: model"),
        "objective": STObjectiveConfig.parse({**shared.objective, **own.objective}, name=f"{label}: objective"),
        "finetune": finetune,
    }
    if finetune == "lora":
        arguments["lora"] = STLoraConfig.parse({**shared.lora, **own.lora}, name=f"{label}: lora")
    elif own.lora:
        msg = f"{label}: lora gives options of adapters, but finetune={finetune!r} has none."
        raise ValueError(msg)
    if pretrained:
        arguments |= {"pretrained": pretrained, "reuse": own.reuse or shared.reuse}
    elif own.reuse is not None:
        msg = f"{label}: reuse={own.reuse!r} selects parts of a pretrained model, and there is none."
        raise ValueError(msg)
    if shared.pert_features is not None:
        arguments["pert_features"] = shared.pert_features
    if own.train is False:
        if own.mhc is not False:
            msg = f"{label}: mhc is added by training, and train=False. Leave one of them out."
            raise ValueError(msg)
        return Variant(name, arguments, None)
    return Variant(name, arguments, _training({**shared.train, **own.train}, mhc=own.mhc, label=label))


def _training(arguments: dict[str, Any], *, mhc: MHCConfig | bool, label: str) -> dict[str, Any]:
    """Arguments of ``train()``, checked before anything is trained."""
    for key in ("mhc", "run_folder", "resume_from"):
        if key in arguments:
            why = "it is an option of the variant itself" if key == "mhc" else "every variant has its own folder"
            msg = f"{label}: train has {key!r}, but {why}{'' if key == 'mhc' else ': path='}."
            raise ValueError(msg)
    try:
        check_accelerator(TrainOptions.of_call(arguments, function="train()").accelerator)
    except (TypeError, ValueError) as error:
        msg = f"{label}: {error}"
        raise type(error)(msg) from error
    return {**arguments, "mhc": mhc}
