"""The command line: `scstate-lora run` does the main job on an h5ad, `scstate-lora demo` on embedded data."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003 (typer reads the annotations at run time)
from typing import Annotated, Any

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Adapt pretrained STATE models of single-cell biology to your own experiment.",
)


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
    except KeyboardInterrupt:
        typer.secho("Interrupted.", err=True, fg=typer.colors.RED)
        raise SystemExit(130) from None


_TRACEBACK = Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")]


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="Cells x genes, an .h5ad (or an .h5mu with --modality).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Any option as section.key=value, e.g. se.train.max_epochs=5 seed=1.")
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
    input_scale: Annotated[str | None, typer.Option(help="counts or log1p; decided from the values by default.")] = None,
    gene_key: Annotated[str | None, typer.Option(help="Column of var with gene names.")] = None,
    modality: Annotated[str | None, typer.Option(help="Modality of an .h5mu.")] = None,
    holdout: Annotated[
        list[str] | None, typer.Option(help="Hold these cells out, e.g. 'cell_type=B cells,condition=stim'; repeatable.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Directory of a saved model whose base is taken.")] = None,
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
    cells = _read(file)

    from scstate_lora import workflow
    from scstate_lora.reporting import report

    done = workflow.run(cells, config, folder)
    report(done.adata, done.models, folder / "report.html", predictions=done.predictions, title=file.name)
    _say_where(folder)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("demo"),  # noqa: B008 (typer's way)
    traceback: _TRACEBACK = False,
) -> None:
    """Run the main job on a simulated wound and on real blood cells, both embedded in the package."""
    _check_folder(out)
    from scstate_lora.demo import run_demo

    run_demo(out)
    _say_where(out)


def _covariates(text: str) -> list[str] | dict[str, Any]:
    """`a,b:continuous` to ``{"a": None, "b": "continuous"}``; to a list of names when no kind is given."""
    kinds: dict[str, str | None] = {}
    for part in text.split(","):
        name, colon, kind = part.strip().rpartition(":")
        declared = bool(colon) and kind in ("categorical", "continuous")
        kinds[name if declared else part.strip()] = kind if declared else None
    return kinds if any(kinds.values()) else list(kinds)


def _condition(text: str) -> dict[str, str]:
    """`cell_type=B cells,condition=stim` to a mapping."""
    pairs = [part.partition("=") for part in text.split(",")]
    if any(not equals for _, equals, _ in pairs):
        msg = f"--holdout {text!r}: write column=value, several of them separated by commas."
        raise ValueError(msg)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file; --out names a folder."
        raise FileExistsError(msg)


def _read(file: Path) -> Any:
    """Read an h5ad or h5mu."""
    if not file.exists():
        msg = f"There is no file {file}."
        raise FileNotFoundError(msg)
    if file.suffix == ".h5mu":
        import mudata

        return mudata.read_h5mu(file)
    if file.suffix != ".h5ad":
        msg = f"{file} must end in .h5ad or .h5mu."
        raise ValueError(msg)
    import anndata

    return anndata.read_h5ad(file)


def _say_where(folder: Path) -> None:
    typer.echo(f"\nResults in {folder}:")
    for file in sorted(p for p in folder.rglob("*") if p.suffix in {".h5ad", ".html", ".csv", ".yaml"}):
        if "logs" not in file.relative_to(folder).parts and "models" not in file.relative_to(folder).parts:
            typer.echo(f"  {file}")


if __name__ == "__main__":
    main()
