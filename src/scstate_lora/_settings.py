"""Settings of the package: the folder of training runs, and the verbosity of the log."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from scstate_lora._logging import logger
from scstate_lora._utils import did_you_mean

_LEVELS = ("debug", "info", "warning", "error")


class Settings:
    """Settings of all models. The one instance is ``ssl.settings``."""

    __slots__ = ("_run_dir",)

    def __init__(self) -> None:
        self._run_dir = Path("runs")

    @property
    def run_dir(self) -> Path:
        """Folder of the training runs, which get ``<run_dir>/<model>/<number>``; ``runs`` by default."""
        return self._run_dir

    @run_dir.setter
    def run_dir(self, folder: str | Path) -> None:
        if not isinstance(folder, (str, os.PathLike)) or not str(folder):
            msg = f"settings.run_dir={folder!r} must be the path of a folder."
            raise TypeError(msg)
        path = Path(folder).expanduser()
        if path.exists() and not path.is_dir():
            msg = f"settings.run_dir={str(folder)!r} is a file. Name a folder."
            raise ValueError(msg)
        self._run_dir = path

    @property
    def verbosity(self) -> str:
        """Least severe messages shown: ``"debug"``, ``"info"`` (the default), ``"warning"`` or ``"error"``."""
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
            msg = f"There is no setting {name!r}. {did_you_mean(name, ('run_dir', 'verbosity'))}"
            raise AttributeError(msg)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"Settings(run_dir={str(self.run_dir)!r}, verbosity={self.verbosity!r})"


settings = Settings()
