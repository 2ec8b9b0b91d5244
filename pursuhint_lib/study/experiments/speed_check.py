"""Do the shortcuts that make a sweep fast change its results? The same runs without them, with one, and with
both.
"""

from collections.abc import Iterator

import pandas as pd

from ...settings import Profile
from ..grid.cells import Cell
from ..grid.weights import has_arms

# Runs that are trained alone have the settings of those trained side by side, so their records have a folder
# of their own.
APART = "alone"

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


def speed_cells(profile: Profile) -> Iterator[Cell]:
    """Everything that is compared: the first pair, the first methods with hints, each without hints and in
    one arm with them.
    """
    pair = profile.pairs[0]
    arms = [arm for arm in profile.arms if arm != "none"]
    hinted = "stage-ends" if "stage-ends" in arms else next(iter(arms), None)
    for method in [method for method in profile.methods if has_arms(method)][:METHODS]:
        for seed in range(profile.shortcut_seeds):
            for way, (precision, alone) in WAYS.items():
                changes, shown = {"precision": precision}, {"way": way}
                if not alone:
                    yield Cell(profile, pair, method, seed, ("none", hinted), changes, shown)
                    continue
                apart = changes | {"profile": f"{profile.name}/{APART}"}
                for arm in ("none", hinted):
                    yield Cell(profile, pair, method, seed, (arm,), apart, shown)


def speed_frame(profile: Profile) -> pd.DataFrame:
    """Accuracy of the same runs trained in every one of ``WAYS``, by the same teacher; what has a record is
    loaded.

    **Returns:** columns pair, method (with its arm), arm (the way), seed, accuracy in %, loss (of the last
    epoch).
    """
    rows = []
    for cell in speed_cells(profile):
        losses = {record.name: record.history["loss_total"][-1] for record in cell.train()}
        for row in cell.rows():
            # Without hints all methods are the same run.
            label = f"{cell.method}, {row['arm']}" if row["points"] else "no hints"
            rows.append(row | {"method": label, "arm": row["way"], "loss": losses[row["record"]]})
    columns = ["pair", "method", "arm", "seed", "accuracy", "loss"]
    return pd.DataFrame(rows)[columns].drop_duplicates(["method", "arm", "seed"])
