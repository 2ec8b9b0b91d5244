"""Settings: what a profile may say, how mistakes are named, and which settings share a hash."""

import dataclasses
import json
import math
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from pydantic import Field

from pursuhint_lib.paths import CONFIG
from pursuhint_lib.settings import (
    Arm,
    Data,
    DistillSettings,
    Pair,
    Profile,
    Schedule,
    SettingsError,
    StudentSettings,
    TeacherSettings,
    Weights,
    build,
    choose,
    read_profile,
    resolved,
    settings_hash,
    validated,
)

SCHEDULE = {"epochs": 4, "batch_size": 50, "learning_rate": 0.05}
GOOD = {
    "name": "mine",
    "title": "a study",
    "data": {"dataset": "digits"},
    "teacher": SCHEDULE,
    "student": SCHEDULE,
    "pairs": [{"teacher": "resnet14", "student": "resnet8x0.25"}],
    "methods": ["kd", "fitnet"],
    "arms": ["none", "stage-ends"],
    "seeds": [0, 1],
}


def changed(dotted: str, value) -> dict:
    """The good profile with one entry replaced, or taken out when the value is ``KeyError``."""
    content = json.loads(json.dumps(GOOD))
    *parents, last = dotted.split(".")
    inner = content
    for key in parents:
        inner = inner[key]
    if value is KeyError:
        del inner[last]
    else:
        inner[last] = value
    return content


def written(folder: Path, content: dict | bytes) -> Path:
    path = folder / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content).encode())
    return path


