"""Arms that go by the teacher's stages: one layer in each, the last end alone, more stages than points."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pursuhint_lib.settings import Arm, Data, Pair, SettingsError, Sweep
from pursuhint_lib.study.grid.arms import LayerMap, check_arm, choose_points, stage_set_arms
from pursuhint_lib.study.grid.cells import cell_settings, fork
from pursuhint_lib.study.grid.hint_layers import hint_choices, stored_similarity
from pursuhint_lib.study.grid.profiles import checked, load_profile, network_points

NINE = LayerMap(9, (2, 5, 8), {})
UNEVEN = LayerMap(10, (1, 3, 5, 9), {"r2": np.eye(10)})


def sets_by_hand(ends, k):
    """Every set with one sub-block in each of the last k stages, filtered from all combinations."""
    stage = [sum(layer > end for end in ends) for layer in range(ends[-1] + 1)]
    wanted = list(range(len(ends)))[-k:]
    return [
        points
        for points in itertools.combinations(range(len(stage)), k)
        if [stage[point] for point in points] == wanted
    ]


def drawn(layer_map, k, count):
    return [choose_points(f"stage-random-{n}", layer_map, k).indices for n in range(1, count + 1)]


@pytest.mark.parametrize(("layer_map", "k"), [(NINE, 3), (UNEVEN, 4), (UNEVEN, 3), (UNEVEN, 1)])
def test_stage_random_draws_every_set_of_one_per_stage_and_none_twice(layer_map, k):
    every = sets_by_hand(layer_map.stage_ends, k)
    assert sorted(drawn(layer_map, k, len(every))) == every


def test_stage_random_draws_are_even_over_the_layers_of_a_stage():
    """Each third of a stage of resnet110 comes 50/3 ± 4 standard deviations times in 50 draws."""
    points = np.array(drawn(LayerMap(54, (17, 35, 53), {}), 3, 50))
    for column in points.T % 18 // 6:
        assert all(
            abs(Counter(column.tolist())[third] - 50 / 3) < 4 * np.sqrt(50 * 2 / 9) for third in range(3)
        )


def test_stage_sets_are_all_sets_of_one_per_stage_by_their_layers_numbers():
    arms = stage_set_arms(NINE, 3)
    assert len(arms) == 27
    assert {"stage-set-2-5-8", "stage-set-3-6-9"} < set(arms)
    assert sorted(choose_points(arm, NINE, 3).indices for arm in arms) == sets_by_hand(NINE.stage_ends, 3)
    assert len(stage_set_arms(UNEVEN, 3)) == 2 * 2 * 4


def test_a_profile_with_stage_sets_has_an_arm_for_every_set_in_its_place():
    profile = checked(replace(load_profile("smoke"), arms=("none", "stage-sets", "last"), example_pair=None))
    ends = network_points("resnet14", profile.data).layer_map.stage_ends
    sets = [f"stage-set-{a + 1}-{b + 1}-{c + 1}" for a, b, c in sets_by_hand(ends, 3)]
    assert profile.arms == ("none", *sets, "last")
    assert checked(profile) == profile
    with pytest.raises(
        SettingsError,
        match="stage-set-1-3-5 does not name one sub-block in each stage; give one of 1–3, 4–6, 7–9 each",
    ):
        fork(profile, Pair("resnet20", "resnet8"))


CIFAR = {"data": Data("cifar100"), "example_pair": None, "methods": ("kd", "at")}
ALIKE = (Pair("resnet14", "resnet8"), Pair("resnet14", "resnet8x0.5"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"arms": ("stage-sets",), "pairs": (Pair("resnet56", "resnet8"),)},
            "resnet56 → resnet8: stage-sets are 729 arms, more than 100",
        ),
        (
            {"arms": ("stage-sets",), "pairs": (Pair("resnet14", "resnet8"), Pair("resnet20", "resnet8"))},
            "stage-sets are other arms for each of resnet14-resnet8, resnet20-resnet8",
        ),
        (
            {"arms": ("stage-sets", "stage-set-2-4-6"), "pairs": ALIKE},
            "arms: it names stage-set-2-4-6 more than once",
        ),
        (
            {"arms": ("stage-random-9",), "pairs": ALIKE},
            "8 different sets of 3 sub-blocks with one in each stage, so stage-random-9",
        ),
        (
            {"arms": ("stage-set-1-2-5",), "pairs": ALIKE},
            "stage-set-1-2-5 does not name one .* give one of 1–2, 3–4, 5–6 each",
        ),
        (
            {"arms": ("stage-set-1-3",), "pairs": ALIKE},
            "stage-set-1-3 does not name one sub-block in each stage",
        ),
        (
            {"arms": ("final-end",), "methods": ("kd", "fsp"), "pairs": ALIKE},
            "fsp needs 2 hint layers .*final-end has 1",
        ),
        ({"sweeps": (Sweep("at", (1.0,), ("stage-sets",), 1),)}, "unknown arm 'stage-sets'"),
    ],
)
def test_arms_that_a_pair_cannot_have_are_refused_in_one_line(changes, message):
    with pytest.raises(SettingsError, match=message) as caught:
        checked(replace(load_profile("smoke"), **CIFAR | changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arm",
    [
        f"stage-{rest}"
        for rest in ("random-0", "random-51", "random-1-2", "random-r2", "set-", "set-0-1", "set-x")
    ],
)
def test_arms_without_proper_numbers_are_refused(arm):
    with pytest.raises(
        SettingsError,
        match=f"unknown arm '{arm}'.*; valid: stage-(random-<1 … 50>|set-<sub-block>-<sub-block>-…)$",
    ):
        check_arm(arm, ["r2"])


def test_of_more_stages_than_hint_layers_the_last_count_and_the_reason_says_so():
    note = " Only the last 3 of 4 stages: the student has 3 hint layers."
    ends, turned, mixed = (
        choose_points(arm, UNEVEN, 3) for arm in ("stage-ends", "reversed", "shallowed-r2")
    )
    assert (ends.indices, turned.indices, mixed.indices[:2]) == ((3, 5, 9), (9, 5, 3), (3, 5))
    assert all(choice.reason.endswith(note) for choice in (ends, turned, mixed))
    assert "hint layers" not in choose_points("stage-ends", UNEVEN, 4).reason
    profile = checked(
        replace(
            load_profile("smoke"),
            **CIFAR,
            pairs=(Pair("vgg13", "resnet8"),),
            arms=("none", "stage-ends", "reversed"),
        )
    )
    assert (profile.pairs[0].k, len(network_points("vgg13", profile.data).ends)) == (3, 4)


def test_the_final_end_teaches_the_last_hint_layer_with_the_weight_of_all():
    profile = load_profile("smoke")
    layer_map = network_points("resnet14", profile.data).layer_map
    choices = {arm: choose_points(arm, layer_map, 3) for arm in ("stage-ends", "final-end")}
    assert "at the weight of all 3 hints together" in choices["final-end"].reason
    cell = cell_settings(profile, profile.pairs[0], "at", 0, choices)
    ends, final = (cell.run(arm) for arm in cell.arms)
    assert isinstance(cell.arms[1], Arm)
    assert (final.teacher_points, final.student_points) == (
        ends.teacher_points[-1:],
        ends.student_points[-1:],
    )
    assert final.hint_weight == ends.hint_weight * 3


def test_every_arm_can_be_chosen_for_the_teachers_of_cifar100_lite(monkeypatch):
    """From the committed similarities, and without any image."""
    monkeypatch.delenv("PURSUHINT_RESULTS", raising=False)
    profile = load_profile("cifar100-lite")
    for teacher, layers in (("resnet20", 9), ("resnet56", 27)):
        layer_map = stored_similarity(profile, teacher).layer_map
        assert choose_points("reversed", layer_map, 3).indices == layer_map.stage_ends[::-1]
        best = np.argsort(-np.array(layer_map.quality), kind="stable")[:3]
        assert choose_points("quality", layer_map, 3).indices == tuple(sorted(best.tolist()))
        assert layer_map.layers == layers


def test_the_arms_by_stage_are_written_with_the_hints():
    profile = checked(
        replace(
            load_profile("smoke"),
            arms=("none", "stage-random-1", "final-end", "stage-sets"),
            metrics=("r2-raw",),
        )
    )
    choices = hint_choices(profile, "resnet14", 3)
    assert len(choices) == 3 + 8
    assert choices["final-end"].matched == ((5, 2),)
