"""A small study that searches for weights."""

from dataclasses import replace

import pandas as pd

from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.settings import Profile, Tuning
from pursuhint_lib.study.engine.plan import make_plan
from pursuhint_lib.study.experiments.tuning import (
    tuning_cells,
    weights_to_try,
)
from pursuhint_lib.study.grid.profiles import checked, load_profile

TUNING = Tuning({"at": (10.0, 100.0), "sp": (1.0, 1e30)}, ("stage-ends", "segment-middles"), (100, 101), 100)
METHODS = ("ce", "kd", "at", "fitnet", "sp")


def small_search() -> Profile:
    """The smoke study with a search, and steps enough for weights to make a difference."""
    smoke = load_profile("smoke")
    schedule = replace(smoke.student, epochs=3, batch_size=20)
    changes = {
        "student": schedule,
        "arms": ("none", "stage-ends", "last"),
        "metrics": ("r2",),
        "methods": METHODS,
        "tuning": TUNING,
        "example_pair": None,
    }
    return checked(replace(smoke, **changes))


def on_record(profile: Profile) -> pd.DataFrame:
    """The search for the weight of AT, as it is on record."""
    *searches, _ = tuning_cells(profile, profile.pairs[0].name, "at")
    return pd.DataFrame([row for search in searches for row in search.rows()])


def planned(profile: Profile) -> tuple[int, int | None]:
    """How many runs of that search, and choices, there are, and how many there will be."""
    (step,) = [s for s in make_plan(profile, "smoke") if s.name == "11_tuning-resnet14-resnet8x0.25-at"]
    return step.runs


def files() -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in StudyPaths("smoke").records.iterdir()}


# ---- the rule


def explored(grid, score) -> list[float]:
    """What the rule tries where the score of a weight is known at once."""
    tried = ()
    while (wanted := weights_to_try(grid, {weight: score(weight) for weight in tried})) != tried:
        tried = wanted
    return list(tried)
