"""Figures: they draw from small inputs and show the numbers they were given."""

import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
from figures import (
    ARMS,
    BY_K,
    DEPTHS,
    ENDS,
    FIGURES,
    FREQUENCY,
    LAYERS,
    MATRIX,
    OTHER_POINTS,
    POINTS,
    SINGLE,
    TAKEN,
    accuracies,
    dots,
    histories,
    panel,
    qualities,
    spans,
)
from matplotlib import pyplot
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure

from pursuhint_lib import plots
from pursuhint_lib.clustering import HintPoints, kmeans_rounds
from pursuhint_lib.plots.style import arm_title
from pursuhint_lib.similarity import METRICS

# Other than the study's own style, so that a leak of the latter shows.
NOTEBOOK_STYLE = {
    "font.size": 30,
    "axes.spines.top": True,
    "legend.frameon": True,
    "svg.hashsalt": "mine",
    "figure.dpi": 77,
}


def test_the_table_of_figures_is_complete():
    drawn = {name for name, what in vars(plots).items() if callable(what)}
    assert set(FIGURES) == drawn - {"arm_colour", "arm_title", "style"}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_can_be_saved_and_leaves_no_global_state(name):
    pyplot.close("all")
    with matplotlib.rc_context(NOTEBOOK_STYLE):
        before = dict(matplotlib.rcParams)
        figure = FIGURES[name]()
        assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []
    assert isinstance(figure, Figure)
    for file_format, beginning in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=file_format)
        assert buffer.getvalue().startswith(beginning)
        assert len(buffer.getvalue()) > 2000
    assert getattr(plots, name).__name__ == name
    assert getattr(plots, name).__qualname__.startswith("styled."), "decorate it with @styled"
    assert getattr(plots, name).__doc__.strip()


@pytest.mark.parametrize("name", SINGLE)
def test_a_single_seed_without_an_interval_is_drawn(name):
    figure = SINGLE[name]()
    figure.savefig(io.BytesIO(), format="svg")
    for axis in figure.axes:
        assert np.isfinite([*axis.get_xlim(), *axis.get_ylim()]).all()


def test_a_figure_that_fails_leaves_no_global_state():
    with matplotlib.rc_context(NOTEBOOK_STYLE):
        before = dict(matplotlib.rcParams)
        with pytest.raises(KeyError):
            plots.layer_quality(qualities().drop(columns="quality"), [1])
        assert dict(matplotlib.rcParams) == before


def test_the_notebooks_own_style_does_not_show():
    with matplotlib.rc_context(NOTEBOOK_STYLE):
        figure = FIGURES["forest"]()
    assert figure.axes[0].title.get_fontsize() == 8.5
    assert not figure.axes[0].spines["top"].get_visible()


# ---- what the figures show


def test_heatmaps_mark_exactly_the_hint_points():
    figure = FIGURES["similarity_heatmaps"]()
    for axis, points in zip(figure.axes[:2], (POINTS, OTHER_POINTS), strict=True):
        marks = [
            (line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines if line.get_marker() == "o"
        ]
        assert marks == [(index + 1, index + 1) for index in points.indices]
    assert [axis.get_title() for axis in figure.axes[:2]] == ["R²-CCA", "cka"]


def test_a_heatmaps_cells_lie_at_their_numbers():
    matrix = MATRIX.copy()
    matrix[2, 6] = 0.123
    axis = plots.similarity_heatmaps({"r2": matrix}, {"r2": POINTS}).axes[0]
    image = axis.images[0]
    left, right, bottom, top = image.get_extent()
    assert (left, right) == (0.5, LAYERS + 0.5)
    assert (top, bottom) == (0.5, LAYERS + 0.5)
    assert image.get_array()[2, 6] == 0.123
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)


def test_a_heatmap_frames_each_run_of_one_cluster():
    labels = (0, 0, 1, 1, 0, 2, 2, 2, 2)
    axis = plots.similarity_heatmaps(
        {"r2": MATRIX}, {"r2": HintPoints((0, 2, 6), labels, "kmeans-index", 1.0, True, 2)}
    ).axes[0]
    frames = [
        (patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height())
        for patch in axis.patches
        if not patch.get_fill()
    ]
    assert frames == [(0.5, 0.5, 2, 2), (2.5, 2.5, 2, 2), (4.5, 4.5, 1, 1), (5.5, 5.5, 4, 4)]
    bands = [patch for patch in axis.patches if patch.get_fill()]
    assert [patch.get_y() + 0.5 for patch in bands] == list(range(1, LAYERS + 1))
    colours = [to_hex(patch.get_facecolor()) for patch in bands]
    assert [colours.index(colour) for colour in colours] == [labels.index(label) for label in labels]


