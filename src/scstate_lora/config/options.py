"""What all options share: frozen classes, unknown keys refused with a suggestion."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from scstate_lora._utils import did_you_mean
from scstate_lora.config.aliases import advice, in_our_words

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping


class Options(BaseModel):
    """Frozen, validated options."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    _section: ClassVar[str | None] = None
    """Section of a classifier's options, whose names in scModelForge are understood; None for all other options."""

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, options: Any) -> Any:
        renames = cls._section is not None and isinstance(options, dict)
        return in_our_words(options, section=str(cls._section)) if renames else options

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
            If it is anything else.
        ValueError
            If a key is unknown (near ones are suggested) or a value is not allowed.
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
    def of_call(cls, arguments: Mapping[str, Any], *, function: str) -> Self:
        """Make options from the keywords of a call; None takes the default.

        Parameters
        ----------
        arguments
            Keywords.
        function
            What was called, for messages.

        Raises
        ------
        TypeError
            If a keyword is unknown; near ones are suggested.
        ValueError
            If a value is not allowed.
        """
        arguments = cls.keywords(arguments, function=function)
        return cls.parse({name: value for name, value in arguments.items() if value is not None}, name=function)

    @classmethod
    def keywords(cls, arguments: Mapping[str, Any], *, function: str, further: Collection[str] = ()) -> dict[str, Any]:
        """Check the names of a call's keywords, and give those that scModelForge calls otherwise their names here.

        Parameters
        ----------
        arguments, function
            As in :meth:`of_call`.
        further
            Keywords that are no option.

        Raises
        ------
        TypeError
            As in :meth:`of_call`, or if an option is given under two names.
        """
        known = [*cls.model_fields, *further]
        if cls._section is not None:
            remedies = {name: advice(f"{cls._section}.{name}") for name in arguments if name not in known}
            for name, text in remedies.items():
                if text is not None:
                    msg = f"{function} has no argument {name!r}. {text}"
                    raise TypeError(msg)
            try:
                arguments = in_our_words(arguments, section=cls._section)
            except ValueError as error:
                msg = f"{function}: {error}"
                raise TypeError(msg) from error
        for name in arguments:
            if name not in known:
                msg = f"{function} has no argument {name!r}. {did_you_mean(name, known, limit=len(known))}"
                raise TypeError(msg)
        return dict(arguments)

    @classmethod
    def _explain(cls, error: ValidationError) -> str:
        """Describe the first error, with near names for an unknown key or value."""
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
        if first["type"] == "literal_error" and isinstance(first["input"], str):
            allowed = re.findall(r"'(.*?)'", first["ctx"]["expected"])
            return f"{key}={first['input']!r} is not allowed. {did_you_mean(first['input'], allowed)}"
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
                section = next(_sections(section.model_fields[part].annotation), None)
        return names, section


def _sections(annotation: Any) -> Iterator[type[Options]]:
    """Classes of options in an annotation such as ``Section | None``."""
    if isinstance(annotation, type) and issubclass(annotation, Options):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def check_heads(name: str, width: int, n_heads: int) -> None:
    """Raise a ValueError when a width does not divide into heads."""
    if width % n_heads:
        msg = f"{name}={width} is not divisible by n_heads={n_heads}."
        raise ValueError(msg)


def as_written_in_a_file(options: type[Options], *, without: Collection[str] = ()) -> Any:
    """Derive the class of the same options as a file holds them: None, which is the default of each, chooses nothing.

    Parameters
    ----------
    options
        The class with the real defaults.
    without
        Options that no file can hold.
    """
    fields: dict[str, Any] = {}
    for name in [name for name in options.model_fields if name not in without]:
        field = options.model_fields[name]
        limits = [Field(), *field.metadata]  # Annotated takes no empty list
        fields[name] = (Annotated[field.annotation, *limits] | None, Field(default=None, description=field.description))
    return create_model(options.__name__, __base__=Options, __module__=options.__module__, **fields)
