"""Figures of a teacher's layers: how alike they are, and which are chosen."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..clustering import HintPoints
from .style import (
    SAFE,
    WIDTH,
    arm_colour,
    arm_title,
    labelled_rows,
    new_figure,
    number_ticks,
    styled,
    vector_colorbar,
)

# Heatmaps side by side at most.
COLUMNS = 4


def cluster_colour(label: int) -> str:
    """Colour of a cluster, by its place in depth."""
    return SAFE[label % len(SAFE)]


def runs_of_clusters(labels: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Start and end (exclusive) of each run of sub-blocks of one cluster."""
    return pairwise([0, *(i for i in range(1, len(labels)) if labels[i] != labels[i - 1]), len(labels)])


def metric_colour(number: int) -> str:
    """Colour of the line of a metric, by its place in the profile."""
    return SAFE[(0, 9, 2, 4, 7, 1, 3, 5, 6, 8)[number % 10]]


@styled
def similarity_heatmaps(matrices: Mapping[str, np.ndarray], points: Mapping[str, HintPoints]) -> Figure:
    """One heatmap per metric: clusters as frames on the diagonal and a band at the side, hint layers as dots.

    **Arguments:** metric → [L, L] similarity; metric → the hint layers chosen on it.
    """
    columns = min(COLUMNS, len(matrices))
    rows = -(-len(matrices) // columns)
    side = min(3.0, (WIDTH - 1.2) / columns)
    figure, axes = new_figure(
        (side + 0.6) * rows, side * columns + 1.2, ncols=columns, nrows=rows, squeeze=False
    )
    for axis in axes.flat[len(matrices) :]:
        axis.set_axis_off()
    for place, (axis, (metric, matrix)) in enumerate(zip(axes.flat, matrices.items(), strict=False)):
        layers = len(matrix)
        image = axis.imshow(
            matrix, cmap="viridis", vmin=0, vmax=1, extent=(0.5, layers + 0.5, layers + 0.5, 0.5)
        )
        _cluster_bands(axis, points[metric])
        for index in points[metric].indices:
            axis.plot(index + 1, index + 1, "o", color="white", markeredgecolor="black", markersize=6)
        ticks = number_ticks(layers, 9 if columns < COLUMNS else 5)
        axis.set(
            title=arm_title(metric),
            xlabel="sub-block",
            xticks=ticks,
            yticks=ticks,
            ylabel="" if place % columns else "sub-block",
        )
        axis.spines[:].set_visible(False)
    vector_colorbar(figure, image, ax=axes, label="similarity", shrink=0.72 if rows == 1 else 0.5)
    return figure


def _cluster_bands(axis: Axes, points: HintPoints) -> None:
    """A coloured band left of the heatmap for each sub-block's cluster, and a frame for each run of one
    cluster.
    """
    layers = len(points.labels)
    left, width = -0.35 - 0.03 * layers, 0.03 * layers + 0.5
    for layer, label in enumerate(points.labels):
        axis.add_patch(
            Rectangle((left, layer + 0.5), width, 1, color=cluster_colour(label), lw=0, clip_on=False)
        )
    for start, end in runs_of_clusters(points.labels):
        axis.add_patch(
            Rectangle((start + 0.5, start + 0.5), end - start, end - start, fill=False, color="white", lw=1.5)
        )
    axis.set_xlim(left, layers + 0.5)


@styled
def depth_strip(
    arms: Mapping[str, Sequence[tuple[int, int]]], layers: int, stage_ends: Sequence[int]
) -> Figure:
    """Which sub-blocks each arm uses: one row per arm, depth from left to right, stage borders as lines.

    **Arguments:** arm → (teacher sub-block, student's hint layer that learns from it), 0-based; number of
    sub-blocks; 0-based indices of the stage ends.
    """
    figure, axis = new_figure(0.9 + 0.26 * len(arms))
    for row, (arm, matched) in enumerate(arms.items()):
        axis.hlines(row, 1, layers, color="#e3e3e3", lw=5, zorder=1)
        axis.scatter(
            [i + 1 for i, _ in matched],
            [row] * len(matched),
            s=80 if layers < 30 else 52,
            color=arm_colour(arm),
            zorder=3,
        )
        for index, student in matched:
            axis.annotate(
                str(student + 1),
                (index + 1, row),
                ha="center",
                va="center_baseline",
                fontsize=6,
                color="white",
                zorder=4,
            )
    for end in stage_ends[:-1]:
        axis.axvline(end + 1.5, color="#999999", lw=0.8, ls=":", zorder=2)
    labelled_rows(
        axis,
        [*map(arm_title, arms)],
        xlim=(0.4, layers + 0.6),
        xticks=number_ticks(layers, 18),
        xlabel="sub-block of the teacher (dotted: borders of its stages; number: the student's hint layer "
        "that learns from it)",
    )
    axis.spines["left"].set_visible(False)
    return figure


@styled
def neighbour_similarity(matrices: Mapping[str, np.ndarray], stage_ends: Sequence[int]) -> Figure:
    """Similarity of each sub-block to the next one, a line per metric, stage borders as lines.

    **Arguments:** metric → [L, L]; 0-based indices of the stage ends.
    """
    figure, axis = new_figure(2.6)
    for number, (metric, matrix) in enumerate(matrices.items()):
        axis.plot(
            range(1, len(matrix)),
            np.diagonal(matrix, 1),
            marker="o",
            markersize=3.5,
            color=metric_colour(number),
            label=arm_title(metric),
        )
    for end in stage_ends[:-1]:
        axis.axvline(end + 1, color="#999999", lw=0.8, ls=":", zorder=0)
    axis.set(
        xlabel="sub-block, compared with the next one (dotted: last of a stage)",
        ylabel="similarity",
        ylim=(None, 1.02),
    )
    axis.locator_params(axis="x", integer=True)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
    return figure


@styled
def layer_quality(table: pd.DataFrame, chosen: Sequence[int]) -> Figure:
    """Quality score of each sub-block and its parts; the best ones marked.

    **Arguments:** columns number, quality, separation, information, efficiency; numbers of the marked
    sub-blocks.
    """
    figure, axis = new_figure(2.6)
    lines = {
        "quality": ("#222222", 2.0),
        "separation": (SAFE[0], 1.0),
        "information": (SAFE[1], 1.0),
        "efficiency": (SAFE[2], 1.0),
    }
    for name, (colour, width) in lines.items():
        axis.plot(table["number"], table[name], marker=".", color=colour, lw=width, label=name)
    marked, ring = table[table["number"].isin(chosen)], arm_colour("quality")
    axis.scatter(
        marked["number"],
        marked["quality"],
        s=70,
        facecolor="none",
        edgecolor=ring,
        linewidth=1.5,
        zorder=3,
        label="chosen",
    )
    axis.set(xlabel="sub-block", ylabel="score")
    axis.locator_params(axis="x", nbins=18, integer=True)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
    return figure