def test_the_depth_strip_has_a_row_per_arm_with_dots_at_their_numbers():
    axis = FIGURES["depth_strip"]().axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "no hints",
        "stage ends",
        "PURSUhInT, R²-CCA",
    ]
    expected = [
        (index + 1, row, plots.arm_colour(arm))
        for row, (arm, matched) in enumerate(DEPTHS.items())
        for index, _ in matched
    ]
    assert dots(axis) == expected
    borders = [line.get_xdata()[0] for line in axis.lines]
    assert borders == [3.5, 6.5]


def test_the_forest_shows_means_and_intervals_at_their_places():
    figure = plots.forest(
        {
            "first": panel().assign(margin=[0.2, float("nan"), 0.2]),
            "second": panel(means=(1.0, 2.0, 3.0), low=0.75, high=4.0),
        },
        ("left", "right"),
    )
    for axis, title, means, interval in zip(
        figure.axes,
        ("first", "second"),
        ((0.5, -0.25, 1.5), (1.0, 2.0, 3.0)),
        ((-1.0, 2.0), (0.75, 4.0)),
        strict=True,
    ):
        assert axis.get_title() == title
        assert dots(axis) == [
            (mean, row, plots.arm_colour(arm))
            for row, (mean, arm) in enumerate(zip(means, ARMS[1:], strict=True))
        ]
        assert spans(axis) == [(*interval, row) for row in range(3)]
        assert axis.get_ylim()[0] > axis.get_ylim()[1]
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == [f"row {arm}" for arm in ARMS[1:]]
    shaded = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in first.patches]
    assert shaded == [pytest.approx((-0.2, 0.2))] * 2
    assert not second.patches
    assert figure.get_supxlabel().startswith("← left      right →")


def test_a_difference_that_is_not_known_is_a_hollow_dot():
    known = [True, False, True]
    (axis,) = plots.forest({"one": panel().assign(known=known)}).axes
    assert [colour != "#ffffff" for *_, colour in dots(axis)] == known


@pytest.mark.parametrize("name", ["forest", "accuracy_by_arm"])
def test_an_infinite_interval_is_left_out_and_the_mean_is_kept(name):
    for axis in SINGLE[name]().axes[name == "accuracy_by_arm" :]:
        assert spans(axis) == []
        assert dots(axis)


def test_the_interval_of_three_seeds_of_one_arm_is_shown_whole():
    frame = pd.DataFrame(
        {"method": "student alone", "arm": "alone", "seed": range(3), "accuracy": [33.92, 32.08, 32.34]}
    )
    shown = frame.assign(mean=32.78, low=30.30, high=35.26)
    low, high = plots.accuracy_by_arm(shown, "", TAKEN, ENDS).axes[1].get_xlim()
    assert low < 30.30 < 35.26 < high


def test_accuracies_are_shown_per_seed_and_on_average():
    figure = FIGURES["accuracy_by_arm"]()
    strip, *panels = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["hint layers", "FitNet", "AT"]
    assert [label.get_text() for label in strip.get_yticklabels()] == [*map(arm_title, ARMS)]
    taken = [(row + 0.5, arm, layer + 1) for row, arm in enumerate(ARMS) for layer in TAKEN.get(arm, ())]
    assert dots(strip) == [(layer, row, plots.arm_colour(arm)) for row, arm, layer in taken]
    assert [border.get_xdata()[0] for border in strip.lines] == [3.5, 6.5]
    for axis, arms in zip(panels, (ARMS, ARMS[:3]), strict=True):
        colours = [(row + 0.5, plots.arm_colour(arm)) for row, arm in enumerate(arms)]
        assert sorted(dots(axis)) == sorted(
            (value, *rest) for value in (90.0, 90.5, 91.0) for rest in colours
        )
        assert spans(axis) == [(88.0, 92.0, row + 0.5) for row in range(len(arms))]


