"""Protein embeddings of a published SE checkpoint: the vector of every gene, its token."""

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
    contents: Contents, given: str | Path | Mapping[str, Tensor] | None = None, *, beside_first: bool = False
) -> tuple[Mapping[Any, Any], str]:
    """Find the protein embeddings by gene, and say where they are from: given, inside the checkpoint, or beside it."""
    if isinstance(given, Mapping):
        return given, "those given"
    if given is not None:
        path = Path(given).expanduser()
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
    found = f"several lie beside it: {', '.join(file.name for file in beside)}" if beside else "none lie beside it"
    msg = (
        f"{contents.file} has no protein embeddings inside, and {found}. Put protein_embeddings.pt into {folder}, or "
        "give the file: protein_embeddings='path/to/protein_embeddings.pt', or take a checkpoint that has them inside "
        "(protein_embeds_dict)."
    )
    raise ValueError(msg)


def stack_proteins(proteins: Mapping[Any, Any], token_dim: int, *, source: str) -> tuple[list[str], Tensor]:
    """Lay the protein embeddings under each other, without a copy where they already lie so.

    Parameters
    ----------
    proteins
        Gene to vector ``(token_dim,)``.
    token_dim
        Width that the network reads.
    source
        Where they are from, for messages.

    Returns
    -------
    genes
        Their names, in this order.
    tokens
        float32 ``(n_genes, token_dim)``.

    Raises
    ------
    ValueError
        Names that are not text, vectors of another width, or values that are not finite.
    """
    genes = [str(gene) for gene in proteins]
    unnamed = [gene for gene in proteins if not isinstance(gene, str)]  # a numpy string is a str
    if unnamed or not genes:
        found = f"{unnamed[0]!r} ({type(unnamed[0]).__name__})" if unnamed else "nothing"
        msg = f"The protein embeddings of {source} hold {found}; each must be a gene's name and its vector."
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
        for start in range(0, len(vectors), _CHUNK):  # so that only a chunk is there twice
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
    """View vectors that lie one after another in one storage as ``(n, width)``; None where they do not."""
    first = vectors[0]
    start, width, n = first.storage_offset(), len(first), len(vectors)
    step = (vectors[1].data_ptr() - first.data_ptr()) // first.element_size() if n > 1 else width
    end = start + (n - 1) * step + width
    if step < width or end * first.element_size() > first.untyped_storage().nbytes():
        return None
    for i, vector in enumerate(vectors):
        in_place = vector.data_ptr() == first.data_ptr() + i * step * first.element_size()
        if not (in_place and vector.dtype == torch.float32 and vector.stride() == (1,)):
            return None
    return first.as_strided((n, width), (step, 1), start)
