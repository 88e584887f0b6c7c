"""Protein embeddings of a published SE checkpoint: the token vector of each gene."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scstate_lora.io.published.contents import is_vector, load_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from scstate_lora.io.published.contents import Contents

_CHUNK = 4096


def find_proteins(
    contents: Contents, override: str | Path | Mapping[str, Tensor] | None = None, *, beside_first: bool = False
) -> tuple[Mapping[Any, Any], str]:
    """Find the protein embeddings by gene, and describe their source: `override`, the checkpoint, or a file beside it.

    Parameters
    ----------
    contents
        The checkpoint.
    override
        Embeddings, or their file, that take precedence over all others.
    beside_first
        Whether a file beside the checkpoint takes precedence over embeddings inside it.
    """
    if isinstance(override, Mapping):
        return override, "protein_embeddings="
    if override is not None:
        path = Path(override).expanduser()
        if not path.is_file():
            msg = f"There are no protein embeddings at {path}. Give a file: gene to vector."
            raise FileNotFoundError(msg)
        return _proteins_of(path), str(path)
    folder = contents.file.parent
    beside = sorted([*folder.glob("protein_embeddings*.pt"), *folder.glob("protein_embeddings*.safetensors")])
    beside = [file for file in beside if file.name == "protein_embeddings.pt"] or beside
    if contents.proteins and not (beside_first and len(beside) == 1):
        return contents.proteins, f"{contents.file} itself"
    if len(beside) == 1:
        return _proteins_of(beside[0]), str(beside[0])
    present = f"several lie beside it: {', '.join(file.name for file in beside)}" if beside else "none lie beside it"
    msg = (
        f"{contents.file} has no protein embeddings inside, and {present}. Put protein_embeddings.pt into {folder}, or "
        "give the file: protein_embeddings='path/to/protein_embeddings.pt', or take a checkpoint that has them inside "
        "(protein_embeds_dict)."
    )
    raise ValueError(msg)


def stack_proteins(proteins: Mapping[Any, Any], token_dim: int, *, source: str) -> tuple[list[str], Tensor]:
    """Stack the protein embeddings, without a copy if they are contiguous in memory.

    Parameters
    ----------
    proteins
        Gene to vector ``(token_dim,)``.
    token_dim
        Width of the vectors that the network reads.
    source
        Source of the embeddings for error messages.

    Returns
    -------
    genes
        Names of the genes, in the order of the rows.
    tokens
        Vectors, float32 ``(n_genes, token_dim)``.

    Raises
    ------
    ValueError
        If a name is not text, a vector has another width, or a value is not finite.
    """
    genes = [str(gene) for gene in proteins]
    unnamed = [gene for gene in proteins if not isinstance(gene, str)]  # a numpy string is a str
    if unnamed or not genes:
        held = f"{unnamed[0]!r} ({type(unnamed[0]).__name__})" if unnamed else "nothing"
        msg = f"The protein embeddings of {source} hold {held}; each must be the name of a gene and its vector."
        raise ValueError(msg)
    wrong = {gene: vector for gene, vector in proteins.items() if not is_vector(vector, token_dim)}
    if wrong:
        gene, vector = next(iter(wrong.items()))
        shape = tuple(vector.shape) if hasattr(vector, "shape") else type(vector).__name__
        msg = (
            f"{len(wrong)} of {len(genes)} protein embeddings of {source} are not vectors of {token_dim} numbers, the "
            f"checkpoint's token_dim: {gene} is {shape}. Give those that the checkpoint was trained with."
        )
        raise ValueError(msg)
    vectors = [torch.as_tensor(vector).detach() for vector in proteins.values()]
    tokens = _strided(vectors)
    if tokens is None:
        tokens = torch.empty(len(vectors), token_dim)
        for start in range(0, len(vectors), _CHUNK):  # so that only one chunk is in memory twice
            part = vectors[start : start + _CHUNK]
            tokens[start : start + len(part)] = torch.stack(part)
    low, high = tokens.aminmax(dim=1)
    bad = (~(low.isfinite() & high.isfinite())).nonzero().flatten().tolist()
    if bad:
        msg = (
            f"{len(bad)} of {len(genes)} protein embeddings of {source} hold NaN or infinity: "
            f"{', '.join(genes[i] for i in bad[:5])}{', …' if len(bad) > 5 else ''}. Download or copy the file again."
        )
        raise ValueError(msg)
    return genes, tokens


def _proteins_of(path: Path) -> Mapping[Any, Any]:
    content = load_tensors(path)
    if isinstance(content, Mapping):
        return content
    msg = f"{path} holds one {type(content).__name__}, not a dict of gene to vector. Give that."
    raise ValueError(msg)


def _strided(vectors: list[Tensor]) -> Tensor | None:
    """View vectors that lie at equal distances in one storage as ``(n, width)``; None if they do not."""
    first = vectors[0]
    start, width, n = first.storage_offset(), len(first), len(vectors)
    step = (vectors[1].data_ptr() - first.data_ptr()) // first.element_size() if n > 1 else width
    end = start + (n - 1) * step + width
    if step < width or end * first.element_size() > first.untyped_storage().nbytes():
        return None
    for i, vector in enumerate(vectors):
        is_next = vector.data_ptr() == first.data_ptr() + i * step * first.element_size()
        if not (is_next and vector.dtype == torch.float32 and vector.stride() == (1,)):
            return None
    return first.as_strided((n, width), (step, 1), start)
