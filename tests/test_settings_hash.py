"""Settings of a run: which ones share a hash, and what a run takes from its cell."""

import dataclasses
from dataclasses import field, replace
from typing import Annotated

import pytest
from profiles_made import ARMS, GOOD, STUDENT, distill
from pydantic import Field

from pursuhint_lib.settings import (
    Data,
    Profile,
    Schedule,
    TeacherSettings,
    build,
    resolved,
    settings_hash,
    validated,
)


def test_one_and_one_point_nought_have_the_same_hash():
    whole = replace(
        STUDENT, ce_weight=2, hint_weight=100, temperature=3, schedule=Schedule(10, 64, 1, (5, 8))
    )
    point = replace(
        STUDENT, ce_weight=2.0, hint_weight=100.0, temperature=3.0, schedule=Schedule(10, 64, 1.0, (5, 8))
    )
    assert settings_hash(whole) == settings_hash(point)
    assert settings_hash(replace(point, ce_weight=2.5)) != settings_hash(point)


def test_the_order_of_fields_does_not_enter_the_hash():
    one = dataclasses.make_dataclass("One", [("a", int), ("b", float), ("c", tuple)])
    other = dataclasses.make_dataclass("Other", [("c", tuple), ("b", float), ("a", int)])
    assert settings_hash(one(a=1, b=0.5, c=(1, 2))) == settings_hash(other(a=1, b=0.5, c=(1, 2)))
    assert settings_hash(one(a=1, b=0.5, c=(1, 2))) != settings_hash(one(a=1, b=0.5, c=(2, 1)))


def test_the_profile_name_does_not_enter_the_hash():
    teacher = STUDENT.teacher
    assert settings_hash(replace(teacher, profile="a")) == settings_hash(teacher)
    assert settings_hash(replace(STUDENT, teacher=replace(teacher, profile="b"))) == settings_hash(STUDENT)
    assert settings_hash(distill(profile="c")) == settings_hash(distill())
    assert "profile" not in resolved(teacher)


OTHER = {
    "network": "resnet56",
    "student": "resnet14",
    "method": "at",
    "teacher_points": ("layer1.0",),
    "student_points": ("layer3.0",),
    "ce_weight": 0.5,
    "kd_weight": 0.25,
    "hint_weight": 3.0,
    "temperature": 2.0,
    "seed": 7,
    "precision": "bf16",
    "checkpoint": "a.pth",
    "dataset": "cifar10",
    "train_images": 300,
    "subset_seed": 3,
    "test_images": 200,
    "root": "mine",
    "image_size": 64,
    "classes": 5,
    "epochs": 12,
    "batch_size": 32,
    "learning_rate": 0.1,
    "milestones": (4,),
    "decay": 0.2,
    "momentum": 0.8,
    "weight_decay": 1e-4,
    "evaluate_every": 2,
    "held_out": 100,
    "sync_batchnorm": True,
    "deterministic": True,
    "part_weights": (1.0, 2.0),
}


def variants(settings):
    """(dotted name, settings with that one hashed leaf changed) for every hashed leaf."""
    for f in dataclasses.fields(settings):
        if not f.metadata.get("hashed", True):
            continue
        value = getattr(settings, f.name)
        if dataclasses.is_dataclass(value):
            yield from (
                (f"{f.name}.{inner}", replace(settings, **{f.name: variant}))
                for inner, variant in variants(value)
            )
        else:
            yield f.name, replace(settings, **{f.name: OTHER[f.name]})


def test_every_hashed_setting_of_a_student_changes_the_hash():
    hashes = {name: settings_hash(variant) for name, variant in variants(STUDENT)}
    assert {
        "teacher.data.root",
        "teacher.schedule.decay",
        "teacher.checkpoint",
        "schedule.evaluate_every",
        "precision",
        "seed",
    } <= set(hashes)
    assert settings_hash(STUDENT) not in hashes.values()
    assert len(set(hashes.values())) == len(hashes)


def test_a_new_setting_at_its_default_keeps_the_hash_and_another_value_changes_it():
    @validated
    class Younger(Schedule):
        nesterov: Annotated[int, Field(ge=0)] = 0
        extra: dict = field(default_factory=dict)

    old, young = Schedule(10, 64, 0.05, (5,)), Younger(10, 64, 0.05, (5,))
    assert settings_hash(young) == settings_hash(replace(young, nesterov=0, extra={})) == settings_hash(old)
    assert settings_hash(replace(STUDENT, schedule=young)) == settings_hash(replace(STUDENT, schedule=old))
    assert settings_hash(replace(young, nesterov=1)) != settings_hash(old)
    assert settings_hash(replace(young, extra={"a": 1})) != settings_hash(old)


def test_resolved_settings_are_plain_and_hold_the_defaults():
    plain = resolved(STUDENT)
    assert plain["schedule"] == {
        "epochs": 10,
        "batch_size": 64,
        "learning_rate": 0.05,
        "milestones": [5, 8],
        "decay": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "evaluate_every": 1,
        "sync_batchnorm": False,
    }
    assert plain["teacher"]["checkpoint"] is None
    assert plain["teacher_points"] == ["layer1.2", "layer2.2"]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_a_run_takes_everything_but_the_points_from_the_cell(arm):
    cell = distill(precision="bf16", seed=3, ce_weight=0.5)
    run = cell.run(arm)
    assert run.teacher_points == arm.teacher_points
    for name in (
        "teacher",
        "student",
        "ce_weight",
        "kd_weight",
        "temperature",
        "data",
        "schedule",
        "seed",
        "precision",
    ):
        assert getattr(run, name) == getattr(cell, name)


def test_an_arm_with_a_weight_of_its_own_is_the_run_of_a_cell_of_that_weight():
    assert distill().run(ARMS[1]) == STUDENT
    heavy = dataclasses.replace(ARMS[1], hint_weight=7.0)
    assert distill().run(heavy) == distill(hint_weight=7.0).run(ARMS[1])
    assert settings_hash(distill().run(heavy)) != settings_hash(distill().run(ARMS[1]))
    # All sub-blocks share the weight out, also their own.
    many = dataclasses.replace(
        heavy,
        teacher_points=("layer1.0", "layer1.1", "layer1.2", "layer2.2"),
        student_points=("layer1.0",) * 4,
    )
    assert distill().run(many).hint_weight == pytest.approx(7.0 * len(distill().student_points) / 4)
    assert distill().run(dataclasses.replace(ARMS[0], hint_weight=7.0)) == distill().run(ARMS[0])


@pytest.mark.parametrize(("kd_weight", "method"), [(1.0, "kd"), (0.5, "kd"), (0.0, "ce")])
def test_an_arm_without_points_is_one_plain_run_for_every_method(kd_weight, method):
    runs = {
        distill(method=name, hint_weight=weight, kd_weight=kd_weight, student_points=points).run(ARMS[0])
        for name, weight, points in (
            ("fitnet", 100.0, ("layer1.0",)),
            ("at", 1000.0, ("layer2.0", "layer3.0")),
            ("kd", 0.0, ()),
        )
    }
    (run,) = runs
    assert (run.method, run.hint_weight, run.teacher_points, run.student_points, run.kd_weight) == (
        method,
        0.0,
        (),
        (),
        kd_weight,
    )


def test_a_profile_hands_its_settings_to_its_teachers():
    profile = build(Profile, GOOD | {"teacher_seed": 5, "precision": "bf16", "deterministic": True}, "here")
    teacher = profile.teacher_settings("resnet14")
    assert teacher == TeacherSettings(
        "resnet14", Data("digits"), Schedule(4, 50, 0.05), 5, "bf16", None, True, "mine"
    )
