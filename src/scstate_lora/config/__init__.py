"""Validated options: one frozen class per subject, unknown keys refused with a suggestion."""

from __future__ import annotations

from scstate_lora.config.annotate import AnnotateConfig, load_annotate
from scstate_lora.config.classifier import (
    ClassifierTrainConfig,
    ClassifierTrainOptions,
    HeadConfig,
    LabelledDataConfig,
    LinearStartConfig,
)
from scstate_lora.config.compare import CompareConfig, CompareRunConfig, Thresholds, VariantConfig
from scstate_lora.config.data import ContinuousEncoderConfig, CovariateConfig, DataConfig
from scstate_lora.config.embed import ComputeOptions, EmbedOptions
from scstate_lora.config.evaluate import EvaluateEmbeddingsOptions, EvaluateOptions
from scstate_lora.config.load import load_run, to_yaml, with_overrides
from scstate_lora.config.lora import SELoraConfig, STLoraConfig
from scstate_lora.config.mhc import MHCConfig
from scstate_lora.config.run import RunConfig, SERunConfig, STRunConfig
from scstate_lora.config.se import CompactBaseConfig, ConditioningConfig, SEObjectiveConfig
from scstate_lora.config.st import STModelConfig, STObjectiveConfig
from scstate_lora.config.training import TrainConfig, TrainerOptions, TrainOptions

__all__ = [
    "AnnotateConfig",
    "ClassifierTrainConfig",
    "ClassifierTrainOptions",
    "CompactBaseConfig",
    "CompareConfig",
    "CompareRunConfig",
    "ComputeOptions",
    "ConditioningConfig",
    "ContinuousEncoderConfig",
    "CovariateConfig",
    "DataConfig",
    "EmbedOptions",
    "EvaluateEmbeddingsOptions",
    "EvaluateOptions",
    "HeadConfig",
    "LabelledDataConfig",
    "LinearStartConfig",
    "MHCConfig",
    "RunConfig",
    "SELoraConfig",
    "SEObjectiveConfig",
    "SERunConfig",
    "STLoraConfig",
    "STModelConfig",
    "STObjectiveConfig",
    "STRunConfig",
    "Thresholds",
    "TrainConfig",
    "TrainOptions",
    "TrainerOptions",
    "VariantConfig",
    "load_annotate",
    "load_run",
    "to_yaml",
    "with_overrides",
]
