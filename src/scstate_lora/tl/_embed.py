"""The plain embedding of a base model: `embed`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scstate_lora._constants import OBSM_STATE, UNS_KEY
from scstate_lora.data.registry import REGISTRY_KEY, Registry

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData

    from scstate_lora.model import LoRACovariateSE, SEBase


def embed(
    adata: AnnData,
    base: LoRACovariateSE | SEBase | str | Path,
    *,
    key_added: str | None = OBSM_STATE,
    layer: str | None = None,
    input_scale: str | None = None,
    gene_key: str | None = None,
) -> np.ndarray:
    """Embed cells with a base model as it is: no training, no covariates, no adapters.

    Parameters
    ----------
    adata
        Cells x genes. Genes are matched by name; those that the base does not know are left out.
    base
        A :class:`~scstate_lora.LoRACovariateSE` that has a base, a base itself, or the directory of a saved model.
    key_added
        Where the embedding is written in ``adata.obsm``; None to write nothing.
    layer, input_scale, gene_key
        As in :func:`scstate_lora.setup_anndata`. Where none is given, what was registered holds for cells that were
        set up.

    Returns
    -------
    float32 ``(n_cells, output_dim)``, rows of unit length.

    Raises
    ------
    TypeError
        `base` is neither a model, a base nor a path, or `adata` holds no numbers.
    KeyError
        `layer` or `gene_key` does not exist.
    ValueError
        The model has no base yet, under 10 % of the base's genes are found, or the matrix is unusable.
    FileNotFoundError
        There is no such directory.

    Notes
    -----
    Adds ``adata.obsm["X_state"]``, or what `key_added` says.
    """
    from scstate_lora.model import LoRACovariateSE, SEBase

    if isinstance(base, LoRACovariateSE):
        if base.base is None:
            msg = "This LoRACovariateSE has no base yet: call .train() or .train_base() first."
            raise ValueError(msg)
        base = base.base
    elif isinstance(base, (str, Path)):
        base = SEBase.load(base)
    elif not isinstance(base, SEBase):
        msg = f"base must be a LoRACovariateSE, its base or a directory, found {type(base).__name__}."
        raise TypeError(msg)
    is_told = any(given is not None for given in (layer, input_scale, gene_key))
    if not is_told and REGISTRY_KEY in adata.uns.get(UNS_KEY, {}):
        registry = Registry.from_adata(adata)
    else:
        registry = Registry.create(adata, layer=layer, input_scale=input_scale, gene_key=gene_key)
    embedding = base.embed(adata, registry, progress="Embedding")
    if key_added is not None:
        adata.obsm[key_added] = embedding
    return embedding
