"""The figure of accuracy against costs: points where the numbers are, lines between what belongs together,
labels that can be read.
"""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.text import Annotation

from pursuhint_lib import plots


def networks(**changes) -> pd.DataFrame:
    rows = [
        ("a-b", "a", "teacher", "–", "–", 97.0, -np.inf, np.inf, 270_000, 0.12),
        ("a-b", "b", "student alone", "ce", "alone", 85.5, 80.7, 90.4, 5_000, 0.025),
        ("a-b", "b", "best student", "rkd", "all", 93.3, 91.8, 94.9, 5_000, 0.024),
        ("a-c", "c", "best student", "at", "none", 93.4, 92.0, 95.0, 60_000, 0.03),
    ]
    columns = ["pair", "network", "role", "method", "arm", "accuracy", "low", "high", "parameters", "ms"]
    return pd.DataFrame(rows, columns=columns).assign(teacher="a", **changes)


def arrows(axis) -> list[Annotation]:
    """Annotations that are an arrow alone."""
    return [
        text
        for text in axis.texts
        if isinstance(text, Annotation) and text.arrow_patch and not text.get_text()
    ]


def test_the_figure_puts_networks_at_their_cost_and_accuracy():
    frame = networks()
    figure = plots.compression_costs(frame, {"parameters": "parameters", "ms": "ms per image"})
    assert [axis.get_xlabel() for axis in figure.axes] == ["parameters", "ms per image"]
    for axis, cost in zip(figure.axes, ("parameters", "ms"), strict=True):
        assert axis.get_xscale() == "log"
        dots = [
            tuple(map(float, spot))
            for group in axis.collections
            if isinstance(group, PathCollection)
            for spot in group.get_offsets()
        ]
        assert dots == [tuple(pair) for pair in frame[[cost, "accuracy"]].astype(float).to_numpy()]
        # The student whose plain version is not there has its name in its label.
        assert [text.get_text() for text in axis.texts if text.get_text()] == [
            "a",
            "b",
            "rkd, all",
            "c, at, no hints",
        ]
        assert sorted((arrow.xyann[0], arrow.xy[0]) for arrow in arrows(axis)) == sorted(
            [
                (frame[cost][0], frame[cost][2]),
                (frame[cost][0], frame[cost][3]),
                (frame[cost][1], frame[cost][2]),
            ]
        )
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_networks_of_several_pairs_are_named_once_and_stand_by_their_own_teacher():
    mine = networks().iloc[:3]
    # The same teacher and student of another pair, with fewer seeds; and the student as the teacher of a
    # third.
    others = mine.assign(pair="a-b2", accuracy=mine["accuracy"] + [0, 1, -4], method="at")
    third = mine.assign(
        pair="b-c",
        teacher="b",
        network=["b", "c", "c"],
        accuracy=[90.0, 70.0, 75.0],
        parameters=[5_000, 900, 900],
    )
    axis = plots.compression_costs(pd.concat([mine, others, third]), {"parameters": "parameters"}).axes[0]
    assert sorted(text.get_text() for text in axis.texts if text.get_text()) == sorted(
        ["a", "b", "rkd, all", "at, all", "b", "c", "rkd, all"]
    )
    ends = {(arrow.xyann[1], arrow.xy[1]) for arrow in arrows(axis)}
    assert ends == {(97.0, 93.3), (97.0, 89.3), (90.0, 75.0), (85.5, 93.3), (86.5, 89.3), (70.0, 75.0)}


def test_labels_of_the_figure_keep_clear_of_each_other():
    figure = plots.compression_costs(networks(), {"parameters": "parameters", "ms": "ms"})
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = [text.get_window_extent() for text in axis.texts if text.get_text()]
        assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if box.overlaps(other)]
        assert all(axis.get_window_extent().x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ([84e6, 24e6], ["30M", "50M", "70M"]),
        ([9_900, 5_000], ["5k", "10k"]),
        ([270_000, 5_000], ["10k", "100k"]),
        ([0.42, 0.13], ["0.2", "0.3"]),
        ([13e9, 11e9], ["13G", "11G"]),
    ],
)
def test_the_axis_of_costs_has_two_numbers_at_least_and_they_keep_clear_of_each_other(costs, expected):
    frame = networks().iloc[:2].assign(cost=costs)
    axis = plots.compression_costs(
        frame, dict.fromkeys(["cost"], "cost") | {"parameters": "parameters", "ms": "ms"}
    ).axes[0]
    axis.figure.draw_without_rendering()
    labels = [label for label in axis.get_xticklabels() if label.get_text()]
    assert [label.get_text() for label in labels] == expected
    boxes = [label.get_window_extent() for label in labels]
    assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if box.overlaps(other)]


def test_intervals_of_two_seeds_do_not_blow_the_figure_up():
    figure = plots.compression_costs(networks(low=-500.0, high=700.0), {"parameters": "parameters"})
    low, high = figure.axes[0].get_ylim()
    assert 75 < low < 85.5
    assert 97 < high < 105
