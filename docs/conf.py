"""How the documentation is built."""

from __future__ import annotations

import sys
import urllib.request
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "scstate_lora"
author = "The scstate_lora developers"
copyright = f"2026, {author}"
release = version = installed_version("scstate-lora")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinxcontrib.bibtex",
    "option_fields",
    "public_types",
    "typed_returns",
]
# .rst first: it is what autosummary writes its pages in.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}
exclude_patterns = ["_build"]
templates_path = ["_templates"]
bibtex_bibfiles = ["references.bib"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"

autosummary_generate = True
autodoc_member_order = "bysource"
default_role = "code"  # `name` in a docstring
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = True
typehints_defaults = "braces"
typehints_use_signature = False
always_document_param_types = False
typehints_document_rtype_none = False
autodoc_default_options = {"exclude-members": "model_config, training, T_destination, call_super_init, dump_patches"}

_OTHERS = {
    "python": "https://docs.python.org/3/",
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "mudata": "https://mudata.readthedocs.io/en/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "scipy": "https://docs.scipy.org/doc/scipy/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}


def _is_reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}objects.inv", timeout=10):
            return True
    except OSError:
        return False


# Without a network the names of other packages are shown, and are no links.
intersphinx_mapping = {name: (url, None) for name, url in _OTHERS.items() if _is_reachable(url)}
nitpicky = True
nitpick_ignore_regex = [
    # Found where intersphinx can be reached; the build must not fail where it cannot.
    (r"py:.*", r"(anndata|collections|matplotlib|mudata|numpy|os|pandas|pathlib|scipy|torch|typing)\..*"),
    # Records inside the package, which methods of SEBase and RankBase take and models hold.
    (r"py:class", r"scstate_lora\.(data\.(bound|genes|rank_tokens|reader|registry|tokens)|nn\.(rank|se)_encoder)\..*"),
]
suppress_warnings = ["config.cache"]  # typehints_formatter is a function, so its pages are made anew every time

html_theme = "sphinx_book_theme"
html_title = "scstate_lora"
html_extra_path = ["llms.txt"]  # a guide for language models, at the root of the site
html_theme_options = {"navbar_persistent": [], "show_navbar_depth": 1}
