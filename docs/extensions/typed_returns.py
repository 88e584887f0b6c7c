"""Render prose as prose where napoleon looks for types.

Types are in our signatures, and docstrings say in sentences what they mean. Napoleon would take the first line of a
``Returns`` section for a type and every further line for one more, and of an attribute's docstring all before a colon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sphinx.ext.napoleon import NumpyDocstring

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def parse_returns(docstring: NumpyDocstring, section: str) -> list[str]:
    """Make one ``:returns:`` field of the whole section, as written."""
    lines = docstring._dedent(docstring._consume_to_next_section())
    if lines[:1] == [":"]:  # put there by sphinx_autodoc_typehints, against the same fault of napoleon
        del lines[0]
    return docstring._format_block(":returns: ", lines)


def parse_attribute(docstring: NumpyDocstring) -> list[str]:
    """Leave the docstring of an attribute as written."""
    return docstring._dedent(docstring._consume_to_end())


def setup(app: Sphinx) -> dict[str, Any]:
    """Put both in the place of napoleon's own."""
    app.setup_extension("sphinx.ext.napoleon")
    NumpyDocstring._parse_returns_section = parse_returns  # type: ignore[method-assign]
    NumpyDocstring._parse_attribute_docstring = parse_attribute  # type: ignore[method-assign]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
