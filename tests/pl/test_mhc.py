from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scstate_lora import pl


class Connected:
    """What a model with hyper-connections tells of them."""

    def __init__(self, layers=(0, 1, 2), size=4, spread=0.05):
        self.layers, self.size, self.spread = layers, size, spread

    def mhc_matrices(self):
        even = np.full((self.size, self.size), 1 / self.size)
        shares = [self.spread * (i + 1) for i in range(len(self.layers))]
        eye = np.eye(self.size)
        return {i: ((1 - s) * eye + s * even).astype(np.float32) for i, s in zip(self.layers, shares, strict=True)}

    def mhc_diagnostics(self):
        gains = ("forward_gain", "backward_gain", "composite_forward_gain", "composite_backward_gain")
        table = pd.DataFrame({"layer": list(self.layers), "kind": "streams", "size": self.size})
        return table.assign(**dict.fromkeys(gains, 1.0), distance_from_identity=0.1 * (1 + table.index), row_error=0.0)


def titles(axes) -> list[str]:
    return [ax.get_title() for ax in axes]


def test_a_matrix_a_layer_and_the_gains():
    model = Connected(layers=(0, 2, 5))
    axes = pl.mhc_mixing(model)
    assert titles(axes) == ["layer 0", "layer 2", "layer 5", "gains"]
    for ax, (layer, matrix) in zip(axes, model.mhc_matrices().items(), strict=False):
        (image,) = ax.get_images()
        np.testing.assert_allclose(image.get_array(), matrix, rtol=1e-6)
        assert image.get_clim() == (0, 1), layer
        assert [text.get_text() for text in ax.texts] == [f"{value:.2f}" for value in matrix.ravel()]
        assert ax.get_xlabel() == "stream before"
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["1", "2", "3", "4"]


def test_draws_the_numbers_of_the_diagnostics():
    _, ax = plt.subplots()
    model = Connected()
    assert pl.mhc_mixing(model, ax=ax) is ax
    drawn = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    table = model.mhc_diagnostics()
    np.testing.assert_allclose(drawn["distance from identity"], table["distance_from_identity"])
    np.testing.assert_allclose(drawn["composite gain, backward"], table["composite_backward_gain"])
    assert len(drawn) == 5
    assert ax.get_ylim()[0] == 0
    assert not ax.get_images()


def test_one_layer_on_axes_given():
    figure, ax = plt.subplots()
    assert pl.mhc_mixing(Connected(), layers=[1], ax=ax) is ax
    assert ax.get_title() == "layer 1"
    assert len(ax.get_images()) == 1
    assert len(figure.axes) == 2  # its colour bar


def test_large_matrices_are_logarithmic_and_without_numbers():
    axes = pl.mhc_mixing(Connected(size=32, spread=0.01))
    for ax in axes[:-1]:
        (image,) = ax.get_images()
        assert type(image.norm).__name__ == "LogNorm"
        assert not ax.texts
        assert ax.get_ylabel() == "feature after"


def test_of_many_layers_some_are_drawn_unless_asked_for():
    model = Connected(layers=tuple(range(24)), spread=0.01)
    drawn = titles(pl.mhc_mixing(model))
    assert len(drawn) == 12
    assert (drawn[0], drawn[-2], drawn[-1]) == ("layer 0", "layer 23", "gains")
    assert len(set(drawn)) == 12
    assert titles(pl.mhc_mixing(model, layers=[7, 3])) == ["layer 7", "layer 3", "gains"]


def test_what_cannot_be_drawn_raises():
    with pytest.raises(TypeError, match=r"A DataFrame has no hyper-connections to draw.*train\(mhc=True\)"):
        pl.mhc_mixing(pd.DataFrame())
    with pytest.raises(KeyError, match=r"The layers \[3\] have no hyper-connections; these have: \[0, 1, 2\]"):
        pl.mhc_mixing(Connected(), layers=[0, 3])
    with pytest.raises(ValueError, match="layers is empty"):
        pl.mhc_mixing(Connected(), layers=[])
