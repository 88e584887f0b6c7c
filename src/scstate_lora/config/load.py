"""Read and write configurations: YAML, and `key=value` overrides on top."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scstate_lora.config.options import Options


def with_overrides(options: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Put ``section.key=value`` assignments into a nested dict; values are read as YAML.

    Parameters
    ----------
    options
        Nested options; not changed.
    overrides
        For instance ``["se.train.max_epochs=3", "seed=1"]``.

    Raises
    ------
    ValueError
        An assignment has no ``=``, or its value is not valid YAML.
    """
    merged = _copy(options)
    for assignment in overrides:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            msg = f"{assignment!r} is not an assignment. Write section.key=value, for instance st.train.max_epochs=10."
            raise ValueError(msg)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            msg = f"{assignment!r}: the value is not valid YAML ({error})."
            raise ValueError(msg) from error
        *parents, key = path.split(".")
        section = merged
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                msg = f"{assignment!r}: {parent!r} is a value, not a section."
                raise ValueError(msg)
        section[key] = value
    return merged


def _copy(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, dict) else v for k, v in options.items()}


def to_yaml(options: Options) -> str:
    """All options, resolved, as YAML text."""
    return yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
