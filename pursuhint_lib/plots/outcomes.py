"""Figures of the study: arrays or data frames in, a matplotlib figure out. Nothing is read or saved here.

One style for all figures, and one colour per method and per kind of arm everywhere.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Protocol

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

WIDTH = 7.0  # inches: a page of text


class Clusters(Protocol):
    """What is drawn of a clustering: hint points and, for each sub-block, which of them it belongs to (0-based)."""

    indices: Sequence[int]
    labels: Sequence[int]


_STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "legend.fontsize": 8, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "svg.hashsalt": "pursuhint", "svg.fonttype": "none", "figure.constrained_layout.use": True,
}  # fmt: skip

_SAFE = sns.color_palette("colorblind").as_hex()

# Prefix of an arm → colour (colour-blind safe); the first that fits counts.
_ARM_COLOURS = {
    "pursuhint-r2": _SAFE[0], "pursuhint-cka-linear": _SAFE[9], "pursuhint-cka-rbf": "#004c6d", "pursuhint-": _SAFE[0],
    "stage-ends": _SAFE[1], "segment-middles": _SAFE[2], "kmedoids": _SAFE[4], "random-": "#8c8c8c", "none": "#222222",
    "alone": "#222222", "first": _SAFE[3], "last": _SAFE[5],
}  # fmt: skip


def arm_colour(arm: str) -> str:
    """Colour of an arm, the same in every figure."""
    return next((colour for prefix, colour in _ARM_COLOURS.items() if arm.startswith(prefix)), _SAFE[7])


def style():
    """Context in which figures are drawn and saved."""
    return matplotlib.rc_context(_STYLE)


def _figure(height: float, width: float = WIDTH, **subplots) -> tuple[Figure, np.ndarray | Axes]:
    """A figure in the study's style, without pyplot's global state."""
    with style():
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(**subplots)


def styled(function):
    """Draw in the study's style, whatever the notebook's own settings are."""

    def draw(*arguments, **keywords) -> Figure:
        with style():
            return function(*arguments, **keywords)

    draw.__doc__, draw.__name__ = function.__doc__, function.__name__
    return draw


@styled
def similarity_heatmaps(matrices: Mapping[str, np.ndarray], points: Mapping[str, Clusters]) -> Figure:
    """One heatmap per metric: clusters as frames on the diagonal and a band at the side, hint points as dots.

    **Arguments:** metric → [L, L] similarity; metric → the hint points chosen on it.
    """
    side = min(3.0, (WIDTH - 1.2) / len(matrices))
    figure, axes = _figure(side + 0.6, side * len(matrices) + 1.2, ncols=len(matrices), squeeze=False)
    for column, (axis, (metric, matrix)) in enumerate(zip(axes[0], matrices.items(), strict=True)):
        layers = len(matrix)
        image = axis.imshow(matrix, cmap="viridis", vmin=0, vmax=1, extent=(0.5, layers + 0.5, layers + 0.5, 0.5))
        _cluster_bands(axis, points[metric])
        for index in points[metric].indices:
            axis.plot(index + 1, index + 1, "o", color="white", markeredgecolor="black", markersize=6)
        ticks = [int(t) for t in np.unique(np.linspace(1, layers, min(layers, 9)).round())]
        axis.set(title=metric, xlabel="sub-block", xticks=ticks, yticks=ticks, ylabel="" if column else "sub-block")
        axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes[0], label="similarity", shrink=0.72)
    return figure


def _cluster_bands(axis: Axes, points: Clusters) -> None:
    """A coloured band left of the heatmap for each sub-block's cluster, and a frame for each run of one cluster."""
    layers = len(points.labels)
    left, width = -0.35 - 0.03 * layers, 0.03 * layers + 0.5
    for layer, label in enumerate(points.labels):
        axis.add_patch(Rectangle((left, layer + 0.5), width, 1, color=_SAFE[label % len(_SAFE)], lw=0, clip_on=False))
    starts = [0, *(i for i in range(1, layers) if points.labels[i] != points.labels[i - 1]), layers]
    for start, end in pairwise(starts):
        axis.add_patch(Rectangle((start + 0.5, start + 0.5), end - start, end - start, fill=False, color="white", lw=1.5))
    axis.set_xlim(left, layers + 0.5)


@styled
def depth_strip(arms: Mapping[str, Sequence[int]], layers: int, stage_ends: Sequence[int]) -> Figure:
    """Which sub-blocks each arm uses: one row per arm, depth from left to right, stage borders as lines.

    **Arguments:** arm → 0-based indices; number of sub-blocks; 0-based indices of the stage ends.
    """
    figure, axis = _figure(0.9 + 0.26 * len(arms))
    for row, (arm, indices) in enumerate(arms.items()):
        axis.hlines(row, 1, layers, color="#e3e3e3", lw=5, zorder=1)
        axis.scatter([i + 1 for i in indices], [row] * len(indices), s=52, color=arm_colour(arm), zorder=3)
    for end in stage_ends[:-1]:
        axis.axvline(end + 1.5, color="#999999", lw=0.8, ls=":", zorder=2)
    axis.set(yticks=range(len(arms)), yticklabels=list(arms), ylim=(len(arms) - 0.4, -0.6), xlim=(0.4, layers + 0.6))
    axis.set(xlabel="sub-block of the teacher (dotted: borders of its stages)")
    axis.set_xticks([int(t) for t in np.unique(np.linspace(1, layers, min(layers, 18)).round())])
    axis.spines["left"].set_visible(False)
    axis.tick_params(left=False)
    return figure


