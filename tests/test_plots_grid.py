"""The grid of paired differences: every number at its place, sure ones framed."""

import numpy as np
import pandas as pd
import pytest

from pursuhint_lib import plots


def panel(arms=("none", "pursuhint-r2", "quality"), methods=("AT", "CRD in batch")):
    rows = [(method, arm) for method in methods for arm in arms]
    means = np.linspace(-4.0, 2.0, len(rows))
    return pd.DataFrame(
        {
            "label": [m for m, _ in rows],
            "arm": [a for _, a in rows],
            "mean": means,
            "p_holm": [0.001, *[0.5] * (len(rows) - 1)],
        }
    )


def test_every_number_stands_in_the_row_of_its_method_and_the_column_of_its_arm():
    figure = plots.effect_grid({"minus the stage ends": panel()}, 0.05)
    axis, bar = figure.axes
    texts = {(round(text.get_position()[1]), round(text.get_position()[0])): text for text in axis.texts}
    for place, row in enumerate(panel().itertuples()):
        text = texts[divmod(place, 3)]
        assert float(text.get_text().replace("−", "-")) == pytest.approx(row.mean, abs=0.05)
        assert (text.get_weight() == "bold") == (row.p_holm < 0.05)
    assert len(axis.patches) == 1
    assert [label.get_text() for label in axis.get_yticklabels()] == ["AT", "CRD in batch"]
    assert [label.get_text() for label in axis.get_xticklabels()] == [
        "no hints",
        "PURSUhInT, R²-CCA",
        "quality",
    ]
    # Red is worse, blue is better, and deep colours bear white numbers.
    assert axis.images[0].get_array()[0, 0] == -4.0
    assert texts[0, 0].get_color() == "white"
    assert texts[1, 0].get_color() == "black"
    # The bar ends where colours get no deeper, and says that there is more.
    assert bar.get_ylim() == axis.images[0].get_clim()


def test_missing_differences_and_zeros_are_told_apart():
    frame = panel().assign(mean=[np.nan, -0.01, 0.0, 1.0, 2.0, 3.0])
    axis = plots.effect_grid({"one": frame}, 0.05).axes[0]
    assert sorted(text.get_text() for text in axis.texts) == ["+0.0", "+0.0", "+1.0", "+2.0", "+3.0"]


def test_two_panels_may_have_different_arms():
    figure = plots.effect_grid(
        {
            "first": panel(),
            "second": panel(arms=("none", "stage-ends", "segment-middles", "pursuhint-cka-linear")),
        },
        0.05,
    )
    assert [len(axis.get_xticklabels()) for axis in figure.axes[:2]] == [3, 4]
    assert [axis.get_title() for axis in figure.axes[:2]] == ["first", "second"]
