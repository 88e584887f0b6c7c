"""Read a published state transition (ST) model: its folder, its tensors, and the names of genes and perturbations."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scstate_lora._logging import logger
from scstate_lora.io.published.contents import Contents, open_contents
from scstate_lora.io.published.hub import fetch_snapshot
from scstate_lora.io.published.se_checkpoint import UNKNOWN_LICENCE, licence_beside, name_of
from scstate_lora.io.published.st_files import (
    codes,
    files_to_fetch,
    find_st_file,
    read_config,
    read_map,
    read_var_dims,
    split_hub_id,
)
from scstate_lora.io.published.st_tensors import BACKBONE, take_backbone, take_network

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from scstate_lora._tensors import ExpectedTensors

UNKNOWN_ST_LICENCE = (
    "unknown; Arc's published ST weights are non-commercial (Arc Research Institute State Model Non-Commercial License)"
)
"""Licence of a model without a licence file."""
GENE_KEYS = (None, "X_hvg")
"""Inputs of published models that are genes; any other is an embedding in ``obsm``."""
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class STCheckpoint:
    """A published ST model in plain values and tensors.

    Parameters
    ----------
    path
        File of the weights.
    source
        Path, or id on the Hub, that it was read from.
    name
        Folder and file, such as ``ST-Tahoe (final.ckpt)``.
    licence
        Licence beside the file, or a note that it is unknown.
    hyper_parameters
        Hyperparameters stored in the checkpoint.
    sizes
        Sizes as in :func:`~scstate_lora.io.published.st_tensors.take_network`, or of the backbone alone.
    state
        Tensors by our names, float32, adapters merged; without those that are never read.
    genes
        Names of the genes of its gene space, ``gene_names``; empty if not stored.
    perturbations
        One-hot or feature vector of each perturbation, float32 ``(pert_dim,)``; empty for the backbone alone.
    cell_types
        Cell types that it was trained on; empty if not stored.
    batches
        Code of each batch in the batch encoder; empty if not stored.
    control
        Name of the control in place of a perturbation.
    embed_key
        Its input: ``X_hvg`` (variable genes), None (all genes of ``X``), or the key of an embedding in ``obsm``.
    output_space
        Space of its predictions in Arc's terms: ``gene``, ``all`` or ``embedding``.
    cell_set_len
        Cells per set in its training.
    notes
        Missing files and assumptions.
    """

    path: Path
    source: str
    name: str
    licence: str
    hyper_parameters: dict[str, Any]
    sizes: dict[str, Any]
    state: dict[str, Tensor]
    genes: list[str] = field(default_factory=list)
    perturbations: dict[str, Tensor] = field(default_factory=dict)
    cell_types: list[str] = field(default_factory=list)
    batches: dict[str, int] = field(default_factory=dict)
    control: str = "non-targeting"
    embed_key: str | None = None
    output_space: str = "gene"
    cell_set_len: int = 256
    notes: list[str] = field(default_factory=list)

    @cached_property
    def sha256(self) -> str:
        """Hash of the file of the weights, hexadecimal; computed on first access."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    @property
    def reads_genes(self) -> bool:
        """Whether its input is the expression of genes rather than an embedding."""
        return self.embed_key in GENE_KEYS

    @property
    def input_genes(self) -> list[str]:
        """Names of the genes that it reads, in its order; empty if it reads none or they are not stored."""
        return self.genes if self.reads_genes and len(self.genes) == self.sizes["n_inputs"] else []


def read_st_folder(
    path: str | Path,
    expected_tensors: ExpectedTensors,
    *,
    reuse: Literal["all", "backbone"] = "all",
    offline: bool | None = None,
) -> STCheckpoint:
    """Read a published ST model without running code in it.

    Parameters
    ----------
    path
        Folder with ``config.yaml`` and ``checkpoints/final.ckpt`` (or ``last``, ``best``, ``step=N``; older ones:
        ``final.ckpt`` at the top), the checkpoint itself, or a repository on the Hub: ``owner/name``, or
        ``owner/name/folder`` if it holds several models, each optionally followed by ``@revision``.
    expected_tensors
        State dict of an ST network of given sizes, see :func:`~scstate_lora.io.published.st_tensors.take_network`.
    reuse
        ``"backbone"`` reads only the transformer, and needs no files beside the checkpoint.
    offline
        Look for a hub id on this machine only; None: as the settings of the Hub say.

    Raises
    ------
    FileNotFoundError
        If nothing is there, no checkpoint is in the folder, or a file required for predictions is missing.
    ValueError
        If it is not an ST model, is damaged, contradicts itself, holds more than data, or has an option that is not
        supported.
    OSError
        If the Hub cannot be reached.
    """
    source, hub = str(path), split_hub_id(path)
    if hub is None:
        source = str(Path(path).expanduser().resolve())
    else:
        hub_id, within = hub
        choose = partial(files_to_fetch, hub_id=hub_id, folder=within)
        path = fetch_snapshot(hub_id, choose=choose, offline=offline) / within
    folder, file = find_st_file(path)
    checkpoint = read_st_file(file, folder, expected_tensors, source=source, reuse=reuse)
    logger.info("ST model %s: %s.", checkpoint.name, "; ".join([describe(checkpoint), *checkpoint.notes]))
    return checkpoint


