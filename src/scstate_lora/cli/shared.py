"""What several commands share: options, paths, and the reading of cells, models and `column=value`."""

from __future__ import annotations

import inspect
import os
import re
import warnings
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scstate_lora._compat import mudata_without_pull

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from pydantic.fields import FieldInfo

    from scstate_lora.config import RunConfig
    from scstate_lora.config.options import Options
    from scstate_lora.data import Registry

RESULTS = {
    "report.html": "all of it on one page: open it in a browser",
    "adata.h5ad": "the cells with their embeddings and the split",
    "predictions.h5ad": "the predicted cells",
    "tables": "scores and losses, CSV",
    "results.json": "options, files, versions and all tables; scstate-lora evaluate --replay {path}",
    "models/se": "the embedding model: ssl.LoRACovariateSE.load('{path}')",
    "models/st": "the perturbation model: ssl.STTransition.load('{path}')",
    "logs": "the losses during training: tensorboard --logdir {path}",
    "config.yaml": "every option of this run; --config takes it",
    "wound_healing": "the simulated wound: cells, predictions, tables, models, logs",
    "pbmc68k": "the blood cells: the same without predictions",
}
"""Files and folders in a folder of results."""
BASE = (
    "The base model: a published SE checkpoint (folder, .ckpt, model.safetensors or hub id), or the directory of a "
    "saved model."
)
BaseConfig = Annotated[Path | None, typer.Option(help="Configuration of a checkpoint (YAML), if not in or beside it.")]
Proteins = Annotated[Path | None, typer.Option(help="Protein embeddings of a checkpoint, if not in or beside it.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")]
Config = Annotated[
    Path | None,
    typer.Option(
        help="Options in a YAML file; the options given here take precedence. scstate-lora config has files to start "
        "from."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="OPTION=VALUE",
        help="Any option as section.key=value, with a value in YAML, e.g. se.train.max_epochs=5 seed=1 "
        "'data.covariates=[{name: day, type: continuous}]'; a run's config.yaml lists them all.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there, once the new is whole.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the results; runs/<file> by default.")]


def takes(
    kind: type[Options],
    *,
    into: str,
    flags: Mapping[str, str] = MappingProxyType({}),
    several: Collection[str] = (),
    only: Collection[str] = (),
) -> Callable:
    """Give a command one option per field of a class of options, described by the field's own words.

    Parameters
    ----------
    kind
        The class.
    into
        Parameter of the command that receives the given ones: text by name, or True.
    flags
        Fields whose option has another name.
    several
        Fields whose option may be repeated; the command receives a list.
    only
        Fields that have an option; by default all.
    """
    fields = {name: field for name, field in kind.model_fields.items() if not only or name in only}

    def parameter(name: str, field: FieldInfo) -> inspect.Parameter:
        option = typer.Option(flags.get(name, "--" + name.replace("_", "-")), help=field.description)
        is_flag = field.annotation is bool
        annotation: Any = bool if is_flag else list[str] | None if name in several else str | None
        default = False if is_flag else None
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option]
        )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**arguments: Any) -> None:
            values = {name: arguments.pop(name) for name in fields}
            command(**arguments, **{into: {name: v for name, v in values.items() if v not in (None, False, [])}})

        signature = inspect.signature(command, eval_str=True)
        parameters = []
        for own in signature.parameters.values():
            options = [parameter(name, field) for name, field in fields.items()]
            parameters += options if own.name == into else [own]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # read by typer
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def split_file(file: str | None, overrides: list[str] | None) -> tuple[str | None, list[str]]:
    """Tell a file from a ``key=value`` in its place; a path may contain a ``=`` too."""
    key, equals, _ = (file or "").partition("=")
    if file is None or not equals or not key.replace(".", "").isidentifier() or Path(file).is_file():
        return file, overrides or []
    return None, [file, *(overrides or [])]


def check_paths(options: RunConfig, out: Path | None) -> tuple[Path, Path]:
    """Return the file of the cells and the folder of the results; refuse what cannot be used, also as a base."""
    if options.file is None:
        msg = "Which cells? Name an .h5ad file as the first argument, or by file: in the configuration."
        raise ValueError(msg)
    file = Path(options.file).expanduser()
    folder = out or Path("runs") / file.stem
    check_folder(folder)
    if file.resolve() in {(folder / name).resolve() for name in RESULTS}:
        msg = f"{file} would be overwritten by the results. Name another folder by --out."
        raise ValueError(msg)
    if options.base is not None:
        check_base(options.base)
    if options.st is not None and options.st.pretrained is not None:
        _check_pretrained(options.st.pretrained)
    return file, folder