@styled
def training_curves(histories: Mapping[str, Sequence[Mapping]], ylabel: str = "test accuracy, %") -> Figure:
    """Accuracy over epochs, one line per arm: mean over seeds, thin lines for single seeds.

    **Arguments:** arm → one history (columns ``epoch`` and ``accuracy``) per seed.
    """
    figure, axis = _figure(3.2)
    for arm, runs in histories.items():
        colour, muted = arm_colour(arm), arm.startswith("random-")
        curves = [_measured(run) for run in runs]
        for epochs, accuracies in curves if len(curves) > 1 else []:
            axis.plot(epochs, accuracies, color=colour, lw=0.4, alpha=0.25)
        epochs = curves[0][0]
        mean = np.mean([accuracies for _, accuracies in curves], axis=0)
        axis.plot(epochs, mean, color=colour, lw=1.0 if muted else 1.8, ls=":" if muted else "-", marker="." if len(epochs) < 15 else "", label=arm)
    axis.set(xlabel="epoch", ylabel=ylabel)
    if len(histories) > 1:
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
    return figure


def _measured(history: Mapping) -> tuple[list[int], list[float]]:
    """Epochs with a measured accuracy, and the accuracies."""
    rows = [(e, a) for e, a in zip(history["epoch"], history["accuracy"], strict=True) if a is not None]
    return [e for e, _ in rows], [a for _, a in rows]


