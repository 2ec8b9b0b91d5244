"""One style for all figures, and one colour and one title for an arm everywhere."""

import re
import zlib
from collections.abc import Hashable, Mapping, Sequence

import matplotlib.style
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text

from ..digits import settled
from ..similarity.metrics import TITLES

WIDTH = 7.0  # inches: a page of text

_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "pursuhint",
    "svg.fonttype": "none",
    "path.simplify": False,
    "image.interpolation": "none",
    "figure.constrained_layout.use": True,
}

# Colours that colour-blind readers can tell apart.
SAFE = sns.color_palette("colorblind").as_hex()

# Prefix of an arm → colour (colour-blind safe); the first that fits counts.
_ARM_COLOURS = {
    "pursuhint-r2": SAFE[0],
    "pursuhint-cka-linear": SAFE[9],
    "pursuhint-cka-rbf": "#004c6d",
    "stage-ends": SAFE[1],
    "segment-middles": SAFE[2],
    "kmedoids": SAFE[4],
    "random-": "#8c8c8c",
    "none": "#222222",
    "alone": "#222222",
    "first": SAFE[3],
    "last": SAFE[5],
    "segments-": SAFE[6],
    "quality": "#5e3c99",
    "all": "#6b6b00",
    "reversed": "#8f4a00",
    "deepened-": "#6a3d9a",
    "shallowed-": "#c51b7d",
}
# Arms whose names say too little.
_ARM_TITLES = {"none": "no hints", "alone": "student alone", "pursuhint": "PURSUhInT"}
# The paper's rule under any other metric, one of the user's own among them, has one of these by its name.
_OTHER_METRICS = ("#117733", "#882255", "#999933", "#44aa99", "#332288")


def arm_colour(arm: str) -> str:
    """Colour of an arm, the same in every figure."""
    if arm.startswith("pursuhint-") and arm not in _ARM_COLOURS:
        return _OTHER_METRICS[zlib.crc32(arm.encode()) % len(_OTHER_METRICS)]
    return next((colour for prefix, colour in _ARM_COLOURS.items() if arm.startswith(prefix)), SAFE[7])


def arm_title(name: str) -> str:
    """An arm, a metric, or a score under a metric, as a reader knows it: ``pursuhint-cka-linear`` is
    "PURSUhInT, linear CKA".
    """
    # A metric of the user's own is an import path, which has no dash.
    own = name.rpartition("-")[2]
    known = (key for key in TITLES if name == key or name.endswith((f"-{key}", f", {key}")))
    metric = next(known, own if ":" in own else "")
    rule = name.removesuffix(metric).rstrip("-, ")
    # A dash between numbers, as in stage-set-2-5-8, stays.
    words = re.sub(r"(?<=[a-z])-|-(?=[a-z])", " ", _ARM_TITLES.get(rule, rule))
    return ", ".join(part for part in (words, TITLES.get(metric, metric)) if part)


def drawn_once(arms: Mapping[str, Hashable]) -> dict[str, str]:
    """Arm → the first one that has the same value, for arms that are the same run; without a value an arm
    stands for itself.
    """
    firsts: dict[Hashable, str] = {}
    return {arm: firsts.setdefault(value, arm) if value else arm for arm, value in arms.items()}


def shared_titles(first_of: Mapping[str, str]) -> dict[str, str]:
    """Titles of what ``drawn_once`` leaves: first arm → those of all that it stands for."""
    groups: dict[str, list[str]] = {}
    for arm, first in first_of.items():
        groups.setdefault(first, []).append(arm_title(arm))
    return {first: "\n= ".join(titles) for first, titles in groups.items()}


def style():
    """Context in which figures are drawn and saved, the same for every user."""
    return matplotlib.style.context(["default", _STYLE])


def new_figure(height: float, width: float = WIDTH, **subplots) -> tuple[Figure, np.ndarray | Axes]:
    """A figure in the study's style, without pyplot's global state."""
    with style():
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(**subplots)


def vector_colorbar(figure: Figure, image: AxesImage, **options) -> None:
    """The colour bar of a heatmap in an SVG's own shapes; matplotlib would put in a picture made
    of pixels.
    """
    figure.colorbar(image, **options).solids.set_rasterized(False)


def number_ticks(layers: int, most: int) -> list[int]:
    """Numbers of sub-blocks that an axis shows: evenly spaced from 1, so many at most."""
    return list(range(1, layers + 1, -(-layers // most)))


def labelled_rows(axis: Axes, names: Sequence[str], **others) -> None:
    """A name for each row, the first on top; ``others`` as ``Axes.set`` takes them."""
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6), **others)
    axis.tick_params(left=False)


def means_with_intervals(axis: Axes, rows: pd.DataFrame, width: float, **dots) -> None:
    """A dot for every mean and a line for its interval; no line where that is infinite.

    **Arguments:** columns row (its place), mean, low, high, colour; ``width`` of the lines, in points.
    """
    sure = rows[np.isfinite(rows["low"])]
    axis.hlines(sure["row"], sure["low"], sure["high"], color=sure["colour"], lw=width)
    look = {"edgecolor": rows["colour"], "facecolor": rows["colour"], "zorder": 3}
    axis.scatter(rows["mean"], rows["row"], **look | dots)


def accuracy_limits(frame: pd.DataFrame, part: float) -> tuple[float | None, float | None]:
    """Limits that show every accuracy, and intervals up to a point: those of two seeds can be wider than all
    accuracies there are.

    **Arguments:** columns accuracy, low, high; ``part`` of the range of accuracies that intervals may take
    beyond it.
    """
    low, high = frame["accuracy"].min(), frame["accuracy"].max()
    if not np.isfinite(low):
        return None, None
    room = max(1.0, part * (high - low))
    ends = frame[["low", "high"]].replace([-np.inf, np.inf], np.nan)
    left = max(low - room, min(low, ends["low"].min()))
    right = min(high + room, max(high, ends["high"].max()))
    return left - 0.05 * room / part, right + 0.05 * room / part


def numbered_cells(
    axis: Axes, values: np.ndarray, texts: np.ndarray, dark: np.ndarray, **image
) -> dict[tuple[int, int], Text]:
    """A matrix as colours with a text in each field, white where it is ``dark``; nothing where it is NaN.

    **Returns:** the texts, by row and column.
    """
    axis.imshow(values, **image)
    axis.spines[:].set_visible(False)
    look = {"ha": "center", "va": "center", "fontsize": 6.5}
    return {
        (row, column): axis.text(
            column, row, texts[row, column], color="white" if dark[row, column] else "black", **look
        )
        for row, column in np.argwhere(np.isfinite(values)).tolist()
    }


def styled(function):
    """Draw settled numbers in the study's style, whatever the notebook's own settings are."""

    def draw(*arguments, **keywords) -> Figure:
        with style():
            return function(*settled(arguments), **settled(keywords))

    draw.__doc__, draw.__name__ = function.__doc__, function.__name__
    return draw
