"""Part of scmodelforge_parity.py: scModelForge trains small models, saves them in its two forms and embeds cells.

    python _scmodelforge_worker.py OUT_DIR

For each variant its own pipeline trains an epoch, Lightning writes the ``.ckpt``, ``save_pretrained`` the folder; its
own loader, tokeniser and ``encode`` give the numbers, in float32 on the CPU, and for comparison in float64.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scmodelforge.config.schema import ScModelForgeConfig, save_config
from scmodelforge.data.dataset import CellDataset
from scmodelforge.data.gene_vocab import GeneVocab
from scmodelforge.data.preprocessing import PreprocessingPipeline
from scmodelforge.finetuning._utils import load_pretrained_backbone
from scmodelforge.models.hub import load_pretrained, save_pretrained
from scmodelforge.models.registry import get_model
from scmodelforge.tokenizers._utils import build_tokenizer_kwargs
from scmodelforge.tokenizers.registry import get_tokenizer
from scmodelforge.training.pipeline import TrainingPipeline

N_CELLS, N_GENES = 200, 300
VARIANTS: dict[str, dict[str, dict[str, object]]] = {
    "cls": {"model": {"pooling": "cls"}},
    "mean": {"model": {"pooling": "mean"}},
    "mean, short sentences": {"model": {"pooling": "mean", "max_seq_len": 64}, "tokenizer": {"max_genes": 48}},
    "cls, relu, ffn_dim 40": {"model": {"activation": "relu", "ffn_dim": 40}},
    "cls, without values": {"model": {"use_expression_values": False}},
    "mean, without CLS": {"model": {"pooling": "mean"}, "tokenizer": {"prepend_cls": False}},
    "mean, counts": {"model": {"pooling": "mean"}, "preprocessing": {"normalize": None, "log1p": False}},
    "cls, 8 layers of 256": {"model": {"hidden_dim": 256, "num_layers": 8, "num_heads": 8}},
    "autoregressive": {"model": {"architecture": "autoregressive_transformer"}},
    "masked autoencoder": {"model": {"architecture": "masked_autoencoder", "pooling": "mean"}},
}


def main() -> None:
    out = Path(sys.argv[1])
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    cells = make_cells(out / "cells.h5ad")
    summary = {name: write(out / f"variant{i}", cells, **changes) for i, (name, changes) in enumerate(VARIANTS.items())}
    (out / "summary.json").write_text(json.dumps(summary))


def make_cells(path: Path) -> Path:
    """Draw counts of cells of very different depth, one of them without any."""
    rng = np.random.default_rng(0)
    means = rng.lognormal(0, 1.5, N_GENES) * rng.lognormal(-2, 1, (N_CELLS, 1))
    counts = rng.poisson(means).astype(np.float32)
    counts[7] = 0
    adata = ad.AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=[f"GENE{i}" for i in range(N_GENES)]))
    adata.obs_names = [f"cell{i}" for i in range(N_CELLS)]
    adata.write_h5ad(path)
    return path


def write(folder: Path, cells: Path, **changes: dict[str, object]) -> dict[str, object]:
    config = ScModelForgeConfig()
    small = {"hidden_dim": 32, "num_layers": 2, "num_heads": 4, "max_seq_len": 320, "decoder_layers": 1}
    for field, value in {**small, **changes.get("model", {})}.items():
        setattr(config.model, field, value)
    for field, value in {"max_genes": 256, **changes.get("tokenizer", {})}.items():
        setattr(config.tokenizer, field, value)
    for field, value in changes.get("preprocessing", {}).items():
        setattr(config.data.preprocessing, field, value)
    config.data.paths = [str(cells)]
    training = {"max_epochs": 1, "batch_size": 32, "precision": "32-true", "logger": "csv", "num_workers": 0}
    training |= {"log_dir": str(folder / "logs"), "checkpoint_dir": str(folder / "checkpoints"), "val_split": 0.1}
    for field, value in training.items():
        setattr(config.training, field, value)
    config.training.optimizer.lr = 3e-3  # so that every tensor differs from its start
    config.training.scheduler.warmup_steps = 1
    TrainingPipeline(config).run()
    (checkpoint,) = (folder / "checkpoints").glob("*.ckpt")
    save_config(config, checkpoint.parent / "config.yaml")

    adata = ad.read_h5ad(cells)
    vocabulary = GeneVocab.from_adata(adata)
    vocabulary.save(checkpoint.parent / "gene_vocab.json")
    model = get_model(config.model.architecture, config.model)
    state = torch.load(checkpoint, weights_only=False)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
    save_pretrained(
        model,
        folder / "saved",
        model_config=config.model,
        tokenizer_config=config.tokenizer,
        gene_vocab=vocabulary,
    )
    loaded, _ = load_pretrained(folder / "saved")
    try:
        load_pretrained_backbone(get_model(config.model.architecture, config.model), str(checkpoint))
        reads_own = True
    except Exception:  # noqa: BLE001  (whatever it is, it cannot read its own file)
        reads_own = False

    tokenizer = get_tokenizer("rank_value", **build_tokenizer_kwargs(config.tokenizer, vocabulary))
    pp = config.data.preprocessing
    cells_read = CellDataset(adata, vocabulary, PreprocessingPipeline(pp.normalize, pp.target_sum, pp.log1p))
    chosen = [cells_read[i] for i in range(len(cells_read))]
    batch = tokenizer.tokenize_batch([c["expression"] for c in chosen], [c["gene_indices"] for c in chosen])
    loaded.eval()
    with torch.inference_mode():
        embedding = loaded.encode(batch["input_ids"], batch["attention_mask"], values=batch["values"])
        exact = loaded.double().encode(batch["input_ids"], batch["attention_mask"], values=batch["values"].double())
    np.savez(
        folder / "expected.npz",
        genes=batch["input_ids"].numpy(),
        mask=batch["attention_mask"].numpy().astype(bool),
        values=batch["values"].numpy(),
        embedding=embedding.numpy(),
        exact=exact.numpy(),
    )
    return {"checkpoint": str(checkpoint), "folder": str(folder / "saved"), "reads_its_own_ckpt": reads_own}


if __name__ == "__main__":
    main()
