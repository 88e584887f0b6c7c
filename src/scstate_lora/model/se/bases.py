"""The bases that LoRACovariateSE adapts, as it sees them: an SE network, or an embedding computed elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from scstate_lora.model.se.obsm_embedding import ObsmBase
from scstate_lora.model.se.pretrained import CELLS, SEBase, load_base

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from anndata import AnnData
    from torch import Tensor

    from scstate_lora.data.bound import BoundData
    from scstate_lora.data.registry import Registry
    from scstate_lora.nn.se_encoder import SEEncoder


class Base(Protocol):
    """What an adapter stands on."""

    @property
    def name(self) -> str:
        """Description for people."""

    @property
    def licence(self) -> str:
        """Licence of the weights or values."""

    @property
    def source(self) -> str | None:
        """Where it can be read again; None for one that was trained with the model."""

    @property
    def encoder(self) -> SEEncoder | None:
        """The network that adapters are put on; None for an embedding."""

    @property
    def dim(self) -> int:
        """Number of columns of the embedding that is conditioned."""

    def embed(self, cells: BoundData) -> np.ndarray:
        """Embed cells without any adapter, float32 ``(n_cells, n_columns)``."""

    def tensors(self) -> dict[str, Tensor]:
        """Tensors to be saved; none for an embedding."""

    def sha256(self) -> str:
        """Hash of all values: the identity of the base."""

    def metadata(self) -> dict[str, Any]:
        """JSON-able description, from which :func:`restore_base` finds it again."""

    def note(self) -> str:
        """Describe it in the model's summary."""


def restore_base(
    metadata: dict[str, Any],
    tensors: dict[str, dict[str, Tensor]],
    *,
    path: str | Path,
    replacement: str | Path | SEBase | None,
    registry: Registry,
    adata: AnnData | None,
) -> Base:
    """Find the base of a saved model again.

    Parameters
    ----------
    metadata
        From :meth:`Base.metadata`.
    tensors
        Tensors by file, those of the base among them where they were saved with the model.
    path
        Where the model was saved.
    replacement
        The base, or where it is now.
    registry, adata
        Of the model; the cells, for advice where genes do not match.

    Raises
    ------
    FileNotFoundError
        If the base is not where it was.
    ValueError
        If it is another one, or ``replacement`` is given for an embedding.
    """
    if "obsm" in metadata:
        if replacement is not None:
            msg = f"The model at {path} was trained on {metadata['name']}; it takes no base=."
            raise ValueError(msg)
        return ObsmBase.restore(metadata)
    if replacement is not None:
        base = load_base(replacement, registry, adata)
        base.check_is(metadata, path)
    elif "base" in tensors:
        # Saved with the model, it is saved with it again.
        base = SEBase.restore(metadata, tensors["base"], tensors.get(CELLS)).owned()
    else:
        base = SEBase.load_again(metadata, path)
    return base.seeded(metadata["seed"])
