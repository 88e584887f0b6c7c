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
            msg_0 = f"{name}: {cls._explain(error)}"
            raise ValueError(msg_0) from error

    @classmethod
    def _explain(cls, error: ValidationError) -> str:
        """Say what is wrong first, with near names for an unknown key."""
        first = error.errors()[0]
        names, section = cls._place(first["loc"])
        key = ".".join(names)
        if first["type"] == "value_error":  # a check of ours says it all
            return f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
        if first["type"] == "extra_forbidden":
            last = str(first["loc"][-1])
            known = [] if section is None else section.model_fields
            return f"there is no option {'.'.join([*names, last])!r}. {did_you_mean(last, known)}"
        if first["type"] == "missing":
            return f"the option {key!r} is missing."
        return f"{key}={first['input']!r} is not allowed: {first['msg']}."

    @classmethod
    def _place(cls, path: tuple[int | str, ...]) -> tuple[list[str], type[Options] | None]:
        """Names on the path of an error, and the section at its end; alternatives of a union are no names."""
        names: list[str] = []
        section: type[Options] | None = cls
        for part in path:
            if isinstance(part, int):
                names.append(str(part))
            elif section is not None and part in section.model_fields:
                names.append(part)
                annotation = section.model_fields[part].annotation
                classes = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type)]
                section = next((a for a in classes if issubclass(a, Options)), None)  # also of "Section | None"
        return names, section


def check_heads(name: str, width: int, n_heads: int) -> None:
    """Raise a ValueError when a width does not divide into heads."""
    if width % n_heads:
        msg = f"{name}={width} is not divisible by n_heads={n_heads}."
        raise ValueError(msg)