def _check_pretrained(pretrained: str) -> None:
    """Refuse a pretrained model that is neither an existing path nor a hub id, with or without a folder in it."""
    from scstate_lora.io.published.st_files import split_hub_id

    if not Path(pretrained).expanduser().exists() and split_hub_id(pretrained) is None:
        msg = f"st.pretrained: {pretrained} is neither a file or folder nor a hub id such as owner/name."
        raise FileNotFoundError(msg)


def check_base(base: str) -> None:
    """Refuse a base that is neither an existing path nor a hub id."""
    from scstate_lora.io.published.hub import is_hub_id

    if not Path(base).expanduser().exists() and not is_hub_id(base):
        msg = f"{base} is neither a file or folder nor an id on the Hugging Face hub, such as arcinstitute/SE-600M."
        raise FileNotFoundError(msg)


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        msg = f"{existing} is a file; --out names a folder."
        raise NotADirectoryError(msg)
    if not os.access(existing, os.W_OK):
        msg = f"{existing} is not writable. Name another folder by --out."
        raise PermissionError(msg)


def refuse_existing(out: Path, *, overwrite: bool) -> None:
    """Refuse to replace a file or folder without being asked to."""
    if out.exists() and not overwrite:
        msg = f"{out} exists. Name another place by --out, or replace it by --overwrite."
        raise FileExistsError(msg)


def column_kinds(text: str, *, option: str) -> list[str] | dict[str, Any]:
    """`a,b:continuous` to ``{"a": None, "b": "continuous"}``; to a list of names when no kind is given."""
    kinds: dict[str, str | None] = {}
    for part in map(str.strip, text.split(",")):
        name, _, kind = part.rpartition(":")
        name, declared = (name, kind) if kind in ("categorical", "continuous") else (part, None)
        if not name or name in kinds:
            fault = f"names {name!r} more than once" if name else "has an empty name"
            msg = f"{option} {text!r} {fault}. Write columns of obs, separated by commas, each once."
            raise ValueError(msg)
        kinds[name] = declared
    return kinds if any(kinds.values()) else list(kinds)


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
    """Read `condition=stim,day=14`: text or, for a continuous covariate, a number; an empty value withholds it."""
    values: dict[str, str | float | None] = {}
    for text in texts:
        for name, value in column_values(text, option=option).items():
            if name in values:
                msg = f"{option} {text!r} names {name!r} more than once. Name each once."
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
        kind = "a folder" if file.is_dir() else "of another kind"
        msg = f"{file} is {kind}; a file in {' or '.join(formats)} is needed."
        raise ValueError(msg)
    if file.suffix == ".h5mu" and modality is None:
        msg = f"{file} holds several modalities. Name one by --modality, or data.modality=, for instance rna."
        raise ValueError(msg)
    try:
        with warnings.catch_warnings():
            # Set-up refuses names that are not unique, and says what to do.
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


def load_model(kind: Any, path: Path, *, part: str, keyword: str, moved_to: Any) -> Any:
    """Load a saved model, from its directory or from the folder of results of the run that made it.

    Parameters
    ----------
    kind
        Class of the model.
    path
        Value of ``--model``.
    part
        Where a run saves it: ``models/<part>``.
    keyword, moved_to
        Argument of ``load()``, and option of the command, for a pretrained model that has moved; its value, or None.
    """
    from scstate_lora.io.save_load import holds_save

    if not path.is_dir():
        state = "is a file" if path.exists() else "does not exist"
        example = f"such as runs/mine/models/{part}"
        msg = f"--model {path} {state}; it must be the directory of a saved {kind.__name__}, {example}."
        raise FileNotFoundError(msg)
    directory = path if holds_save(path) else path / "models" / part
    if not holds_save(directory):
        msg = f"--model {path} holds neither a saved {kind.__name__} nor, in models/{part}, that of a run."
        other, command = ("st", "predict") if part == "se" else ("se", "embed")
        if holds_save(path / "models" / other):
            msg += f" The run in it trained the other model alone: scstate-lora {command} takes that."
        raise FileNotFoundError(msg)
    try:
        return kind.load(directory, **{keyword: moved_to})
    except FileNotFoundError as error:
        if moved_to is not None:
            raise
        msg = str(error).replace(f"load(..., {keyword}=...)", f"--{keyword}")
        if f"--{keyword}" not in msg:
            msg += f" This model was trained on it: say where it is now by --{keyword}."
        raise FileNotFoundError(msg) from error
