"""Settings: what a profile may say, how mistakes are named, and which settings share a hash."""

import dataclasses
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import yaml

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


def written(folder: Path, content: dict | str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), encoding="utf-8"
    )
    return path


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


@pytest.mark.parametrize(
    ("dotted", "value", "words"),
    [
        ("datta", {"dataset": "digits"}, ("'datta'", "did you mean 'data'", "valid: name, title")),
        ("data.train_image", 5, ("'train_image'", "did you mean 'train_images'", "mine.yaml.data")),
        ("teacher.epoch", 3, ("'epoch'", "did you mean 'epochs'", "mine.yaml.teacher")),
        ("weights", {"knowledge": 1.0}, ("'knowledge'", "valid: ce, kd, temperature, hint")),
        ("teacher.epochs", "ten", ("mine.yaml.teacher.epochs", "int", "'ten'")),
        ("teacher.epochs", 4.0, ("mine.yaml.teacher.epochs", "int", "4.0")),
        ("teacher.learning_rate", "fast", ("mine.yaml.teacher.learning_rate", "float", "'fast'")),
        ("title", 7, ("mine.yaml.title", "str", "7")),
        ("teacher.epochs", True, ("mine.yaml.teacher.epochs", "int", "True")),
        ("teacher.learning_rate", True, ("mine.yaml.teacher.learning_rate", "float", "True")),
        ("seeds", [0, False], ("mine.yaml.seeds[1]", "int", "False")),
        ("data", ["digits"], ("mine.yaml.data", "mapping", "['digits']")),
        ("pairs", [["resnet14", "resnet8"]], ("mine.yaml.pairs[0]", "mapping", "resnet14")),
        ("checkpoints", ["a.pth"], ("mine.yaml.checkpoints", "mapping", "a.pth")),
        ("weights", {"hint": [1.0]}, ("mine.yaml.weights.hint", "mapping", "[1.0]")),
        ("weights", {"hint": {"at": "much"}}, ("mine.yaml.weights.hint.at", "float", "'much'")),
        ("methods", "kd", ("mine.yaml.methods", "list", "'kd'")),
        ("seeds", 0, ("mine.yaml.seeds", "list", "0")),
        ("data", KeyError, ("mine.yaml", "lacks", "data")),
        ("teacher.epochs", KeyError, ("mine.yaml.teacher", "lacks", "epochs")),
        ("pairs", [{"teacher": "resnet14"}], ("mine.yaml.pairs[0]", "lacks", "student")),
        ("teacher.epochs", 0, ("mine.yaml.teacher", "epochs is 0", "above 0")),
        ("student.batch_size", -1, ("mine.yaml.student", "batch_size is -1", "above 0")),
        ("teacher.learning_rate", 0.0, ("learning_rate is 0.0", "above 0")),
        ("teacher.evaluate_every", 0, ("evaluate_every is 0", "above 0")),
        ("data.train_images", 0, ("mine.yaml.data", "train_images is 0", "above 0")),
        ("profile_images", 0, ("profile_images is 0", "above 0")),
        ("margin", -0.1, ("margin is -0.1", "above 0")),
        ("weights", {"temperature": 0}, ("temperature is 0", "above 0")),
        ("pairs", [{"teacher": "resnet14", "student": "resnet8", "k": 0}], ("k is 0", "above 0")),
        ("teacher.milestones", [2, 4], ("milestones [4]", "4 epochs", "between 1 and 3")),
        ("teacher.milestones", [0], ("milestones [0]", "between 1 and 3")),
        ("precision", "fp16", ("precision 'fp16'", "did you mean 'bf16'", "valid: auto, fp32, bf16")),
        ("methods", [], ("methods is empty", "at least one")),
        ("pairs", [], ("pairs is empty", "at least one")),
        ("arms", [], ("arms is empty", "at least one")),
        ("seeds", [], ("seeds is empty", "at least one")),
        ("metrics", [], ("metrics is empty", "at least one")),
        ("seeds", [0, 1, 0], ("seeds", "0", "more than once")),
        ("methods", ["kd", "at", "kd"], ("methods", "kd", "more than once")),
        ("name", "../x", ("'../x'", "folder", "letters, digits")),
        ("name", ".hidden", ("'.hidden'", "folder", "letters, digits")),
        ("name", "a/b", ("'a/b'", "folder", "letters, digits")),
        ("name", "", ("''", "folder", "letters, digits")),
        ("name", "x\n", (r"'x\n'", "folder", "letters, digits")),
    ],
)
def test_a_bad_profile_is_refused_with_the_culprit_and_the_remedy(tmp_path, dotted, value, words):
    with pytest.raises(SettingsError) as caught:
        read_profile(written(tmp_path, changed(dotted, value)))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- a\n- b\n", ("mine.yaml", "mapping of settings", "['a', 'b']")),
        ("", ("mine.yaml", "mapping of settings", "None")),
        ("just words", ("mine.yaml", "mapping of settings", "'just words'")),
        ("name: [unclosed\n", ("mine.yaml", "not a YAML file", "line 2")),
        ("name: x\n\ttitle: y\n", ("mine.yaml", "not a YAML file")),
        ("title: 2026-13-45\n", ("mine.yaml", "not a YAML file")),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path, content, words):
    with pytest.raises(SettingsError) as caught:
        read_profile(written(tmp_path, content))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\x00\xff\xfe", b"name: x\x00\x01"])