def refused(call, *words: str) -> None:
    """The call is refused in one line with all of the words."""
    with pytest.raises(SettingsError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


STUDENT = StudentSettings(
    teacher=TeacherSettings("resnet20", Data("digits"), Schedule(10, 64, 0.05)),
    student="resnet8x0.25",
    method="fitnet",
    teacher_points=("layer1.2", "layer2.2"),
    student_points=("layer1.0", "layer2.0"),
    ce_weight=1.0,
    kd_weight=1.0,
    hint_weight=100.0,
    temperature=4.0,
    data=Data("digits"),
    schedule=Schedule(10, 64, 0.05, (5, 8)),
    seed=0,
)

ARMS = (Arm("none"), Arm("stage-ends", ("layer1.2", "layer2.2")))


def distill(**other) -> DistillSettings:
    shared = {
        f.name: getattr(STUDENT, f.name)
        for f in dataclasses.fields(StudentSettings)
        if f.name != "teacher_points"
    }
    return DistillSettings(**{**shared, "arms": ARMS, "profile": "mine", **other})


BAD = [
    # Names that are not known, or not there.
    ("datta", {"dataset": "digits"}, ("mine.yaml 'datta'", "did you mean 'data'", "valid: name, title")),
    ("data.train_image", 5, ("'train_image'", "did you mean 'train_images'", "mine.yaml.data")),
    ("weights", {"knowledge": 1.0}, ("'knowledge'", "valid: ce, kd, temperature, hint")),
    ("pairs", [{"teacher": "a", "studend": "b"}], ("mine.yaml.pairs[0]", "did you mean 'student'")),
    ("example_pair", {"teachers": "a"}, ("mine.yaml.example_pair", "did you mean 'teacher'")),
    ("data", KeyError, ("mine.yaml lacks data; add",)),
    ("student", {}, ("mine.yaml.student lacks epochs, batch_size, learning_rate; add",)),
    ("pairs", [{"teacher": "resnet14"}], ("mine.yaml.pairs[0] lacks student",)),
    # Types.
    ("teacher.epochs", "ten", ("mine.yaml.teacher.epochs is 'ten'", "integer")),
    ("teacher.epochs", 4.0, ("mine.yaml.teacher.epochs is 4.0", "integer")),
    ("teacher.epochs", True, ("mine.yaml.teacher.epochs is True", "integer")),
    ("seeds", [0, False], ("mine.yaml.seeds[1] is False", "integer")),
    ("teacher.learning_rate", "fast", ("mine.yaml.teacher.learning_rate is 'fast'", "number")),
    ("teacher.learning_rate", True, ("mine.yaml.teacher.learning_rate is True", "number")),
    ("teacher.learning_rate", math.inf, ("mine.yaml.teacher.learning_rate is inf", "finite number")),
    ("teacher.learning_rate", math.nan, ("mine.yaml.teacher.learning_rate is nan", "finite number")),
    ("teacher.learning_rate", 10**400, ("mine.yaml.teacher.learning_rate is 1000", "number")),
    ("weights", {"hint": {"at": "much"}}, ("mine.yaml.weights.hint.at is 'much'", "number")),
    ("weights", {"hint": {"at": math.nan}}, ("mine.yaml.weights.hint.at is nan", "finite number")),
    ("weights", {"hint": {3: 1.0}}, ("mine.yaml.weights.hint[3]", "string")),
    ("student.sync_batchnorm", "yes", ("mine.yaml.student.sync_batchnorm is 'yes'", "boolean")),
    ("title", 7, ("mine.yaml.title is 7", "string")),
    ("title", None, ("mine.yaml.title is None", "string")),
    ("title", "\ud800", ("mine.yaml.title is '\\ud800'", "half a character")),
    ("data", ["digits"], ("mine.yaml.data is ['digits']", "mapping of settings")),
    ("launch", True, ("mine.yaml.launch is True", "mapping of settings")),
    ("pairs", [["resnet14", "resnet8"]], ("mine.yaml.pairs[0]", "mapping of settings")),
    ("checkpoints", ["a.pth"], ("mine.yaml.checkpoints", "mapping")),
    ("methods", "kd", ("mine.yaml.methods is 'kd'", "list")),
    ("pairs", {"teacher": "resnet14"}, ("mine.yaml.pairs is {'teacher': 'resnet14'}", "list")),
    # Ranges.
    *(
        (name, 0, (f"mine.yaml.{name} is 0", "greater than 0"))
        for name in (
            *("teacher.epochs", "student.batch_size", "teacher.learning_rate", "teacher.evaluate_every"),
            *("student.decay", "data.train_images", "profile_images", "student_images"),
        )
    ),
    *(
        (name, -0.5, (f"mine.yaml.{name} is -0.5", "greater than or equal to 0"))
        for name in ("teacher.momentum", "student.weight_decay")
    ),
    ("student.momentum", 1, ("mine.yaml.student.momentum is 1", "less than 1")),
    ("data.subset_seed", -1, ("mine.yaml.data.subset_seed is -1", "greater than or equal to 0")),
    ("seeds", [2**32], ("mine.yaml.seeds[0] is 4294967296", "less than 4294967296")),
    ("teacher_seed", -2, ("mine.yaml.teacher_seed is -2", "greater than or equal to 0")),
    ("weights", {"temperature": 0}, ("mine.yaml.weights.temperature is 0", "greater than 0")),
    ("weights", {"ce": -1}, ("mine.yaml.weights.ce is -1", "greater than or equal to 0")),
    ("weights", {"hint": {"at": -3}}, ("mine.yaml.weights.hint.at is -3", "greater than or equal to 0")),
    ("pairs", [{"teacher": "a", "student": "b", "k": 0}], ("mine.yaml.pairs[0].k is 0", "greater than 0")),
    ("stability", {"images": [0]}, ("mine.yaml.stability.images[0] is 0", "greater than 0")),
    ("stability", {"draws": 0}, ("mine.yaml.stability.draws is 0", "greater than 0")),
    ("launch", {"processes": 0}, ("mine.yaml.launch.processes is 0", "greater than 0")),
    ("shortcut_seeds", -2, ("mine.yaml.shortcut_seeds is -2", "greater than or equal to 0")),
    ("shortcut_seeds", 1, ("shortcut_seeds is 1", "give 2 or more, or 0")),
    ("teacher.milestones", [0], ("mine.yaml.teacher.milestones[0] is 0", "greater than 0")),
    ("teacher.milestones", [2, 4], ("mine.yaml.teacher: milestones [4]", "4 epochs", "between 1 and 3")),
    ("precision", "fp16", ("precision 'fp16'", "did you mean 'bf16'", "valid: auto, fp32, bf16")),
    ("fewer_seeds", {"at": 2}, ("fewer_seeds of at is 2", "profile has 2; give 1 to 1")),
    (
        "pairs",
        [{"teacher": "a", "student": "b", "seeds": 3}],
        ("seeds of pair a-b is 3", "profile has 2; give 1 to 2"),
    ),
    # Nothing, or the same again.
    *(
        (name, [], (f"mine.yaml.{name} is []", "at least one"))
        for name in ("pairs", "methods", "arms", "seeds", "metrics")
    ),
    ("seeds", [0, 1, 0], ("mine.yaml.seeds", "names 0 more than once", "leave it there once")),
    ("methods", ["kd", "at", "kd"], ("mine.yaml.methods", "kd more than once")),
    ("teacher.milestones", [1, 1], ("mine.yaml.teacher.milestones", "1 more than once")),
    ("pairs", 2 * GOOD["pairs"], ("pairs names resnet14-resnet8x0.25 more than once",)),
    ("stability", {"teacher_seeds": [0]}, ("teacher_seed and stability.teacher_seeds", "0 more than once")),
    # Names of folders.
    *(
        ("name", name, (f"{name!r}"[:40], "folder", "at most 100 letters, digits"))
        for name in ("../x", ".hidden", "a/b", "", "x\n", "a" * 101)
    ),
]


@pytest.mark.parametrize(
    ("dotted", "value", "words"), BAD, ids=[f"{dotted}={value!a:.30}" for dotted, value, _ in BAD]
)
def test_a_bad_profile_is_refused_with_the_culprit_and_the_remedy(tmp_path, dotted, value, words):
    refused(lambda: read_profile(written(tmp_path, changed(dotted, value))), *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"- a\n- b\n", ("mine.yaml is ['a', 'b']", "mapping of settings")),
        (b"", ("mine.yaml is None", "mapping of settings")),
        (b"just words", ("mine.yaml is 'just words'", "mapping of settings")),
        (b"name: [unclosed\n", ("mine.yaml is not a YAML file", "line 2")),
        (b"name: x\n\ttitle: y\n", ("mine.yaml is not a YAML file",)),
        (b"title: 2026-13-45\n", ("mine.yaml is not a YAML file",)),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", ("mine.yaml is not a YAML file",)),
        (b"name: x\x00\x01", ("mine.yaml is not a YAML file",)),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path, content, words):
    refused(lambda: read_profile(written(tmp_path, content)), *words)