def read_st_file(
    file: Path,
    folder: Path,
    expected_tensors: ExpectedTensors,
    *,
    source: str,
    reuse: Literal["all", "backbone"] = "all",
) -> STCheckpoint:
    """Read a checkpoint and the files that belong to it: :func:`read_st_folder` once the files are located."""
    contents = open_contents(file)
    hyper = _require_st(contents)
    options = _section(_section(read_config(folder), "data"), "kwargs")
    notes: list[str] = []
    take = take_backbone if reuse == "backbone" else take_network
    sizes, state = take(contents.state, hyper, expected_tensors, source=str(file))
    if sizes["backbone"] == "gpt2":
        # With transformers 4.52 to 4.57, arc-state requests attention among all cells but, under SDPA, gets causal one.
        notes.append("every cell attends to every other, as arc-state intends; its own GPT-2 may have run causally")
    elif "bidirectional_attention" not in _section(hyper, "transformer_backbone_kwargs"):
        # Older versions had no other attention and did not store it.
        notes.append("it is assumed that every cell attends to every other: the checkpoint does not store it")
    maps: dict[str, dict[str, Tensor]] = {}
    dims: Mapping[str, Any] = {}
    if reuse == "all":
        dims = read_var_dims(folder)
        maps = {name: map_ for name in ("pert", "cell_type", "batch") if (map_ := read_map(folder, name)) is not None}
        _check_perturbations(maps.get("pert"), sizes["pert_dim"], folder)
    batches = codes(maps.get("batch", {})) or {}
    if sizes.get("n_batches") and (not batches or max(batches.values()) >= sizes["n_batches"]):
        notes.append(f"the names of its {sizes['n_batches']} batches are not stored: give their codes")
        batches = {}
    genes = _names(hyper.get("gene_names")) or _names(dims.get("gene_names"))
    output_space = str(hyper.get("output_space", "gene"))
    if reuse == "all" and len(genes) not in {sizes["n_inputs"], sizes["n_genes"]}:
        if output_space != "embedding":  # there they are genes that it neither reads nor predicts
            notes.append(f"the {len(genes):,} stored gene names match neither its input nor its output: not used")
        genes = []
    return STCheckpoint(
        path=file,
        source=source,
        name=name_of(folder / file.name),
        licence=st_licence(folder),
        hyper_parameters=dict(hyper),
        sizes=sizes,
        state=state,
        genes=genes,
        perturbations=maps.get("pert", {}),
        cell_types=list(maps.get("cell_type", {})),
        batches=batches,
        control=str(hyper.get("control_pert") or options.get("control_pert") or "non-targeting"),
        embed_key=hyper.get("embed_key"),
        output_space=output_space,
        cell_set_len=int(hyper.get("cell_set_len", 256)),
        notes=notes,
    )


def describe(checkpoint: STCheckpoint) -> str:
    """Describe a model in one line."""
    sizes = checkpoint.sizes
    text = f"{sizes['backbone']}, {sizes['n_layers']} layer(s) of {sizes['hidden']}"
    if "n_inputs" not in sizes:
        return f"{text}, its backbone alone"
    return f"{text}, reads {input_meaning(checkpoint)}, knows {len(checkpoint.perturbations):,} perturbations"


def input_meaning(checkpoint: STCheckpoint) -> str:
    """Describe the input of a model, such as ``2,000 genes (HVGs)``."""
    n, key = checkpoint.sizes["n_inputs"], checkpoint.embed_key
    if checkpoint.reads_genes:
        return f"{n:,} genes" + (" (HVGs)" if key == "X_hvg" else "")
    return f"{n:,} columns of adata.obsm[{key!r}]"


def backbone_state(checkpoint: STCheckpoint) -> dict[str, Tensor]:
    """Tensors of the transformer alone, by names such as ``layers.0.self_attn.q_proj.weight``."""
    return {n.removeprefix(BACKBONE): t for n, t in checkpoint.state.items() if n.startswith(BACKBONE)}


def st_licence(folder: Path) -> str:
    """Licence beside a model, or a note that it is unknown."""
    licence = licence_beside(folder / "config.yaml")
    return UNKNOWN_ST_LICENCE if licence == UNKNOWN_LICENCE else licence


