from __future__ import annotations

from scstate_lora._utils import did_you_mean, progress_bar


def test_near_names_are_suggested_whatever_their_case():
    assert did_you_mean("Timepoint", ["cell_type", "timepoint"]) == "Did you mean 'timepoint'?"
    assert did_you_mean("cell_typ", ["cell_type", "x"]) == "Did you mean 'cell_type'?"


def test_what_exists_is_listed_when_no_name_is_near():
    assert did_you_mean("zzz", ["a", "b"]) == "There are: 'a', 'b'."
    assert did_you_mean("zzz", map(str, range(20)), limit=2) == "There are: '0', '1', …."
    assert did_you_mean("zzz", []) == "There are none."


def test_what_was_written_need_not_be_a_string():
    assert did_you_mean(10, ["100", "burn"]) == "Did you mean '100'?"


def test_progress_bar_passes_everything_on_and_shows_its_name(capsys):
    assert list(progress_bar(range(3), desc="Embedding")) == [0, 1, 2]
    assert "Embedding" in capsys.readouterr().err