@styled
def accuracy_by_arm(frame: pd.DataFrame, title: str = "") -> Figure:
    """Accuracy of each arm: a small dot per seed, a large one with a 95 % interval for the mean; one panel per method.

    **Arguments:** columns method (as titled), arm, seed, accuracy; mean, low, high per (method, arm) in every row.
    """
    methods, arms = list(dict.fromkeys(frame["method"])), list(dict.fromkeys(frame["arm"]))
    figure, axes = _figure(1.0 + 0.24 * len(arms), ncols=len(methods), sharey=True, sharex=True, squeeze=False)
    for axis, method in zip(axes[0], methods, strict=True):
        for row, arm in enumerate(arms):
            cell = frame[(frame["method"] == method) & (frame["arm"] == arm)]
            if cell.empty:
                continue
            colour = arm_colour(arm)
            mean, low, high = cell[["mean", "low", "high"]].iloc[0]
            axis.scatter(cell["accuracy"], [row] * len(cell), s=9, color=colour, alpha=0.45, lw=0)
            if np.isfinite(low):
                axis.hlines(row, low, high, color=colour, lw=1.6)
            axis.scatter([mean], [row], s=30, color=colour, edgecolor="white", linewidth=0.6, zorder=3)
        axis.set(title=method, ylim=(len(arms) - 0.5, -0.5))
        axis.grid(axis="x", color="#eeeeee", lw=0.8)
        axis.locator_params(axis="x", nbins=4)
    axes[0, 0].set(yticks=range(len(arms)), yticklabels=arms)
    axes[0, 0].set_xlim(*_accuracy_limits(frame))
    figure.supxlabel("test accuracy at the last epoch, % (large: mean and 95 % interval over seeds)", fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def _accuracy_limits(frame: pd.DataFrame) -> tuple[float | None, float | None]:
    """Limits that show every seed, and intervals up to a point: with two seeds they can be wider than all accuracies there are."""
    low, high = frame["accuracy"].min(), frame["accuracy"].max()
    if not np.isfinite(low):
        return None, None
    room = max(1.0, 0.5 * (high - low))
    left, right = max(low - room, min(low, frame["low"].min())), min(high + room, max(high, frame["high"].max()))
    return left - 0.1 * room, right + 0.1 * room


@styled
def forest(panels: Mapping[str, pd.DataFrame], margin: float) -> Figure:
    """Paired differences with 95 % intervals, one panel per reference.

    **Arguments:** panel title → rows with columns label, arm, mean, low, high, n; ``margin`` is shaded as too small to matter.
    """
    rows = max(len(panel) for panel in panels.values())
    figure, axes = _figure(1.1 + 0.155 * rows, ncols=len(panels), sharex=True, squeeze=False)
    for axis, (title, panel) in zip(axes[0], panels.items(), strict=True):
        axis.axvspan(-margin, margin, color="#f0f0f0", zorder=0)
        axis.axvline(0, color="#777777", lw=0.8)
        for position, row in enumerate(panel.itertuples()):
            colour = arm_colour(row.arm)
            if np.isfinite(row.low):
                axis.hlines(position, row.low, row.high, color=colour, lw=1.5)
            axis.scatter([row.mean], [position], s=22, color=colour, zorder=3)
        axis.set(title=title, yticks=range(len(panel)), yticklabels=list(panel["label"]), ylim=(len(panel) - 0.4, -0.6))
        axis.tick_params(axis="y", labelsize=7, left=False)
    figure.supxlabel(f"difference in test accuracy, points (shaded: within ±{margin:g})", fontsize=9)
    return figure


@styled
def compression(networks: pd.DataFrame) -> Figure:
    """Accuracy against size of teacher, student alone and best distilled student.

    **Arguments:** columns network, role (teacher, student alone, best student), parameters, accuracy, low, high.
    """
    figure, axis = _figure(3.0)
    markers = {"teacher": "s", "student alone": "o", "best student": "*"}
    students = [n for n in dict.fromkeys(networks["network"]) if (networks[networks["network"] == n]["role"] != "teacher").any()]
    for row in networks.itertuples():
        colour = "#222222" if row.role == "teacher" else _SAFE[students.index(row.network)]
        best = row.role == "best student"
        # A student has the same size with and without a teacher; a little to the left its interval stays visible.
        x = row.parameters * (0.9 if best else 1.0)
        if np.isfinite(row.low):
            axis.vlines(x, row.low, row.high, color=colour, lw=1.2)
        axis.scatter([x], [row.accuracy], marker=markers[row.role], s=110 if best else 45, color=colour, zorder=3)
        if not best:
            axis.annotate(row.network, (x, row.accuracy), xytext=(7, -3), textcoords="offset points", fontsize=8, color=colour)
    axis.set(xscale="log", xlabel="parameters", ylabel="test accuracy, %")
    axis.margins(x=0.25, y=0.15)
    handles = [Line2D([], [], marker=m, color="#555555", ls="", markersize=9 if m == "*" else 6, label=role) for role, m in markers.items()]
    axis.legend(handles=handles, loc="lower right")
    return figure


@styled
def channel_statistics(table: pd.DataFrame) -> Figure:
    """Two bars per sub-block: channels, and of these the dead ones.

    **Arguments:** columns sub-block, channels, dead.
    """
    figure, axis = _figure(2.4)
    axis.bar(table["sub-block"], table["channels"], color="#c9d7e3", label="channels")
    axis.bar(table["sub-block"], table["dead"], color=_SAFE[1], label="dead (the same for every image)")
    axis.set(xlabel="sub-block", ylabel="channels")
    axis.locator_params(axis="x", nbins=18, integer=True)
    axis.legend(loc="upper left")
    return figure


@styled
def neighbour_similarity(matrices: Mapping[str, np.ndarray], stage_ends: Sequence[int]) -> Figure:
    """Similarity of each sub-block to the next one, a line per metric, stage borders as lines.

    **Arguments:** metric → [L, L]; 0-based indices of the stage ends.
    """
    figure, axis = _figure(2.6)
    for number, (metric, matrix) in enumerate(matrices.items()):
        colour = _SAFE[(0, 9, 2, 4, 7, 1)[number % 6]]
        axis.plot(range(1, len(matrix)), np.diagonal(matrix, 1), marker="o", markersize=3.5, color=colour, label=metric)
    for end in stage_ends[:-1]:
        axis.axvline(end + 1, color="#999999", lw=0.8, ls=":", zorder=0)
    axis.set(xlabel="sub-block, compared with the next one (dotted: last of a stage)", ylabel="similarity", ylim=(None, 1.02))
    axis.locator_params(axis="x", integer=True)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
    return figure


@styled
def claim_effects(claims: pd.DataFrame, margin: float) -> Figure:
    """The pooled difference behind each claim with its 95 % interval and its verdict.

    **Arguments:** the table of ``statistics.judge_claims``.
    """
    figure, axis = _figure(0.9 + 0.55 * len(claims))
    colours = {"reproduced": _SAFE[2], "not reproduced": _SAFE[3], "undecided": "#777777"}
    axis.axvspan(-margin, margin, color="#f0f0f0", zorder=0)
    axis.axvline(0, color="#777777", lw=0.8)
    for position, row in enumerate(claims.to_dict("records")):
        colour = colours[row["verdict"]]
        if np.isfinite(row["low"]):
            axis.hlines(position, row["low"], row["high"], color=colour, lw=2)
        axis.scatter([row["mean"]], [position], s=36, color=colour, zorder=3)
        axis.annotate(row["verdict"], (1.01, position), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=colour)
    labels = ["\n".join(_wrapped(text, 46)) for text in claims["claim"]]
    axis.set(yticks=range(len(claims)), yticklabels=labels, ylim=(len(claims) - 0.4, -0.6))
    axis.set(xlabel=f"difference in test accuracy, points (shaded: within ±{margin:g})")
    axis.tick_params(axis="y", left=False)
    return figure


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
