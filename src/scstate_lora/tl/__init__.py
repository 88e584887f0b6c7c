"""Plain embeddings, and evaluation: embeddings beside a PCA, predictions beside naive baselines and the ceiling."""

from __future__ import annotations

from scstate_lora.tl._embed import embed
from scstate_lora.tl._embeddings import evaluate
from scstate_lora.tl._perturbation import evaluate_perturbation

__all__ = ["embed", "evaluate", "evaluate_perturbation"]
