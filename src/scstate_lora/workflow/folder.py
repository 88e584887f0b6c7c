"""The folder of results: what stands where in it, whose it is, and whether a run in it can go on."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lightning.pytorch.utilities import rank_zero_only

from scstate_lora._logging import logger
from scstate_lora.config import RunConfig, to_yaml

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

PARTS = ("base", "se", "st")
"""What is trained, each with logs and a history of its own."""
TABLES = ("split", "embeddings", "perturbation", *(f"history_{part}" for part in PARTS))
RESULTS = (
    "config.yaml",
    "adata.h5ad",
    "predictions.h5ad",
    "report.html",
    *(f"models/{part}" for part in PARTS),
    *(f"tables/{name}.csv" for name in TABLES),
)
"""What a run writes besides its logs."""
_MARK = "# All options of a run of scstate_lora"
# What may be another in a run that goes on: how far it goes, and what it is computed on.
_MAY_DIFFER = {
    "file",
    "accelerator",
    *(
        f"{part}.train.{name}"
        for part in ("se", "st")
        for name in (
            *("max_epochs", "accelerator", "devices", "strategy", "compile", "gradient_checkpointing"),
            "resume_from",  # of the first start
        )
    ),
}


def is_first_process() -> bool:
    """Whether this is the process that writes: the only one, or the first of several that train together."""
    return rank_zero_only.rank == 0


class ResultsFolder:
    """A folder of results.

    Several processes that train together all read it, and only the first one writes.

    Parameters
    ----------
    path
        Where it is, or will be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.earlier: RunConfig | None = None
        """Options of the interrupted run that goes on."""

    def model(self, part: str) -> Path:
        """Where a model is saved."""
        return self.path / "models" / part

    def logs(self, part: str) -> Path:
        """Where the logs and checkpoints of a training are."""
        return self.path / "logs" / part

    def table(self, name: str) -> Path:
        """Where a table is."""
        return self.path / "tables" / f"{name}.csv"

    def checkpoint(self, part: str) -> Path | None:
        """Checkpoint of the interrupted run, if it has one."""
        path = self.logs(part) / "checkpoints" / "last.ckpt"
        return path if self.earlier is not None and path.is_file() else None

    def saved(self, part: str) -> Path | None:
        """Model that the interrupted run saved, if it got that far."""
        return self.model(part) if self.earlier is not None and self.model(part).is_dir() else None

    def is_finished(self, part: str, config: RunConfig) -> bool:
        """Whether the interrupted run trained a model as far as it is to be trained now.

        Raises
        ------
        ValueError
            It is to be trained further, and its checkpoints are gone.
        """
        if self.saved(part) is None or self.earlier is None:
            return False
        before, now = (getattr(options, part).train.max_epochs for options in (self.earlier, config))
        if before == now:
            return True
        if self.checkpoint(part) is None:
            msg = (
                f"{part}.train.max_epochs was {before} in the run in {self.path} and is {now} now, but that model is "
                "finished and its checkpoints are gone. Train anew in another folder."
            )
            raise ValueError(msg)
        return False

    def look(self, config: RunConfig, *, resume: bool) -> None:
        """Find out what is there, and refuse what would be lost or does not fit; writes nothing.

        Raises
        ------
        FileExistsError
            There are files that would be overwritten and are not of an earlier run, or of one that was interrupted and
            is not to be resumed.
        ValueError
            The run to be resumed had other options.
        """
        there = self._present()
        if there and not self._is_of_a_run():
            msg = (
                f"{there[0]} exists and would be overwritten, and {self.path} is not the folder of an earlier run. "
                "Choose another folder, or move it away."
            )
            raise FileExistsError(msg)
        if resume and self._is_of_a_run():
            self.earlier = self._read_config()
            self._check_same(config)
        elif resume:
            logger.info("There is no run in %s to go on with: starting one.", self.path)
        elif is_first_process() and self._is_interrupted():
            msg = (
                f"{self.path} holds a run that was interrupted. Go on with it by --resume (from Python, resume=True), "
                "name another folder, or delete this one."
            )
            raise FileExistsError(msg)

    def start(self, config: RunConfig) -> None:
        """Make the folder, without results of an earlier run unless that goes on, and write the options."""
        if not is_first_process():
            return
        if self.earlier is None:
            there = self._present()
            if there:
                logger.info("Replacing the results of an earlier run in %s.", self.path)
            _remove(there)
        else:
            logger.info("Going on with the run in %s.", self.path)
            begun = [self.logs(part) for part in PARTS if self.checkpoint(part) is None]
            _remove([self.path / name for name in ("adata.h5ad", "predictions.h5ad", "report.html")] + begun)
        for name in ("tables", "models", "logs"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        text = f"{_MARK} {version('scstate-lora')}.\n{to_yaml(config)}"
        (self.path / "config.yaml").write_text(text, encoding="utf-8")

    def write_table(self, name: str, table: pd.DataFrame | None) -> None:
        """Write a table that is not empty."""
        if is_first_process() and table is not None and len(table):
            table.to_csv(self.table(name), index=False)

    def write_cells(self, name: str, adata: AnnData) -> None:
        """Write an h5ad."""
        if is_first_process():
            adata.write_h5ad(self.path / f"{name}.h5ad", compression="gzip")

    def drop(self, *paths: Path) -> None:
        """Delete what is of no more use."""
        if is_first_process():
            _remove(paths)

    def _present(self) -> list[Path]:
        """Find what a run would replace."""
        ours = [self.path / name for name in RESULTS]
        ours += [file for part in PARTS for file in sorted(self.logs(part).glob("*"))]
        return [path for path in ours if path.exists()]

    def _is_of_a_run(self) -> bool:
        config = self.path / "config.yaml"
        return config.is_file() and config.read_bytes().startswith(_MARK.encode())

    def _is_interrupted(self) -> bool:
        """Whether there is training that would be lost; a finished run has written its cells."""
        if not self._is_of_a_run() or (self.path / "adata.h5ad").exists():
            return False
        logs = [self.logs(part) / "checkpoints" / "last.ckpt" for part in PARTS]
        return any(path.exists() for path in [*logs, *(self.model(part) for part in PARTS)])

    def _read_config(self) -> RunConfig:
        path = self.path / "config.yaml"
        return RunConfig.parse(yaml.safe_load(path.read_text(encoding="utf-8")), name=str(path))

    def _check_same(self, config: RunConfig) -> None:
        before, now = _flat(self.earlier.model_dump() if self.earlier else {}), _flat(config.model_dump())
        for name in [*before, *now]:
            if name not in _MAY_DIFFER and before.get(name) != now.get(name):
                msg = (
                    f"{name} was {before.get(name)!r} in the run in {self.path} and is {now.get(name)!r} now. A run "
                    "goes on with the options and cells that it was started with; only max_epochs may grow. Name "
                    "another folder to train anew."
                )
                raise ValueError(msg)


def _flat(options: Any, name: str = "") -> dict[str, Any]:
    """Nested options by dotted name."""
    if not isinstance(options, dict):
        return {name: options}
    return {k: v for key, value in options.items() for k, v in _flat(value, f"{name}.{key}".lstrip(".")).items()}


def _remove(paths: Any) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
