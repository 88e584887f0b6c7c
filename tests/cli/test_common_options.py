from __future__ import annotations

import logging
import sys
from importlib.metadata import version

import pytest

from scstate_lora import cli
from scstate_lora._logging import logger
from scstate_lora._utils import progress_bar
from scstate_lora.cli.application import in_options


@pytest.fixture
def call(monkeypatch, capsys):
    level = logger.level

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["scstate-lora", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code, capsys.readouterr()

    yield run
    logger.setLevel(level)


def test_version_is_shown(call):
    code, shown = call("--version")
    assert not code
    assert version("scstate-lora") in shown.out


def test_quiet_shows_neither_decisions_nor_bars(call):
    call("--quiet", "config")
    assert logger.level == logging.WARNING
    assert progress_bar([1]).disable


def test_bars_are_shown_otherwise():
    assert not progress_bar([1]).disable


def test_quiet_and_verbose_exclude_each_other(call):
    code, shown = call("--quiet", "--verbose", "config")
    assert code == 2
    assert "exclude each other" in shown.err


@pytest.mark.parametrize(
    ("command", "message", "expected"),
    [
        ("run", "control='x' is not in the column.", "--control 'x' is not in the column."),
        ("run", "pert_key='a' needs control=, the level.", "--pert-key 'a' needs --control, the level."),
        (
            "run",
            "Use coarser contexts: context_keys=['type', 'day'].",
            "Use coarser contexts: --context-keys type,day.",
        ),
        ("run", "covariate_keys=['a'] or split_key=", "--covariates a or --split-key"),
        ("train", "Use context_keys=['type'].", "Use data.context_keys=['type']."),
        ("evaluate", "control='x' is not in the column.", "--control 'x' is not in the column."),
        ("evaluate", "name='linear' is that of a baseline.", "--name 'linear' is that of a baseline."),
        ("evaluate-embeddings", "metrics='knn' is not known.", "--metrics 'knn' is not known."),
        ("run", "adata.obs['control'] == 'x' and my_control='x'", "adata.obs['control'] == 'x' and my_control='x'"),
    ],
)
def test_messages_name_options_of_the_command(command, message, expected):
    assert in_options(message, command) == expected
