"""Make a compact SE base from the user's own cells: gene tokens from an SVD, a warm start, self-supervised training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import nn

from scstate_lora.config import ComputeOptions
from scstate_lora.data.reader import SentenceReader
from scstate_lora.data.tokens import Tokenizer
from scstate_lora.inference.embed import embed_cells
from scstate_lora.metrics.components import sparse_pca
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder
from scstate_lora.training.plans import Plan
from scstate_lora.training.runner import TrainingRun
from scstate_lora.training.se.cell_batches import CellBatches

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from scstate_lora.config import CompactBaseConfig, TrainerOptions

# Most variable genes for the PCA, and the components to predict from the embedding: further ones are mostly noise of
# single genes.
_N_VARIABLE = 2000
_N_COMPONENTS = 30
_WEIGHTS = {"expression": 0.3, "readout": 3.0}
# Gene vectors are scaled by sqrt(d_model), count vectors are not: initial gain for the latter.
_COUNT_GAIN = 5.0
_LONGEST = 257


class BasePlan(Plan):
    """Self-supervised training of a compact SE base.

    Terms: ``expression``, the mean squared error of sampled genes predicted by the expression head (SE's own
    objective); ``readout``, the mean squared error of the principal components of the normalised expression, predicted
    linearly from the embedding: the share of their variance that it does not explain.

    Parameters
    ----------
    encoder
        The network.
    readout
        Linear map from the embedding to the components, used in training only.
    kwargs
        As in :class:`Plan`.
    """

    def __init__(self, encoder: SEEncoder, readout: nn.Linear, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder
        self.readout = readout

    def terms(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Loss terms of :class:`~scstate_lora.training.se.cell_batches.CellBatches` with ``readout`` targets."""
        embedding = self.encoder(batch["genes"], batch["values"])
        predicted = self.encoder.predict_expression(embedding, batch["target_genes"], batch["read_depth"])
        return {
            "expression": F.mse_loss(predicted, batch["targets"]),
            "readout": F.mse_loss(self.readout(embedding), batch["readout"]),
        }


def gene_tokens(logged: sparse.csr_matrix, n_components: int) -> np.ndarray:
    """Token vector of every gene: its loadings on the principal components of the standardised expression.

    Parameters
    ----------
    logged
        log1p of counts per 10,000, CSR ``(n_cells, n_genes)``.
    n_components
        Width of the tokens; smaller if cells or genes are fewer.

    Returns
    -------
    float32 ``(n_genes, n_components)``, components weighted by their standard deviation.
    """
    standardised = logged @ sparse.diags(1 / np.maximum(_std(logged), 1e-2))
    pca = sparse_pca(sparse.csr_matrix(standardised), n_components)
    # In C order, as a saved copy is: matrix products round differently by layout.
    return np.ascontiguousarray((pca.components_ * np.sqrt(pca.explained_variance_)[:, None]).T, dtype=np.float32)


def _std(matrix: sparse.csr_matrix) -> np.ndarray:
    mean = np.asarray(matrix.mean(axis=0)).ravel()
    square = np.asarray(matrix.multiply(matrix).mean(axis=0)).ravel()
    return np.sqrt(np.maximum(square - mean**2, 0))


