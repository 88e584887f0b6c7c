"""The command line: the main job on a file or on embedded data, and plain embeddings from published checkpoints."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from scstate_lora._constants import OBSM_STATE

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Adapt pretrained STATE models of single-cell biology to your own experiment.",
)


_RESULTS = {
    "report.html": "all of it on one page: open it in a browser",
    "adata.h5ad": "the cells with embeddings, split and scores",
    "predictions.h5ad": "the predicted cells",
    "tables": "scores and losses, CSV",
    "models": "the models: ssl.LoRACovariateSE.load('{folder}/models/se')",
    "logs": "the losses while training: tensorboard --logdir {folder}/logs",
    "config.yaml": "every option of this run",
    "wound_healing": "the simulated wound: cells, predictions, tables, models, logs",
    "pbmc68k": "the blood cells: the same without predictions",
}


def main() -> None:
    """Run the command line; an error of the input is one message, not a traceback."""
    try:
        app()
    except (ValueError, KeyError, TypeError, OSError) as error:
        if "--traceback" in sys.argv:
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
        typer.secho(f"Error: {message}", err=True, fg=typer.colors.RED)
        typer.echo("(--traceback shows where it was raised.)", err=True)
        raise SystemExit(2) from error


_BASE = (
    "The base model: a published SE checkpoint (folder, .ckpt, model.safetensors or hub id), or the directory of a "
    "saved model."
)
_CONFIG = Annotated[
    Path | None, typer.Option(help="Configuration of a checkpoint (YAML), where none is in or beside it.")
]
_PROTEINS = Annotated[
    Path | None, typer.Option(help="Protein embeddings of a checkpoint, where none are in or beside it.")
]
_TRACEBACK = Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")]


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="Cells x genes, an .h5ad (or an .h5mu with --modality).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Any option as section.key=value, e.g. se.train.max_epochs=5 data.context_keys=[cell_type] seed=1; "
            "config.yaml of a run shows them all."
        ),
    ] = None,
    *,
    covariates: Annotated[
        str, typer.Option(help="Columns of obs, comma-separated; name:continuous or name:categorical to decide.")
    ],
    pert_key: Annotated[str | None, typer.Option(help="Column of the perturbation.")] = None,
    control: Annotated[str | None, typer.Option(help="Its unperturbed level.")] = None,
    cell_type_key: Annotated[str | None, typer.Option(help="Column of the cell type.")] = None,
    batch_key: Annotated[str | None, typer.Option(help="Column of the batch.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer of the expression; X by default.")] = None,
    input_scale: Annotated[
        str | None, typer.Option(help="counts or log1p; decided from the values by default.")
    ] = None,
    gene_key: Annotated[str | None, typer.Option(help="Column of var with gene names.")] = None,
    modality: Annotated[str | None, typer.Option(help="Modality of an .h5mu.")] = None,
    holdout: Annotated[
        list[str] | None,
        typer.Option(help="Hold these cells out, e.g. 'cell_type=B cells,condition=stim'; repeatable."),
    ] = None,
    base: Annotated[str | None, typer.Option(help=_BASE)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; runs/<file> by default.")] = None,
    traceback: _TRACEBACK = False,
) -> None:
    """Set up, train, embed, predict, evaluate and report: the main job on one file."""
    from scstate_lora.config import RunConfig, with_overrides

    data = {
        "covariate_keys": _covariates(covariates),
        "pert_key": pert_key,
        "control": control,
        "cell_type_key": cell_type_key,
        "batch_key": batch_key,
        "layer": layer,
        "input_scale": input_scale,
        "gene_key": gene_key,
        "modality": modality,
        "holdout": [_condition(text) for text in holdout] if holdout else None,
    }
    config = RunConfig.parse(with_overrides({"data": data, "base": base}, overrides or []), name="options")
    folder = out or Path("runs") / file.stem
    _check_folder(folder)
    if file.resolve() in {(folder / name).resolve() for name in _RESULTS}:
        msg = f"{file} would be overwritten by the results. Name another folder by --out."
        raise ValueError(msg)
    if base is not None:
        _check_base(base)
    cells = _read(file, modality)

    from scstate_lora import workflow
    from scstate_lora.reporting import report

    done = workflow.run(cells, config, folder)
    report(done.adata, done.models, folder / "report.html", predictions=done.predictions, title=file.name)
    _say_where(folder)


@app.command()
def embed(
    file: Annotated[Path, typer.Argument(help="Cells x genes, an .h5ad file or a .zarr directory.")],
    *,
    base: Annotated[str, typer.Option(help=_BASE)],
    out: Annotated[Path, typer.Option(help="The same kind of file with the embedding added, or an .npy of it alone.")],
    config: _CONFIG = None,
    protein_embeddings: _PROTEINS = None,
    key_added: Annotated[str, typer.Option(help="Key of the embedding in obsm.")] = OBSM_STATE,
    layer: Annotated[str | None, typer.Option(help="Layer of the expression; X by default.")] = None,
    input_scale: Annotated[
        str | None, typer.Option(help="counts or log1p; decided from the values by default.")
    ] = None,
    gene_key: Annotated[
        str | None, typer.Option(help="Column of var with gene names; the best match by default.")
    ] = None,
    n_tokens: Annotated[
        str | None,
        typer.Option(help="Tokens a cell, the model's own by default; 'expressed' leaves unexpressed genes out."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of ties and padding.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Cells at a time; chosen by default.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; CUDA where there is one.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; bf16 on CUDA, else fp32.")] = None,
    n_workers: Annotated[int, typer.Option(help="Threads that read and tokenise.")] = 1,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the transformer first.")] = False,
    arc_per_cell_scale: Annotated[
        bool, typer.Option("--arc-per-cell-scale", help="Guess counts or log1p cell by cell, as Arc's tool does.")
    ] = False,
    traceback: _TRACEBACK = False,
) -> None:
    """Embed the cells of a file with a base model as it is. Interrupted, the same command goes on where it was."""
    _check_base(base)
    from scstate_lora import tl
    from scstate_lora.model import SEBase

    told = config is not None or protein_embeddings is not None
    tl.embed_file(
        file,
        SEBase.load(base, config=config, protein_embeddings=protein_embeddings) if told else base,
        out=out,
        key_added=key_added,
        layer=layer,
        input_scale=input_scale,
        gene_key=gene_key,
        n_tokens=int(n_tokens) if n_tokens is not None and n_tokens.removeprefix("-").isdigit() else n_tokens,
        seed=seed,
        batch_size=batch_size,
        device=device,
        precision=precision,
        n_workers=n_workers,
        compile=compile,
        arc_per_cell_scale=arc_per_cell_scale,
    )
    where = "the embedding" if out.suffix == ".npy" else f"the cells, with the embedding in obsm[{key_added!r}]"
    typer.echo(f"Wrote {out}: {where}.")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint, a folder of one, or a saved model.")],
    *,
    traceback: _TRACEBACK = False,
) -> None:
    """Say what a model file or folder is, its sizes, genes and licence, and what it can be used for."""
    from scstate_lora.io.inspect import inspect_path

    typer.echo(inspect_path(path).text())


@app.command()
def convert(
    base: Annotated[str, typer.Argument(help="A published SE checkpoint: folder, .ckpt, model.safetensors or hub id.")],
    *,
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    config: _CONFIG = None,
    protein_embeddings: _PROTEINS = None,
    traceback: _TRACEBACK = False,
) -> None:
    """Convert a published SE checkpoint to safetensors and JSON, which hold no code and load fastest."""
    _check_base(base)
    from scstate_lora.model import SEBase

    SEBase.load(base, config=config, protein_embeddings=protein_embeddings).save(out)
    typer.echo(f"Wrote {out}: use it as base={str(out)!r}.")


@app.command()
def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("demo"),
    traceback: _TRACEBACK = False,
) -> None:
    """Run the main job on a simulated wound and on real blood cells, both embedded in the package."""
    _check_folder(out)
    from scstate_lora.demo import run_demo

    run_demo(out)
    _say_where(out)


def _check_base(base: str) -> None:
    """Refuse a base that is neither a path that exists nor looks like a hub id."""
    from scstate_lora.io.hub import is_hub_id

    if not Path(base).expanduser().exists() and not is_hub_id(base):
        msg = f"{base}: there is no such file or directory, and it is not a hub id such as owner/name."
        raise FileNotFoundError(msg)


def _covariates(text: str) -> list[str] | dict[str, Any]:
    """`a,b:continuous` to ``{"a": None, "b": "continuous"}``; to a list of names when no kind is given."""
    kinds: dict[str, str | None] = {}
    for part in map(str.strip, text.split(",")):
        name, _, kind = part.rpartition(":")
        name, declared = (name, kind) if kind in ("categorical", "continuous") else (part, None)
        if not name or name in kinds:
            what = f"names {name!r} more than once" if name else "names no column in one of its places"
            msg = f"--covariates {text!r} {what}. Write columns of obs, separated by commas, each once."
            raise ValueError(msg)
        kinds[name] = declared
    return kinds if any(kinds.values()) else list(kinds)


def _condition(text: str) -> dict[str, str]:
    """`cell_type=B cells,condition=stim` to a mapping."""
    pairs = [part.partition("=") for part in text.split(",")]
    if any(not equals for _, equals, _ in pairs):
        msg = f"--holdout {text!r}: write column=value, several of them separated by commas."
        raise ValueError(msg)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written in."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        msg = f"{there} is a file; --out names a folder."
        raise NotADirectoryError(msg)
    if not os.access(there, os.W_OK):
        msg = f"{there} may not be written in. Name another folder by --out."
        raise PermissionError(msg)


def _read(file: Path, modality: str | None) -> Any:
    """Read an h5ad or h5mu."""
    if not file.exists():
        msg = f"There is no file {file}."
        raise FileNotFoundError(msg)
    if file.suffix not in (".h5ad", ".h5mu") or file.is_dir():
        msg = f"{file} is {'a folder' if file.is_dir() else 'of another kind'}; a file in .h5ad or .h5mu is needed."
        raise ValueError(msg)
    if file.suffix == ".h5mu" and modality is None:
        msg = f"{file} holds several modalities. Name one by --modality, for instance --modality rna."
        raise ValueError(msg)
    try:
        with warnings.catch_warnings():
            # Of names that are not unique; set-up refuses them with the way out.
            warnings.filterwarnings("ignore", message=".*names are not unique")
            if file.suffix == ".h5mu":
                import mudata

                with mudata.set_options(pull_on_update=False):
                    return mudata.read_h5mu(file)
            import anndata

            return anndata.read_h5ad(file)
    except Exception as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        msg = f"{file} cannot be read; it is damaged, or no {file.suffix} inside: {why}"
        raise OSError(msg) from error


def _say_where(folder: Path) -> None:
    typer.echo(f"\nResults in {folder}:")
    for name, what in _RESULTS.items():
        if (folder / name).exists():
            typer.echo(f"  {name:<16}  {what.format(folder=folder)}")


if __name__ == "__main__":
    main()
