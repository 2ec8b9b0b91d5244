"""Settings: what a profile may say, and how mistakes are named."""

import dataclasses
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from profiles_made import GOOD, STUDENT, changed

from pursuhint_lib.paths import CONFIG
from pursuhint_lib.settings import (
    Data,
    Pair,
    Schedule,
    SettingsError,
    Weights,
    build,
    choose,
    read_profile,
)


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