def fit_compact_base(
    x: sparse.csr_matrix,
    logged: sparse.csr_matrix,
    seeds: np.ndarray,
    train_rows: np.ndarray,
    val_rows: np.ndarray,
    *,
    config: CompactBaseConfig,
    options: TrainerOptions,
    seed: int,
    cells: str = "",
) -> tuple[SEEncoder, pd.DataFrame]:
    """Train a compact SE network on cells, without labels.

    The embedding learns to predict the principal components of the normalised expression, and single genes. The last
    linear layer starts as the ridge regression from the untrained network's features to the principal components of the
    expression, which saves most of the training: features of a random transformer already separate cells, only their
    directions are arbitrary.

    Parameters
    ----------
    x
        The network's input: log1p without library-size scaling, CSR ``(n_cells, n_genes)``.
    logged
        log1p of counts per 10,000, of the same shape.
    seeds
        Seeds of the cells' sentences, ``(n_cells,)``.
    train_rows, val_rows
        Cells that train and validate; no other cell is used.
    config, options
        Sizes and steps; device, files, and what goes to Lightning.
    seed
        Seed of initialisation and batches.
    cells
        Fingerprint of the cells and their split, for checkpoints.

    Returns
    -------
    The network, frozen, and its history.

    Raises
    ------
    ValueError
        If there are fewer than three training cells or genes, or no gene varies.
    """
    n_genes = x.shape[1]
    seen = logged[train_rows]
    if min(seen.shape) < 3 or (seen.max(axis=0) != seen.min(axis=0)).nnz == 0:
        msg = (
            f"A compact base needs at least 3 training cells and 3 genes that differ between cells; found "
            f"{len(train_rows)} training cells x {n_genes} genes. Give more, or a trained base: base=..."
        )
        raise ValueError(msg)
    tokens = gene_tokens(seen, config.token_dim)
    sizes = SEConfig(
        token_dim=tokens.shape[1],
        d_model=config.d_model,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        d_hid=config.d_hid,
        output_dim=config.output_dim,
        n_tokens=min(config.n_tokens or _fillable(x[train_rows]), n_genes + 1),
    )
    tokenizer = Tokenizer.of_columns(n_genes, n_tokens=sizes.n_tokens)
    variable = np.sort(np.argsort(-_std(seen))[:_N_VARIABLE])
    pca = sparse_pca(seen[:, variable], config.output_dim)
    scores = pca.transform(logged[:, variable])  # (n_cells, n_components)
    targets = scores[:, :_N_COMPONENTS]
    targets = (targets / np.sqrt(np.mean(targets[train_rows] ** 2))).astype(np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = SEEncoder(sizes, torch.from_numpy(tokens))
        with torch.no_grad():
            encoder.bin_encoder.weight.mul_(_COUNT_GAIN)
        read = SentenceReader.of_matrix(x[train_rows], tokenizer, seeds[train_rows])
        readout = _warm_start(encoder, read, scores[train_rows], targets[train_rows])

    def batches(rows: np.ndarray, order_seed: int, steps_per_epoch: int | None = None) -> CellBatches:
        return CellBatches(
            x,
            seeds,
            rows,
            tokenizer=tokenizer,
            batch_size=config.batch_size,
            n_targets=config.n_targets,
            seed=order_seed,
            steps_per_epoch=steps_per_epoch,
            extra={"readout": targets},
        )

    # Training needs a number of steps, not of passes, however many the cells: up to ten epochs of equal length.
    n_epochs = next(n for n in range(10, 0, -1) if config.n_steps % n == 0)
    train = batches(train_rows, seed, config.n_steps // n_epochs)
    plan = BasePlan(encoder, readout, lr=config.lr, weight_decay=0.01, warmup_steps=20, weights=_WEIGHTS)
    run = TrainingRun(plan, options=options, title="Compact base", seed=seed, cells=cells)
    run.fit(train, batches(val_rows, seed + 1) if len(val_rows) > 1 else None, max_epochs=n_epochs)
    return encoder.requires_grad_(requires_grad=False).eval(), run.history


def _fillable(x: sparse.csr_matrix) -> int:
    """Count the tokens that 19 of 20 cells can fill: CLS and their expressed genes, up to the longest sentence."""
    expressed = np.asarray((x > 0).sum(axis=1)).ravel()
    return 1 + int(np.clip(np.quantile(expressed, 0.05), 1, _LONGEST - 1))


def _warm_start(encoder: SEEncoder, read: SentenceReader, scores: np.ndarray, targets: np.ndarray) -> nn.Linear:
    """Fit the encoder's last layer to components ``(n_cells, n)``; return the readout of those to predict."""
    features = []
    skip_block, last = encoder.decoder[0], cast("nn.Linear", encoder.decoder[1])
    hook = skip_block.register_forward_hook(lambda _module, _inputs, output: features.append(output.cpu().numpy()))
    for _ in embed_cells(encoder, read, options=ComputeOptions(device="cpu")):
        pass  # the hook collects the features
    hook.remove()
    f = np.concatenate(features)[:, 0].astype(np.float64)  # (n_cells, d_model)
    mean = f.mean(0)
    f = f - mean
    gram = f.T @ f
    ridge = 1e-3 * np.trace(gram) / len(gram)
    weight = np.linalg.solve(gram + ridge * np.eye(len(gram)), f.T @ scores)  # (d_model, n_components)
    n, n_targets = scores.shape[1], targets.shape[1]
    readout = nn.Linear(encoder.config.output_dim, n_targets)
    # The embedding has unit length, so the readout carries the components' typical one.
    length = np.linalg.norm(scores, axis=1).mean() * np.linalg.norm(targets) / np.linalg.norm(scores[:, :n_targets])
    with torch.no_grad():
        for tensor in (last.weight, last.bias, readout.weight, readout.bias):
            tensor.zero_()
        last.weight[:n] = torch.from_numpy(weight.T)
        last.bias[:n] = torch.from_numpy(-mean @ weight)
        readout.weight[:, :n_targets] = float(length) * torch.eye(n_targets)
    return readout
