"""Do the shortcuts that make a sweep fast change its results? The same runs without them, with one, and with
both.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pandas as pd

from ... import records
from ...settings import Arm, DistillSettings, Profile
from ...training import distill
from ..grid.arms import choose_points
from ..grid.cells import cell_settings, has_arms
from ..grid.hint_layers import stored_similarity

# Runs that are trained alone have the settings of those trained side by side, so their records have a folder
# of their own.
ALONE = "alone"

# A way to train → precision, and whether each arm is trained by itself. The first is the one without
# shortcuts.
WAYS = {
    "fp32, one at a time": ("fp32", True),
    "fp32, side by side": ("fp32", False),
    "bf16, side by side": ("bf16", False),
}
REFERENCE = next(iter(WAYS))
# So many of the profile's methods with hints are compared.
METHODS = 2


@dataclass(frozen=True)
class Comparison:
    """A cell with some of its arms, to be trained in one way. ``cell.profile`` says where its records are."""

    way: str
    method: str
    cell: DistillSettings


def compared_methods(profile: Profile) -> list[str]:
    """The first methods with hints of a profile."""
    return [method for method in profile.methods if has_arms(method)][:METHODS]


def _comparisons(profile: Profile) -> Iterator[Comparison]:
    """Everything that is compared: the first pair, the first methods with hints, each without hints and in
    one arm with them.
    """
    pair = profile.pairs[0]
    arm = "stage-ends" if "stage-ends" in profile.arms else next(arm for arm in profile.arms if arm != "none")
    layer_map = stored_similarity(profile, pair.teacher).layer_map
    choices = {name: choose_points(name, layer_map, pair.k) for name in ("none", arm)}
    for method in compared_methods(profile):
        for seed in range(profile.shortcut_seeds):
            cell = cell_settings(profile, pair, method, seed, choices)
            for way, (precision, alone) in WAYS.items():
                cell = replace(cell, precision=precision)
                if not alone:
                    yield Comparison(way, method, cell)
                    continue
                for single in cell.arms:
                    yield Comparison(
                        way, method, replace(cell, arms=(single,), profile=f"{profile.name}/{ALONE}")
                    )


def shortcut_runs(profile: Profile) -> tuple[int, int | None]:
    """How many of the runs that are compared have a record, and how many there are; the latter is unknown
    before the teacher's profile.
    """
    if stored_similarity(profile, profile.pairs[0].teacher) is None:
        return 0, None
    runs = {
        (t.cell.profile, records.record_name(t.cell.run(arm))): t.cell.run(arm)
        for t in _comparisons(profile)
        for arm in t.cell.arms
    }
    return sum(records.load(folder, run) is not None for (folder, _), run in runs.items()), len(runs)


def shortcut_frame(profile: Profile) -> pd.DataFrame:
    """Accuracy of the same runs trained in every one of ``WAYS``, by the same teacher; what has a record is
    loaded.

    **Returns:** columns pair, method (with its arm), arm (the way), seed, accuracy in %, loss (of the last
    epoch).
    """
    rows = []
    for one in _comparisons(profile):
        for arm, record in zip(one.cell.arms, distill(one.cell), strict=True):
            row = {
                "pair": profile.pairs[0].name,
                "method": _label(one.method, arm),
                "arm": one.way,
                "seed": one.cell.seed,
            }
            found = {
                "accuracy": record.metrics.get("accuracy", float("nan")),
                "loss": record.history["loss_total"][-1],
            }
            rows.append({**row, **found})
    return pd.DataFrame(rows).drop_duplicates(["method", "arm", "seed"])


def _label(method: str, arm: Arm) -> str:
    # Without hints all methods are the same run.
    return f"{method}, {arm.name}" if arm.teacher_points else "no hints"
