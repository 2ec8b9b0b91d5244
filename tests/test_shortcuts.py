"""The comparison of fast and plain training: the same runs in every way, side by side the same to the last
digit.
"""

from dataclasses import replace

import pytest

from pursuhint_lib import records
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.study.engine.plan import make_plan
from pursuhint_lib.study.experiments.speed_check import REFERENCE, WAYS, speed_frame
from pursuhint_lib.study.grid.hint_layers import layer_similarity
from pursuhint_lib.study.grid.profiles import checked, load_profile
from pursuhint_lib.training import train_teacher


@pytest.fixture
def profile():
    changes = {
        "arms": ("none", "stage-ends"),
        "metrics": ("r2",),
        "shortcut_seeds": 2,
        "precision": "fp32",
        "example_pair": None,
        "tuning": None,
    }
    smoke = checked(replace(load_profile("smoke"), **changes))
    train_teacher(smoke.teacher_settings("resnet14"))
    return smoke


def planned(profile):
    """The step of the comparison."""
    return next(step for step in make_plan(profile, "smoke") if step.notebook == "07_speed")


def test_every_way_trains_the_same_runs_and_side_by_side_is_exact(profile):
    assert planned(profile).runs == (0, None)
    layer_similarity(profile, "resnet14")
    # Two seeds of two methods and of no hints, in three ways.
    assert planned(profile).runs == (0, 18)
    frame = speed_frame(profile)
    assert planned(profile).runs == (18, 18)
    assert list(dict.fromkeys(frame["arm"])) == list(WAYS)
    assert set(frame["method"]) == {"no hints", "at, stage-ends", "fitnet, stage-ends"}
    assert frame.groupby("arm").size().eq(6).all()
    plain, together, low = (frame[frame["arm"] == way].set_index(["method", "seed"]) for way in WAYS)
    assert (plain["accuracy"] == together["accuracy"]).all()
    assert (plain["loss"] == together["loss"]).all()
    assert (plain["loss"] != low["loss"]).all()
    assert REFERENCE == "fp32, one at a time"


def test_runs_of_their_own_are_trained_apart_and_recorded_apart(profile):
    layer_similarity(profile, "resnet14")
    speed_frame(profile)
    apart = sorted(path.name for path in StudyPaths("smoke/alone").records.glob("*.json"))
    assert len(apart) == 6
    together = {path.name for path in StudyPaths("smoke").records.glob("*.json")}
    assert set(apart) < together
    low = [
        records.read(StudyPaths("smoke").records / name)
        for name in together - set(apart)
        if not name.startswith("teacher")
    ]
    assert {record.settings["precision"] for record in low} == {"bf16"}
    # The teacher is the same one.
    assert {record.settings["teacher"]["precision"] for record in low} == {"fp32"}


@pytest.mark.parametrize("seeds", [-1, 1])
def test_too_few_seeds_for_an_interval_are_refused(seeds):
    with pytest.raises(SettingsError, match=f"shortcut_seeds is {seeds}; "):
        replace(load_profile("smoke"), shortcut_seeds=seeds)
