"""How much the choice of layers changes with the weight of the hint loss: other weights, on the
first pair.
"""

from collections.abc import Iterator

import pandas as pd

from ...settings import Profile
from ..grid.cells import Cell, trained_frame
from ..grid.weights import hint_weight


def sweep_cells(profile: Profile, method: str) -> Iterator[Cell]:
    """Cells of every weight and seed: 0, which is the arm ``none`` of the grid and stands there once for
    every arm, the grid's own weight, and the others.
    """
    sweep, pair = profile.sweep(method), profile.pairs[0]
    usual = hint_weight(profile, pair, method)
    for seed in profile.seeds[: sweep.seeds]:
        for arm in sweep.arms:
            yield Cell(profile, pair, method, seed, ("none",), labels={"weight": 0.0, "arm": arm})
        # Before it is tuned, the grid's own weight is not known.
        for weight in sorted({*sweep.weights, *([usual] if usual else [])}) + ([] if usual else [None]):
            changes = {} if weight == usual else {"hint_weight": weight}
            yield Cell(profile, pair, method, seed, sweep.arms, changes, {"weight": weight})


def sweep_frame(profile: Profile, method: str) -> pd.DataFrame:
    """Accuracy under every weight; what has no record is trained.

    **Returns:** as ``cells.results_frame`` does, with the column weight.
    """
    return trained_frame(sweep_cells(profile, method))


def by_weight(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the runs without hints, at weight 0, as the arm ``none`` of every other weight."""
    plain = frame[frame["weight"] == 0].drop_duplicates(["pair", "method", "seed"]).assign(arm="none")
    weights = [weight for weight in sorted(set(frame["weight"])) if weight]
    none = [plain.assign(weight=weight) for weight in weights]
    return pd.concat([frame[frame["weight"] > 0], *none], ignore_index=True)
