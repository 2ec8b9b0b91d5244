"""Which of the hint layers makes the difference between the stage ends and the paper's: the deepest, or the
others? Two mixed sets of layers tell.
"""

from collections.abc import Iterator, Sequence

import pandas as pd

from ...settings import Profile
from ...statistics import combination
from ...statistics.contrasts import worded
from ...statistics.noise import CELL
from ..grid.arms import exchange_arms
from ..grid.cells import Cell, methods_of, trained_frame
from ..grid.weights import has_arms

SHARES = ("the deepest", "the others")
INTERACTION = "interaction"


def exchange_cells(profile: Profile) -> Iterator[Cell]:
    """The grid's cells of the methods that the exchange is about, with its four sets of layers for arms."""
    arms, named = exchange_arms(profile.exchange.metric), profile.exchange.methods
    for pair in profile.pairs:
        for method in named or filter(has_arms, profile.methods):
            if method in methods_of(profile, pair):
                for seed in profile.seeds_of(pair, method):
                    yield Cell(profile, pair, method, seed, arms)


def exchange_frame(profile: Profile) -> pd.DataFrame:
    """Accuracy of the four sets of layers under every pair, method and seed; what has no record is trained.

    **Returns:** as ``cells.results_frame`` does, without the students that have no hints.
    """
    return trained_frame(exchange_cells(profile))


def exchanges(frame: pd.DataFrame, by: Sequence[str] = CELL) -> pd.DataFrame:
    """What the stage ends give over PURSUhInT's layers: a share of the deepest layer and one of the others.

    The four sets of layers are those of two choices: the deepest layer and the others are either set's. A
    share is the difference that its layers make, as the mean of the two with the other layers at either
    set's; the two add up to the whole. These are the main effects of a two-by-two factorial design. Its
    interaction is how much more either choice gives where the other is the stage ends' than where it is the
    paper's: near 0 the shares hold whatever the other layers are.

    **Arguments:** ``frame``, ``by`` as ``statistics.contrasts`` takes them. A metric counts where all four
    sets are there, the mixed two as the arms ``deepened-`` and ``shallowed-``.

    **Returns:** the rows of ``statistics.combination`` with the columns metric and points (``SHARES`` and
    ``INTERACTION``); Holm's adjustment is over both shares of all cells, and over all interactions.
    """
    shares, interactions = [], []
    for metric in (arm.removeprefix("deepened-") for arm in set(frame["arm"]) if arm.startswith("deepened-")):
        ends, deepened, shallowed, paper = exchange_arms(metric)
        deepest = {ends: 0.5, shallowed: -0.5, deepened: 0.5, paper: -0.5}
        others = {ends: 0.5, deepened: -0.5, shallowed: 0.5, paper: -0.5}
        both = {ends: 1.0, deepened: -1.0, shallowed: -1.0, paper: 1.0}
        for points, weights in zip(SHARES, (deepest, others), strict=True):
            shares.append(combination(frame, weights, by).assign(metric=metric, points=points))
        interactions.append(combination(frame, both, by).assign(metric=metric, points=INTERACTION))
    if not shares:
        return combination(frame, {"": 0.0}, by).assign(metric="", points="")
    return pd.concat([worded(pd.concat(rows, ignore_index=True)) for rows in (shares, interactions)])
