"""A base that is an embedding in ``obsm``, computed elsewhere: only the conditioning is trained on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from scstate_lora.data.bound import BoundData


@dataclass(frozen=True)
class ObsmBase:
    """An embedding of ``adata.obsm``, centred and brought to unit length on average.

    Parameters
    ----------
    key
        Its key in ``obsm``.
    mean
        Mean of the training cells, ``(n_columns,)``.
    scale
        Root of the mean squared length of the centred training cells.
    """

    key: str
    mean: np.ndarray
    scale: float

    @classmethod
    def fit(cls, cells: BoundData) -> Self:
        """Read the centre and the scale of the training cells.

        Raises
        ------
        ValueError
            If all training cells have the same embedding.
        """
        key = cells.registry.embed_key
        values = cells.embedding[cells.rows("train")].astype(np.float64)
        mean = values.mean(axis=0)
        scale = float(np.sqrt(((values - mean) ** 2).sum(axis=1).mean()))
        if scale == 0:
            msg = f"adata.obsm[{key!r}] is the same for all training cells: there is nothing to learn."
            raise ValueError(msg)
        return cls(str(key), mean.astype(np.float32), scale)

    @property
    def dim(self) -> int:
        """Number of columns."""
        return len(self.mean)

    @property
    def name(self) -> str:
        """What it is, for people."""
        return f"adata.obsm[{self.key!r}]"

    licence: ClassVar[str] = "that of whatever computed it"
    source: ClassVar[str | None] = "adata.obsm"
    encoder: ClassVar[None] = None

    def note(self) -> str:
        """Describe it in a model's summary."""
        return f"{self.name}, {self.dim} columns"

    def tensors(self) -> dict[str, Tensor]:
        """No tensors: centre and scale are in :meth:`metadata`."""
        return {}

    def embed(self, cells: BoundData) -> np.ndarray:
        """Read the embedding of cells, float32 ``(n_cells, dim)``."""
        return (cells.embedding - self.mean) / np.float32(self.scale)

    def sha256(self) -> str:
        """Hash over key, centre and scale."""
        digest = hashlib.sha256(f"{self.key} {self.scale!r}".encode())
        digest.update(np.ascontiguousarray(self.mean, dtype="<f4").tobytes())
        return digest.hexdigest()

    def metadata(self) -> dict[str, Any]:
        """JSON-able description."""
        shown = {"obsm": self.key, "mean": [float(v) for v in self.mean], "scale": self.scale}
        return {**shown, "name": self.name, "licence": self.licence, "sha256": self.sha256()}

    @classmethod
    def restore(cls, metadata: dict[str, Any]) -> Self:
        """Rebuild from :meth:`metadata`."""
        return cls(metadata["obsm"], np.array(metadata["mean"], dtype=np.float32), metadata["scale"])
