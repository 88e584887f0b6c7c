from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scstate_lora import pl
from scstate_lora.pl.style import accents, diverging_map, ink, paper, shade, shortened, text_on
from tests.pl.conftest import LONG, assert_well_made, make_evaluate_table, make_history, make_perturbation_table


def test_colours_are_those_of_the_axes_and_not_of_the_moment():
    with plt.style.context("dark_background"):
        _, dark = plt.subplots()
    _, light = plt.subplots()
    assert (ink(dark), paper(dark)) == ("#ffffff", "#000000")
    assert (ink(light), paper(light)) == ("#000000", "#ffffff")
    assert shade(dark, 0.25) == "#404040"
    assert accents(dark) != accents(light)
    assert diverging_map(dark)(0.5)[:3] == pytest.approx((0, 0, 0), abs=0.02)
    light.set_facecolor("none")
    assert paper(light) == "#ffffff"
    assert (text_on("#ffff00"), text_on("#00204d")) == ("#000000", "#ffffff")


def test_names_are_shortened_in_their_middle():
    assert shortened("B cells") == "B cells"
    assert shortened("a" * 20 + "b" * 20, 10) == "aaaaaa…bbb"
    names = {shortened(f"{LONG}{i}") for i in range(30)}
    assert len(names) == 30
    assert max(map(len, names)) <= 28


@pytest.mark.parametrize("n_models", [1, 30])
def test_scores_of_any_number_of_models_with_long_names(n_models, style):
    table = make_perturbation_table(contexts=(LONG, f"{LONG}2"))
    own = table[table["model"] == "model"]
    others = [own.assign(model=f"{LONG}{i}") for i in range(n_models)]
    axes = pl.metrics(pd.concat([table[table["model"] != "model"], *others]))
    assert len({text.get_text() for text in axes[0].figure.legends[0].get_texts()}) == n_models + 4
    assert_well_made(axes)


def test_scores_that_are_all_missing_are_named(style):
    table = make_evaluate_table()
    axes = pl.metrics(table, metric="probe_r2")
    assert "only one value" in axes[0].texts[0].get_text()
    assert_well_made(axes)


@pytest.mark.parametrize("n_models", [1, 30])
def test_losses_of_one_epoch_and_of_many_models(n_models, style):
    histories = {f"{LONG}{i}": make_history(i, n_epochs=1, steps_per_epoch=1) for i in range(n_models)}
    axes = pl.loss_curves(histories, terms=[])
    assert len(axes[0].get_lines()) == 3 * n_models
    hollow = [line for line in axes[0].get_lines() if line.get_linestyle() == "--"]
    assert {line.get_markerfacecolor() for line in hollow} == {paper(axes[0])}
    assert_well_made(axes)


@pytest.mark.parametrize("n_categories", [1, 2, 30])
def test_embeddings_of_any_number_of_categories(n_categories, cells, style):
    cells.obs["type"] = [f"{LONG}{i % n_categories}" for i in range(cells.n_obs)]
    cells.obs.loc[cells.obs_names[:3], "type"] = np.nan
    axes = pl.embedding(cells, "X_flat", color="type", compare=None)
    assert len({text.get_text() for text in axes[0, 0].get_legend().get_texts()}) == n_categories + 1
    assert_well_made(axes)
