"""What all options share: frozen classes, unknown keys refused with a suggestion."""

from __future__ import annotations

from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from scstate_lora._utils import did_you_mean


class Options(BaseModel):
    """Frozen, validated options."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def parse(cls, options: Any, *, name: str) -> Self:
        """Make options from a mapping, from options, or from None for the defaults.

        Parameters
        ----------
        options
            A mapping, an instance, or None.
        name
            What the user calls them, for messages.

        Raises
        ------
        TypeError
            Something else was given.
        ValueError
            A key is unknown (near ones are suggested) or a value is not allowed.
        """
        if isinstance(options, cls):
            return options
        if options is None:
            return cls()
        if not isinstance(options, dict):
            msg = f"{name} must be a dict or {cls.__name__}, found {type(options).__name__}."
            raise TypeError(msg)
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            raise ValueError(f"{name}: {cls._explain(error)}") from error

    @classmethod
    def _explain(cls, error: ValidationError) -> str:
        """Say what is wrong first, with near names for an unknown key."""
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "value_error":  # a check of ours says it all
            return f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
        *parents, last = first["loc"]
        if first["type"] == "extra_forbidden":
            return f"there is no option {key!r}. {did_you_mean(str(last), cls._options_at(parents))}"
        if first["type"] == "missing":
            return f"the option {key!r} is missing."
        return f"{key}={first['input']!r} is not allowed: {first['msg']}."

    @classmethod
    def _options_at(cls, path: list[Any]) -> list[str]:
        """Names of the options of a nested section."""
        section: Any = cls
        for part in path:
            annotation = section.model_fields[part].annotation
            classes = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type)]
            section = next(a for a in classes if issubclass(a, Options))  # also of "Section | None"
        return list(section.model_fields)


def check_heads(name: str, width: int, n_heads: int) -> None:
    """Raise a ValueError when a width does not divide into heads."""
    if width % n_heads:
        msg = f"{name}={width} is not divisible by n_heads={n_heads}."
        raise ValueError(msg)
