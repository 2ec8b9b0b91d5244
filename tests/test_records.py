"""Records and progress: what is written, read back and refused."""

import dataclasses
import json
import platform
import re
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch

from pursuhint_lib import records
from pursuhint_lib.files import unsealed, write_json
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.progress import Progress
from pursuhint_lib.records import PACKAGES, Record, load, provenance, record_name, save
from pursuhint_lib.settings import (
    Arm,
    Data,
    DistillSettings,
    Schedule,
    SettingsError,
    TeacherSettings,
    resolved,
    settings_hash,
)

TEACHER = TeacherSettings("resnet14", Data("digits", train_images=100), Schedule(2, 50, 0.05), profile="mine")
CELL = DistillSettings(
    teacher=TEACHER,
    student="resnet8x0.25",
    method="fitnet",
    arms=(),
    student_points=("layer1.0", "layer2.0"),
    ce_weight=1.0,
    kd_weight=1.0,
    hint_weight=100.0,
    temperature=4.0,
    data=TEACHER.data,
    schedule=Schedule(2, 50, 0.05, (1,)),
    seed=3,
)
STUDENT = CELL.run(Arm("some", ("layer1.1", "layer2.1")))
PLAIN = CELL.run(Arm("none"))


def record_of(settings, kind: str = "student") -> Record:
    return Record(
        name=record_name(settings),
        kind=kind,
        settings=resolved(settings),
        status="ok",
        metrics={"accuracy": 91.25, "optimistic_accuracy": 92.5, "parameters": 1234},
        history={"epoch": [0, 1], "loss": [2.5, 1.0625], "accuracy": [None, 91.25]},
        provenance={"seconds": 1.5, "device": "a processor – of some kind"},
    )


def path_of(settings, profile: str = "mine"):
    return StudyPaths(profile).records / f"{record_name(settings)}.json"


# ---- records


@pytest.mark.parametrize(
    ("settings", "kind"), [(TEACHER, "teacher"), (STUDENT, "student"), (PLAIN, "student")]
)
def test_a_saved_record_comes_back_as_it_was(settings, kind):
    record = record_of(settings, kind)
    save("mine", record)
    assert path_of(settings).is_file()
    assert load("mine", settings) == record
    assert records.read(path_of(settings)) == record


def test_there_is_no_record_before_the_run_nor_in_another_profile():
    assert load("mine", STUDENT) is None
    save("mine", record_of(STUDENT))
    assert load("other", STUDENT) is None
    assert load("mine", replace(STUDENT, seed=4)) is None


def test_names_are_readable_and_end_in_the_hash():
    assert record_name(TEACHER) == f"teacher_resnet14_seed0_{settings_hash(TEACHER)}"
    assert (
        record_name(STUDENT)
        == f"resnet8x0.25_from_resnet14_fitnet_layer1.1+layer2.1_seed3_{settings_hash(STUDENT)}"
    )
    assert record_name(PLAIN) == f"resnet8x0.25_from_resnet14_kd_no-hints_seed3_{settings_hash(PLAIN)}"
    assert re.fullmatch("[0-9a-f]{12}", settings_hash(STUDENT))


def test_a_network_with_a_slash_in_its_name_gives_one_file():
    student = replace(
        STUDENT, student="torchvision/resnet18", teacher=replace(TEACHER, network="torchvision/resnet34")
    )
    assert "/" not in record_name(student)
    save("mine", record_of(student))
    assert load("mine", student) is not None


@pytest.mark.parametrize("blocks", [1, 3, 9])
def test_a_run_with_many_points_can_be_saved(blocks):
    points = tuple(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(18 - blocks, 18))
    student = replace(
        STUDENT,
        teacher=replace(TEACHER, network="resnet110"),
        student="resnet56",
        teacher_points=points,
        student_points=points,
    )
    save("mine", record_of(student))
    assert load("mine", student) is not None


