"""Which of the hint points makes the difference between the stage ends and the paper's: the deepest, or the
others? Two mixed sets of layers tell.
"""

from collections.abc import Iterator

import pandas as pd

from ...settings import Profile
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


def exchanges(frame: pd.DataFrame) -> pd.DataFrame:
    """What the stage ends give over PURSUhInT's points, as a share of the deepest point and one of the
    others.

    The four sets of layers are those of two choices: the deepest point and the others are either set's. A
    share is the difference that its points make, as the mean of the two with the other points at either
    set's; the two add up to the whole. These are the main effects of a two-by-two factorial design. Its
    interaction is how much more either choice gives where the other is the stage ends' than where it is the
    paper's: near 0 the shares hold whatever the other points are.

    **Arguments:** columns pair, method, arm, seed, accuracy, and weight where it varies. A metric counts
    where all four sets are there, the mixed two as the arms ``deepened-`` and ``shallowed-``.

    **Returns:** columns pair, method, weight (if given), seed, metric, points (``SHARES`` and
    ``INTERACTION``), difference (points of accuracy).
    """
    key = [column for column in ("pair", "method", "weight", "seed") if column in frame]
    table = frame.pivot(index=key, columns="arm", values="accuracy")
    rows = [pd.DataFrame(columns=[*key, "metric", "points", "difference"])]
    for metric in (arm.removeprefix("deepened-") for arm in table if arm.startswith("deepened-")):
        if not set(exchange_arms(metric)) <= set(table):
            continue
        ends, deepened, shallowed, paper = (table[arm] for arm in exchange_arms(metric))
        effects = (
            (ends - shallowed + deepened - paper) / 2,
            (ends - deepened + shallowed - paper) / 2,
            ends - deepened - shallowed + paper,
        )
        for points, effect in zip((*SHARES, INTERACTION), effects, strict=True):
            rows.append(effect.rename("difference").reset_index().assign(metric=metric, points=points))
    return pd.concat(rows, ignore_index=True)
