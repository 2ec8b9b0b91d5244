"""Figures of what training gave: accuracies, paired differences, verdicts."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from .style import (
    SAFE,
    WIDTH,
    accuracy_limits,
    arm_colour,
    arm_title,
    drawn_once,
    labelled_rows,
    means_with_intervals,
    new_figure,
    numbered_cells,
    shared_titles,
    styled,
    vector_colorbar,
)

# Panels side by side at most.
COLUMNS = 5
# With more arms than these, lines of single seeds would hide the means.
FEW_ARMS = 6
# Families of arms that are too many to be named one by one.
CROWDS = ("stage-random-", "stage-set-")
# On the logarithmic part of an axis of gains.
FAR_TICKS = (-100, -50, -20, -10, 10, 20, 50, 100)
# Of the colours of a grid, in units of what nine of ten numbers stay below: where the deepest colour begins,
# and where black letters end.
DEEPEST, DARK = 1.6, 1.1


@styled
def training_curves(histories: Mapping[str, Sequence[Mapping]], milestones: Sequence[int]) -> Figure:
    """Accuracy over epochs, one line per arm: mean over seeds, and thin lines for single seeds where few arms
    leave room for them. Arms that are the same runs share a line. Sets of one layer per stage lie behind the
    others and share a name.

    **Arguments:** arm → one history (columns ``epoch`` and ``accuracy``) per seed; epochs after which the
    learning rate falls, marked.
    """
    figure, axis = new_figure(3.2)
    for milestone in milestones:
        axis.axvline(milestone, color="#bbbbbb", lw=0.8, ls=":", zorder=0)
    titles = shared_titles(drawn_once({arm: str(runs) if runs else "" for arm, runs in histories.items()}))
    for arm, title in titles.items():
        runs = histories[arm]
        colour, crowd = arm_colour(arm), arm.startswith(CROWDS)
        muted = crowd or arm.startswith("random-")
        # Where the accuracy was measured.
        curves = [pd.DataFrame(run, columns=["epoch", "accuracy"]).dropna() for run in runs]
        for curve in curves if len(curves) > 1 and len(titles) <= FEW_ARMS else []:
            axis.plot(curve["epoch"], curve["accuracy"], color=colour, lw=0.4, alpha=0.25)
        if not curves:
            # All runs of the arm have failed.
            continue
        epochs = curves[0]["epoch"]
        mean = np.mean([curve["accuracy"] for curve in curves], axis=0)
        axis.plot(
            epochs,
            mean,
            color=colour,
            lw=1.0 if muted else 1.8,
            ls=":" if muted else "-",
            marker="." if len(epochs) < 15 else "",
            zorder=1.5 if crowd else 2,
            label="sets of one layer per stage" if crowd else title,
        )
    axis.set(xlabel="epoch (dotted: the learning rate falls)", ylabel="test accuracy, %")
    axis.xaxis.get_major_locator().set_params(integer=True)
    if len(titles) > 1:
        handles, labels = axis.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))
        figure.legend(named.values(), named.keys(), loc="outside right upper")
    return figure


@styled
def accuracy_by_arm(
    frame: pd.DataFrame, title: str, layers: Mapping[str, Sequence[int]], stage_ends: Sequence[int]
) -> Figure:
    """Which of the teacher's sub-blocks each arm takes, and its accuracy: a small dot per seed, a large one
    with a 95 % interval for the mean; one panel per method. Arms that take the same layers are the same run
    and share a row.

    **Arguments:** columns method (as titled), arm, seed, accuracy; mean, low, high per (method, arm) in every
    row; arm → 0-based sub-blocks; those that end the teacher's stages.
    """
    first_of = drawn_once({arm: tuple(layers.get(arm, ())) for arm in dict.fromkeys(frame["arm"])})
    titles = shared_titles(first_of)
    frame = frame.assign(arm=frame["arm"].map(first_of)).drop_duplicates(["method", "arm", "seed"])
    methods, arms = list(dict.fromkeys(frame["method"])), list(titles)
    # A row is as high as its label asks for.
    heights = np.array([max(1.0, 0.2 + 0.6 * len(text.splitlines())) for text in titles.values()])
    places = np.cumsum(heights) - heights / 2
    row_of = dict(zip(arms, places, strict=True))
    rows = -(-len(methods) // COLUMNS)
    columns = -(-len(methods) // rows)
    figure, axes = new_figure(
        0.7 + (0.3 + 0.24 * heights.sum()) * rows, nrows=rows, ncols=1 + columns, sharey=True, squeeze=False
    )
    for strip in axes[:, 0]:
        _layer_strip(strip, places, [layers.get(arm, ()) for arm in arms], arms, stage_ends)
    panels = list(axes[:, 1:].flat)
    for axis in panels[len(methods) :]:
        axis.set_axis_off()
    for axis, method in zip(panels, methods, strict=False):
        runs = frame[frame["method"] == method]
        colours = runs["arm"].map(arm_colour)
        axis.scatter(runs["accuracy"], runs["arm"].map(row_of), s=9, color=colours, alpha=0.45, lw=0)
        means = runs.drop_duplicates("arm")
        means = means.assign(row=means["arm"].map(row_of), colour=means["arm"].map(arm_colour))
        means_with_intervals(axis, means, 1.6, s=30, edgecolor="white", linewidth=0.6)
        axis.set(title=method, xlim=accuracy_limits(frame, 1))
        axis.grid(axis="x", color="#eeeeee", lw=0.8)
        axis.locator_params(axis="x", nbins=4)
    axes[0, 0].set(yticks=places, yticklabels=titles.values(), ylim=(heights.sum(), 0))
    figure.supxlabel(
        "test accuracy at the last epoch, % (large: mean and 95 % interval over seeds)", fontsize=9
    )
    figure.suptitle(title, fontsize=10)
    return figure


def _layer_strip(
    axis: Axes,
    places: Sequence[float],
    taken: Sequence[Sequence[int]],
    arms: Sequence[str],
    stage_ends: Sequence[int],
) -> None:
    """A row per arm with dots at its sub-blocks (0-based), depth from left to right, stage borders as
    lines.
    """
    axis.hlines(places, 1, stage_ends[-1] + 1, color="#e3e3e3", lw=3, zorder=1)
    dots = [
        (index + 1, row, arm_colour(arm))
        for row, indices, arm in zip(places, taken, arms, strict=True)
        for index in indices
    ]
    if dots:
        numbers, rows, colours = zip(*dots, strict=True)
        axis.scatter(numbers, rows, s=16, c=colours, zorder=3)
    for end in stage_ends[:-1]:
        axis.axvline(end + 1.5, color="#999999", lw=0.8, ls=":", zorder=2)
    axis.set(title="hint layers", xlabel="teacher's sub-block", xticks=[1, *(end + 1 for end in stage_ends)])
    axis.tick_params(axis="x", labelsize=7)


@styled
def forest(panels: Mapping[str, pd.DataFrame], directions: tuple[str, str] = ("", "")) -> Figure:
    """Differences with 95 % intervals, one panel per reference, a row per label.

    **Arguments:** panel title → rows with columns label, arm, mean, low, high; margin, which is shaded, and
    known, without which a dot is hollow, where there are such; ``directions`` words for what a difference
    below, and above, 0 means.
    """
    labels = list(dict.fromkeys(label for panel in panels.values() for label in panel["label"]))
    height = 1.6 + 0.19 * len(labels)
    figure, axes = new_figure(height, ncols=len(panels), sharex=True, sharey=True, squeeze=False)
    for axis, (title, panel) in zip(axes[0], panels.items(), strict=True):
        axis.axvline(0, color="#777777", lw=0.8)
        rows = panel.assign(row=panel["label"].map(labels.index), colour=panel["arm"].map(arm_colour))
        if "margin" in rows:
            shaded = rows[rows["margin"] > 0]
            axis.barh(
                shaded["row"],
                2 * shaded["margin"],
                left=-shaded["margin"],
                height=0.9,
                color="#e8e8e8",
                zorder=0,
            )
        face = rows["colour"].where(rows["known"], "white") if "known" in rows else rows["colour"]
        means_with_intervals(axis, rows, 1.5, s=22, facecolor=face)
        # Side by side, long titles would meet.
        width = 16 if len(panels) > 1 else 60
        axis.set_title(textwrap.fill(title, width, break_on_hyphens=False), fontsize=8.5)
        axis.grid(axis="x", color="#eeeeee", lw=0.8)
    labelled_rows(axes[0, 0], labels)
    axes[0, 0].tick_params(axis="y", labelsize=7)
    worse, better = directions
    words = f"← {worse}      {better} →\n" if worse else ""
    figure.supxlabel(f"{words}difference in test accuracy, pp, with 95 % interval", fontsize=9)
    return figure


@styled
def ranked_sets(panels: Mapping[str, pd.DataFrame], floors: Mapping[str, float]) -> Figure:
    """Accuracy of every set of layers, the best on top: a small dot per seed, a large one for the mean; one
    panel per method, a dashed line at no hints. Sets that a rule takes are in its colour.

    **Arguments:** panel title → one row per run with columns set, accuracy, mean, rank, named (the arms that
    took the same layers, the first of which gives the colour; missing for none); panel title → accuracy
    without hints.
    """
    most = max(panel["set"].nunique() for panel in panels.values())
    figure, axes = new_figure(1.4 + 0.17 * most, ncols=len(panels), squeeze=False)
    for axis, (title, panel) in zip(axes[0], panels.items(), strict=True):
        axis.axvline(floors[title], color="#777777", lw=0.8, ls="--", zorder=0)
        ranked = panel.drop_duplicates("set").sort_values(["rank", "set"])
        rows = {name: row for row, name in enumerate(ranked["set"])}
        axis.scatter(panel["accuracy"], panel["set"].map(rows), s=7, color="#8c8c8c", alpha=0.5, lw=0)
        axis.scatter(ranked["mean"], ranked["set"].map(rows), s=16, color="#8c8c8c", zorder=2)
        for rule in ranked.dropna(subset="named").itertuples():
            (label,) = shared_titles(dict.fromkeys(rule.named, rule.named[0])).values()
            look = {"color": arm_colour(rule.named[0]), "label": label, "zorder": 3}
            axis.scatter(rule.mean, rows[rule.set], s=44, **look)
        labelled_rows(axis, list(rows), title=title)
        axis.tick_params(axis="y", labelsize=7)
        axis.grid(axis="x", color="#eeeeee", lw=0.8)
    figure.supxlabel("test accuracy, % (dashed: no hints)", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


@styled
def place_effects(panels: Mapping[str, pd.DataFrame], stage_ends: Sequence[int]) -> Figure:
    """What the place of the hint layer in each stage does: mean effect and 95 % interval of every sub-block,
    a line per stage, a panel per method.

    **Arguments:** panel title → rows with columns stage, sub-block (1-based), mean, low, high; the 0-based
    sub-blocks that end stages.
    """
    figure, axes = new_figure(2.8, ncols=len(panels), sharey=True, squeeze=False)
    for axis, (title, panel) in zip(axes[0], panels.items(), strict=True):
        axis.axhline(0, color="#777777", lw=0.8)
        for end in stage_ends[:-1]:
            axis.axvline(end + 1.5, color="#999999", lw=0.8, ls=":")
        sure = panel[np.isfinite(panel["low"])]
        axis.vlines(sure["sub-block"], sure["low"], sure["high"], color=SAFE[0], lw=1.2)
        for _, rows in panel.groupby("stage"):
            axis.plot(rows["sub-block"], rows["mean"], color=SAFE[0], marker="o", ms=4, lw=1.2)
        axis.set(title=title, xticks=panel["sub-block"])
        axis.grid(axis="y", color="#eeeeee", lw=0.8)
    axes[0, 0].set_ylabel("effect on test accuracy, pp")
    figure.supxlabel("teacher's sub-block that is the hint layer of its stage", fontsize=9)
    return figure


@styled
def effect_grid(panels: Mapping[str, pd.DataFrame], level: float) -> Figure:
    """Paired differences as numbers on colours: a panel per reference, a row per method, a column per arm.

    The colour bar ends where colours get no deeper; single larger numbers have no colour of their own.

    **Arguments:** panel title → rows with columns label (of the method), arm, mean, p_holm; below ``level`` a
    number is printed bold in a frame.
    """
    means = np.abs(np.concatenate([panel["mean"].dropna() for panel in panels.values()]))
    # So that one arm that fails does not bleach all others.
    limit = max(float(np.quantile(means, 0.9)), 1e-9) if len(means) else 1.0
    rows = max(panel["label"].nunique() for panel in panels.values())
    figure, axes = new_figure(1.6 + 0.25 * rows, WIDTH + 1.5, ncols=len(panels), sharey=True, squeeze=False)
    for axis, (title, panel) in zip(axes[0], panels.items(), strict=True):
        frame = panel.pivot(index="label", columns="arm", values=["mean", "p_holm"])
        labels, arms = panel["label"].unique(), panel["arm"].unique()
        values, chances = (frame[name].loc[labels, arms].to_numpy(dtype=float) for name in ("mean", "p_holm"))
        numbers = np.vectorize(_signed, otypes="U")(values)
        colours = {"cmap": "RdBu", "vmin": -DEEPEST * limit, "vmax": DEEPEST * limit, "aspect": "auto"}
        texts = numbered_cells(axis, values, numbers, np.abs(values) > DARK * limit, **colours)
        for row, column in np.argwhere(np.isfinite(values) & (chances < level)):
            texts[row, column].set_weight("bold")
            axis.add_patch(Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, lw=1.2))
        axis.set(title=title, yticks=range(len(labels)), yticklabels=labels, xticks=range(len(arms)))
        slanted = {"rotation": 35, "ha": "right", "rotation_mode": "anchor", "fontsize": 7}
        axis.set_xticklabels(map(arm_title, arms), **slanted)
        axis.tick_params(length=0)
    vector_colorbar(figure, axes[0, 0].images[0], ax=axes, extend="both", shrink=0.8)
    return figure


def _signed(value: float) -> str:
    """A number with one decimal and its sign; − for what rounds to less than 0 only."""
    return f"{value:+.1f}".replace("-0.0", "+0.0").replace("-", "−")


@styled
def weight_sweep(gains: pd.DataFrame, usual: float) -> Figure:
    """What the hints give under each weight of their loss: mean and 95 % interval of the paired difference
    from no hints, one line per arm.

    **Arguments:** columns weight (> 0), arm, mean, low, high; ``usual`` the weight of the grid, marked.
    """
    figure, axis = new_figure(3.2)
    axis.axhline(0, color="#777777", lw=0.8)
    axis.axvline(usual, color="#777777", lw=0.8, ls=":")
    arms = list(dict.fromkeys(gains["arm"]))
    for number, arm in enumerate(arms):
        line = gains[gains["arm"] == arm].sort_values("weight")
        # A little aside, so that intervals of the same weight don't cover each other.
        x = line["weight"] * 1.06 ** (number - (len(arms) - 1) / 2)
        sure = np.isfinite(line["low"])
        axis.vlines(x[sure], line["low"][sure], line["high"][sure], color=arm_colour(arm), lw=1.2)
        axis.plot(x, line["mean"], color=arm_colour(arm), marker="o", ms=4, lw=1.2, label=arm_title(arm))
    axis.set(
        xscale="log",
        xlabel="weight of the hint loss (dotted: that of the grid)",
        ylabel="pp over no hints",
    )
    # Too heavy a hint ruins a student, by far more points than a good one gives: beyond these the scale is
    # logarithmic.
    linear = max(5.0, 1.2 * gains["mean"].max())
    axis.set_yscale("symlog", linthresh=linear, linscale=2)
    low, high = axis.get_ylim()
    beyond = [ends for ends in ((low, -linear), (linear, high)) if ends[0] < ends[1]]
    for ends in beyond:
        axis.axhspan(*ends, color="#efefef", lw=0, zorder=0)
    if beyond:
        axis.set_ylabel("pp over no hints\n(grey: logarithmic)")
    axis.set_ylim(low, high)
    ticks = [
        *MaxNLocator(10).tick_values(-linear, linear),
        *(tick for tick in FAR_TICKS if abs(tick) > linear),
    ]
    axis.set_yticks(sorted(tick for tick in ticks if low <= tick <= high))
    axis.yaxis.set_major_formatter("{x:g}")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper")
    return figure


@styled
def tuning_curve(frame: pd.DataFrame, chosen: float, literature: float) -> Figure:
    """Accuracy on held-out images under each weight of the hint loss, and below it ρ; a line per set of
    layers through the means of its seeds.

    **Arguments:** columns weight, arm, accuracy, gradient_ratio (one row per run, missing where it failed);
    both weights are marked.
    """
    figure, (above, below) = new_figure(4.6, nrows=2, sharex=True)
    for arm, rows in frame.groupby("arm", sort=False):
        means = rows.groupby("weight")[["accuracy", "gradient_ratio"]].mean()
        for axis, column in ((above, "accuracy"), (below, "gradient_ratio")):
            axis.plot(rows["weight"], rows[column], ls="", marker=".", ms=3, color=arm_colour(arm), alpha=0.5)
            look = {"marker": "o", "ms": 4, "lw": 1.2, "color": arm_colour(arm), "label": arm_title(arm)}
            axis.plot(means.index, means[column], **look)
    for axis in (above, below):
        axis.axvline(literature, color="#777777", lw=0.8, ls=":")
        axis.axvline(chosen, color="#777777", lw=0.8)
    below.axhline(1, color="#777777", lw=0.8)
    above.set(xscale="log", ylabel="held-out accuracy, %")
    below.set(
        yscale="log", ylabel="ρ", xlabel="weight of the hint loss (line: chosen; dotted: the literature's)"
    )
    figure.legend(*above.get_legend_handles_labels(), loc="outside right upper")
    return figure
