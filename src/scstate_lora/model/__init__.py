"""The models, and the set-up of an AnnData for them; each is imported on first use, as torch takes seconds to load."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scstate_lora.model.base import BaseModel
    from scstate_lora.model.se.covariate_se import LoRACovariateSE
    from scstate_lora.model.se.pretrained import SEBase
    from scstate_lora.model.setup import Models, setup_anndata
    from scstate_lora.model.st.transition import STTransition

__all__ = ["BaseModel", "LoRACovariateSE", "Models", "SEBase", "STTransition", "setup_anndata"]

_DEFINED_IN = {
    "BaseModel": "base",
    "LoRACovariateSE": "se.covariate_se",
    "Models": "setup",
    "SEBase": "se.pretrained",
    "STTransition": "st.transition",
    "setup_anndata": "setup",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use and keep it."""
    if name not in _DEFINED_IN:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(f"{__name__}.{_DEFINED_IN[name]}"), name)
    globals()[name] = value
    return value
