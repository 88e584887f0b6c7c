"""Plain embeddings and their decoding, cells between measured conditions, and evaluation beside naive baselines."""

from __future__ import annotations

from scstate_lora.tl.comparison.compare_variants import compare
from scstate_lora.tl.comparison.result import Comparison
from scstate_lora.tl.covariates import covariate_information
from scstate_lora.tl.data_audit import audit
from scstate_lora.tl.decoding import decode_expression
from scstate_lora.tl.embedding_scores import evaluate
from scstate_lora.tl.ensembles import ensemble
from scstate_lora.tl.gene_responses import responses
from scstate_lora.tl.interpolation import interpolate
from scstate_lora.tl.known_markers import trajectory_markers
from scstate_lora.tl.perturbation import evaluate_perturbation
from scstate_lora.tl.perturbation_discrimination import discrimination
from scstate_lora.tl.plain_embedding import embed, embed_file
from scstate_lora.tl.probes import disentanglement, linear_probe
from scstate_lora.tl.temporal import temporal_coherence
from scstate_lora.tl.training_stability import stability
from scstate_lora.tl.velocity import velocity_alignment

__all__ = [
    "Comparison",
    "audit",
    "compare",
    "covariate_information",
    "decode_expression",
    "discrimination",
    "disentanglement",
    "embed",
    "embed_file",
    "ensemble",
    "evaluate",
    "evaluate_perturbation",
    "interpolate",
    "linear_probe",
    "responses",
    "stability",
    "temporal_coherence",
    "trajectory_markers",
    "velocity_alignment",
]
