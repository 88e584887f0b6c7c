"""Adapt pretrained STATE models of single-cell biology to your own experiment, inside a scanpy workflow.

Nothing heavy is imported here: torch, lightning, scanpy and anndata load when a name below is first used (PEP 562).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scstate_lora._lazy import lazily

if TYPE_CHECKING:
    from scstate_lora import config, datasets, losses, metrics, nn, pl, pp, tl
    from scstate_lora._settings import settings
    from scstate_lora.model import (
        CellTypeClassifier,
        LoRACovariateSE,
        Models,
        RankBase,
        SEBase,
        STTransition,
        setup_anndata,
    )
    from scstate_lora.reporting import report

__all__ = [
    "CellTypeClassifier",
    "LoRACovariateSE",
    "Models",
    "RankBase",
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

_get = lazily(
    __name__,
    {
        **dict.fromkeys(("config", "datasets", "losses", "metrics", "nn", "pl", "pp", "tl")),
        **dict.fromkeys(
            ("CellTypeClassifier", "LoRACovariateSE", "Models", "RankBase", "SEBase", "STTransition", "setup_anndata"),
            f"{__name__}.model",
        ),
        "report": f"{__name__}.reporting",
        "settings": f"{__name__}._settings",
    },
)


def __getattr__(name: str) -> Any:
    """Import a public name on first use and keep it."""
    if name == "__version__":
        from importlib.metadata import version

        return version("scstate-lora")
    return _get(name)


def __dir__() -> list[str]:
    return sorted(__all__)
