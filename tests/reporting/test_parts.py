from __future__ import annotations

import io
from urllib.parse import unquote

import numpy as np
import pandas as pd

from scstate_lora.metrics.baselines import BASELINES
from scstate_lora.metrics.registry import METRICS
from scstate_lora.reporting.glossary import Explainer, anchor_of, glossary
from scstate_lora.reporting.parts import SHOWN_ROWS, csv_of, skill_text, table, text


def test_numbers_as_text():
    values = [1234567, np.int64(3), 0.123456, 12345.6, float("nan"), float("inf"), True, None, "a"]
    assert [text(v) for v in values] == ["1,234,567", "3", "0.123", "12,346", "n/a", "inf", "yes", "", "a"]


def test_skill_is_shown_clipped():
    assert [skill_text(value) for value in (0.5, -0.25, 1.0, 9.9, -377.0, np.nan)] == [
        "0.5", "-0.25", "1", "1 (clipped)", "-1 (clipped)", "n/a",
    ]  # fmt: skip


def test_csv_keeps_every_digit_and_any_text():
    frame = pd.DataFrame(
        {"gene": ["A,1", 'B"2', "Ä #%&", "x\ny"], "value": [1 / 3, 1e-300, np.nan, 12345.678901234567]}
    )
    csv = csv_of(frame, "genes")
    assert csv.name == "genes.csv"
    assert not set('"<> #\n') & set(csv.data_uri.removeprefix("data:text/csv;charset=utf-8,"))
    content = unquote(csv.data_uri.split(",", 1)[1])
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(content), float_precision="round_trip"), frame)


def test_a_long_table_shows_its_first_rows_and_keeps_the_others_in_its_file():
    frame = pd.DataFrame({"row": np.arange(SHOWN_ROWS + 100)})
    shown = table(frame, "Rows", save_as="rows")
    assert len(shown.rows) == SHOWN_ROWS
    assert shown.note == "The first 500 of 600 rows."
    assert unquote(shown.csv.data_uri).count("\n") == len(frame) + 1
    assert shown.csv.note == ""


def test_a_file_too_large_for_the_page_says_what_it_lacks():
    frame = pd.DataFrame({"gene": ["a_rather_long_name"] * 40_000, "value": np.random.default_rng(0).random(40_000)})
    csv = csv_of(frame, "genes")
    content = unquote(csv.data_uri.split(",", 1)[1])
    n = content.count("\n") - 1
    assert csv.note == f"the first {n:,} of 40,000 rows"
    assert content.endswith("\n")
    assert 20_000 < n < 40_000


def test_words_are_explained_once_in_a_text_and_listed():
    explain = Explainer()
    html = str(explain("Skill & <skill>, skill: better than mean shifts, not 'replicate' or meanshift"))
    assert html.count('class="term"') == 2
    assert 'href="#word-skill"' in html
    assert 'href="#word-mean-shift"' in html
    assert "Skill &amp; &lt;<a" in html
    assert "&#39;replicate&#39;" in html  # a quoted name is no word of ours
    anchors = [anchor for anchor, _, _ in explain.entries()]
    assert {"word-skill", "word-mean-shift"} <= set(anchors)
    assert "word-replicate" in anchors  # which the explanation of skill uses
    assert len(anchors) == len(set(anchors)) < len(glossary())


def test_longer_words_go_first():
    assert 'href="#word-pearson-of-delta-top-20-genes"' in str(Explainer()("Pearson of delta, top 20 genes"))


def test_every_headline_score_is_explained_and_places_are_unique():
    words = glossary()
    assert all(metric.label in words for metric in METRICS.values() if metric.headline)
    assert set(BASELINES) <= set(words)
    assert len({anchor_of(word) for word in words}) == len(words)
    assert all(meaning.endswith(".") for meaning in words.values())
