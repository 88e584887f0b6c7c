"""The side of scstate_lora in ``against_arc.py``."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse

import scstate_lora as ssl
from _serve import own_memory, peak_memory, serve
from scstate_lora.data.genes import match_vocabulary
from scstate_lora.data.matrix import log_raw
from scstate_lora.data.reader import SentenceReader
from scstate_lora.data.tokens import Tokenizer, cell_seeds
from scstate_lora.inference.embed import ComputeOptions

if TYPE_CHECKING:
    from scstate_lora.nn.se_encoder import SEConfig

BLOCK_TOKENS = 2**17
"""Tokens in a block, as `embed` reads them."""
COUNT_HIDDEN, BINS = 512, 10
"""Widths of the published count encoder."""


class Tasks:
    """What can be asked for."""

    def prepare_tokens(self, path: str, n_tokens: int) -> None:
        """Read a file, match its genes and compile the tokeniser."""
        adata = ad.read_h5ad(path)
        match = match_vocabulary(adata, sorted(adata.var_names))
        vocabulary = np.full(match.n_data, -1, dtype=np.int64)
        vocabulary[match.columns] = match.vocabulary
        tokenizer = Tokenizer(vocabulary, n_tokens, cls_gene=3)
        x, self.names = sparse.csr_matrix(adata.X), list(adata.obs_names)
        self.reader = SentenceReader(
            lambda start, stop: log_raw(x[start:stop], "counts"), tokenizer, cell_seeds(self.names, 0)
        )
        self.tokenize(8)

    def tokenize(self, n_cells: int) -> float:
        """Seconds from counts to the sentences of the first cells, their seeds included."""
        start = time.perf_counter()
        cell_seeds(self.names[:n_cells], 0)
        block = max(1, BLOCK_TOKENS // self.reader.tokenizer.n_tokens)
        for first in range(0, n_cells, block):
            self.reader(first, min(first + block, n_cells))
        return time.perf_counter() - start

    def load(self, path: str, protein_embeddings: str | None = None) -> dict[str, float]:
        """Load a checkpoint, and look at every weight, as those of a mapped file are read only then."""
        before = peak_memory()
        start = time.perf_counter()
        self.base = ssl.SEBase.load(path, protein_embeddings=protein_embeddings)
        loaded = time.perf_counter()
        for tensor in (*self.base.encoder.parameters(), *self.base.encoder.buffers()):
            tensor.sum()
        touched = time.perf_counter()
        return {
            "load": loaded - start,
            "all": touched - start,
            "before": before,
            "peak": peak_memory(),
            "own": own_memory(),
        }

    def embed(self, path: str) -> float:
        """Seconds from a file to its embedding."""
        start = time.perf_counter()
        embedding = ssl.tl.embed(ad.read_h5ad(path), self.base, key_added=None, progress_bar=False)
        seconds = time.perf_counter() - start
        if not np.isfinite(embedding).all():
            msg = f"The embedding of {path} is not finite."
            raise ValueError(msg)
        return seconds

    def embed_file(self, path: str, model: str, out: str) -> dict[str, float]:
        """Embed from file to file; seconds, and the most memory."""
        before = peak_memory()
        start = time.perf_counter()
        ssl.tl.embed_file(path, model, out=out, progress_bar=False)
        seconds = time.perf_counter() - start
        Path(out).unlink()
        return {"seconds": seconds, "before": before, "peak": peak_memory()}

    def prepare_flops(self, path: str) -> dict[str, float]:
        """Tokenise one batch of the size that `embed` takes, and count what a pass over it computes."""
        adata, encoder = ad.read_h5ad(path), self.base.encoder
        config = encoder.config
        n_cells = ComputeOptions().resolved_batch_size(config, torch.device("cpu"), config.n_tokens)
        tokenizer = self.base.tokenizer(match_vocabulary(adata, self.base.genes))
        x = log_raw(sparse.csr_matrix(adata.X[:n_cells]), "counts")
        sentences = tokenizer(x, cell_seeds(list(adata.obs_names[:n_cells]), 0))
        self.batch = torch.from_numpy(sentences.genes), torch.from_numpy(sentences.values)
        n_rows = n_cells * (config.n_tokens + config.dataset_correction)
        self.square = torch.randn(4096, 4096), torch.randn(4096, 4096)
        self.tokens = torch.randn(n_rows, config.d_model), torch.randn(config.d_model, config.d_model)
        with torch.inference_mode():
            encoder(*self.batch)
        self.work = {
            "computed": n_cells * computed_flops(config) + value_flops(config, len(self.batch[1].unique())),
            "nominal": n_cells * nominal_flops(config),
            "square": 2 * 4096**3,
            "tokens": 2 * n_rows * config.d_model**2,
        }
        return {"n_cells": n_cells, **self.work}

    def flops(self, seconds: float = 3.0) -> dict[str, float]:
        """FLOP/s of the network and of plain products, each for about as long, one after the other.

        Returns
        -------
        ``square``: 4096 x 4096 x 4096; ``tokens``: tokens x d x d; ``computed`` and ``nominal``: a pass over a batch by
        the FLOPs that are done, and by those of the whole architecture.
        """
        out = [torch.empty(4096, 4096), torch.empty_like(self.tokens[0])]
        with torch.inference_mode():
            square = repeat(lambda: torch.mm(*self.square, out=out[0]), seconds)
            network = repeat(lambda: self.base.encoder(*self.batch), seconds)
            tokens = repeat(lambda: torch.mm(*self.tokens, out=out[1]), seconds / 3)
        taken = {"square": square, "tokens": tokens, "computed": network, "nominal": network}
        return {name: self.work[name] / taken[name] for name in taken}

    def parity(self, path: str, expected: str) -> list[dict[str, Any]]:
        """Largest differences from arc-state's numbers, for each table of cells.

        Of ``exact``, whose sentences are not random, by `embed` and `decode_expression`; of the others by the network
        on arc-state's own sentences.
        """
        base = ssl.SEBase.load(path)
        theirs = np.load(expected, allow_pickle=False)
        genes = [base.genes.index(name) for name in theirs["decoder_genes"]]
        rows = []
        for name in theirs["datasets"].tolist():
            if name == "exact":
                embedding, predictions = end_to_end(base, theirs)
            else:
                embedding = by_network(base, theirs[f"{name}_tokens"], theirs[f"{name}_values"])
                depth = torch.full((len(embedding),), float(theirs["read_depth"]))
                with torch.inference_mode():
                    decode = base.encoder.predict_expression
                    predictions = decode(torch.from_numpy(embedding), torch.tensor(genes), depth).numpy()
            rows.append(
                {
                    "cells": name,
                    "embedding": float(np.abs(embedding - theirs[f"{name}_embedding"]).max()),
                    "predictions": float(np.abs(predictions - theirs[f"{name}_predictions"]).max()),
                }
            )
        return rows


def repeat(run: Any, seconds: float) -> float:
    """Seconds of one run, the median of as many as fit and at least three."""
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < seconds:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def nominal_flops(config: SEConfig) -> float:
    """FLOPs of a cell by the whole architecture: two per multiplication in a matrix product, attention included.

    That is every token through the token encoder, the count encoder, all layers and the decoder.
    """
    n = config.n_tokens + config.dataset_correction
    d = config.d_model
    encoded = 2 * config.n_tokens * config.token_dim * d
    layers = config.n_layers * (8 * n * d**2 + 4 * n**2 * d + 4 * n * d * config.d_hid)
    decoded = n * (8 * d**2 + 2 * d * config.output_dim)
    return encoded + value_flops(config, config.n_tokens) + layers + decoded


def computed_flops(config: SEConfig) -> float:
    """FLOPs of a cell that our network does, but for the count values.

    Tokens come from a table. The last layer has keys and values of all tokens, and all else, like the decoder, of those
    that are read.
    """
    n, n_read = config.n_tokens + config.dataset_correction, 1 + config.dataset_correction
    d = config.d_model
    layers = (config.n_layers - 1) * (8 * n * d**2 + 4 * n**2 * d + 4 * n * d * config.d_hid)
    last = 4 * n * d**2 + n_read * (4 * d**2 + 4 * n * d + 4 * d * config.d_hid)
    return layers + last + n_read * (8 * d**2 + 2 * d * config.output_dim)


def value_flops(config: SEConfig, n_values: int) -> float:
    """FLOPs from count values to their vectors."""
    return 2 * n_values * (COUNT_HIDDEN + COUNT_HIDDEN * BINS + BINS * config.d_model) if config.counts else 0


def end_to_end(base: ssl.SEBase, theirs: Any) -> tuple[np.ndarray, np.ndarray]:
    cells = ad.AnnData(
        sparse.csr_matrix(theirs["exact_x"]),
        obs=pd.DataFrame(index=theirs["exact_cells"].tolist()),
        var=pd.DataFrame(index=theirs["exact_genes"].tolist()),
    )
    embedding = ssl.tl.embed(cells, base, progress_bar=False)
    genes, depth = theirs["decoder_genes"].tolist(), float(theirs["read_depth"])
    return embedding, ssl.tl.decode_expression(cells, base, genes=genes, read_depth=depth, progress_bar=False).X


def by_network(base: ssl.SEBase, tokens: np.ndarray, values: np.ndarray) -> np.ndarray:
    genes = torch.from_numpy(tokens[:, 1:].astype(np.int64))
    with torch.inference_mode():
        return base.encoder(genes, torch.from_numpy(values)).numpy()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(Tasks())
