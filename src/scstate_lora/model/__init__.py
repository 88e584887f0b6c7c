"""The models, and the set-up of an AnnData for them."""

from __future__ import annotations

from scstate_lora.model._base import BaseModel
from scstate_lora.model._se_base import SEBase
from scstate_lora.model._setup import Models, setup_anndata
from scstate_lora.model.covariate_se import LoRACovariateSE
from scstate_lora.model.transition import STTransition

__all__ = ["BaseModel", "LoRACovariateSE", "Models", "SEBase", "STTransition", "setup_anndata"]
