"""Plain embeddings and their decoding; cells between measured conditions; evaluation beside a PCA and the baselines."""

from __future__ import annotations

from scstate_lora.tl._compare import compare
from scstate_lora.tl._comparison import Comparison
from scstate_lora.tl._covariates import covariate_information
from scstate_lora.tl._decode import decode_expression
from scstate_lora.tl._discrimination import discrimination
from scstate_lora.tl._embed import embed, embed_file
from scstate_lora.tl._embeddings import evaluate
from scstate_lora.tl._ensemble import ensemble
from scstate_lora.tl._interpolate import interpolate
from scstate_lora.tl._perturbation import evaluate_perturbation
from scstate_lora.tl._stability import stability
from scstate_lora.tl._velocity import velocity_alignment

__all__ = [
    "Comparison",
    "compare",
    "covariate_information",
    "decode_expression",
    "discrimination",
    "embed",
    "embed_file",
    "ensemble",
    "evaluate",
    "evaluate_perturbation",
    "interpolate",
    "stability",
    "velocity_alignment",
]
