"""Random sets of control and perturbed cells; both sides make the same ones, so it needs nothing but numpy."""

from __future__ import annotations

import numpy as np

N_MADE = 4
"""Batches that are made, and then take turns."""


def make_batches(*, n_sets: int, set_len: int, n_genes: int, n_perts: int) -> list[dict[str, np.ndarray]]:
    """Draw batches: ``control`` and ``target`` ``(n_sets, set_len, n_genes)``, ``pert`` ``(n_sets, n_perts)``.

    About half of the numbers are zero, as in log1p expression of variable genes.
    """
    rng = np.random.default_rng(0)
    shape = n_sets, set_len, n_genes
    return [
        {
            "control": np.maximum(rng.standard_normal(shape, dtype=np.float32), 0),
            "target": np.maximum(rng.standard_normal(shape, dtype=np.float32), 0),
            "pert": np.eye(n_perts, dtype=np.float32)[rng.integers(n_perts, size=n_sets)],
        }
        for _ in range(N_MADE)
    ]
