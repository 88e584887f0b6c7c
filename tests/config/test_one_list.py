"""Every option is written down once, in its class; Python, YAML and the command line have the same ones."""

from __future__ import annotations

import inspect

import scstate_lora as ssl
from scstate_lora.config import DataConfig


def _keywords(function, *, but):
    """Keywords of a function with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in but}


def _defaults(options):
    return {name: field.get_default(call_default_factory=True) for name, field in options.model_fields.items()}


def test_arguments_of_the_set_up_are_the_options_of_the_data():
    found = _keywords(ssl.setup_anndata, but=("adata", "base", "seed"))
    assert found == {**_defaults(DataConfig), "covariate_keys": ()}
    assert all(f"    {name}" in ssl.setup_anndata.__doc__ or f", {name}" in ssl.setup_anndata.__doc__ for name in found)