def match_genes(checkpoint: STCheckpoint, genes: Sequence[str]) -> list[str]:
    """Match the genes that a model reads to those of some data.

    Parameters
    ----------
    checkpoint
        The model, read whole.
    genes
        Genes of the data, whose cells are expression.

    Returns
    -------
    The genes that the model reads, in its order. If the model does not store their names, the genes of the data, which
    are then taken by position.

    Raises
    ------
    ValueError
        If the model reads an embedding or another number of genes, or if genes are missing. The sizes or genes are
        named, and the two ways out.
    """
    data_genes, model_genes = [str(gene) for gene in genes], checkpoint.input_genes
    if not model_genes:
        n_genes = len(data_genes)
        if not checkpoint.reads_genes or n_genes != checkpoint.sizes["n_inputs"]:
            raise ValueError(_other_sizes(checkpoint, f"{n_genes:,} genes"))
        logger.warning(
            "%s does not store the names of the %s genes that it reads: they are taken by position.",
            checkpoint.name,
            f"{n_genes:,}",
        )
        return data_genes
    available = set(data_genes)
    missing = [gene for gene in model_genes if gene not in available]
    if missing:
        lowered = {gene.lower() for gene in data_genes}
        near = sum(gene.lower() in lowered for gene in missing)
        hint = f" {near:,} of them differ in upper and lower case only." if near else ""
        msg = (
            f"{checkpoint.name} reads {input_meaning(checkpoint)} by name; the data have {len(data_genes):,} genes, "
            f"among them {len(model_genes) - len(missing):,} of those {len(model_genes):,}. "
            f"Missing are {_listed(missing)}; the data have {_listed(data_genes)}.{hint} {_ways_out(checkpoint)}"
        )
        raise ValueError(msg)
    logger.info("All %s genes that %s reads are among the data's %s.", len(model_genes), checkpoint.name, len(genes))
    return model_genes


def check_embedding(checkpoint: STCheckpoint, width: int, *, key: str) -> None:
    """Check that a model reads an embedding of this width.

    Parameters
    ----------
    checkpoint
        The model, read whole.
    width
        Columns of the embedding of the data.
    key
        Its key in ``adata.obsm``.

    Raises
    ------
    ValueError
        If the model reads genes or another width. Both sizes are named, and the two ways out.
    """
    if checkpoint.reads_genes or width != checkpoint.sizes["n_inputs"]:
        raise ValueError(_other_sizes(checkpoint, f"{width:,} columns of adata.obsm[{key!r}]"))


def _other_sizes(checkpoint: STCheckpoint, data: str) -> str:
    return f"{checkpoint.name} reads {input_meaning(checkpoint)}; the data have {data}. {_ways_out(checkpoint)}"


def _ways_out(checkpoint: STCheckpoint) -> str:
    if checkpoint.reads_genes:
        right = "Give data with those genes, under the same names"
    else:
        right = f"Give the embedding that it was trained on, embed_key={checkpoint.embed_key!r}"
        if checkpoint.embed_key == "X_state":
            right += " (2,058 columns of SE-600M, by ssl.tl.embed)"
    return f"{right}; or reuse='backbone', which keeps the pretrained transformer and gives it new encoders and head."


def _require_st(contents: Contents) -> Mapping[str, Any]:
    """Hyperparameters of an ST checkpoint; a ValueError that names the kind of the file if it is another."""
    file = contents.file
    if contents.kind == "se":
        msg = (
            f"{file} is an SE (state embedding) checkpoint, not an ST (state transition) model. "
            "ssl.LoRACovariateSE(adata, base=...) and ssl.tl.embed take it; give an ST folder here, such as ST-Tahoe."
        )
        raise ValueError(msg)
    if contents.kind != "st":
        held = f"it holds {_listed(list(contents.state))}" if contents.state else "it holds no tensors by name"
        msg = (
            f"{file} is not an ST (state transition) checkpoint: {held}. One holds pert_encoder, basal_encoder, "
            "transformer_backbone and project_out. Give one such as ST-Tahoe."
        )
        raise ValueError(msg)
    hyper = contents.hyper_parameters
    if not hyper:
        msg = (
            f"{file} holds no hyper_parameters, which describe its network. Give the .ckpt that training wrote, such "
            "as checkpoints/final.ckpt."
        )
        raise ValueError(msg)
    return hyper


def _check_perturbations(vectors: Mapping[str, Tensor] | None, pert_dim: int, folder: Path) -> None:
    fix = "Download or copy it from the source of the checkpoint."
    if vectors is None:
        msg = (
            f"{folder} holds no pert_onehot_map.pt, which has the vector of each perturbation. {fix} With "
            "reuse='backbone' it is not needed."
        )
        raise FileNotFoundError(msg)
    width = len(next(iter(vectors.values())))
    if width != pert_dim:
        msg = (
            f"{folder / 'pert_onehot_map.pt'} has vectors of width {width:,}, the checkpoint reads {pert_dim:,}. {fix}"
        )
        raise ValueError(msg)


def _names(value: Any) -> list[str]:
    is_row = isinstance(value, list | tuple | np.ndarray)
    return [name.decode() if isinstance(name, bytes) else str(name) for name in value] if is_row else []


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _section(mapping: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = mapping.get(name)
    return section if isinstance(section, Mapping) else {}
