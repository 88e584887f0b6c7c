"""How the documentation is built."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "scstate_lora"
author = "The scstate_lora developers"
copyright = f"2026, {author}"
release = version = installed_version("scstate-lora")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
]
# .rst first: it is what autosummary writes its pages in.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence"]
nb_execution_mode = "off"

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_rtype = True
typehints_defaults = "braces"
typehints_use_signature = False
always_document_param_types = False

html_theme = "sphinx_book_theme"
html_title = "scstate_lora"
html_theme_options = {"show_navbar_depth": 2}
