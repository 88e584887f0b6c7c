"""Package settings: the folder for training runs and the verbosity of the log."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from scstate_lora._logging import logger
from scstate_lora._utils import did_you_mean

_LEVELS = ("debug", "info", "warning", "error")


class Settings:
    """Settings shared by all models; the only instance is ``ssl.settings``."""

    __slots__ = ("_run_dir",)

    def __init__(self) -> None:
        self._run_dir = Path("runs")

    @property
    def run_dir(self) -> Path:
        """Folder for training runs, each stored in ``<run_dir>/<model>/<number>``; ``runs`` by default."""
        return self._run_dir

    @run_dir.setter
    def run_dir(self, folder: str | Path) -> None:
        if not isinstance(folder, (str, os.PathLike)) or not str(folder):
            msg = f"settings.run_dir={folder!r} must be the path to a folder."
            raise TypeError(msg)
        path = Path(folder).expanduser()
        if path.exists() and not path.is_dir():
            msg = f"settings.run_dir={str(folder)!r} is a file. Give a folder."
            raise ValueError(msg)
        self._run_dir = path

    @property
    def verbosity(self) -> str:
        """Lowest level of messages shown: ``"debug"``, ``"info"`` (the default), ``"warning"`` or ``"error"``."""
        return logging.getLevelName(logger.level).lower()

    @verbosity.setter
    def verbosity(self, level: str) -> None:
        name = level.lower() if isinstance(level, str) else level
        if name not in _LEVELS:
            msg = f"settings.verbosity={level!r} is unknown. {did_you_mean(level, _LEVELS)}"
            raise ValueError(msg)
        logger.setLevel(name.upper())

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("_run_dir", "run_dir", "verbosity"):
            msg = f"The setting {name!r} does not exist. {did_you_mean(name, ('run_dir', 'verbosity'))}"
            raise AttributeError(msg)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"Settings(run_dir={str(self.run_dir)!r}, verbosity={self.verbosity!r})"


settings = Settings()