def test_arms_that_are_the_same_run_are_drawn_once():
    same = TAKEN | {"segment-middles": TAKEN["pursuhint-r2"]}
    frame = accuracies()
    copy = frame[frame["arm"] == "pursuhint-r2"].assign(arm="segment-middles")
    alone = plots.accuracy_by_arm(frame, "", TAKEN, ENDS)
    both = plots.accuracy_by_arm(pd.concat([frame, copy]), "", same, ENDS)
    counts = [[len(dots(axis)) for axis in figure.axes] for figure in (alone, both)]
    assert counts[0] == counts[1]
    shared = "PURSUhInT, R²-CCA\n= segment middles"
    labels = [label.get_text() for label in both.axes[0].get_yticklabels()]
    assert labels == ["no hints", "stage ends", shared, "random 1"]

    runs = histories()
    axis = plots.training_curves(runs | {"segment-middles": runs["pursuhint-r2"]}, []).axes[0]
    assert shared in [line.get_label() for line in axis.lines]
    assert len(axis.lines) == len(plots.training_curves(runs, []).axes[0].lines)


@pytest.mark.parametrize(
    ("arm", "title"),
    [
        ("pursuhint-cka-linear-debiased", "PURSUhInT, debiased linear CKA"),
        ("kmedoids-r2", "kmedoids, R²-CCA"),
        ("pursuhint-my_lab:own_cka", "PURSUhInT, my_lab:own_cka"),
        ("my_lab:own_cka", "my_lab:own_cka"),
        ("coverage, cka-rbf", "coverage, RBF CKA"),
        ("stage-set-2-5-8", "stage set 2-5-8"),
        ("alone", "student alone"),
    ],
)
def test_arms_have_titles(arm, title):
    assert arm_title(arm) == title


def test_curves_show_the_mean_of_the_measured_epochs():
    axis = plots.training_curves(histories(3), [2]).axes[0]
    titles = dict(zip(map(arm_title, ARMS), ARMS, strict=True))
    means = {titles[line.get_label()]: line for line in axis.lines if line.get_label() in titles}
    assert tuple(means) == ARMS
    for place, (arm, line) in enumerate(means.items()):
        assert list(line.get_xdata()) == [1, 3]
        assert list(line.get_ydata()) == [51.0, 72.0 + place]
        assert to_hex(line.get_color()) == plots.arm_colour(arm)
    # Each arm's mean and three seeds, and the epoch after which the learning rate falls.
    assert len(axis.lines) == len(ARMS) * (3 + 1) + 1
    assert list(axis.lines[0].get_xdata()) == [2, 2]


def test_each_sub_block_is_compared_with_the_next():
    axis = FIGURES["neighbour_similarity"]().axes[0]
    for line, metric, matrix in zip(axis.lines, ("R²-CCA", "cka"), (MATRIX, MATRIX**2), strict=False):
        assert line.get_label() == metric
        assert list(line.get_xdata()) == list(range(1, LAYERS))
        assert list(line.get_ydata()) == pytest.approx([matrix[i, i + 1] for i in range(LAYERS - 1)])
    assert [border.get_xdata()[0] for border in axis.lines[2:]] == [3, 6]


def test_the_lines_of_all_metrics_can_be_told_apart():
    axis = plots.neighbour_similarity(
        {metric: MATRIX ** (number + 1) for number, metric in enumerate(METRICS)}, (2, 5, 8)
    ).axes[0]
    lines = [line for line in axis.lines if line.get_label() in map(arm_title, METRICS)]
    assert len(lines) == len(METRICS)
    assert len(
        {(to_hex(line.get_color()), line.get_linestyle(), line.get_marker()) for line in lines}
    ) == len(METRICS)


# ---- colours

MAIN = ("none", "stage-ends", "pursuhint-r2", "pursuhint-cka-linear", "pursuhint-cka-rbf")
MAIN += ("segment-middles", "kmedoids-cka-linear", "random-1", "last")


def test_the_main_arms_have_colours_of_their_own():
    assert len({to_rgba(plots.arm_colour(arm)) for arm in MAIN}) == len(MAIN)
    assert len({plots.arm_colour(f"random-{number}") for number in range(1, 12)}) == 1


@pytest.mark.parametrize("arm", [*MAIN, "first", "alone", "teacher", "pursuhint-r2-raw", "never-heard-of"])
def test_every_arm_has_a_colour(arm):
    assert to_rgba(plots.arm_colour(arm))[3] == 1
    assert plots.arm_colour(arm) == plots.arm_colour(arm)


