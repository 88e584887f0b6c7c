"""Every public name has a page in the API reference, and every page is of something public."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import scstate_lora

API = Path(__file__).parents[2] / "docs" / "api"
SUBPACKAGES = ("config", "datasets", "losses", "metrics", "nn", "pl", "pp", "tl")


def listed() -> list[str]:
    """Names in the autosummary tables and ``py:data`` directives of the API pages."""
    names = []
    for page in sorted(API.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"^```\{eval-rst\}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
            module = re.search(r"^\.\. currentmodule:: (\S+)", block, flags=re.MULTILINE)
            if ".. autosummary::" in block:
                assert module, f"{page.name}: a table without currentmodule"
                names += [f"{module[1]}.{name}" for name in re.findall(r"^   (\w[\w.]*)$", block, flags=re.MULTILINE)]
            names += re.findall(r"^\.\. py:data:: (\S+)", block, flags=re.MULTILINE)
    return names


def public() -> set[str]:
    names = {f"scstate_lora.{name}" for name in scstate_lora.__all__ if name not in SUBPACKAGES}
    for subpackage in SUBPACKAGES:
        module = importlib.import_module(f"scstate_lora.{subpackage}")
        names |= {f"scstate_lora.{subpackage}.{name}" for name in module.__all__}
    return names


def test_every_public_name_has_a_page():
    assert sorted(public() - set(listed())) == []


def test_every_subpackage_has_a_page():
    assert {f"{name}.md" for name in SUBPACKAGES} <= {page.name for page in API.glob("*.md")}
    assert set(SUBPACKAGES) <= set(scstate_lora.__all__)


def test_every_page_is_of_something_that_exists():
    for name in listed():
        path, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(path), attribute), name


def test_nothing_has_two_pages():
    names = listed()
    assert len(names) == len(set(names))


def test_the_guide_for_language_models_names_pages_that_exist():
    docs = API.parent
    links = re.findall(r"\]\(([^)]+)\.html\)", (docs / "llms.txt").read_text(encoding="utf-8"))
    assert len(links) > 5
    assert [
        link for link in links if not any((docs / link).with_suffix(end).exists() for end in (".md", ".ipynb"))
    ] == []
