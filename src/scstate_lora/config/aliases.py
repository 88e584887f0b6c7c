"""Names that scModelForge gives the options of its fine-tuning, and what the same options are called here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scstate_lora._logging import logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SAME = {
    "finetune.label_key": "data.labels_key",
    "finetune.checkpoint_path": "base",
    "finetune.freeze_backbone_epochs": "train.unfreeze_epoch",
    "finetune.backbone_lr": "train.backbone_lr",
    "finetune.head_lr": "train.head_lr",
    "finetune.head.hidden_dim": "head.hidden_dim",
    "finetune.head.dropout": "head.dropout",
    "finetune.lora.rank": "lora.r",
    "finetune.lora.alpha": "lora.alpha",
    "finetune.lora.dropout": "lora.dropout",
    "training.batch_size": "train.batch_size",
    "training.max_epochs": "train.max_epochs",
    "training.precision": "train.precision",
    "training.num_gpus": "train.devices",
    "training.gradient_clip": "train.gradient_clip_val",
    "training.gradient_accumulation": "train.accumulate_grad_batches",
    "training.resume_from": "train.resume_from",
    "training.optimizer.weight_decay": "train.weight_decay",
    "training.scheduler.warmup_steps": "train.warmup_steps",
    "training.val_split": "data.val_size",
    "training.seed": "seed",
}
"""Options that mean the same, by their place in a file of scModelForge, and their place in one of ours."""

_OF_THE_ENCODER = "It is read from the files of the encoder, which base names. Leave it out."
_ANSWERS = {
    "finetune.freeze_backbone": (
        "train",
        "Which part of the encoder is trained is the strategy: 'frozen' (nothing), 'gradual' (all of it from "
        "unfreeze_epoch on), 'full' or 'lora'.",
    ),
    "finetune.lora.enabled": ("lora", "Adapters are trained by the strategy 'lora'."),
    "finetune.lora.target_modules": (
        "lora",
        "The layers that carry an adapter are named by targets: of q, k, v, out, linear1, linear2.",
    ),
    "finetune.lora.bias": ("lora", "Adapters leave biases as they are. Leave it out."),
    "finetune.head.task": (
        "head",
        "What is learned is a matter of the column: labels_key={'age': 'continuous'} learns a number.",
    ),
    "finetune.head.n_classes": ("head", "The labels are those of the column in labels_key. Leave it out."),
    "finetune.head.output_dim": ("head", "Each column in labels_key is learned by a head of its own. Leave it out."),
    "training.optimizer.lr": (
        "train",
        "Each part has a rate of its own: backbone_lr, adapter_lr and head_lr.",
    ),
    "data.paths": ("", "The cells are one file: file, or the first argument of the command."),
    "data.gene_vocab": ("", _OF_THE_ENCODER),
    "data.max_genes": ("", _OF_THE_ENCODER),
    "data.preprocessing": ("", _OF_THE_ENCODER),
    "tokenizer": ("", _OF_THE_ENCODER),
    "model": ("", _OF_THE_ENCODER),
}
"""Options that mean something else here, or nothing, with our section that they would be in, and what to do."""


def _within(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _in_our_sections() -> dict[str, str]:
    """Their names within our sections, such as ``lora.rank``, with ours."""
    places = {_within(ours.rpartition(".")[0], _last(theirs)): ours for theirs, ours in _SAME.items()}
    return {theirs: ours for theirs, ours in places.items() if theirs != ours}


_NAMES = _SAME | _in_our_sections()
_ADVICE = {path: text for path, (_, text) in _ANSWERS.items()} | {
    _within(section, _last(path)): text for path, (section, text) in _ANSWERS.items() if section
}
_THEIR_SECTIONS = {"finetune", "finetune.head", "finetune.lora", "training", "training.optimizer", "training.scheduler"}
_OUR_SECTIONS = {"data", "head", "lora", "train"}


def advice(path: str) -> str | None:
    """Say what to do about an option of scModelForge that is not one of ours under any name; None of all others.

    Parameters
    ----------
    path
        Dotted name, in a file of scModelForge or within a section of ours.
    """
    if path in _ADVICE:
        return _ADVICE[path]
    is_theirs = path.rpartition(".")[0] in _THEIR_SECTIONS and path not in _NAMES
    return "This option of scModelForge has no counterpart here. Leave it out." if is_theirs else None


def our_name(path: str) -> str:
    """Give an option its name here; those that have no other name keep it.

    Parameters
    ----------
    path
        Dotted name, in a file of scModelForge or within a section of ours.

    Raises
    ------
    ValueError
        If it is an option of scModelForge that is not one of ours; the message says what to do.
    """
    remedy = advice(path)
    if remedy is not None:
        msg = f"there is no option {path!r}. {remedy}"
        raise ValueError(msg)
    return _NAMES.get(path, path)


def in_our_words(options: Mapping[str, Any], *, section: str = "", logged: bool = True) -> dict[str, Any]:
    """Rename the options of a file, or of a section of ours, that have the names of scModelForge.

    Parameters
    ----------
    options
        Nested options; not changed.
    section
        Section of ours that they are of; by default they are of a whole file.
    logged
        Whether the names that changed are logged.

    Raises
    ------
    ValueError
        As :func:`our_name`, or if an option is given under both names.
    """
    renamed: dict[str, Any] = {}
    given: dict[str, str] = {}
    for path, value in _leaves(options, section):
        ours = our_name(path)
        if ours in given:
            msg = f"{given[ours]} and {path} are two names of one option. Give one of them."
            raise ValueError(msg)
        given[ours] = path
        *parents, name = ours.removeprefix(f"{section}.").split(".")
        place = renamed
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    if logged:
        _log({path: ours for ours, path in given.items()})
    return renamed


def assignments(path: str, value: Any) -> list[tuple[str, Any]]:
    """Give an assignment to an option, or to a section of scModelForge, as assignments to options of ours.

    Parameters
    ----------
    path, value
        Dotted name, and what it is set to.

    Raises
    ------
    ValueError
        As :func:`our_name`.
    """
    if isinstance(value, dict) and path in _OUR_SECTIONS:
        return [(path, in_our_words(value, section=path))]
    is_theirs = isinstance(value, dict) and path in _THEIR_SECTIONS
    given = list(_leaves(value, path)) if is_theirs else [(path, value)]
    names = {name: our_name(name) for name, _ in given}
    _log(names)
    return [(names[name], inner) for name, inner in given]


def _log(names: Mapping[str, str]) -> None:
    """Say what options are called here that were given under the name of scModelForge."""
    changed = [f"{theirs} is {ours}" for theirs, ours in names.items() if theirs != ours]
    if changed:
        logger.info("Names of scModelForge, and ours: %s.", ", ".join(changed))


def _leaves(options: Mapping[str, Any], section: str) -> Iterator[tuple[str, Any]]:
    """Options by dotted name; sections are opened, values that are mappings are not."""
    for name, value in options.items():
        path = _within(section, str(name))
        if isinstance(value, dict) and value and path in _THEIR_SECTIONS | _OUR_SECTIONS:
            yield from _leaves(value, path)
        elif value is not None or path not in _THEIR_SECTIONS:
            yield path, value
