"""Networks in plain torch: the SE encoder, covariates, conditioning, LoRA, hyper-connections, the ST model."""

from __future__ import annotations

from scstate_lora.nn.connection_diagnostics import MHCDiagnostics, mhc_diagnostics
from scstate_lora.nn.hyper_connections import (
    MHCTransformerLayer,
    apply_mhc_to_transformer,
    mhc_off,
    mhc_parameters,
    remove_mhc,
    restore_mhc,
)
from scstate_lora.nn.sinkhorn import SinkhornKnopp

__all__ = [
    "MHCDiagnostics",
    "MHCTransformerLayer",
    "SinkhornKnopp",
    "apply_mhc_to_transformer",
    "mhc_diagnostics",
    "mhc_off",
    "mhc_parameters",
    "remove_mhc",
    "restore_mhc",
]
