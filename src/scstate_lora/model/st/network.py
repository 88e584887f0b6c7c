"""The network of STTransition: how it is built, described, saved and found again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from scstate_lora.config import MHCConfig, STLoraConfig, STModelConfig, STObjectiveConfig
from scstate_lora.data.fields import CategoricalCovariate, Covariate
from scstate_lora.data.perturbations import PerturbationTable
from scstate_lora.io.save_load import check_state
from scstate_lora.model.covariate_specs import covariate_specs
from scstate_lora.model.hyper_connected import HyperConnected, describe_mhc
from scstate_lora.model.st.inputs import expression, split_groups
from scstate_lora.model.st.predict import Predicting
from scstate_lora.model.st.pretrained import Origin
from scstate_lora.nn.hyper_connections import apply_mhc_to_transformer, mhc_parameters
from scstate_lora.nn.lora import add_lora
from scstate_lora.nn.transition import StateTransition, STConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

    import numpy as np
    from anndata import AnnData
    from scipy import sparse
    from torch import Tensor

    from scstate_lora.data.sets import Group
    from scstate_lora.io.published.st_checkpoint import STCheckpoint

MIN_GROUP = 5
"""Fewest control and perturbed cells of a group that trains."""
_COVARIATE_DIM = 64  # width of every covariate's own vector


class NetworkModel(HyperConnected, Predicting):
    """A model of the State Transition network."""

    objective: STObjectiveConfig
    finetune: Literal["lora", "full", "frozen"]
    lora: STLoraConfig
    mhc: MHCConfig | None
    origin: Origin | None
    """The published model that it starts from."""
    set_note: str
    gene_note: str
    prior_note: str

    def _covariates(self) -> list[Covariate]:
        return [c for c in self.registry.covariates if c.name != self.registry.pert_key]

    def _groups(self, split: str, min_cells: int, *, by_type: bool = False) -> list[Group]:
        rows = {name: self._rows(name) for name in ("train", "val")}
        perts = self._pert_codes(self.adata)
        return split_groups(self.adata, self.registry, perts, rows, split, min_cells=min_cells, by_type=by_type)

    def _pert_codes(self, adata: AnnData) -> np.ndarray:
        assert self.registry.pert_key is not None  # checked in __init__
        levels = CategoricalCovariate(self.registry.pert_key, tuple(self.registry.perturbations))
        return levels.encode(adata.obs[self.registry.pert_key])

    def _sizes(self) -> STConfig:
        o = self.options
        embedded = o.space == "embedding"
        if embedded and self.registry.embed_key is None:
            msg = "model: space='embedding' needs one to work in: ssl.setup_anndata(adata, embed_key='X_...')."
            raise ValueError(msg)
        if o.batch_token and self.registry.batch is None:
            msg = "model: batch_token needs several batches: ssl.setup_anndata(adata, batch_key=...)."
            raise ValueError(msg)
        return STConfig(
            n_inputs=self.registry.embedding(self.adata).shape[1] if embedded else len(self.genes),
            pert_dim=self.perts.dim,
            non_negative=not embedded,
            n_decoded=len(self.genes) if embedded and o.gene_decoder else None,
            batch_classes=len(self.registry.batch.categories) if o.batch_token and self.registry.batch else None,
            **{name: getattr(o, name) for name in _SHARED},
        )

    def _build(self, checkpoint: STCheckpoint | None = None) -> None:
        specs = covariate_specs(self._covariates(), embed_dim=_COVARIATE_DIM)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.network = StateTransition(self.sizes, specs)
            if self.origin is not None and checkpoint is not None:
                self.origin.load_into(self.network, checkpoint)
            if self.finetune != "full":
                self.network.transformer_backbone.requires_grad_(requires_grad=False)
            if self.finetune == "lora":
                add_lora(self.network.transformer_backbone, **self.lora.model_dump())
            if self.mhc is not None:
                self._connect(self.mhc)
        self.network.eval()

    def _connect(self, mhc: MHCConfig) -> None:
        backbone = self.network.transformer_backbone
        options = mhc.model_dump()
        apply_mhc_to_transformer(backbone, layer_indices=options.pop("layer_indices"), **options)
        self.mhc = mhc

    def _transformer(self) -> nn.Module:
        return self.network.transformer_backbone

    def _on_some_cells(self) -> Callable[[], object] | None:
        if self._adata is None:
            return None
        group = self._groups("train", MIN_GROUP)[0]
        data = self._data(self.adata)
        rows = group.control[: self.set_len]
        return lambda: self._compute(data, rows, self.perts.values[:1], represent=True)

    def _cells_in_space(self, adata: AnnData) -> sparse.csr_matrix | np.ndarray:
        if self.options.space == "embedding":
            return self.registry.embedding(adata)
        return expression(adata, self.registry, self.genes)

    def _batch_codes(self, adata: AnnData) -> np.ndarray | None:
        if self.origin is None or self.sizes.n_batches is None:
            return None
        return self.origin.batch_codes(adata, self.registry)

    @property
    def _predicts_untrained(self) -> bool:
        return self.origin is not None and self.origin.is_whole

    def _parts(self) -> list[tuple[str, nn.Module | None, str]]:
        n, o, s = self.network, self.options, self.sizes
        known = len(self.perts.names) - 1
        perts = f"features of {known} perturbations" if self.perts.from_features else f"{known} perturbations, one-hot"
        cells = self.gene_note if o.space == "genes" else f"adata.obsm[{self.registry.embed_key!r}]"
        parts: list[tuple[str, nn.Module | None, str]] = [
            ("perturbation encoder", n.pert_encoder, perts),
            ("basal encoder", n.basal_encoder, cells),
        ]
        if n.covariate_encoder is not None:
            parts.append(("covariate encoder", n.covariate_encoder, ", ".join(c.name for c in self._covariates())))
        names = {"gpt2": "GPT-2", "llama": "LLaMA", "bert": "BERT"}
        backbone = f"{names[s.backbone]}, {s.n_layers} layers x {s.hidden}, {s.n_heads} heads; {self.set_note}"
        backbone += "" if self.origin is None else f"; of {self.origin.name}"
        parts.append(("backbone", _only(n.transformer_backbone, _is_backbone), backbone))
        if self.finetune == "lora":
            note = f"rank {self.lora.r}, alpha {self.lora.alpha}"
            parts.append(("LoRA", _only(n.transformer_backbone, lambda name: "lora_" in name), note))
        if self.mhc is not None:
            connections = nn.ParameterList(list(mhc_parameters(n.transformer_backbone).values()))
            parts.append(("hyper-connections", connections, describe_mhc(self.mhc)))
        head = "deviation of a cell, starts at 0" if s.residual == "output" else "the cell"
        parts.append(("head", n.project_out, head))
        if n.gene_decoder is not None:
            parts.append(("gene decoder", n.gene_decoder, self.gene_note))
        tokens = [m for m in (n.confidence_token, n.batch_token, n.batch_classifier) if m is not None]
        if tokens:
            parts.append(("tokens beside the cells", nn.ModuleList(tokens), "confidence, batch"))
        if n.shift is not None:
            start = "ridge regression on features" if self.perts.from_features else "mean shift"
            parts.append(("shift", None, f"of each perturbation, solved for: the {start}"))
            if o.prior == "context":
                parts.append(("shift by context", None, self.prior_note))
        return parts

    def _metadata(self) -> dict[str, Any]:
        notes = {"set_len": self.set_len, "set_note": self.set_note, "genes": self.genes, "gene_note": self.gene_note}
        notes["prior_note"] = self.prior_note
        options = {
            "options": self.options.model_dump(),
            "objective": self.objective.model_dump(),
            "finetune": self.finetune,
            "lora": self.lora.model_dump(),
            "mhc": None if self.mhc is None else self.mhc.model_dump(),
            "pretrained": None if self.origin is None else self.origin.to_dict(),
        }
        return {**options, "sizes": self.sizes.to_dict(), "perturbations": self.perts.to_dict(), **notes}

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"weights": self.network.state_dict(), "perturbations": {"values": torch.from_numpy(self.perts.values)}}

    def _texts(self) -> dict[str, str]:
        return super()._texts() | ({} if self.origin is None else {"NOTICE": self.origin.notice()})

    def save(self, path: str | Path, *, save_base: bool = False) -> None:
        """Save the model as a directory of JSON and safetensors.

        Parameters
        ----------
        path
            Directory. A model saved there before is replaced, once the new one is complete.
        save_base
            Save what was not trained of a pretrained model, too. Without it that is read again from where it was.

        Raises
        ------
        ValueError
            The model is not trained.
        FileExistsError
            ``path`` holds something else.
        OSError
            Writing failed; an older save is intact.
        """
        self._require_trained("save()")
        tensors = self._tensors()
        if self.origin is not None and not save_base:
            frozen = {name for name, p in self.network.named_parameters() if not p.requires_grad}
            tensors["weights"] = {name: t for name, t in tensors["weights"].items() if name not in frozen}
        self._write(path, tensors)

    @classmethod
    def load(cls, path: str | Path, *, adata: AnnData | None = None, pretrained: str | Path | None = None) -> Self:
        """Load a saved model.

        Parameters
        ----------
        path
            Directory written by :meth:`save`.
        adata
            Cells to use by default; validated against the model's registry when used.
        pretrained
            Where the pretrained model is that this one was trained on, if it is not where it was.

        Raises
        ------
        FileNotFoundError, ValueError
            The directory is missing, damaged, of a newer format, or holds another kind of model; the pretrained model
            is missing or another one.
        """
        return cls._load(path, adata, pretrained=pretrained)

    def _restore(self, metadata: dict[str, Any], tensors: dict[str, dict[str, Tensor]], **given: Any) -> None:
        self.options = STModelConfig.parse(metadata["options"], name="model")
        self.objective = STObjectiveConfig.parse(metadata["objective"], name="objective")
        self.finetune = metadata["finetune"]
        self.lora = STLoraConfig.parse(metadata["lora"], name="lora")
        self.mhc = None if metadata["mhc"] is None else MHCConfig.parse(metadata["mhc"], name="mhc")
        self.perts = PerturbationTable.from_dict(metadata["perturbations"], tensors["perturbations"]["values"].numpy())
        self.sizes = STConfig.from_dict(metadata["sizes"])
        self.set_len, self.set_note = metadata["set_len"], metadata["set_note"]
        self.genes, self.gene_note = metadata["genes"], metadata["gene_note"]
        self.prior_note = metadata["prior_note"]
        self.origin = None if metadata["pretrained"] is None else Origin(**metadata["pretrained"])
        stored = tensors["weights"]
        self._build()
        expected = self.network.state_dict()
        frozen = {name for name, p in self.network.named_parameters() if not p.requires_grad}
        if self.origin is not None and frozen and not frozen & set(stored):
            self._build(self.origin.read_again(given["pretrained"]))
            expected = {name: tensor for name, tensor in expected.items() if name not in frozen}
        check_state(expected, stored, source="the network")
        self.network.load_state_dict(stored, strict=False)  # names and shapes were compared


_SHARED = (
    "hidden",
    "n_layers",
    "n_heads",
    "dropout",
    "backbone",
    "n_encoder_layers",
    "n_decoder_layers",
    "residual",
    "confidence_token",
)
"""Options that are sizes of the network too."""


def _is_backbone(name: str) -> bool:
    return "lora_" not in name and ".mixing." not in name


def _only(module: nn.Module, wanted: Callable[[str], bool]) -> nn.ParameterList:
    """Parameters of a module by name."""
    return nn.ParameterList([p for name, p in module.named_parameters() if wanted(name)])
