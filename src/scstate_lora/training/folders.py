"""The folder of a run, and the loggers that write into it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_only

from scstate_lora._logging import logger
from scstate_lora._settings import settings

if TYPE_CHECKING:
    from pathlib import Path

    from scstate_lora.config import TrainerOptions


def run_folder(options: TrainerOptions, title: str, resumed: Path | None) -> Path | None:
    """Make the folder of a run, in the first of several processes; None if nothing is to be written.

    Parameters
    ----------
    options
        Whether to write, and where.
    title
        What is trained; names the folder, with a number.
    resumed
        Checkpoint from which the run continues: in the same folder, unless another is named.

    Raises
    ------
    FileExistsError
        If the named folder holds another run's checkpoints, or is a file.
    """
    if options.run_folder is not None:
        folder = options.run_folder.expanduser()
        if folder.exists() and not folder.is_dir():
            msg = f"run_folder={str(folder)!r} is a file. Name a folder."
            raise FileExistsError(msg)
        last = folder / "checkpoints" / "last.ckpt"
        is_same = resumed is not None and last.exists() and last.resolve().parent == resumed.resolve().parent
        if last.exists() and not is_same and _is_first_process():
            msg = (
                f"run_folder={str(folder)!r} holds a run already. Name another folder, or continue that run: "
                f"resume_from={str(last)!r}."
            )
            raise FileExistsError(msg)
    elif not options.writes:
        return None
    elif resumed is not None and resumed.parent.name == "checkpoints":
        folder = resumed.parent.parent
    else:
        return _numbered(settings.run_dir / title.replace(" ", "_"))
    if _is_first_process():
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    return folder


def _numbered(parent: Path) -> Path:
    """Make the next numbered folder."""
    numbers = [int(child.name) for child in parent.glob("*") if child.name.isdecimal()]
    number = max(numbers, default=0) + 1
    while True:
        folder = parent / str(number)
        if not _is_first_process():
            return folder
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # another process was faster
            number += 1
            continue
        (folder / "checkpoints").mkdir()
        return folder


def _is_first_process() -> bool:
    return rank_zero_only.rank == 0


def make_loggers(options: TrainerOptions, folder: Path | None) -> Any:
    """Make the loggers for Lightning: TensorBoard, and Weights & Biases if requested; a user's own logger as it is."""
    if not options.writes or folder is None:
        return options.logger
    from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

    loggers: list[Any] = [TensorBoardLogger(os.fspath(folder), name="", version="", default_hp_metric=False)]
    if options.logger == "wandb":
        name = "-".join(folder.parts[-2:])
        loggers.append(WandbLogger(project="scstate_lora", name=name, save_dir=os.fspath(folder)))
    if _is_first_process():
        logger.info("Logs and checkpoints: %s", folder)
    return loggers
