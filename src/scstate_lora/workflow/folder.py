"""The folder of results: its layout, which run it belongs to, and whether that run can be resumed."""

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
"""The trained parts, each with its own logs and history."""
TABLES = ("split", "embeddings", "perturbation", *(f"history_{part}" for part in PARTS))
RESULTS = (
    "config.yaml",
    "adata.h5ad",
    "predictions.h5ad",
    "report.html",
    *(f"models/{part}" for part in PARTS),
    *(f"tables/{name}.csv" for name in TABLES),
)
"""What a run writes, except for its logs."""
_MARK = "# All options of a run of scstate_lora"
# Options that may change when a run is resumed: how far it goes, and on which device it computes.
_MAY_DIFFER = {
    "file",
    "accelerator",
    *(
        f"{part}.train.{name}"
        for part in ("se", "st")
        for name in (
            *("max_epochs", "accelerator", "devices", "strategy", "compile", "gradient_checkpointing"),
            "resume_from",  # that of the first start
        )
    ),
}


def is_first_process() -> bool:
    """Whether this process writes: it is the only one, or the first of several that train together."""
    return rank_zero_only.rank == 0


class ResultsFolder:
    """A folder of results.

    If several processes train together, all of them read it, but only the first one writes.

    Parameters
    ----------
    path
        The folder; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.earlier: RunConfig | None = None
        """Options of the interrupted run that is resumed."""

    def model(self, part: str) -> Path:
        """Folder of a saved model."""
        return self.path / "models" / part

    def logs(self, part: str) -> Path:
        """Folder of the logs and checkpoints of a training."""
        return self.path / "logs" / part

    def table(self, name: str) -> Path:
        """File of a table."""
        return self.path / "tables" / f"{name}.csv"

    def checkpoint(self, part: str) -> Path | None:
        """Checkpoint of the interrupted run, if it has one."""
        path = self.logs(part) / "checkpoints" / "last.ckpt"
        return path if self.earlier is not None and path.is_file() else None

    def saved(self, part: str) -> Path | None:
        """Model saved by the interrupted run, if it got that far."""
        return self.model(part) if self.earlier is not None and self.model(part).is_dir() else None

    def is_finished(self, part: str, config: RunConfig) -> bool:
        """Whether the interrupted run has trained a model for as many epochs as requested now.

        Raises
        ------
        ValueError
            If it is to be trained further, but its checkpoints are gone.
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
        """Inspect the folder, and refuse to lose files or to resume another run; writes nothing.

        Raises
        ------
        FileExistsError
            If files would be overwritten that do not belong to an earlier run, or belong to an interrupted one that is
            not to be resumed.
        ValueError
            If the run to be resumed had other options.
        """
        present = self._present()
        if present and not self._is_of_a_run():
            msg = (
                f"{present[0]} exists and would be overwritten, and {self.path} is not the folder of an earlier run. "
                "Choose another folder, or move it away."
            )
            raise FileExistsError(msg)
        if resume and self._is_of_a_run():
            self.earlier = self._read_config()
            self._check_same(config)
        elif resume:
            logger.info("There is no run in %s to resume: starting one.", self.path)
        elif is_first_process() and self._is_interrupted():
            msg = (
                f"{self.path} holds an interrupted run. Resume it by --resume (from Python, resume=True), "
                "name another folder, or delete this one."
            )
            raise FileExistsError(msg)

    def start(self, config: RunConfig) -> None:
        """Make the folder, remove results of an earlier run unless that is resumed, and write the options."""
        if not is_first_process():
            return
        if self.earlier is None:
            present = self._present()
            if present:
                logger.info("Replacing the results of an earlier run in %s.", self.path)
            _remove(present)
        else:
            logger.info("Resuming the run in %s.", self.path)
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
        """Delete files and folders that are no longer needed."""
        if is_first_process():
            _remove(paths)

    def _present(self) -> list[Path]:
        """Find the files and folders that a run would replace."""
        paths = [self.path / name for name in RESULTS]
        paths += [file for part in PARTS for file in sorted(self.logs(part).glob("*"))]
        return [path for path in paths if path.exists()]

    def _is_of_a_run(self) -> bool:
        config = self.path / "config.yaml"
        return config.is_file() and config.read_bytes().startswith(_MARK.encode())

    def _is_interrupted(self) -> bool:
        """Whether training would be lost; a finished run has written its cells."""
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
                    "continues with the options and cells it was started with; only max_epochs may grow. Name another "
                    "folder to train anew."
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
