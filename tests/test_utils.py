from __future__ import annotations

import warnings
from functools import cached_property

from scstate_lora import _utils
from scstate_lora._utils import did_you_mean, progress_bar, warn_user


def test_close_names_are_suggested_regardless_of_case():
    assert did_you_mean("Timepoint", ["cell_type", "timepoint"]) == "Did you mean 'timepoint'?"
    assert did_you_mean("cell_typ", ["cell_type", "x"]) == "Did you mean 'cell_type'?"


def test_available_names_are_listed_if_none_is_close():
    assert did_you_mean("zzz", ["a", "b"]) == "Available: 'a', 'b'."
    assert did_you_mean("zzz", map(str, range(20)), limit=2) == "Available: '0', '1', …."
    assert did_you_mean("zzz", []) == "None are available."


def test_the_mistyped_name_need_not_be_a_string():
    assert did_you_mean(10, ["100", "burn"]) == "Did you mean '100'?"


def test_a_warning_points_at_the_line_that_called_the_package():
    namespace = {"warn_user": warn_user, "cached_property": cached_property}
    path = f"{_utils._PACKAGE}some_module.py"
    code = "class Bound:\n    @cached_property\n    def x(self): warn_user('hm')\ndef public(): return Bound().x"
    exec(compile(code, path, "exec"), namespace)  # a frame of the standard library lies between two of the package
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        namespace["public"]()
    assert [(w.filename, str(w.message), w.category) for w in caught] == [(__file__, "hm", UserWarning)]


def test_progress_bar_passes_everything_on_and_shows_its_name(capsys):
    assert list(progress_bar(range(3), desc="Embedding")) == [0, 1, 2]
    assert "Embedding" in capsys.readouterr().err
