"""List the fields of a class of options as its parameters, with type, meaning and default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticUndefined
from sphinx_autodoc_typehints import format_annotation

from scstate_lora.config.options import Options

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def is_options(what: str, obj: Any) -> bool:
    """Whether this documents a class of options."""
    return what == "class" and isinstance(obj, type) and issubclass(obj, Options)


def add_fields(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Append one parameter per field to the docstring."""
    if not is_options(what, obj):
        return
    lines.append("")
    for field, info in obj.model_fields.items():
        meaning = " ".join((info.description or "").split())
        lines.append(f":param {field}: {meaning}")
        type_ = format_annotation(info.annotation, app.config)
        default = info.get_default(call_default_factory=True)
        shown = f"{type(default).__name__}()" if isinstance(default, Options) else repr(default)
        lines.append(f":type {field}: {type_}" + ("" if default is PydanticUndefined else f" (default: ``{shown}``)"))


def hide_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, None] | None:
    """Leave out the signature that pydantic gives a class: the list of parameters says the same."""
    return ("", None) if is_options(what, obj) else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Hook both in, around what sphinx_autodoc_typehints adds."""
    app.connect("autodoc-process-docstring", add_fields, priority=900)
    app.connect("autodoc-process-signature", hide_signature, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
