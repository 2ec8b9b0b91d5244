"""Who takes the weights that a search has chosen, and which are not taken."""

import json
from dataclasses import replace

import pytest
from searches import METHODS, TUNING, small_search

from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.settings import Pair, Profile, SettingsError, Weights
from pursuhint_lib.study.engine.plan import make_plan
from pursuhint_lib.study.grid.cells import cell_settings, fork
from pursuhint_lib.study.grid.profiles import checked
from pursuhint_lib.study.grid.weights import NotTuned, hint_weight, tuning_conditions, weight_to_train


@pytest.fixture
def profile() -> Profile:
    return small_search()


def write(name: str, weights: dict[str, dict[str, float]], conditions=lambda pair, method: {}) -> None:
    """A file of tuned weights: pair → method → weight."""
    path = StudyPaths(name).tuned_weights
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        pair: {m: {"weight": w, "settings": conditions(pair, m)} for m, w in methods.items()}
        for pair, methods in weights.items()
    }
    path.write_text(json.dumps(content))


@pytest.fixture
def two(profile) -> Profile:
    """Three pairs, the second of which is tuned with one method, and the third not."""
    pairs = (*profile.pairs, Pair("resnet14", "resnet8x0.5"), Pair("resnet20", "resnet8x0.25"))
    return checked(
        replace(profile, pairs=pairs, tuning=replace(TUNING, pairs={"resnet14-resnet8x0.5": ("at",)}))
    )


def test_the_weight_is_stated_or_tuned_or_the_literatures(two):
    names = [pair.name for pair in two.pairs]
    assert [(pair.name, method) for pair, method in two.tuned] == [
        (names[0], "at"),
        (names[0], "sp"),
        (names[1], "at"),
    ]
    by_name = {pair.name: pair for pair in two.pairs}
    assert [hint_weight(two, pair, "at") for pair in two.pairs] == [None] * 3
    write(
        "smoke",
        {names[0]: {"at": 10.0, "sp": 3.0}, names[1]: {"at": 100.0}},
        lambda pair, m: tuning_conditions(two, by_name[pair], m),
    )
    assert [hint_weight(two, pair, "at") for pair in two.pairs] == [10.0, 100.0, 10.0]
    assert [hint_weight(two, pair, "sp") for pair in two.pairs] == [3.0] * 3
    # What is not tuned has the literature's weight; the parts of a sum have their own.
    assert {method: hint_weight(two, two.pairs[0], method) for method in ("fitnet", "wsl", "ce")} == {
        "fitnet": 100.0,
        "wsl": 2.25,
        "ce": 0.0,
    }
    cell = cell_settings(two, two.pairs[1], "at+rkd", 0, {})
    assert (cell.hint_weight, cell.part_weights) == (1.0, (100.0, 1.0))
    assert cell_settings(two, two.pairs[1], "at", 0, {}).hint_weight == 100.0
    stated = replace(two, weights=Weights(hint={"at": 7.0}))
    assert [hint_weight(stated, pair, "at") for pair in two.pairs] == [7.0] * 3
    assert fork(two, two.pairs[2], seeds=(0,)).weights.hint == {"at": 10.0, "sp": 3.0}


@pytest.mark.parametrize(
    "changes",
    [
        {"tuning": replace(TUNING, methods={"at": (10.0, 1000.0)})},
        {"tuning": replace(TUNING, seeds=(100,))},
        {"tuning": replace(TUNING, held_out=50)},
        {"tuning": replace(TUNING, arms=("last",))},
        {"weights": Weights(kd=0.5)},
        {"precision": "bf16"},
        {"teacher_seed": 5},
        {"profile_images": 50},
    ],
)
def test_a_weight_that_was_tuned_otherwise_is_not_taken(profile, changes):
    pair = profile.pairs[0]
    write("smoke", {pair.name: {"at": 10.0}}, lambda _, method: tuning_conditions(profile, pair, method))
    assert hint_weight(profile, pair, "at") == 10.0
    other = replace(profile, **changes)
    assert hint_weight(other, pair, "at") is None
    with pytest.raises(
        NotTuned,
        match="the weight of at is not tuned yet, .*; python -m pursuhint_lib tune smoke does it",
    ):
        cell_settings(other, pair, "at", 0, {})


def test_weights_of_another_profile_can_be_taken(profile):
    taker = checked(
        replace(profile, name="taker", tuning=None, weights=Weights(tuned_by="giver", hint={"fitnet": 5.0}))
    )
    pair = taker.pairs[0]
    assert hint_weight(taker, pair, "at") is None
    assert {step.runs for step in make_plan(taker, "taker") if step.name.endswith("-at")} == {(0, None)}
    with pytest.raises(NotTuned, match="which profile taker asks for; python -m pursuhint_lib tune giver"):
        weight_to_train(taker, pair, "at")
    write("giver", {"some-other": {"at": 20.0, "sp": 2.0}, pair.name: {"at": 30.0}})
    assert {method: hint_weight(taker, pair, method) for method in METHODS} == {
        "ce": 0.0,
        "kd": 0.0,
        "at": 30.0,
        "fitnet": 5.0,
        "sp": 2.0,
    }
    keys = {step.name: step.key for step in make_plan(taker, "taker")}
    write("giver", {pair.name: {"at": 31.0, "sp": 2.0}})
    assert keys != {step.name: step.key for step in make_plan(taker, "taker")}
    write("giver", {pair.name: {"at": 31.0}})
    assert hint_weight(taker, pair, "sp") is None
    # A sum is the sum of its parts as they are tuned.
    assert hint_weight(taker, pair, "wsl+at") == 1.0
    assert cell_settings(taker, pair, "wsl+at", 0, {}).part_weights == (2.25, 31.0)
    StudyPaths("giver").tuned_weights.write_text('{"a": {"at": {"weight": 1}}}')
    with pytest.raises(SettingsError, match="weights.json is damaged"):
        hint_weight(taker, pair, "at")


# ---- steps, checks, figure
