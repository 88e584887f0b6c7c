"""Read and write configurations: YAML, and `key=value` overrides on top."""

from __future__ import annotations

from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from scstate_lora._utils import did_you_mean
from scstate_lora.config.run import RunConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from importlib.resources.abc import Traversable

    from scstate_lora.config.options import Options

# Aliases; the later value wins whichever name it uses.
_ALIASES = {("data", "covariates"): "covariate_keys"}


def shipped() -> dict[str, Traversable]:
    """Find the configurations that come with the package, by name."""
    folder = resources.files("scstate_lora.config") / "shipped"
    return {file.name.partition(".")[0]: file for file in sorted(folder.iterdir(), key=lambda file: file.name)}


def load_run(
    path: str | Path | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
) -> RunConfig:
    """Make the options of a run from a file and a command line, which takes precedence.

    Parameters
    ----------
    path
        YAML file; None for none.
    defaults
        Defaults of top-level options that the file leaves out.
    arguments
        Options by dotted name, for instance ``{"data.pert_key": "condition"}``.
    overrides
        ``section.key=value`` assignments, see :func:`with_overrides`.

    Raises
    ------
    FileNotFoundError
        If there is no such file; near names are suggested.
    ValueError
        If the file is not YAML or names an option twice, an assignment is none, an option is unknown (near ones are
        suggested), or a value is not allowed; the message names the file if the fault is there.
    """
    merge = partial(_merged, defaults=defaults, arguments=arguments, overrides=overrides)
    return parse_merged(RunConfig, path, merge, rename=_one_name)


def _merged(
    loaded: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any] | None,
    arguments: Mapping[str, Any] | None,
    overrides: Iterable[str],
) -> dict[str, Any]:
    merged = _one_name({**(defaults or {}), **loaded})
    for name, value in (arguments or {}).items():
        assign(merged, name, value, source=name)
    return with_overrides(merged, overrides)


_O = TypeVar("_O", bound="Options")


def parse_merged(
    kind: type[_O],
    path: str | Path | None,
    merge: Callable[[Mapping[str, Any]], dict[str, Any]],
    *,
    rename: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> _O:
    """Make options from a file and what is merged into it, with messages that tell where a fault is.

    Parameters
    ----------
    kind
        Class of the options.
    path
        YAML file; None for none.
    merge
        Merges the content of the file with the command line's.
    rename
        Renames options of the file alone.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`load_run`.
    """
    loaded = {} if path is None else read_yaml(path)
    merged = merge(loaded)
    if path is None:
        return kind.parse(merged, name="options")
    try:
        return kind.parse(merged, name=str(path))
    except ValueError as error:
        if _complaint(kind, rename(loaded)) == _complaint(kind, merged):
            raise
        msg = f"On the command line, {_complaint(kind, merged)}"
        raise ValueError(msg) from error


def _complaint(kind: type[Options], options: Mapping[str, Any]) -> str | None:
    """Describe the first fault of options; None without any."""
    name = "options"
    try:
        kind.parse(options, name=name)
    except ValueError as error:
        return str(error).removeprefix(f"{name}: ")
    return None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a file of nested options, not yet validated.

    Raises
    ------
    FileNotFoundError
        If there is no such file; near names are suggested.
    ValueError
        If it is a folder, not YAML, not a mapping, or names an option twice.
    """
    path = Path(path)
    if not path.exists():
        present = [file.name for pattern in ("*.yaml", "*.yml") for file in sorted(path.parent.glob(pattern))]
        msg = f"There is no configuration {path}." + (f" {did_you_mean(path.name, present)}" if present else "")
        raise FileNotFoundError(msg)
    if not path.is_file():
        msg = f"{path} is a folder; a configuration is a YAML file."
        raise ValueError(msg)
    try:
        options = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        line = "" if mark is None else f", line {mark.line + 1}"
        msg = f"{path}{line} cannot be read as YAML: {problem}."
        raise ValueError(msg) from error
    if options is None:
        return {}
    if not isinstance(options, dict):
        msg = f"{path} holds a {type(options).__name__}; a configuration consists of lines such as seed: 1."
        raise ValueError(msg)
    return options


class _UniqueKeys(yaml.SafeLoader):
    """Refuse a duplicate key in one section; plain YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def with_overrides(options: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Put ``section.key=value`` assignments into a nested dict; values are read as YAML.

    Parameters
    ----------
    options
        Nested options; not changed.
    overrides
        For instance ``["se.train.max_epochs=3", "seed=1", "data.covariates=[{name: day, type: continuous}]"]``.

    Raises
    ------
    ValueError
        If an assignment has no ``=``, or its value is not valid YAML.
    """
    merged = _one_name(options)
    for assignment in overrides:
        path, value = read_assignment(assignment)
        assign(merged, path, value, source=assignment)
    return merged


def read_assignment(assignment: str) -> tuple[str, Any]:
    """Read ``section.key=value``, with a value in YAML; errors as :func:`with_overrides`."""
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        msg = f"{assignment!r} is not an assignment. Write section.key=value, for instance st.train.max_epochs=10."
        raise ValueError(msg)
    try:
        return path, yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        msg = f"{assignment!r}: the value is not valid YAML: {problem}."
        raise ValueError(msg) from error


def assign(options: dict[str, Any], path: str, value: Any, *, source: str) -> None:
    """Set an option by its dotted name, in place."""
    *parents, key = path.split(".")
    section = options
    for parent in parents:
        if section.get(parent) is None:
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            msg = f"{source!r}: {parent!r} is a value, not a section."
            raise ValueError(msg)
    section[_ALIASES.get((*parents, key), key)] = value  # type: ignore[arg-type]  # of any length


def _one_name(options: Mapping[str, Any]) -> dict[str, Any]:
    """Copy nested options, replacing an alias unless both names are given, which is refused later."""
    copied = _copy(options)
    for (name, also), key in _ALIASES.items():
        section = copied.get(name)
        if isinstance(section, dict) and also in section and key not in section:
            copied[name] = {key if k == also else k: v for k, v in section.items()}
    return copied


def _copy(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, dict) else v for k, v in options.items()}


def to_yaml(options: Options) -> str:
    """All options, resolved, as YAML text.

    Parameters
    ----------
    options
        Options of a run, or of a part of it.
    """
    return yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
