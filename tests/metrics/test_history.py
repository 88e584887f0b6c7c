from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest

from scstate_lora.metrics.history import named_histories

HISTORY = pd.DataFrame({"step": [0, 1], "loss": [2.0, 1.0]})
MODEL = SimpleNamespace(history=HISTORY)


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (MODEL, ["SimpleNamespace"]),
        (HISTORY, ["history"]),
        ({"a": MODEL, 1: HISTORY}, ["a", "1"]),
        ([MODEL, None, HISTORY, MODEL], ["SimpleNamespace", "history", "SimpleNamespace 2"]),
    ],
)
def test_histories_are_named(models, names):
    histories = named_histories(models, columns=["step", "loss"])
    assert list(histories) == names
    assert all(history is HISTORY for history in histories.values())


@pytest.mark.parametrize(
    ("models", "error", "match"),
    [
        ([None], ValueError, "holds no model"),
        ({"a": 1}, TypeError, "'a' is a int without a `.history`"),
        (HISTORY[["step"]], ValueError, r"lacks the columns \['loss'\]"),
        (HISTORY[:0], ValueError, "is empty"),
        (pd.DataFrame(), ValueError, "is empty"),
    ],
)
def test_no_history_raises(models, error, match):
    with pytest.raises(error, match=match):
        named_histories(models, columns=["step", "loss"])
