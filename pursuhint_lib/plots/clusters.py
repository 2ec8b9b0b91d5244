"""Figures of how hint layers come about: rounds of the k-means, margins, numbers of points, selectors,
stability.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter

from ..clustering import HintPoints, KCurve
from .layers import cluster_colour, metric_colour, runs_of_clusters
from .style import (
    SAFE,
    WIDTH,
    arm_title,
    labelled_rows,
    new_figure,
    number_ticks,
    numbered_cells,
    styled,
    vector_colorbar,
)

# Hint layers, and for each sub-block which of them it belongs to.
Strip = tuple[Sequence[int], Sequence[int]]
# So many names at most have square tables side by side.
NAMES_ASIDE = 6


def _strips(
    axis: Axes, strips: Mapping[int, Strip], rows: Sequence[str], title: str, ticks: int = 6, size: float = 4
) -> None:
    """Rows of sub-blocks by their numbers, coloured by cluster, with the hint layers as dots."""
    dots = {"color": "white", "markeredgecolor": "black", "markersize": size}
    for row, (indices, labels) in strips.items():
        for start, end in runs_of_clusters(labels):
            colour = cluster_colour(labels[start])
            axis.barh(row, end - start, 0.8, start + 0.5, align="center", color=colour, alpha=0.55, lw=0)
        axis.plot([i + 1 for i in indices], [row] * len(indices), "o", **dots)
    layers = max((len(labels) for _, labels in strips.values()), default=1)
    labelled_rows(axis, rows, title=title, xlim=(0.5, layers + 0.5), xticks=number_ticks(layers, ticks))
    axis.spines[:].set_visible(False)


@styled
def kmeans_rounds(rounds: Mapping[str, Sequence[Strip]], shown: int = 8) -> Figure:
    """The paper's k-means step by step: a row per round, sub-blocks coloured by cluster, centres as dots.

    **Arguments:** metric → (centres, labels) of each round, 0-based; rounds after the first ``shown`` are
    left out.
    """
    height = min(shown, max(len(steps) for steps in rounds.values()))
    figure, axes = new_figure(1.0 + 0.3 * height, ncols=len(rounds), sharey=True, squeeze=False)
    for axis, (metric, steps) in zip(axes[0], rounds.items(), strict=True):
        names = [f"round {row + 1}" for row in range(height)]
        _strips(axis, dict(enumerate(steps[:height])), names, arm_title(metric))
        axis.set_xlabel("sub-block")
    return figure


@styled
def clusters_by_k(points: Mapping[str, Mapping[int, HintPoints]]) -> Figure:
    """How the clusters move with the number of points: a panel per metric, a row per k.

    **Arguments:** metric → k → hint layers.
    """
    rows = max(len(by_k) for by_k in points.values())
    figure, axes = new_figure(0.9 + 0.26 * rows, ncols=len(points), squeeze=False)
    for axis, (metric, by_k) in zip(axes[0], points.items(), strict=True):
        strips = {row: (chosen.indices, chosen.labels) for row, chosen in enumerate(by_k.values())}
        _strips(axis, strips, [f"k = {k}" for k in by_k], arm_title(metric))
        axis.set_xlabel("sub-block")
    return figure


@styled
def cluster_margins(
    points: Mapping[str, HintPoints],
    margins: Mapping[str, Sequence[float]],
    notes: Mapping[str, Sequence[str]],
) -> Figure:
    """By how much each sub-block is more like its own hint layer than like the next best one; a panel per
    metric.

    **Arguments:** metric → hint layers; metric → margin of each sub-block [L]; metric → a word per cluster
    for the legend.
    """
    figure, axes = new_figure(1.6 * len(points) + 0.3, nrows=len(points), sharex=True, squeeze=False)
    for axis, (metric, chosen) in zip(axes[:, 0], points.items(), strict=True):
        values, layers = margins[metric], len(chosen.labels)
        for label, note in enumerate(notes[metric]):
            members = [i for i in range(layers) if chosen.labels[i] == label]
            axis.bar(
                [i + 1 for i in members],
                [values[i] for i in members],
                color=cluster_colour(label),
                alpha=0.75,
                label=note,
            )
        axis.plot(
            [i + 1 for i in chosen.indices],
            [values[i] for i in chosen.indices],
            "o",
            color="white",
            markeredgecolor="black",
            markersize=5,
        )
        axis.axhline(0, color="#777777", lw=0.8)
        axis.set(ylabel="margin", xticks=number_ticks(layers, 18))
        axis.set_title(arm_title(metric), loc="left")
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes[-1, 0].set_xlabel("sub-block")
    return figure


@styled
def k_curves(curves: Mapping[str, Mapping[str, KCurve]]) -> Figure:
    """Criteria for the number of hint layers: a panel per criterion, a line per metric, the preferred k
    marked.

    **Arguments:** criterion → metric → curve.
    """
    figure, axes = new_figure(2.6, ncols=len(curves), squeeze=False)
    for axis, (criterion, by_metric) in zip(axes[0], curves.items(), strict=True):
        for number, (metric, curve) in enumerate(by_metric.items()):
            colour = metric_colour(number)
            axis.errorbar(
                curve.ks,
                curve.values,
                curve.errors,
                color=colour,
                marker=".",
                lw=1.2,
                elinewidth=0.8,
                label=f"{arm_title(metric)}: {curve.best}",
            )
            best = list(curve.ks).index(curve.best)
            axis.plot(curve.best, curve.values[best], "o", markersize=9, markerfacecolor="none", color=colour)
        axis.set(title=criterion, xlabel="number of hint layers k")
        axis.locator_params(axis="x", integer=True)
        axis.legend(title="preferred k", title_fontsize=8)
    return figure


@styled
def ablation_grid(grid: Mapping[tuple[str, str], Mapping[int, HintPoints]]) -> Figure:
    """Metric × algorithm × k: a panel per metric and algorithm, a row per k, clusters in colour and points as
    dots.

    **Arguments:** (metric, algorithm) → k → hint layers; an algorithm that found none for some k has no row
    there.
    """
    metrics, algorithms = ([*dict.fromkeys(key[place] for key in grid)] for place in (0, 1))
    ks = sorted({k for by_k in grid.values() for k in by_k})
    height = 0.5 + len(metrics) * (0.3 + 0.13 * len(ks))
    figure, axes = new_figure(
        height, WIDTH + 1, nrows=len(metrics), ncols=len(algorithms), sharex=True, squeeze=False
    )
    for (metric, algorithm), by_k in grid.items():
        axis = axes[metrics.index(metric), algorithms.index(algorithm)]
        strips = {ks.index(k): (chosen.indices, chosen.labels) for k, chosen in by_k.items()}
        title = algorithm if metric == metrics[0] else ""
        _strips(axis, strips, [str(k) for k in ks], title, ticks=3, size=2.5)
        axis.tick_params(labelsize=6, labelleft=algorithm == algorithms[0])
        axis.title.set_fontsize(8)
        if algorithm == algorithms[0]:
            axis.set_ylabel(f"{arm_title(metric)}\nk", fontsize=6.5)
    figure.supxlabel("sub-block", fontsize=9)
    return figure


@styled
def agreement_heatmaps(
    tables: Mapping[str, pd.DataFrame], scales: Mapping[str, tuple[int, float, float]]
) -> Figure:
    """Square tables of agreement, each value written in its field; dark is agreement in all of them.

    **Arguments:** title → square frame with the same names on both sides; title → decimals shown, the value
    that is white (as are all worse ones), and that of full agreement.
    """
    names = max(len(table) for table in tables.values())
    # Side by side, fields of many names would be too small for their numbers.
    rows = len(tables) if names > NAMES_ASIDE else 1
    grid = {"nrows": rows, "ncols": len(tables) // rows}
    figure, axes = new_figure((0.33 * names + 1.5) * rows, WIDTH + 0.5, squeeze=False, **grid)
    for place, (axis, (title, table)) in enumerate(zip(axes.flat, tables.items(), strict=True)):
        decimals, worst, best = scales[title]
        agreement = (table.to_numpy(dtype=float) - worst) / (best - worst)
        texts = table.map(f"{{:.{decimals}f}}".format).to_numpy()
        numbered_cells(axis, agreement, texts, agreement > 0.6, cmap="Blues", vmin=0, vmax=1)
        ends = [f"{worst:.{decimals}f} or worse", f"{best:.{decimals}f}"]
        bar = {"ticks": [0, 1], "format": FixedFormatter(ends), "shrink": 0.8}
        vector_colorbar(figure, axis.images[0], ax=axis, **bar)
        axis.set(
            title=title,
            xticks=range(len(table)),
            yticks=range(len(table)),
            yticklabels=[] if place and rows == 1 else [*map(arm_title, table.index)],
        )
        axis.set_xticklabels(map(arm_title, table.columns), rotation=45, ha="right", rotation_mode="anchor")
        axis.tick_params(left=False, bottom=False)
    return figure


@styled
def stability(
    frequency: Mapping[str, np.ndarray], chosen: Mapping[str, Sequence[int]], changes: pd.DataFrame
) -> Figure:
    """Left: how often each sub-block is a hint layer over bootstrap samples; right: agreement of the clusters
    after each change.

    **Arguments:** metric → share of samples [L]; metric → 0-based hint layers on all images; columns kind,
    metric, ari, one row per repetition.
    """
    metrics, kinds = list(frequency), list(dict.fromkeys(changes["kind"]))
    height = max(0.34 * len(metrics), 0.42 * len(kinds)) + 1.2
    figure, (left, right) = new_figure(height, WIDTH + 0.5, ncols=2, width_ratios=[1.25, 1])
    image = _bootstrap_shares(left, frequency, chosen)
    label = "share of samples (circles: on all images)"
    vector_colorbar(figure, image, ax=left, location="bottom", shrink=0.6, label=label, pad=0.02)
    for number, metric in enumerate(metrics):
        shift = (number - (len(metrics) - 1) / 2) * 0.7 / len(metrics)
        rows = changes[changes["metric"] == metric].dropna(subset="ari")
        for row, kind in enumerate(kinds):
            values = rows.loc[rows["kind"] == kind, "ari"].to_numpy(dtype=float)
            place, colour = row + shift, metric_colour(number)
            right.scatter(values, np.full(len(values), place), s=9, alpha=0.35, color=colour, lw=0)
            if len(values):
                name = None if row else arm_title(metric)
                right.plot(values.mean(), place, "|", markersize=7, color=colour, label=name)
    right.set(title="clusters after each change", xlabel="adjusted Rand index (line: mean)")
    right.set(yticks=range(len(kinds)), yticklabels=kinds, ylim=(len(kinds) - 0.5, -0.5), xlim=(None, 1.04))
    right.grid(axis="x", color="#eeeeee", lw=0.8)
    figure.legend(*right.get_legend_handles_labels(), loc="outside right upper")
    return figure


def _bootstrap_shares(axis: Axes, frequency: Mapping[str, np.ndarray], chosen: Mapping[str, Sequence[int]]):
    """A row per metric: in which share of samples a sub-block is chosen; circles for all images."""
    metrics, layers = list(frequency), len(next(iter(frequency.values())))
    extent = (0.5, layers + 0.5, len(metrics) - 0.5, -0.5)
    shares = [frequency[metric] for metric in metrics]
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", extent=extent)
    for row, metric in enumerate(metrics):
        circles = {"marker": "o", "markersize": 5, "markerfacecolor": "none", "color": SAFE[1], "ls": ""}
        axis.plot([layer + 1 for layer in chosen[metric]], [row] * len(chosen[metric]), **circles)
    axis.set(title="hint layers in the bootstrap", xlabel="sub-block")
    axis.set(yticks=range(len(metrics)), yticklabels=[*map(arm_title, metrics)])
    axis.set_xticks(number_ticks(layers, 12))
    return image
