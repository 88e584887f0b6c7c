"""Evaluation: embeddings beside a PCA, predicted cells beside the naive baselines and the replicate ceiling."""

from __future__ import annotations

from scstate_lora.tl._embeddings import evaluate
from scstate_lora.tl._perturbation import evaluate_perturbation

__all__ = ["evaluate", "evaluate_perturbation"]
