"""Adapt pretrained STATE models of single-cell biology to your own experiment, inside a scanpy workflow.

Nothing heavy is imported here: torch, lightning, scanpy and anndata load when a name below is first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scstate_lora import config, datasets, losses, metrics, nn, pl, pp, tl
    from scstate_lora._settings import settings
    from scstate_lora.model import LoRACovariateSE, Models, SEBase, STTransition, setup_anndata
    from scstate_lora.reporting import report

__all__ = [
    "LoRACovariateSE",
    "Models",
    "SEBase",
    "STTransition",
    "__version__",
    "config",
    "datasets",
    "losses",
    "metrics",
    "nn",
    "pl",
    "pp",
    "report",
    "settings",
    "setup_anndata",
    "tl",
]

_SUBMODULES = frozenset({"config", "datasets", "losses", "metrics", "nn", "pl", "pp", "tl"})
_DEFINED_IN = {
    "settings": "scstate_lora._settings",
    "LoRACovariateSE": "scstate_lora.model",
    "Models": "scstate_lora.model",
    "SEBase": "scstate_lora.model",
    "STTransition": "scstate_lora.model",
    "setup_anndata": "scstate_lora.model",
    "report": "scstate_lora.reporting",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use and keep it."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("scstate-lora")
    elif name in _SUBMODULES:
        value = importlib.import_module(f"scstate_lora.{name}")
    elif name in _DEFINED_IN:
        value = getattr(importlib.import_module(_DEFINED_IN[name]), name)
    else:
        msg = f"module 'scstate_lora' has no attribute {name!r}"
        raise AttributeError(msg)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
