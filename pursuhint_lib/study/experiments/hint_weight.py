"""How much the choice of layers changes with the weight of the hint loss: other weights, on the
first pair.
"""

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from ... import records
from ...settings import Arm, DistillSettings, Profile
from ...training import distill
from ..grid.arms import choose_points
from ..grid.cells import cell_settings
from ..grid.hint_layers import stored_similarity


def sweep_cells(profile: Profile, method: str) -> Iterator[DistillSettings]:
    """One cell per weight and seed: 0, which is the arm ``none`` of the grid, the grid's own weight, and the
    others.
    """
    sweep, pair = profile.sweep(method), profile.pairs[0]
    layer_map = stored_similarity(profile, pair.teacher).layer_map
    choices = {arm: choose_points(arm, layer_map, pair.k) for arm in sweep.arms}
    for seed in profile.seeds[: sweep.seeds]:
        cell = cell_settings(profile, pair, method, seed, choices)
        yield replace(cell, arms=(Arm("none"),), hint_weight=0.0)
        for weight in sorted({cell.hint_weight, *sweep.weights}):
            yield replace(cell, hint_weight=weight)


def sweep_runs(profile: Profile, method: str) -> tuple[int, int | None]:
    """How many runs of the sweep have a record, and how many there are; the latter is unknown before the
    teacher's profile.
    """
    if stored_similarity(profile, profile.pairs[0].teacher) is None:
        return 0, None
    runs = {
        records.record_name(run): run
        for cell in sweep_cells(profile, method)
        for run in map(cell.run, cell.arms)
    }
    return sum(records.load(profile.name, run) is not None for run in runs.values()), len(runs)


def sweep_frame(profile: Profile, method: str) -> pd.DataFrame:
    """Accuracy under every weight; what has no record is trained.

    **Returns:** columns pair, method, weight, arm, layers (names), seed, accuracy (%; missing for a failed
    run), record; the run without hints is there once for every arm, as weight 0, with no layers.
    """
    rows = []
    for cell in sweep_cells(profile, method):
        for arm, record in zip(cell.arms, distill(cell), strict=True):
            shared = {
                "pair": profile.pairs[0].name,
                "method": method,
                "weight": cell.hint_weight,
                "seed": cell.seed,
            }
            found = {
                "layers": " ".join(arm.teacher_points),
                "accuracy": record.metrics.get("accuracy", float("nan")),
                "record": record.name,
            }
            rows += [
                {**shared, **found, "arm": name}
                for name in (profile.sweep(method).arms if arm.name == "none" else [arm.name])
            ]
    return pd.DataFrame(rows)


def gains(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame's rows with hints, and ``difference``: their accuracy minus that of the same seed and arm at
    weight 0, in points.
    """
    key = ["arm", "seed"]
    plain = frame[frame["weight"] == 0].set_index(key)["accuracy"].rename("plain")
    hinted = frame[frame["weight"] > 0].join(plain, on=key)
    return hinted.assign(difference=hinted["accuracy"] - hinted["plain"]).drop(columns="plain")
