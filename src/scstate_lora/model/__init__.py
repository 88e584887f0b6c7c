"""The models, and the set-up of an AnnData for them."""

from __future__ import annotations

from scstate_lora.model.base import BaseModel
from scstate_lora.model.se.covariate_se import LoRACovariateSE
from scstate_lora.model.se.pretrained import SEBase
from scstate_lora.model.setup import Models, setup_anndata
from scstate_lora.model.st.transition import STTransition

__all__ = ["BaseModel", "LoRACovariateSE", "Models", "SEBase", "STTransition", "setup_anndata"]
