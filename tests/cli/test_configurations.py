from __future__ import annotations

import pytest
from typer.testing import CliRunner

from scstate_lora.cli import app
from scstate_lora.config import load_run
from scstate_lora.config.load import shipped


def _config(*arguments):
    return CliRunner().invoke(app, ["config", *map(str, arguments)])


def test_all_configurations_are_listed_with_what_they_are_for():
    lines = _config().output.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped())
    assert all(len(line.split()) > 5 for line in lines)


def test_a_configuration_is_shown_and_copied(tmp_path):
    text = shipped()["st_lora"].read_text(encoding="utf-8")
    assert _config("st_lora").output == text
    copy = tmp_path / "mine.yaml"
    assert _config("st_lora", "--out", copy).output == f"Wrote {copy}.\n"
    assert copy.read_text(encoding="utf-8") == text
    assert load_run(copy, defaults={"se": None}).st is not None


def test_what_cannot_be_shown_or_written_raises(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    with pytest.raises(FileExistsError, match=r"mine\.yaml exists\. Name another file by --out"):
        CliRunner().invoke(app, ["config", "st_lora", "--out", str(tmp_path / "mine.yaml")], catch_exceptions=False)
    with pytest.raises(ValueError, match=r"no configuration 'st_lor'\. Did you mean 'st_lora'"):
        CliRunner().invoke(app, ["config", "st_lor"], catch_exceptions=False)
    assert (tmp_path / "mine.yaml").read_text() == "seed: 1\n"