def test_different_settings_never_share_a_name():
    schedule = STUDENT.schedule
    others = [
        STUDENT,
        PLAIN,
        replace(STUDENT, seed=4),
        replace(STUDENT, hint_weight=99.0),
        replace(STUDENT, temperature=3.0),
        replace(STUDENT, precision="bf16"),
        replace(STUDENT, student_points=("layer1.0", "layer3.0")),
        replace(STUDENT, schedule=replace(schedule, momentum=0.8)),
        replace(STUDENT, data=Data("digits")),
        replace(STUDENT, teacher=replace(TEACHER, seed=1)),
        replace(STUDENT, teacher=replace(TEACHER, schedule=replace(TEACHER.schedule, epochs=3))),
        TEACHER,
        replace(TEACHER, data=Data("digits", train_images=100, subset_seed=1)),
        replace(TEACHER, checkpoint="a.pth"),
        replace(TEACHER, network="resnet20"),
    ]
    assert len({record_name(settings) for settings in others}) == len(others)


def test_the_profile_is_no_part_of_a_name():
    assert record_name(replace(TEACHER, profile="other")) == record_name(TEACHER)


def tampered(change) -> str:
    """Save a record, change its file's content, and return the message with which it is refused.

    The file is one without a checksum, as older ones are.
    """
    save("mine", record_of(STUDENT))
    path = path_of(STUDENT)
    content = unsealed(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(change(content)), encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load("mine", STUDENT)
    assert str(path) in str(caught.value)
    assert "delete it to run again" in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("keys", "value", "name"),
    [
        (("seed",), 4, "seed"),
        (("hint_weight",), 50, "hint_weight"),
        (("teacher_points",), ["layer1.1", "layer3.1"], "teacher_points"),
        (("schedule", "epochs"), 20, "schedule.epochs"),
        (("teacher", "schedule", "learning_rate"), 0.1, "teacher.schedule.learning_rate"),
        (("teacher", "data"), None, "teacher.data"),
        (("nonsense",), 1, "nonsense"),
    ],
)
def test_settings_edited_inside_a_record_are_named(keys, value, name):
    def edit(content):
        inner = content["settings"]
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return content

    assert f"({name})" in tampered(edit)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: {key: value for key, value in content.items() if key != "metrics"},
        lambda content: content | {"colour": "red"},
        lambda content: [content],
        lambda content: None,
        lambda content: "text",
        lambda content: content | {"settings": None},
        lambda content: content | {"settings": [1, 2]},
    ],
    ids=["field missing", "field too many", "list", "null", "text", "settings null", "settings list"],
)
def test_json_that_is_no_record_is_refused(change):
    tampered(change)


@pytest.mark.parametrize("content", [b"", b"{", b"not JSON", b"\xff\xfe\x00binary", b"<<<<<<< HEAD\n"])
def test_a_file_that_is_not_json_is_refused(content):
    path = path_of(STUDENT)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="is not a record .*; delete it to run again") as caught:
        load("mine", STUDENT)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_record_is_refused(share):
    save("mine", record_of(STUDENT))
    path = path_of(STUDENT)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(SettingsError, match="is not a record"):
        load("mine", STUDENT)


@pytest.mark.parametrize(
    "keys", [("precision",), ("schedule", "momentum"), ("teacher", "checkpoint"), ("teacher", "data", "root")]
)
def test_a_setting_younger_than_the_record_is_not_asked_about(keys):
    record = record_of(STUDENT)
    inner = record.settings
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    save("mine", record)
    assert load("mine", STUDENT) == record


def test_a_record_is_refused_when_any_value_was_changed_and_taken_in_any_spacing_and_order():
    save("mine", record_of(STUDENT))
    path = path_of(STUDENT)
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(dict(reversed(content.items())), indent=4), encoding="utf-8")
    assert load("mine", STUDENT) == record_of(STUDENT)
    path.write_text(
        json.dumps(content | {"metrics": content["metrics"] | {"accuracy": 91.26}}), encoding="utf-8"
    )
    with pytest.raises(
        SettingsError,
        match=r"is not a record \(it is not what was written: its sha256 is of something else\); delete it to run",
    ):
        load("mine", STUDENT)


