"""Plain embeddings and their decoding; evaluation beside a PCA, naive baselines and the ceiling."""

from __future__ import annotations

from scstate_lora.tl._decode import decode_expression
from scstate_lora.tl._embed import embed, embed_file
from scstate_lora.tl._embeddings import evaluate
from scstate_lora.tl._perturbation import evaluate_perturbation

__all__ = ["decode_expression", "embed", "embed_file", "evaluate", "evaluate_perturbation"]
