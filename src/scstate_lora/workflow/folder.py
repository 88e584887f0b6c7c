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
from scstate_lora.io.atomic import beside, in_place, replace_folder

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
    "results.json",
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
    overwrite
        Replace the results of an earlier run in it, once the new ones are whole: until then they are in a folder
        beside it.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.final = self.path = Path(path)
        self.overwrite = overwrite
        self.earlier: RunConfig | None = None
        """Options of the interrupted run that is resumed."""
        self.tables: dict[str, pd.DataFrame] = {}
        """The tables written, by name."""

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
            If files would be overwritten that do not belong to an earlier run, or belong to one that is neither to be
            resumed nor to be overwritten.
        ValueError
            If the run to be resumed had other options.
        """
        new = beside(self.final)
        for folder in (self.final, new):
            present = _present(folder)
            if present and not _is_of_a_run(folder):
                msg = (
                    f"{present[0]} exists and would be overwritten, and {folder} is not the folder of an earlier run. "
                    "Choose another folder, or move it away."
                )
                raise FileExistsError(msg)
        begun = _is_of_a_run(new)
        if begun and resume and not self.overwrite:
            msg = (
                f"A run that was to replace the one in {self.final} was interrupted; it is in {new}. Continue it by "
                "--overwrite --resume (from Python, overwrite=True, resume=True), or delete that folder."
            )
            raise FileExistsError(msg)
        if self.overwrite and (begun or (_is_of_a_run(self.final) and not resume)):
            self.path = new
        if resume and _is_of_a_run(self.path):
            self.earlier = self._read_config()
            self._check_same(config)
        elif resume:
            logger.info("There is no run in %s to resume: starting one.", self.path)
        elif is_first_process() and not self.overwrite:
            self._refuse_replacing()

    def _refuse_replacing(self) -> None:
        """Raise a FileExistsError if a run would be lost."""
        if _is_finished(self.path):
            msg = (
                f"{self.path} holds a finished run. Replace it by --overwrite (from Python, overwrite=True), train it "
                "for more epochs by --resume (resume=True), or name another folder."
            )
            raise FileExistsError(msg)
        if _is_interrupted(self.path):
            msg = (
                f"{self.path} holds an interrupted run. Resume it by --resume (from Python, resume=True), replace it "
                "by --overwrite (overwrite=True), or name another folder."
            )
            raise FileExistsError(msg)

    def start(self, config: RunConfig) -> None:
        """Make the folder, remove what an earlier run has left unless that is resumed, and write the options."""
        if not is_first_process():
            return
        if self.earlier is None:
            if self.path != self.final:
                logger.info("%s stays as it is until the new results, in %s, are whole.", self.final, self.path)
            _remove(_present(self.path))
        else:
            logger.info("Resuming the run in %s.", self.path)
            begun = [self.logs(part) for part in PARTS if self.checkpoint(part) is None]
            _remove([self.path / name for name in RESULTS if "/" not in name and name != "config.yaml"] + begun)
        for name in ("tables", "models", "logs"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        text = f"{_MARK} {version('scstate-lora')}.\n{to_yaml(config)}"
        (self.path / "config.yaml").write_text(text, encoding="utf-8")

    def write_table(self, name: str, table: pd.DataFrame | None) -> None:
        """Write a table that is not empty."""
        if is_first_process() and table is not None and len(table):
            table.to_csv(self.table(name), index=False)
            self.tables[name] = table

    def write_cells(self, name: str, adata: AnnData) -> None:
        """Write an h5ad."""
        if is_first_process():
            with in_place(self.path / f"{name}.h5ad") as temporary:
                adata.write_h5ad(temporary, compression="gzip")

    def finish(self) -> None:
        """Replace the results of an earlier run, now that the new ones are whole; other files there are kept."""
        if self.path != self.final and is_first_process():
            replace_folder(self.final, self.path, keep=_further(self.final))
        self.path = self.final

    def drop(self, *paths: Path) -> None:
        """Delete files and folders that are no longer needed."""
        if is_first_process():
            _remove(paths)

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


def _present(folder: Path) -> list[Path]:
    """Find the files and folders that a run would replace."""
    paths = [folder / name for name in RESULTS]
    paths += [file for part in PARTS for file in sorted((folder / "logs" / part).glob("*"))]
    return [path for path in paths if path.exists()]


def _further(folder: Path) -> list[Path]:
    """Find what is in a folder besides the results of a run, relative to it."""
    ours = {Path(name) for name in (*RESULTS, *(f"logs/{part}" for part in PARTS))}
    parents = {path.parent for path in ours}
    listed = [path for parent in parents if (folder / parent).is_dir() for path in (folder / parent).iterdir()]
    relative = {path.relative_to(folder) for path in listed}
    return sorted(relative - ours - parents)


def _is_of_a_run(folder: Path) -> bool:
    config = folder / "config.yaml"
    return config.is_file() and config.read_bytes().startswith(_MARK.encode())


def _is_finished(folder: Path) -> bool:
    return _is_of_a_run(folder) and (folder / "adata.h5ad").exists()


def _is_interrupted(folder: Path) -> bool:
    """Whether training would be lost."""
    if not _is_of_a_run(folder) or _is_finished(folder):
        return False
    logs = [folder / "logs" / part / "checkpoints" / "last.ckpt" for part in PARTS]
    return any(path.exists() for path in [*logs, *(folder / "models" / part for part in PARTS)])


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
