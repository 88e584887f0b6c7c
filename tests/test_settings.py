from __future__ import annotations

import logging
from pathlib import Path

import pytest

import scstate_lora as ssl
from scstate_lora._settings import Settings


def test_runs_go_into_the_working_directory_unless_another_is_named(tmp_path):
    settings = Settings()
    assert settings.run_dir == Path("runs")
    settings.run_dir = str(tmp_path / "mine")
    assert settings.run_dir == tmp_path / "mine"
    assert not settings.run_dir.exists()
    settings.run_dir = "~/runs"
    assert settings.run_dir == Path.home() / "runs"


def test_verbosity_is_the_level_of_the_packages_logger():
    logger = logging.getLogger("scstate_lora")
    before = logger.level
    try:
        ssl.settings.verbosity = "Warning"
        assert logger.level == logging.WARNING
        logger.setLevel(logging.DEBUG)
        assert ssl.settings.verbosity == "debug"
        assert "verbosity='debug'" in repr(ssl.settings)
    finally:
        logger.setLevel(before)


def test_what_makes_no_sense_raises(tmp_path):
    settings = Settings()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=r"is a file\. Give a folder"):
        settings.run_dir = file
    with pytest.raises(TypeError, match="run_dir=3 must be the path"):
        settings.run_dir = 3
    with pytest.raises(ValueError, match=r"verbosity='warn' is unknown\. Did you mean 'warning'"):
        settings.verbosity = "warn"
    with pytest.raises(AttributeError, match=r"The setting 'rundir' does not exist\. Did you mean 'run_dir'"):
        settings.rundir = tmp_path
    assert settings.run_dir == Path("runs")
