"""What several commands share: options, and the reading of files and of `column=value`."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scstate_lora._compat import mudata_without_pull

if TYPE_CHECKING:
    from scstate_lora.data import Registry

BASE = (
    "The base model: a published SE checkpoint (folder, .ckpt, model.safetensors or hub id), or the directory of a "
    "saved model."
)
BaseConfig = Annotated[
    Path | None, typer.Option(help="Configuration of a checkpoint (YAML), where none is in or beside it.")
]
Proteins = Annotated[
    Path | None, typer.Option(help="Protein embeddings of a checkpoint, where none are in or beside it.")
]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")]


def check_base(base: str) -> None:
    """Refuse a base that is neither a path that exists nor looks like a hub id."""
    from scstate_lora.io.published.hub import is_hub_id

    if not Path(base).expanduser().exists() and not is_hub_id(base):
        msg = f"{base}: there is no such file or directory, and it is not a hub id such as owner/name."
        raise FileNotFoundError(msg)


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written in."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        msg = f"{there} is a file; --out names a folder."
        raise NotADirectoryError(msg)
    if not os.access(there, os.W_OK):
        msg = f"{there} may not be written in. Name another folder by --out."
        raise PermissionError(msg)


def column_values(text: str, *, option: str) -> dict[str, str]:
    """`cell_type=B cells,condition=stim` to a mapping; a comma before the next `column=` separates."""
    pairs = [part.partition("=") for part in re.split(r",(?=[^,=]+=)", text)]
    columns = [column.strip() for column, _, _ in pairs]
    if any(not equals or not column.strip() for column, equals, _ in pairs):
        msg = f"{option} {text!r}: write column=value, several of them separated by commas."
        raise ValueError(msg)
    if len(set(columns)) < len(columns):
        msg = f"{option} {text!r} names a column more than once. Name each once."
        raise ValueError(msg)
    return {column: value.strip() for column, (_, _, value) in zip(columns, pairs, strict=True)}


def covariate_values(texts: list[str], registry: Registry, *, option: str) -> dict[str, str | float | None]:
    """Read `condition=stim,day=14`: text or, of a continuous covariate, a number; nothing withholds."""
    values: dict[str, str | float | None] = {}
    for text in texts:
        for name, value in column_values(text, option=option).items():
            if name in values:
                msg = f"{option} {text!r} names {name!r} once more. Name each once."
                raise ValueError(msg)
            is_number = registry.covariate(name).kind == "continuous"
            values[name] = None if value == "" else _number(name, value, option) if is_number else value
    return values


def _number(name: str, text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        msg = f"{option} {name}={text}: {name!r} is a number."
        raise ValueError(msg) from None


def read_cells(file: Path, modality: str | None = None, *, formats: tuple[str, ...] = (".h5ad", ".h5mu")) -> Any:
    """Read a file of cells into memory."""
    if not file.exists():
        msg = f"There is no file {file}."
        raise FileNotFoundError(msg)
    if file.suffix not in formats or file.is_dir() != (file.suffix == ".zarr"):
        found = "a folder" if file.is_dir() else "of another kind"
        msg = f"{file} is {found}; a file in {' or '.join(formats)} is needed."
        raise ValueError(msg)
    if file.suffix == ".h5mu" and modality is None:
        msg = f"{file} holds several modalities. Name one by --modality, or data.modality=, for instance rna."
        raise ValueError(msg)
    try:
        with warnings.catch_warnings():
            # Of names that are not unique; set-up refuses them with the way out.
            warnings.filterwarnings("ignore", message=".*names are not unique")
            if file.suffix == ".h5mu":
                import mudata

                with mudata_without_pull():
                    return mudata.read_h5mu(file)
            import anndata

            return anndata.read_zarr(file) if file.suffix == ".zarr" else anndata.read_h5ad(file)
    except Exception as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        msg = f"{file} cannot be read; it is damaged, or no {file.suffix} inside: {why}"
        raise OSError(msg) from error
