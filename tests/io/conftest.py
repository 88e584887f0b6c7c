"""Published SE models made by hand: the layout of the files, random numbers in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from scstate_lora.io import to_arc_names
from scstate_lora.nn.se_encoder import SEConfig, SEEncoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOKEN, D, HID, OUT, HEADS, LAYERS, PAD = 6, 8, 12, 5, 4, 2, 9


@dataclass
class Made:
    """Parts of a published model, to be changed and written."""

    state: dict[str, torch.Tensor]
    hyper_parameters: dict[str, Any]
    config: dict[str, Any]
    proteins: dict[str, torch.Tensor]
    ours: dict[str, torch.Tensor] = field(default_factory=dict)

    def checkpoint(self, **further: Any) -> dict[str, Any]:
        """As Lightning writes it."""
        return {"epoch": 3, "state_dict": self.state, "hyper_parameters": self.hyper_parameters, **further}

    def inside(self) -> dict[str, Any]:
        """As newer ones are: configuration and protein embeddings inside."""
        return self.checkpoint(cfg_yaml=yaml.safe_dump(self.config), protein_embeds_dict=self.proteins)

    def write_folder(self, folder: Path, name: str = "se600m_epoch16.ckpt") -> Path:
        """A checkpoint with everything beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.checkpoint(), folder / name)
        (folder / "config.yaml").write_text(yaml.safe_dump(self.config))
        torch.save(self.proteins, folder / "protein_embeddings.pt")
        return folder


@pytest.fixture
def make_se() -> Callable[..., Made]:
    """Make the parts of a published model; with the parts that were asked for."""

    def make(*, counts: bool = True, rda: bool = True, dataset_correction: bool = True) -> Made:
        torch.manual_seed(0)
        sizes = {"token_dim": TOKEN, "d_model": D, "d_hid": HID, "output_dim": OUT}
        switches = {"counts": counts, "rda": rda, "dataset_correction": dataset_correction}
        config = SEConfig(**sizes, n_layers=LAYERS, n_heads=HEADS, n_tokens=PAD, **switches)
        proteins = {f"GENE{i}": torch.randn(TOKEN) for i in range(7)}
        ours = SEEncoder(config, torch.stack(list(proteins.values()))).state_dict()
        state = to_arc_names(ours)
        state |= {
            name.replace("encoder.", "gene_embedding_layer.", 1): tensor
            for name, tensor in state.items()
            if name.startswith("encoder.")
        }
        if dataset_correction:
            shapes = {"0.weight": (D, OUT), "0.bias": (D,), "2.weight": (D,), "2.bias": (D,), "4.weight": (3, D)}
            state |= {f"dataset_encoder.{name}": torch.randn(shape) for name, shape in shapes.items()}
            state["dataset_encoder.4.bias"] = torch.randn(3)
        return Made(
            state=state,
            hyper_parameters={**sizes, "nhead": HEADS, "nlayers": LAYERS, "dropout": 0.1, "max_lr": 1e-5},
            config={
                "model": {"emsize": D, "d_hid": HID, "nhead": HEADS, "nlayers": LAYERS, "output_dim": OUT, **switches},
                "dataset": {"pad_length": PAD, "cls_token_idx": 3},
                "embeddings": {"current": "toy", "toy": {"size": TOKEN}},
                "experiment": {"name": "run_${model.nhead}"},
            },
            proteins=proteins,
            ours=ours,
        )

    return make
