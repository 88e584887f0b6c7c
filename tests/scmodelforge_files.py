"""Encoders in the two forms of scModelForge's files, written by hand: its names, its layers from torch, its classes."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
import yaml
from safetensors.torch import save_file
from torch import nn

if TYPE_CHECKING:
    from pathlib import Path

GENES = [f"GENE{i}" for i in range(20)]
MODEL = {
    "architecture": "transformer_encoder",
    "hidden_dim": 16,
    "num_layers": 2,
    "num_heads": 4,
    "ffn_dim": 24,
    "dropout": 0.1,
    "max_seq_len": 14,
    "pooling": "cls",
    "activation": "gelu",
    "use_expression_values": True,
    "vocab_size": len(GENES) + 4,
}
TOKENIZER = {"strategy": "rank_value", "max_genes": 12, "prepend_cls": True}


class TorchEncoder(nn.Module):
    """Its encoder by its names, of torch's own layers, with a head that only its pretraining uses."""

    def __init__(self, model: dict[str, Any]) -> None:
        super().__init__()
        d, n_ids = model["hidden_dim"], model["vocab_size"]
        self.model = model
        self.embedding = nn.ModuleDict(
            {
                "gene_embedding": nn.Embedding(n_ids, d, padding_idx=0),
                "position_embedding": nn.Embedding(model["max_seq_len"], d),
                **({"expression_proj": nn.Linear(1, d)} if model["use_expression_values"] else {}),
                "layer_norm": nn.LayerNorm(d, eps=1e-12),
            }
        )
        layer = nn.TransformerEncoderLayer(
            d,
            model["num_heads"],
            model["ffn_dim"],
            dropout=model["dropout"],
            activation=model["activation"],
            batch_first=True,
            norm_first=True,
            layer_norm_eps=1e-12,
        )
        self.encoder = nn.TransformerEncoder(layer, model["num_layers"], enable_nested_tensor=False)
        self.head = nn.ModuleDict({"dense": nn.Linear(d, d), "decoder": nn.Linear(d, n_ids)})
        for parameter in self.parameters():  # torch's own start leaves biases at zero and norms at one
            nn.init.normal_(parameter, std=0.3)

    def forward(self, genes: torch.Tensor, mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        h = self.embedding["gene_embedding"](genes)
        h = h + self.embedding["position_embedding"](torch.arange(genes.shape[1]))
        if "expression_proj" in self.embedding:
            h = h + self.embedding["expression_proj"](values[..., None])
        h = self.encoder(self.embedding["layer_norm"](h), src_key_padding_mask=~mask)
        if self.model["pooling"] == "cls":
            return h[:, 0]
        return torch.stack([h[i, mask[i]].mean(0) for i in range(len(h))])


def torch_encoder(**changes: Any) -> TorchEncoder:
    torch.manual_seed(0)
    return TorchEncoder({**MODEL, **changes}).eval()


@dataclass
class Parts:
    """What is written about one encoder, to be changed before it is."""

    state: dict[str, torch.Tensor]
    model: dict[str, Any] = field(default_factory=lambda: dict(MODEL))
    tokenizer: dict[str, Any] = field(default_factory=lambda: dict(TOKENIZER))
    preprocessing: dict[str, Any] = field(default_factory=dict)
    genes: list[str] = field(default_factory=lambda: list(GENES))

    @classmethod
    def of(cls, encoder: TorchEncoder) -> Parts:
        return cls(encoder.state_dict(), dict(encoder.model))

    def exported(self) -> dict[str, Any]:
        """Content of a config.json."""
        return {
            "scmodelforge_version": "0.1.0",
            "model_type": self.model["architecture"],
            "model_config": self.model,
            "tokenizer_config": self.tokenizer,
        }

    def write_folder(self, folder: Path) -> Path:
        """As save_pretrained writes it."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.exported()))
        save_file({name: tensor.contiguous() for name, tensor in self.state.items()}, folder / "model.safetensors")
        self._write_genes(folder)
        return folder

    def write_checkpoint(self, folder: Path, *, prefix: str = "model.") -> Path:
        """As Lightning writes it in its training, with the YAML file and the vocabulary beside it."""
        folder.mkdir(parents=True)
        data = {"preprocessing": self.preprocessing}
        config = {"model": self.model, "tokenizer": self.tokenizer, "data": data}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        self._write_genes(folder)
        schema = ModuleType("scmodelforge.config.schema")
        for name, fields in (("OptimizerConfig", {"lr": 1e-4}), ("SchedulerConfig", {"warmup_steps": 9})):
            cls = type(name, (), {"__module__": schema.__name__})
            setattr(schema, name, cls)
            fields_of = cls()
            vars(fields_of).update(fields)
            setattr(schema, name.lower(), fields_of)
        packages = {name: ModuleType(name) for name in ("scmodelforge", "scmodelforge.config")}
        hyper = {"optimizer_config": schema.optimizerconfig, "scheduler_config": schema.schedulerconfig}
        file = folder / "epoch00-val_loss5.4272.ckpt"
        with mock.patch.dict(sys.modules, {**packages, schema.__name__: schema}):
            state = {prefix + name: tensor for name, tensor in self.state.items()}
            torch.save({"epoch": 0, "state_dict": state, "hyper_parameters": hyper}, file)
        return file

    def _write_genes(self, folder: Path) -> None:
        ids = {name: 4 + i for i, name in enumerate(self.genes)}
        (folder / "gene_vocab.json").write_text(json.dumps(ids))
