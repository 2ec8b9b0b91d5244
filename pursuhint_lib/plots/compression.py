"""What the networks of a study give for what they cost."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from .style import accuracy_limits, arm_colour, arm_title, new_figure, styled

MARKERS = {"teacher": "s", "student alone": "o", "best student": "*"}
# Inches of a panel, points of type between a point and its label, the share of the height that a label takes,
# and letters of one that is not wrapped.
HEIGHT, ASIDE, SHARE, LETTERS = 3.3, 7, 0.075, 18
# Powers of ten below which an axis gets marks between them, too.
DECADES = 1.6


@styled
def compression_costs(networks: pd.DataFrame, costs: Mapping[str, str]) -> Figure:
    """Accuracy against several costs of a teacher and its students, a panel per cost.

    Arrows lead from the teacher to its best students, dotted lines from a student alone to the same network's
    best.

    **Arguments:** ``networks`` with columns pair, teacher, network, role (teacher, student alone, best
    student), method, arm, accuracy, low, high and those of ``costs``, which are column → what stands at the
    axis. A teacher, or a student alone, of several pairs may be there for each.
    """
    figure, axes = new_figure(HEIGHT, ncols=len(costs), sharey=True, squeeze=False)
    rows = networks.to_dict("records")
    for axis, (cost, label) in zip(axes[0], costs.items(), strict=True):
        for row in rows:
            _point(axis, row, row[cost])
        axis.set(xscale="log", xlabel=label, ylim=accuracy_limits(networks, 0.5))
        axis.margins(x=0.12)
        _ticks(axis, networks[cost])
        axis.grid(axis="y", color="#eeeeee", lw=0.8)
    axes[0, 0].set_ylabel("test accuracy, %")
    named = networks[
        (networks["role"] == "best student") | ~networks.duplicated(["role", "network"])
    ].to_dict("records")
    heights = _spread([row["accuracy"] for row in named], SHARE * float(np.ptp(axes[0, 0].get_ylim())))
    for axis, cost in zip(axes[0], costs, strict=True):
        _lines(axis, networks, cost)
        middle = float(np.sqrt(networks[cost].min() * networks[cost].max()))
        for row, height in zip(named, heights, strict=True):
            _label(axis, row, _text(row, networks), (row[cost], height), -1 if row[cost] > middle else 1)
    present = [role for role in MARKERS if role in set(networks["role"])]
    sizes = {role: 8 if role == "best student" else 5 for role in present}
    handles = [
        Line2D([], [], marker=MARKERS[role], color="#555555", ls="", markersize=size, label=role)
        for role, size in sizes.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def _colour(row: Mapping) -> str:
    """Of the arm, for a student that has one."""
    return arm_colour(row["arm"]) if row["role"] == "best student" else "#222222"


def _point(axis: Axes, row: Mapping, x: float) -> None:
    """A network with its interval."""
    if np.isfinite(row["low"]):
        axis.vlines(x, row["low"], row["high"], color=_colour(row), lw=1.0, alpha=0.6)
    size = 90 if row["role"] == "best student" else 28
    axis.scatter(
        [x],
        [row["accuracy"]],
        marker=MARKERS[row["role"]],
        s=size,
        color=_colour(row),
        edgecolor="white",
        lw=0.4,
        zorder=3,
    )


def _text(row: Mapping, networks: pd.DataFrame) -> str:
    """Name of a network; of a best student method and arm, as its name stands where it is alone, if it is
    there.
    """
    if row["role"] != "best student":
        return row["network"]
    named = ((networks["pair"] == row["pair"]) & (networks["role"] == "student alone")).any()
    text = ", ".join([*([] if named else [row["network"]]), row["method"], arm_title(row["arm"])])
    return text if len(text) <= LETTERS else text.replace(", ", ",\n")


def _label(axis: Axes, row: Mapping, text: str, place: tuple[float, float], side: int) -> None:
    """Text left (−1) or right (1) of a place, with a white rim."""
    axis.annotate(
        text,
        place,
        (side * ASIDE, 0),
        textcoords="offset points",
        ha="right" if side < 0 else "left",
        va="center",
        linespacing=0.9,
        fontsize=6.5,
        color=_colour(row),
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )


def _lines(axis: Axes, networks: pd.DataFrame, cost: str) -> None:
    """What belongs together, behind all points."""
    for best in networks[networks["role"] == "best student"].to_dict("records"):
        end = (best[cost], best["accuracy"])
        for other in networks[networks["role"] != "best student"].to_dict("records"):
            begin, shape = (
                (other[cost], other["accuracy"]),
                {"color": "#bbbbbb", "lw": 0.8, "shrinkA": 4, "shrinkB": 6},
            )
            if other["role"] == "teacher" and other["network"] == best["teacher"]:
                axis.annotate("", end, begin, zorder=1, arrowprops={"arrowstyle": "->", **shape})
            elif other["role"] == "student alone" and other["pair"] == best["pair"]:
                axis.annotate("", end, begin, zorder=1, arrowprops={"arrowstyle": "-", "ls": ":", **shape})


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """The values, moved apart where two are closer than ``gap``, in the same order."""
    places = np.array(values, dtype=float)
    order = np.argsort(places, kind="stable")
    # Two neighbours give way to each other; a few rounds settle a handful of them.
    for _ in range(10 * len(places)):
        for lower, upper in pairwise(order):
            lacking = max(0.0, gap - (places[upper] - places[lower])) / 2
            places[lower] -= lacking
            places[upper] += lacking
    return places.tolist()


def _ticks(axis: Axes, values: pd.Series) -> None:
    """Powers of ten, with marks between where there are few, as plain numbers; the networks' own where none
    is near.
    """
    low, high = axis.get_xlim()
    few = np.log10(values.max() / values.min()) < DECADES
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)))
    for digits in ((1, 2, 5), (1, 2, 3, 5, 7)) if few else ((1,), (1, 2, 5)):
        ticks = np.outer(powers, digits).ravel()
        ticks = ticks[(low <= ticks) & (ticks <= high)]
        if len(ticks) > 1:
            break
    else:
        ticks = values.unique()
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    unit, name = next(
        ((unit, name) for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if value >= unit), (1.0, "")
    )
    return f"{value / unit:g}{name}"
