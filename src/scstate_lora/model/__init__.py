"""The models, and the set-up of an AnnData for them; each is imported on first use, as torch takes seconds to load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scstate_lora._lazy import lazily

if TYPE_CHECKING:
    from scstate_lora.model.annotation.celltype_classifier import CellTypeClassifier
    from scstate_lora.model.annotation.rank_base import RankBase
    from scstate_lora.model.base import BaseModel
    from scstate_lora.model.se.covariate_se import LoRACovariateSE
    from scstate_lora.model.se.pretrained import SEBase
    from scstate_lora.model.setup import Models, setup_anndata
    from scstate_lora.model.st.transition import STTransition

__all__ = [
    "BaseModel",
    "CellTypeClassifier",
    "LoRACovariateSE",
    "Models",
    "RankBase",
    "SEBase",
    "STTransition",
    "setup_anndata",
]

__getattr__ = lazily(
    __name__,
    {
        "BaseModel": f"{__name__}.base",
        "CellTypeClassifier": f"{__name__}.annotation.celltype_classifier",
        "LoRACovariateSE": f"{__name__}.se.covariate_se",
        "Models": f"{__name__}.setup",
        "RankBase": f"{__name__}.annotation.rank_base",
        "SEBase": f"{__name__}.se.pretrained",
        "STTransition": f"{__name__}.st.transition",
        "setup_anndata": f"{__name__}.setup",
    },
)
