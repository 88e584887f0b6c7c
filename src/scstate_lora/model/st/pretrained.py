"""Adopting a published ST model, and the record of its origin."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from scstate_lora._logging import logger
from scstate_lora._utils import did_you_mean
from scstate_lora.data.perturbations import key_of
from scstate_lora.io.published.st_checkpoint import check_embedding, match_genes, read_st_folder
from scstate_lora.model.st.published import (
    backbone_config,
    load_backbone,
    load_network,
    published_perturbations,
    st_config,
    st_tensors,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scstate_lora.config import STModelConfig
    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.perturbations import PerturbationTable
    from scstate_lora.io.published.st_checkpoint import STCheckpoint
    from scstate_lora.nn.transition import StateTransition, STConfig

Reuse = Literal["all", "backbone"]


@dataclass(frozen=True)
class Origin:
    """The published model that another one starts from.

    Parameters
    ----------
    source, name, licence, sha256
        Path or hub id, name for display, licence, and hash of its file.
    reuse
        Part that was adopted.
    own_perturbations
        Whether the data have perturbations that it does not know, so that the perturbation encoder is new.
    batches
        Code of each batch in its table of batches.
    """

    source: str
    name: str
    licence: str
    sha256: str
    reuse: Reuse
    own_perturbations: bool = True
    batches: Mapping[str, int] | None = None

    @classmethod
    def of(cls, checkpoint: STCheckpoint, reuse: Reuse) -> Self:
        """Record the origin of a model that was read."""
        c = checkpoint
        has_table = reuse == "all" and bool(c.sizes.get("n_batches"))
        return cls(c.source, c.name, c.licence, c.sha256, reuse, batches=dict(c.batches) if has_table else None)

    @property
    def is_whole(self) -> bool:
        """Whether the whole model was adopted, so that it predicts before any further training."""
        return self.reuse == "all" and not self.own_perturbations

    def read_again(self, path: str | Path | None = None) -> STCheckpoint:
        """Read the model again, by default from where it was read before.

        Raises
        ------
        FileNotFoundError, ValueError
            If it does not exist, or is another model.
        """
        checkpoint = read_st_folder(self.source if path is None else path, st_tensors, reuse=self.reuse)
        if checkpoint.sha256 != self.sha256:
            msg = (
                f"{checkpoint.path} is not the pretrained model that this one was trained on ({self.name}, SHA-256 "
                f"{self.sha256[:12]}...). Give the right one: load(path, pretrained=...)."
            )
            raise ValueError(msg)
        return checkpoint

    def load_into(self, network: StateTransition, checkpoint: STCheckpoint) -> None:
        """Copy the adopted part of the model into a network."""
        if self.reuse == "backbone":
            load_backbone(network, checkpoint)
        else:
            load_network(network, checkpoint, own_perturbations=self.own_perturbations)

    def batch_codes(self, cells: BoundData) -> np.ndarray:
        """Codes of cells in the model's table of batches, int64 ``(n_cells,)``.

        Raises
        ------
        ValueError
            If there is no ``batch_key``, or a batch is not in the table.
        """
        known = self.batches or {}
        ways = "or reuse='backbone', which has no table of batches."
        key = cells.registry.batch_key
        if key is None:
            msg = f"{self.name} reads the batch of cells: ssl.setup_anndata(adata, batch_key=...); {ways}"
            raise ValueError(msg)
        labels = [str(label) for label in cells.labels(key)]
        unknown = sorted(set(labels) - set(known))
        if unknown:
            msg = (
                f"adata.obs[{key!r}] holds {', '.join(map(repr, unknown[:3]))}, of which {self.name} "
                f"knows nothing. {did_you_mean(unknown[0], known)} Rename the batches, {ways}"
            )
            raise ValueError(msg)
        return np.array([known[label] for label in labels], dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    def notice(self) -> str:
        """Notice for a saved model that is derived from this one."""
        return (
            "This directory holds an STTransition, made with scstate_lora.\n"
            f"Pretrained model: {self.name}\nRead from: {self.source}\nSHA-256: {self.sha256}\n"
            f"Licence of the pretrained model: {self.licence}\n"
            "Adduri et al. 2025, STATE, doi:10.1101/2025.06.26.661135. What is trained on a model is a derivative work "
            "of it, under the terms of its licence, and of the data.\n"
        )


@dataclass(frozen=True)
class Adopted:
    """Properties of a model that a published one determines.

    Parameters
    ----------
    origin
        The model.
    options
        Options of the user, overridden by those of the model.
    genes
        Genes in the order of the model; None if they are chosen from the data.
    sizes
        Sizes of the network; None if only those of the backbone are determined.
    backbone
        Sizes of the backbone.
    perts
        Perturbation vectors of the model; None if the perturbations of the data get their own.
    """

    origin: Origin
    options: STModelConfig
    genes: list[str] | None
    sizes: STConfig | None
    backbone: dict[str, Any]
    perts: PerturbationTable | None


def adopt(checkpoint: STCheckpoint, cells: BoundData, options: STModelConfig, reuse: Reuse) -> Adopted:
    """Compare a published model with the data, and decide what to adopt from it.

    Raises
    ------
    ValueError
        If its sizes or genes do not match the data, or an option contradicts it.
    """
    registry, origin, backbone = cells.registry, Origin.of(checkpoint, reuse), backbone_config(checkpoint.sizes)
    if reuse == "backbone":
        return Adopted(origin, options, None, None, backbone, None)
    genes: list[str] | None
    if checkpoint.reads_genes or registry.embed_key is None:
        genes = match_genes(checkpoint, registry.var_names)
    else:
        check_embedding(checkpoint, cells.embedding.shape[1], key=registry.embed_key)
        genes = checkpoint.genes or None
    control = str(registry.control)
    published = published_perturbations(checkpoint, control)
    known = {key_of(name, control) for name in published.names}
    others = sorted(name for name in registry.targets if key_of(name, control) not in known)
    if others:
        logger.info(
            "%d of the %d perturbations are not among the %d that %s knows (%s): its perturbation encoder is replaced "
            "by a new one for these data.",
            len(others),
            len(registry.targets),
            len(published.names),
            checkpoint.name,
            ", ".join(others[:3]),
        )
    space: Literal["genes", "embedding"] = "genes" if checkpoint.reads_genes else "embedding"
    perts = None if others else published
    determined = {"space": space, "cell_set_len": options.cell_set_len or checkpoint.cell_set_len}
    return Adopted(
        replace(origin, own_perturbations=perts is None),
        options.model_copy(update=determined),
        genes,
        st_config(checkpoint.sizes),
        backbone,
        perts,
    )
