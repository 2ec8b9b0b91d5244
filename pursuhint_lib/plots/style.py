"""One style for all figures, and one colour per kind of arm everywhere."""

import zlib

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
# The paper's rule under any other metric, one of the user's own among them, has one of these by its name.
_OTHER_METRICS = ("#117733", "#882255", "#999933", "#44aa99", "#332288")


def arm_colour(arm: str) -> str:
    """Colour of an arm, the same in every figure."""
    if arm.startswith("pursuhint-") and arm not in _ARM_COLOURS:
        return _OTHER_METRICS[zlib.crc32(arm.encode()) % len(_OTHER_METRICS)]
    return next((colour for prefix, colour in _ARM_COLOURS.items() if arm.startswith(prefix)), SAFE[7])


def style():
    """Context in which figures are drawn and saved."""
    return matplotlib.rc_context(_STYLE)


def new_figure(height: float, width: float = WIDTH, **subplots) -> tuple[Figure, np.ndarray | Axes]:
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