def strips(axis) -> dict[float, list[str]]:
    """Row → colours of its sub-blocks from left to right."""
    runs = sorted(
        (p.get_y() + p.get_height() / 2, p.get_x(), round(p.get_width()), to_hex(p.get_facecolor()))
        for p in axis.patches
    )
    return {
        row: [colour for r, _, width, colour in runs if r == row for _ in range(width)]
        for row in sorted({run[0] for run in runs})
    }


def test_rounds_show_the_clusters_and_centres_of_every_step():
    rounds = kmeans_rounds(MATRIX, 3)
    axes = plots.kmeans_rounds({"r2": rounds, "cka": [(POINTS.indices, POINTS.labels)] * 12}, shown=5).axes
    assert len(strips(axes[0])) == min(5, len(rounds))
    assert len(strips(axes[1])) == 5
    for (centres, labels), colours, line in zip(
        rounds, strips(axes[0]).values(), axes[0].lines, strict=False
    ):
        assert [colours.index(colour) for colour in colours] == [
            list(labels).index(label) for label in labels
        ]
        assert list(line.get_xdata()) == [centre + 1 for centre in centres]


def test_clusters_by_k_has_a_row_per_number():
    axis = plots.clusters_by_k({"r2": BY_K}).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["k = 2", "k = 3", "k = 4"]
    assert [len(line.get_xdata()) for line in axis.lines] == [2, 3, 4]


def test_margins_stand_at_their_sub_blocks_in_the_colour_of_their_cluster():
    axis = FIGURES["cluster_margins"]().axes[0]
    bars = sorted(
        (patch.get_x() + patch.get_width() / 2, patch.get_height(), to_hex(patch.get_facecolor()))
        for patch in axis.patches
    )
    assert [(round(x), height) for x, height, _ in bars] == [(number + 1, number) for number in range(LAYERS)]
    assert len({colour for *_, colour in bars}) == 3
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["1–3", "4–6", "7–9"]


def test_a_curve_marks_the_number_it_prefers():
    axis = FIGURES["k_curves"]().axes[0]
    rings = [line for line in axis.lines if line.get_markersize() == 9]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings] == [(3, 0.4), (3, 0.4)]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["R²-CCA: 3", "cka: 3"]


def test_the_ablation_leaves_a_row_empty_where_there_is_no_answer():
    figure = FIGURES["ablation_grid"]()
    shown = [len(strips(axis)) for axis in figure.axes]
    assert shown == [3, 0, 3, 0]
    assert figure.axes[0].get_title() == "kmedoids"
    assert figure.axes[2].get_ylabel().startswith("cka")


def test_agreement_is_written_in_its_field():
    figure = FIGURES["agreement_heatmaps"]()
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.0", "1.2", "1.2", "0.0"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["0.00", "1.25", "1.25", "0.00"]


def test_dark_is_agreement_whatever_a_table_counts():
    figure = FIGURES["agreement_heatmaps"]()
    shift, index = (axis.images[0] for axis in figure.axes[:2])
    assert shift.get_array().ravel().tolist() == [1, 0.5, 0.5, 1]
    assert index.get_array().ravel().tolist() == [0, 1.25, 1.25, 0]
    assert {image.get_clim() for image in (shift, index)} == {(0, 1)}
    ends = [[label.get_text() for label in axis.get_yticklabels()] for axis in figure.axes[2:]]
    assert ends == [["2.5 or worse", "0.0"], ["0.00 or worse", "1.00"]]


def test_stability_shows_shares_circles_and_every_repetition():
    figure = FIGURES["stability"]()
    left, right = figure.axes[:2]
    assert left.images[0].get_array().tolist() == [FREQUENCY.tolist()] * 2
    assert [list(line.get_xdata()) for line in left.lines] == [[2, 5, 8], [1, 5, 9]]
    assert sorted(x for x, *_ in dots(right)) == [0.3, 0.4, 0.8, 1.0]
    assert sorted(float(line.get_xdata()[0]) for line in right.lines) == pytest.approx([0.3, 0.6, 1.0])


def test_the_best_layers_are_ringed():
    axis = FIGURES["layer_quality"]().axes[0]
    rings = [tuple(offset) for collection in axis.collections for offset in collection.get_offsets().tolist()]
    assert rings == [(7, pytest.approx(7 / 9)), (9, pytest.approx(1.0))]
