"""Options of a classifier of cells and its training, from a file and a command line."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from scstate_lora.config.aliases import assignments, in_our_words
from scstate_lora.config.classifier import (
    ClassifierTrainConfig,
    HeadConfig,
    LabelledDataConfig,
    LinearStartConfig,
    Strategy,
)
from scstate_lora.config.load import assign, parse_merged, read_assignment
from scstate_lora.config.lora import SELoraConfig
from scstate_lora.config.options import Options
from scstate_lora.config.se import CompactBaseConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


class AnnotateConfig(Options):
    """A classifier of cells: its data, its base and its training."""

    file: str | None = None
    """File of the cells that have labels: a path, relative to the working directory."""
    data: LabelledDataConfig
    """Columns."""
    base: str | None = None
    """Encoder: SE checkpoint, hub id, directory of a saved model, or encoder saved by scModelForge; null: a compact one
    is trained."""
    strategy: Strategy | None = None
    """What is trained of the encoder: `gradual` by default, `full`, `lora` or `frozen`."""
    linear_start: LinearStartConfig | Literal[False] = LinearStartConfig()
    """Regression on expression that the classifier starts at; false for none."""
    head: HeadConfig = HeadConfig()
    """Heads on the encoder's embedding."""
    lora: SELoraConfig = SELoraConfig()
    """Adapters of the strategy `lora`."""
    compact: CompactBaseConfig = CompactBaseConfig()
    """Compact base."""
    train: ClassifierTrainConfig = ClassifierTrainConfig()
    """Training."""
    seed: int = 0
    """Seed of everything random."""


def load_annotate(
    path: str | Path | None = None, *, arguments: Mapping[str, Any] | None = None, overrides: Iterable[str] = ()
) -> AnnotateConfig:
    """Make the options of a classifier from a file and a command line, which takes precedence.

    Options that have the names of scModelForge's fine-tuning, such as ``finetune.label_key``, are understood.

    Parameters
    ----------
    path
        YAML file; None for none.
    arguments
        Options by dotted name, for instance ``{"data.labels_key": "cell_type"}``.
    overrides
        ``section.key=value`` assignments.

    Raises
    ------
    FileNotFoundError
        If there is no such file; near names are suggested.
    ValueError
        If the file is not YAML, an option is unknown (near ones are suggested) or given twice, or a value is not
        allowed; the message names the file if the fault is there.
    """
    source = "options" if path is None else str(path)

    def merge(loaded: Mapping[str, Any]) -> dict[str, Any]:
        try:
            merged = in_our_words(loaded)
        except ValueError as error:
            msg = f"{source}: {error}"
            raise ValueError(msg) from error
        merged.setdefault("data", {})
        given = [(name, value, name) for name, value in (arguments or {}).items()]
        given += [(*read_assignment(text), text) for text in overrides]
        for name, value, text in given:
            try:
                ours = assignments(name, value)
            except ValueError as error:
                msg = f"On the command line, {error}"
                raise ValueError(msg) from error
            for option, inner in ours:
                assign(merged, option, inner, source=text)
        if isinstance(merged["data"], dict) and "labels_key" not in merged["data"]:
            msg = f"{source}: the column of the labels is missing: data.labels_key (--labels-key of the command)."
            raise ValueError(msg)
        return merged

    return parse_merged(AnnotateConfig, path, merge, rename=partial(in_our_words, logged=False))
