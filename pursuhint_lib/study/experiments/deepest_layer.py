"""Which of the hint points makes the difference between the stage ends and the paper's: the deepest, or the
others? Two mixed sets of layers tell.
"""

from dataclasses import replace

import pandas as pd

from ... import records
from ...settings import Profile
from ...training import distill
from ..grid.arms import choose_points, exchange_arms
from ..grid.cells import cell_settings, has_arms, methods_of, results_frame, runs_of
from ..grid.hint_layers import stored_similarity

SHARES = ("the deepest", "the others")
INTERACTION = "interaction"


def mixed_grid(profile: Profile) -> Profile:
    """The part of the grid that the exchange is about, with its four sets of layers for arms."""
    methods = profile.exchange.methods or tuple(method for method in profile.methods if has_arms(method))
    return replace(profile, methods=methods, arms=exchange_arms(profile.exchange.metric))


def exchange_runs(profile: Profile) -> tuple[int, int | None]:
    """How many runs of the exchange have a record, and how many there are; the latter is unknown before the
    teachers' profiles.
    """
    grid = mixed_grid(profile)
    found = [runs_of(grid, pair, method) for pair in grid.pairs for method in methods_of(grid, pair)]
    if None in found:
        return 0, None
    wanted = {records.record_name(run): run for runs in found for run in runs.values()}
    return sum(records.load(profile.name, run) is not None for run in wanted.values()), len(wanted)


def exchange_frame(profile: Profile) -> pd.DataFrame:
    """Accuracy of the four sets of layers under every pair, method and seed; what has no record is trained.

    **Returns:** as ``runs.results_frame`` does, without the students that have no hints.
    """
    grid = mixed_grid(profile)
    for pair in grid.pairs:
        layer_map = stored_similarity(grid, pair.teacher).layer_map
        choices = {arm: choose_points(arm, layer_map, pair.k) for arm in grid.arms}
        for method in methods_of(grid, pair):
            for seed in grid.seeds_of(pair, method):
                distill(cell_settings(grid, pair, method, seed, choices))
    return results_frame(grid)


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
