"""Design of a transition model, decided before its network is made: sizes, genes, perturbation vectors, sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from scstate_lora._constants import TARGET_SUM
from scstate_lora._utils import warn_user
from scstate_lora.data.log_scale import describe_scale, same_sum
from scstate_lora.model.st.genes import choose_genes
from scstate_lora.model.st.groups import describe_perturbations, training_groups
from scstate_lora.model.st.inputs import choose_set_len
from scstate_lora.model.st.pretrained import Origin, Reuse, adopt
from scstate_lora.nn.transition import STConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from scstate_lora.config import STModelConfig
    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.perturbations import PerturbationTable
    from scstate_lora.data.registry import Registry
    from scstate_lora.io.published.st_checkpoint import STCheckpoint

_SIZES_AMONG_OPTIONS = (
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


@dataclass(frozen=True)
class STDesign:
    """Form of a transition model, by the user's options and the data or a published model.

    Parameters
    ----------
    options
        Options; those that a published model decides are its own.
    sizes
        Sizes of the network when it is made.
    perts
        Perturbation vectors.
    genes, gene_note
        Genes that are predicted, and why these.
    network_genes
        Genes that the network reads, in which single cells deviate from the shift; None: all.
    set_len, set_note
        Cells per set, and why so many.
    origin
        The published model that it starts from.
    """

    options: STModelConfig
    sizes: STConfig
    perts: PerturbationTable
    genes: list[str]
    gene_note: str
    set_len: int
    set_note: str
    origin: Origin | None = None
    network_genes: list[str] | None = None

    @property
    def read_genes(self) -> list[str]:
        """Genes that the network reads, or decodes."""
        return self.genes if self.network_genes is None else self.network_genes

    @cached_property
    def further_genes(self) -> list[str]:
        """Genes that are moved by the shift alone."""
        read = set(self.read_genes)
        return [gene for gene in self.genes if gene not in read]

    @classmethod
    def from_data(
        cls,
        cells: BoundData,
        options: STModelConfig,
        features: pd.DataFrame | None,
        *,
        origin: Origin | None = None,
        backbone: Mapping[str, Any] | None = None,
    ) -> Self:
        """Fit the form to the training cells.

        Parameters
        ----------
        cells, options, features
            All cells; the user's options and perturbation features.
        origin, backbone
            A published model of which the transformer alone is used, and its sizes.

        Raises
        ------
        TypeError, ValueError
            As in :class:`scstate_lora.STTransition`.
        """
        groups = training_groups(cells)
        perts = describe_perturbations(cells, features, groups)
        set_len, set_note = choose_set_len(groups, options.cell_set_len)
        chosen = choose_genes(cells, options, groups)
        n_further = len(chosen.predicted) - len(chosen.network)
        sizes = _sizes(cells, options, perts, n_genes=len(chosen.network))
        sizes = replace(sizes, n_further=n_further, **(backbone or {}))
        network = chosen.network if n_further else None
        return cls(options, sizes, perts, chosen.predicted, chosen.note, set_len, set_note, origin, network)

    @classmethod
    def from_published(
        cls,
        cells: BoundData,
        options: STModelConfig,
        features: pd.DataFrame | None,
        *,
        checkpoint: STCheckpoint,
        reuse: Reuse,
    ) -> Self:
        """Take the form of a published model, or of its transformer.

        Raises
        ------
        TypeError, ValueError
            As in :class:`scstate_lora.STTransition`.
        """
        adopted = adopt(checkpoint, cells, options, reuse)
        if adopted.sizes is None:
            return cls.from_data(cells, options, features, origin=adopted.origin, backbone=adopted.backbone)
        _warn_of_scale(cells.registry, checkpoint)
        own = adopted.perts is None or features is not None
        groups = training_groups(cells)  # refuses too few cells
        perts = describe_perturbations(cells, features, groups) if own or adopted.perts is None else adopted.perts
        genes, set_len = adopted.genes or [], int(adopted.options.cell_set_len or 0)
        return cls(
            adopted.options,
            replace(adopted.sizes, pert_dim=perts.dim),
            perts,
            genes,
            f"{len(genes)} genes, those it was trained on",
            set_len,
            f"sets of {set_len} cells, as it was trained",
            replace(adopted.origin, own_perturbations=own),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, without the sizes, which training may extend, and the perturbation vectors."""
        return {
            "options": self.options.model_dump(),
            "pretrained": None if self.origin is None else self.origin.to_dict(),
            "perturbations": self.perts.to_dict(),
            **{name: getattr(self, name) for name in ("set_len", "set_note", "genes", "gene_note", "network_genes")},
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], options: STModelConfig, perts: PerturbationTable) -> Self:
        """Rebuild from :meth:`to_dict`, with the key ``sizes`` besides."""
        return cls(
            options,
            STConfig.from_dict(stored["sizes"]),
            perts,
            stored["genes"],
            stored["gene_note"],
            stored["set_len"],
            stored["set_note"],
            None if stored["pretrained"] is None else Origin(**stored["pretrained"]),
            stored.get("network_genes"),  # unknown to version 0.1
        )


def _warn_of_scale(registry: Registry, checkpoint: STCheckpoint) -> None:
    """Warn if the model reads expression on another scale than the one it was trained on."""
    total = registry.target_sum
    if checkpoint.reads_genes and (total is None or not same_sum(total, TARGET_SUM)):
        warn_user(
            f"{checkpoint.name} was trained on {describe_scale(TARGET_SUM)}, but reads {describe_scale(total)} here: "
            f"its predictions without training are off. Set up with target_sum={TARGET_SUM:.0f}, from counts where the "
            "target sum is unknown."
        )


def _sizes(cells: BoundData, options: STModelConfig, perts: PerturbationTable, *, n_genes: int) -> STConfig:
    registry = cells.registry
    embedded = options.space == "embedding"
    if embedded and registry.embed_key is None:
        msg = "model: space='embedding' needs one to work in: ssl.setup_anndata(adata, embed_key='X_...')."
        raise ValueError(msg)
    if options.batch_token and registry.batch is None:
        msg = "model: batch_token needs several batches: ssl.setup_anndata(adata, batch_key=...)."
        raise ValueError(msg)
    return STConfig(
        n_inputs=cells.embedding.shape[1] if embedded else n_genes,
        pert_dim=perts.dim,
        non_negative=not embedded,
        n_decoded=n_genes if embedded and options.gene_decoder else None,
        batch_classes=len(registry.batch.categories) if options.batch_token and registry.batch else None,
        **{name: getattr(options, name) for name in _SIZES_AMONG_OPTIONS},
    )
