"""The side of arc-state in ``against_arc.py``: run by a Python that has arc-state, and nothing of ours."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import torch
from state.emb.data.loader import create_dataloader
from state.emb.inference import Inference

from _arc_oracle import Sizes, make_config, make_model
from _serve import own_memory, peak_memory, serve
from make_arc_checkpoints import make_protein_embeddings, save_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

TASK_GENES = 512
"""Genes of each kind that arc-state's collator draws for a cell's training task, in inference too; as in SE-600M."""


class WithoutDataset(Inference):
    """arc-state's inference for a model without dataset correction, on which its own stops at the last step."""

    def encode(self, dataloader: Any, rda: Any = None) -> Iterator[tuple[np.ndarray, None]]:
        """As arc-state's, without the dataset numbers."""
        with torch.no_grad():
            for batch in dataloader:
                _, _, _, embedding, _ = self.model._compute_embedding_for_batch(batch)
                yield embedding.detach().cpu().float().numpy(), None


class Tasks:
    """What can be asked for."""

    def make_checkpoint(self, path: str, genes: list[str], sizes: dict[str, Any]) -> None:
        """Write a lone checkpoint with random weights that holds everything."""
        shape = Sizes(**sizes, n_genes=len(genes))
        cfg = make_config(shape, name="random", task_genes=TASK_GENES)
        model = make_model(cfg, shape, seed=0)
        model.protein_embeds = make_protein_embeddings(genes, shape, seed=0)
        save_checkpoint(model, Path(path))

    def prepare_tokens(self, path: str, n_tokens: int) -> None:
        """Make arc-state's data set and collator of a file, which matches its genes."""
        adata = ad.read_h5ad(path)
        sizes = Sizes(4, 16, 1, 2, 16, 16, n_tokens, adata.n_vars)
        cfg = make_config(sizes, name="random", task_genes=TASK_GENES)
        proteins = make_protein_embeddings(sorted(adata.var_names), sizes, seed=0)
        self.loader = create_dataloader(
            cfg, adata=adata, adata_name="cells", protein_embeds=proteins, precision=torch.float32, gene_column=None
        )
        self.tokenize(8)

    def tokenize(self, n_cells: int, batch_size: int = 32) -> float:
        """Seconds that its data set and collator need, in this process, for the first cells."""
        dataset, collate = self.loader.dataset, self.loader.collate_fn
        start = time.perf_counter()
        for first in range(0, n_cells, batch_size):
            collate([dataset[i] for i in range(first, min(first + batch_size, n_cells))])
        return time.perf_counter() - start

    def load(self, path: str, protein_embeddings: str | None = None, *, dataset_correction: bool = True) -> dict:
        """Load a checkpoint as ``state emb transform --model-folder`` does, and look at every weight."""
        before = peak_memory()
        start = time.perf_counter()
        proteins = None
        if protein_embeddings is not None:
            proteins = torch.load(protein_embeddings, weights_only=False, map_location="cpu")
        kind = Inference if dataset_correction else WithoutDataset
        self.inference = kind(cfg=None, protein_embeds=proteins)
        self.inference.load_model(path)
        loaded = time.perf_counter()
        with torch.no_grad():
            for tensor in (*self.inference.model.parameters(), self.inference.model.pe_embedding.weight):
                tensor.sum()
        touched = time.perf_counter()
        return {
            "load": loaded - start,
            "all": touched - start,
            "before": before,
            "peak": peak_memory(),
            "own": own_memory(),
        }

    def embed(self, path: str, batch_size: int) -> float:
        """Seconds from a file to its embedding."""
        start = time.perf_counter()
        embedding = self.inference.encode_adata(path, batch_size=batch_size)
        seconds = time.perf_counter() - start
        if not np.isfinite(embedding).all():
            msg = f"The embedding of {path} is not finite."
            raise ValueError(msg)
        return seconds


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING)
    with contextlib.suppress(KeyboardInterrupt):
        serve(Tasks())