def test_a_record_without_a_checksum_is_taken_as_it_is():
    write_json(path_of(STUDENT), dataclasses.asdict(record_of(STUDENT)))
    assert load("mine", STUDENT) == record_of(STUDENT)


def test_the_same_record_gives_the_same_bytes():
    save("mine", record_of(STUDENT))
    first = path_of(STUDENT).read_bytes()
    save("mine", records.read(path_of(STUDENT)))
    assert path_of(STUDENT).read_bytes() == first


def test_provenance_says_where_and_with_what_a_run_was_made():
    torch.set_num_threads(1)
    found = provenance(torch.device("cpu"), "abc")
    assert found["device_type"] == "cpu"
    assert isinstance(found["device"], str)
    assert found["threads"] == 1
    assert found["python"] == platform.python_version()
    assert found["versions"] == {package: version(package) for package in PACKAGES}
    assert {"torch", "torchvision", "numpy"} <= set(PACKAGES)
    assert found["data_checksum"] == "abc"
    # A Python with torch in it has some hundred MiB, and the tests less than 16 GiB.
    assert 100 < found["peak_memory_mib"] < 2**14
    assert json.loads(json.dumps(found)) == found


def test_provenance_names_the_commit_in_a_checkout_and_nothing_outside(tmp_path, monkeypatch):
    for root in (records.ROOT, tmp_path):
        monkeypatch.setattr(records, "ROOT", root)
        records._git.cache_clear()
        found = provenance(torch.device("cpu"), "")
        if root == tmp_path or not (root / ".git").exists():
            assert (found["git_commit"], found["git_dirty"]) == (None, None)
        else:
            assert re.fullmatch("[0-9a-f]{40}", found["git_commit"])
            assert isinstance(found["git_dirty"], bool)
    records._git.cache_clear()


def test_a_record_cannot_be_changed_in_passing():
    with pytest.raises(dataclasses.FrozenInstanceError):
        record_of(STUDENT).status = "failed"


# ---- progress


@pytest.fixture
def status(tmp_path, monkeypatch):
    path = tmp_path / "progress" / "step.json"
    monkeypatch.setenv("PURSUHINT_PROGRESS", str(path))
    return path


def test_the_status_file_counts(status):
    with Progress("training", 3, done=1) as progress:
        first = json.loads(status.read_text())
        assert {key: first[key] for key in ("label", "done", "total", "unit", "figures")} == {
            "label": "training",
            "done": 1,
            "total": 3,
            "unit": "epoch",
            "figures": "",
        }
        progress.advance("loss 0.5")
        second = json.loads(status.read_text())
        progress.advance()
    third = json.loads(status.read_text())
    assert [state["done"] for state in (first, second, third)] == [1, 2, 3]
    assert [state["figures"] for state in (first, second, third)] == ["", "loss 0.5", ""]


def test_a_share_of_a_unit_is_told_now_and_then(status, monkeypatch):
    with Progress("training", 3) as progress:
        progress.within(0.1)
        assert json.loads(status.read_text())["figures"] == "", "too soon after the last word"
        monkeypatch.setattr("pursuhint_lib.progress.SECONDS_BETWEEN", 0.0)
        progress.within(0.4)
        told = json.loads(status.read_text())
    assert (told["done"], told["figures"]) == (0, "40% of the next")
    assert list(status.parent.iterdir()) == [status]


def test_no_bar_is_drawn_where_a_status_file_is_kept(status, capsys):
    with Progress("training", 2) as progress:
        progress.advance()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize("value", [None, ""])
def test_a_bar_and_no_file_without_the_variable(tmp_path, monkeypatch, capsys, value):
    if value is None:
        monkeypatch.delenv("PURSUHINT_PROGRESS", raising=False)
    else:
        monkeypatch.setenv("PURSUHINT_PROGRESS", value)
    monkeypatch.chdir(tmp_path)
    with Progress("training the teacher", 2) as progress:
        progress.advance("loss 0.5")
    assert progress.done == 1
    assert list(tmp_path.rglob("*")) == []
    assert "training the teacher" in capsys.readouterr().err