def test_a_binary_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"mine\.yaml is not a YAML file"):
        read_profile(path)


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
    with pytest.raises(SettingsError, match="dataset must be str, not None"):
        build(Data, {"dataset": None}, "here")


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_profile_is_read_under_its_own_name(path):
    assert read_profile(path).name == path.stem


def test_a_pair_is_found_by_name_and_a_wrong_name_is_explained(tmp_path):
    profile = read_profile(
        written(tmp_path, changed("pairs", [{"teacher": "torchvision/resnet18", "student": "resnet8"}]))
    )
    assert profile.pair("torchvision_resnet18-resnet8") == profile.pairs[0]
    with pytest.raises(SettingsError, match="did you mean 'torchvision_resnet18-resnet8'"):
        profile.pair("torchvision_resnet18-resnet14")


def test_choose_returns_what_is_valid_and_suggests_the_nearest():
    assert choose("method", "at", ["kd", "at"]) == "at"
    with pytest.raises(SettingsError) as caught:
        choose("method", "fitnets", (name for name in ["kd", "fitnet", "at"]))
    assert str(caught.value) == "unknown method 'fitnets' (did you mean 'fitnet'?); valid: kd, fitnet, at"
    with pytest.raises(SettingsError) as caught:
        choose("method", "xyz", ["kd", "at"])
    assert str(caught.value) == "unknown method 'xyz'; valid: kd, at"


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, 0.05),
        (149, 0.05),
        (150, 0.005),
        (179, 0.005),
        (180, 0.0005),
        (209, 0.0005),
        (210, 0.00005),
        (239, 0.00005),
    ],
)
def test_the_learning_rate_drops_at_its_milestones(epoch, expected):
    assert Schedule(240, 64, 0.05, (150, 180, 210)).learning_rate_at(epoch) == pytest.approx(
        expected, rel=1e-12
    )


def test_the_learning_rate_is_constant_without_milestones_and_follows_decay():
    assert {Schedule(5, 1, 0.3).learning_rate_at(epoch) for epoch in range(5)} == {0.3}
    assert Schedule(5, 1, 0.3, (2,), decay=0.5).learning_rate_at(2) == pytest.approx(0.15)


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
    @dataclass(frozen=True)
    class Younger(Schedule):
        nesterov: int = 0
        extra: dict = field(default_factory=dict)

    old, young = Schedule(10, 64, 0.05, (5,)), Younger(10, 64, 0.05, (5,))
    assert settings_hash(young) == settings_hash(old)
    assert settings_hash(replace(STUDENT, schedule=young)) == settings_hash(replace(STUDENT, schedule=old))
    assert settings_hash(replace(young, nesterov=1)) != settings_hash(old)
    assert settings_hash(replace(young, extra={"a": 1})) != settings_hash(old)


def test_a_default_written_out_has_the_hash_of_a_default_left_out():
    assert settings_hash(Schedule(10, 64, 0.05, (), 0.1, 0.9, 5e-4, 1)) == settings_hash(
        Schedule(10, 64, 0.05)
    )


def test_the_hash_of_an_example_never_changes():
    assert settings_hash(STUDENT) == "d9d3344bdda7"
    assert settings_hash(STUDENT.teacher) == "2355d72f94a9"


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


def test_an_arm_with_points_keeps_method_weight_and_points():
    run = distill().run(ARMS[1])
    assert run == STUDENT


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
    assert len(runs) == 1
    run = runs.pop()
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
