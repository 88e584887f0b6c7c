"""Configuration of encoders saved by scModelForge: where it is, its defaults, and whether it fits the weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import yaml

from scstate_lora.io.published.scmodelforge_tensors import ARCHITECTURES

# Fields that the tensors show as well, by our names of the sizes.
_SHOWN = {
    "n_ids": "vocab_size",
    "d_model": "hidden_dim",
    "n_layers": "num_layers",
    "d_hid": "ffn_dim",
    "n_positions": "max_seq_len",
    "values": "use_expression_values",
}
# Its defaults of the fields that the tensors do not show: a YAML file states only what differs.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "model": {"num_heads": 8, "pooling": "cls", "activation": "gelu", "dropout": 0.1},
    "tokenizer": {"strategy": "rank_value", "max_genes": 2048, "prepend_cls": True},
    "preprocessing": {"normalize": "library_size", "target_sum": 1e4, "log1p": True},
}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "architecture": tuple(ARCHITECTURES),
    "pooling": ("cls", "mean"),
    "activation": ("gelu", "relu"),
    "strategy": ("rank_value",),
    "prepend_cls": (True, False),
    "normalize": ("library_size", None),
    "log1p": (True, False),
}


@dataclass(frozen=True)
class Settings:
    """What is stated about an encoder.

    Parameters
    ----------
    model, tokenizer, preprocessing
        Sections of the configuration, with defaults filled in.
    source
        Where they are stated, for messages.
    """

    model: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    source: str

    @property
    def max_genes(self) -> int:
        """Length of the longest sentence, including CLS."""
        return _whole(self.tokenizer["max_genes"], "max_genes", self.source, least=2)

    @property
    def prepend_cls(self) -> bool:
        """Whether sentences begin with CLS."""
        return self._choice(self.tokenizer, "prepend_cls")

    @property
    def target_sum(self) -> float | None:
        """Sum that the counts of a cell are brought to; None: they stay as they are."""
        total = self.preprocessing["target_sum"]
        if self._choice(self.preprocessing, "normalize") is None or total is None:
            return None
        return _number(total, "target_sum", self.source, least=1.0)

    @property
    def log(self) -> bool:
        """Whether the values are log1p."""
        return self._choice(self.preprocessing, "log1p")

    def stated(self) -> dict[str, Any]:
        """In the form of a YAML file, JSON-able, so that the weights can be read with it again."""
        return {
            "model": dict(self.model),
            "tokenizer": dict(self.tokenizer),
            "data": {"preprocessing": dict(self.preprocessing)},
        }

    def complete(self, sizes: Mapping[str, Any], architecture: str | None, file: Path) -> dict[str, Any]:
        """Add the sizes and variants that only the configuration states.

        Parameters
        ----------
        sizes
            As the tensors show them.
        architecture
            As the heads beside the encoder show it; None without heads.
        file
            File of the weights.

        Raises
        ------
        ValueError
            If a field is not allowed, or contradicts the tensors: every such field is named, with both values.
        """
        clashes = [
            f"{field} is {sizes[ours]} by the tensors, {stated} in {self.source}"
            for ours, field in _SHOWN.items()
            if (stated := self._size(field)) not in (None, sizes[ours])
        ]
        n_heads = _whole(self.model["num_heads"], "num_heads", self.source, least=1)
        if sizes["d_model"] % n_heads:
            clashes.append(
                f"hidden_dim is {sizes['d_model']} by the tensors, which does not divide into num_heads, {n_heads} in "
                f"{self.source}"
            )
        if "architecture" in self.model:
            stated = self._choice(self.model, "architecture")
            if architecture not in (None, stated):
                clashes.append(f"architecture is {architecture} by the tensors, {stated} in {self.source}")
        if clashes:
            listed = "\n  ".join(clashes)
            msg = (
                f"{file} and its configuration contradict each other, nothing was loaded:\n  {listed}\n"
                "Correct the configuration, or give that of its training: config='path/to/config.json' or a YAML file."
            )
            raise ValueError(msg)
        self._choice(self.tokenizer, "strategy")
        return {
            **sizes,
            "n_heads": n_heads,
            "pooling": self._choice(self.model, "pooling"),
            "activation": self._choice(self.model, "activation"),
            "dropout": _number(self.model["dropout"], "dropout", self.source, least=0.0, below=1.0),
        }

    def _size(self, field: str) -> Any:
        """Stated value of a size that the tensors show; None if it is not stated."""
        value = self.model.get(field)
        if field == "ffn_dim" and field in self.model and value is None and self.model.get("hidden_dim") is not None:
            return 4 * _whole(self.model["hidden_dim"], "hidden_dim", self.source, least=1)
        return value

    def _choice(self, section: Mapping[str, Any], field: str) -> Any:
        allowed = _CHOICES[field]
        if not any(section[field] is choice or section[field] == choice for choice in allowed):
            shown = ", ".join(map(repr, allowed))
            msg = f"{field} is {section[field]!r} in {self.source}; read here: {shown}. Give a model with one of these."
            raise ValueError(msg)
        return section[field]


def find_settings(file: Path, given: str | Path | Mapping[str, Any] | None) -> Settings:
    """Find the configuration of weights: what is given, else ``config.json`` or ``config.yaml`` beside them.

    Raises
    ------
    FileNotFoundError
        If the given file does not exist.
    ValueError
        If there is none, or it is not one of scModelForge.
    """
    if isinstance(given, Mapping):
        return _settings(given, "config=")
    if given is not None:
        path = Path(given).expanduser()
        return _settings(_parse(path), str(path))
    for name in ("config.json", "config.yaml"):
        path = file.parent / name
        if path.is_file():
            return _settings(_parse(path), str(path))
    msg = (
        f"{file} comes without a configuration: there is neither a config.json nor a config.yaml beside it, and "
        "scModelForge stores none in a .ckpt. The tensors do not show num_heads, pooling and the form of its tokens. "
        "Give the YAML file of its training, or the config.json of an export: config='path/to/config.yaml'."
    )
    raise ValueError(msg)


def read_json(path: Path, *, what: str) -> Any:
    """Read a JSON file, with errors that say what it is for."""
    if not path.is_file():
        msg = f"There is no {what} {path}. Check the path."
        raise FileNotFoundError(msg)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"The {what} {path} is not valid JSON ({error}). Copy it again."
        raise ValueError(msg) from error


def _parse(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".json" or not path.is_file():
        parsed = read_json(path, what="configuration")
    else:
        try:
            parsed = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            msg = f"The configuration {path} is not valid YAML ({error}). Give another."
            raise ValueError(msg) from error
    if not isinstance(parsed, Mapping):
        msg = f"{path} holds {type(parsed).__name__}, expected sections such as model: and tokenizer:. Give another."
        raise ValueError(msg)
    return parsed


def _settings(config: Mapping[str, Any], source: str) -> Settings:
    """Read a configuration in either form: of a ``config.json``, or of a YAML file."""
    exported = "model_config" in config
    model = _section(config, "model_config" if exported else "model", source)
    if model is None:
        held = ", ".join(map(str, list(config)[:8])) or "nothing"
        msg = f"{source} has neither model_config (config.json) nor model (YAML); it has {held}. Give another config=."
        raise ValueError(msg)
    if exported and "model_type" in config:  # which its loader goes by
        model = {**model, "architecture": config["model_type"]}
    tokenizer = _section(config, "tokenizer_config" if exported else "tokenizer", source)
    data = _section(config, "data", source) or {}
    return Settings(
        {**_DEFAULTS["model"], **model},
        {**_DEFAULTS["tokenizer"], **(tokenizer or {})},
        {**_DEFAULTS["preprocessing"], **(_section(data, "preprocessing", source) or {})},
        source,
    )


def _section(config: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any] | None:
    section = config.get(name)
    if section is not None and not isinstance(section, Mapping):
        msg = f"{name} in {source} is {section!r}, expected a section of fields. Give another config=."
        raise ValueError(msg)
    return section


def _whole(value: Any, field: str, source: str, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        msg = f"{field} is {value!r} in {source}; a whole number of at least {least} is needed. Correct it there."
        raise ValueError(msg)
    return int(value)


def _number(value: Any, field: str, source: str, *, least: float, below: float = math.inf) -> float:
    if isinstance(value, str) and re.fullmatch(r"[\d.]+e[+-]?\d+", value):  # OmegaConf reads 1e4 as a number, YAML not
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < below:
        span = f"at least {least:g}" + ("" if below == math.inf else f" and below {below:g}")
        msg = f"{field} is {value!r} in {source}; a number of {span} is needed. Correct it there."
        raise ValueError(msg)
    return float(value)
