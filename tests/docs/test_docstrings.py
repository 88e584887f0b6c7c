"""Docstrings are NumPy style, and Sphinx renders them as they are meant."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import pytest
from sphinx.ext.napoleon import Config, NumpyDocstring

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "scstate_lora"
SECTIONS = (
    "Parameters",
    "Attributes",
    "Returns",
    "Yields",
    "Raises",
    "Warns",
    "See Also",
    "Notes",
    "References",
    "Examples",
)
EXCEPTIONS = {name for name in vars(builtins) if name.endswith(("Error", "Exception", "Interrupt", "Exit"))}


@dataclass(frozen=True)
class Docstring:
    """A docstring, where it stands, and the names that its Parameters may hold."""

    place: str
    text: str
    names: frozenset[str]

    @property
    def sections(self) -> dict[str, list[str]]:
        """Lines of each section by title."""
        found, title = {}, None
        lines = self.text.split("\n")
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if re.fullmatch("-{3,}", following) and line:
                title = line
                found[title] = []
            elif title is not None and not re.fullmatch("-{3,}", line):
                found[title].append(line)
        return found


def names_of(node: ast.AST) -> frozenset[str]:
    """Arguments of a function; of a class those of ``__init__`` and its annotated fields."""
    if isinstance(node, ast.ClassDef):
        fields = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
        functions = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        fields |= {n.name for n in functions}
        return frozenset(fields.union(*[names_of(n) for n in functions if n.name == "__init__"]))
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return frozenset(a.arg for a in every if a is not None)


def nodes() -> list[tuple[str, ast.AST]]:
    """Classes and functions of the package, with the place of each."""
    return [
        (f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}", node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    ]


@pytest.fixture(scope="module")
def docstrings() -> list[Docstring]:
    """All docstrings that have sections."""
    texts = [(place, ast.get_docstring(node), names_of(node)) for place, node in nodes()]
    sectioned = [d for d in (Docstring(p, text, names) for p, text, names in texts if text) if d.sections]
    assert len(sectioned) > 250
    return sectioned


@pytest.fixture
def typed_returns(monkeypatch) -> None:
    """Load the extension of Sphinx that renders a Returns section as prose."""
    for method in ("_parse_returns_section", "_parse_attribute_docstring"):
        monkeypatch.setattr(NumpyDocstring, method, getattr(NumpyDocstring, method))  # to be put back
    path = ROOT / "docs" / "extensions" / "typed_returns.py"
    spec = importlib.util.spec_from_file_location("typed_returns", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.setup(Mock())


def entries(lines: list[str]) -> list[str]:
    """Lines that start an entry of a section: those that are not indented."""
    return [line for line in lines if line and not line.startswith(" ")]


def bullets(text: str) -> int:
    return len(re.findall(r"^\s*(?::returns: )?[*-] ", text, flags=re.MULTILINE))


def test_sections_are_known_and_in_order(docstrings):
    wrong = [d.place for d in docstrings if list(d.sections) != [title for title in SECTIONS if title in d.sections]]
    assert wrong == []


def test_returns_is_neither_a_type_nor_cut_into_bullets(docstrings, typed_returns):
    wrong = []
    for docstring in docstrings:
        rendered = str(NumpyDocstring(docstring.text, Config(napoleon_use_ivar=True), what="function"))
        is_prose = rendered.count(":returns:") == ("Returns" in docstring.sections) and ":rtype:" not in rendered
        if not is_prose or bullets(rendered) != bullets(docstring.text) or "\n---" in rendered:
            wrong.append(docstring.place)
    assert wrong == []


def test_without_the_extension_returns_is_cut(docstrings):
    rendered = [str(NumpyDocstring(d.text, Config(), what="function")) for d in docstrings]
    assert sum(":rtype:" in text for text in rendered) > 10  # so the test above can fail


def test_only_exceptions_are_raised(docstrings):
    known = EXCEPTIONS | {node.name for _, node in nodes() if isinstance(node, ast.ClassDef)}
    wrong = []
    for docstring in docstrings:
        lines = docstring.sections.get("Raises", [])
        for line in entries(lines):
            explained = lines[lines.index(line) + 1 :][:1]
            if not set(line.split(", ")) <= known or not "".join(explained).startswith("    "):
                wrong.append(f"{docstring.place}: {line}")
    assert wrong == []


def test_parameters_exist_once_and_have_no_types(docstrings):
    wrong = []
    for docstring in docstrings:
        documented = [name for line in entries(docstring.sections.get("Parameters", [])) for name in line.split(", ")]
        if not set(documented) <= docstring.names or len(documented) != len(set(documented)):
            wrong.append(f"{docstring.place}: {sorted(set(documented) - docstring.names)}")
    assert wrong == []