def test_a_good_profile_becomes_nested_dataclasses_and_tuples(tmp_path):
    content = changed("teacher.milestones", [2, 3])
    content |= {
        "checkpoints": {"resnet14": "a.pth"},
        "example_pair": {"teacher": "resnet8", "student": "resnet8", "student_points": ["layer1"]},
    }
    profile = read_profile(written(tmp_path, content))
    assert profile.data == Data("digits")
    assert profile.teacher == Schedule(4, 50, 0.05, (2, 3))
    assert profile.pairs == (Pair("resnet14", "resnet8x0.25"),)
    assert profile.methods == ("kd", "fitnet")
    assert profile.seeds == (0, 1)
    assert profile.weights == Weights()
    assert profile.example_pair == Pair("resnet8", "resnet8", ("layer1",))
    assert profile.teacher_settings("resnet14").checkpoint == "a.pth"
    assert profile.teacher_settings("resnet20").checkpoint is None


def test_ints_are_taken_for_floats():
    schedule = build(Schedule, {"epochs": 2, "batch_size": 5, "learning_rate": 1, "momentum": 0}, "here")
    weights = build(Weights, {"kd": 2, "hint": {"at": 1000}}, "here")
    for value, expected in (
        (schedule.learning_rate, 1.0),
        (schedule.momentum, 0.0),
        (weights.kd, 2.0),
        (weights.hint["at"], 1000.0),
    ):
        assert type(value) is float
        assert value == expected


def test_none_is_taken_where_a_setting_may_be_left_out():
    assert build(Data, {"dataset": "digits", "train_images": None}, "here") == Data("digits")
    refused(lambda: build(Data, {"dataset": None}, "here"), "here.dataset is None")


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("1.0e-3", 1e-3), ("2E+1", 20.0), ("1", 1.0)])
def test_a_number_may_be_written_as_in_other_languages(tmp_path, text, value):
    """PyYAML takes 1e-3 for text."""
    content = yaml.safe_dump(GOOD).replace("0.05", text).encode()
    assert read_profile(written(tmp_path, content)).teacher.learning_rate == value


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Schedule(0, 5, 0.1), "Schedule.epochs is 0"),
        (lambda: Schedule(1, 5, learning_rate="fast"), "Schedule.learning_rate is 'fast'"),
        (lambda: Schedule(1, 5, 0.1, epoch=3), "Schedule 'epoch' (did you mean 'epochs'?)"),
        (lambda: Pair("resnet14"), "Pair lacks student"),
        (lambda: replace(STUDENT, seed=-1), "StudentSettings.seed is -1"),
        (lambda: replace(STUDENT, data=None), "StudentSettings.data is None"),
    ],
)
def test_settings_made_in_python_are_checked_alike(call, words):
    refused(call, words)
    with pytest.raises(dataclasses.FrozenInstanceError):
        STUDENT.seed = 3


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_profile_is_read_under_its_own_name(path):
    assert read_profile(path).name == path.stem


def test_a_pair_is_found_by_name_and_a_wrong_name_is_explained(tmp_path):
    profile = read_profile(
        written(tmp_path, changed("pairs", [{"teacher": "torchvision/resnet18", "student": "resnet8"}]))
    )
    assert profile.pair("torchvision_resnet18-resnet8") == profile.pairs[0]
    refused(
        lambda: profile.pair("torchvision_resnet18-resnet14"), "did you mean 'torchvision_resnet18-resnet8'"
    )


def test_choose_returns_what_is_valid_and_suggests_the_nearest():
    names = ["kd", "fitnet", "at"]
    assert choose("method", "at", names) == "at"
    refused(
        lambda: choose("method", "fitnets", (name for name in names)),
        "unknown method 'fitnets' (did you mean 'fitnet'?); valid: kd, fitnet, at",
    )
    refused(lambda: choose("method", "xyz", names), "unknown method 'xyz'; valid: kd, fitnet, at")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (
            Schedule(240, 64, 0.05, (150, 180, 210)),
            {0: 5e-2, 149: 5e-2, 150: 5e-3, 179: 5e-3, 180: 5e-4, 209: 5e-4, 210: 5e-5, 239: 5e-5},
        ),
        (Schedule(5, 1, 0.3), dict.fromkeys(range(5), 0.3)),
        (Schedule(5, 1, 0.3, (2,), decay=0.5), {1: 0.3, 2: 0.15}),
    ],
)
def test_the_learning_rate_drops_at_its_milestones(schedule, expected):
    found = {epoch: schedule.learning_rate_at(epoch) for epoch in expected}
    assert found == pytest.approx(expected, rel=1e-12)


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
