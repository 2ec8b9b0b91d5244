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
from pursuhint_lib.paths import ROOT, StudyPaths
from pursuhint_lib.progress import Progress
from pursuhint_lib.records import PACKAGES, Record, load, provenance, record_name, save
from pursuhint_lib.settings import (
    Arm,
    Data,
    DistillSettings,
    Schedule,
    SettingsError,
    StudentSettings,
    TeacherSettings,
    build,
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


@pytest.mark.parametrize("blocks", [1, 3, 9])
def test_a_network_with_a_slash_or_many_points_gives_one_file(blocks):
    points = tuple(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(18 - blocks, 18))
    student = replace(
        STUDENT,
        teacher=replace(TEACHER, network="torchvision/resnet34"),
        student="torchvision/resnet18",
        teacher_points=points,
        student_points=points,
    )
    assert "/" not in record_name(student)
    save("mine", record_of(student))
    assert load("mine", student) is not None


COMMITTED = [
    path
    for folder in ("records", "alone/records")
    for path in sorted(ROOT.glob(f"results/*/{folder}/*.json"))
]


def test_every_committed_record_has_the_name_that_its_settings_give():
    """So no setting that was added since, nor another way to read one, has made its run another one."""
    assert len(COMMITTED) > 1_000
    kinds = {"teacher": TeacherSettings, "student": StudentSettings}
    for path in COMMITTED:
        record = records.read(path)
        settings = build(kinds[record.kind], record.settings, path.name)
        assert record_name(settings) == record.name == path.stem
        assert not records.differing(record.settings, resolved(settings))


def tampered(change) -> str:
    """Save a record, change its file's bytes, and return the message with which it is refused."""
    save("mine", record_of(STUDENT))
    path = path_of(STUDENT)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(SettingsError) as caught:
        load("mine", STUDENT)
    assert str(path) in str(caught.value)
    assert "delete it to run again" in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edited(change):
    """Of bytes: other content in a file without a checksum, as older ones are."""
    return lambda stored: json.dumps(change(unsealed(json.loads(stored)))).encode()


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

    assert f"({name})" in tampered(edited(edit))


NO_RECORD = {
    "field missing": edited(lambda content: {key: content[key] for key in content if key != "metrics"}),
    "field too many": edited(lambda content: content | {"colour": "red"}),
    "list": edited(lambda content: [content]),
    "null": edited(lambda content: None),
    "text": edited(lambda content: "text"),
    "settings null": edited(lambda content: content | {"settings": None}),
    "settings list": edited(lambda content: content | {"settings": [1, 2]}),
    **{
        repr(text): lambda stored, text=text: text
        for text in (b"", b"{", b"not JSON", b"\xff\xfe\0binary", b"<<<<<<< HEAD\n")
    },
    **{
        f"{share} of it": lambda stored, share=share: stored[: int(len(stored) * share)]
        for share in (0.1, 0.5, 0.9)
    },
    "a value": lambda stored: stored.replace(b"91.25", b"91.26"),
}


@pytest.mark.parametrize("change", NO_RECORD)
def test_a_file_that_is_no_record_is_refused(change):
    message = tampered(NO_RECORD[change])
    assert " is not a record (" in message
    assert change != "a value" or "(it is not what was written: " in message


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


def test_a_record_is_taken_in_any_spacing_and_order():
    save("mine", record_of(STUDENT))
    path = path_of(STUDENT)
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(dict(reversed(content.items())), indent=4), encoding="utf-8")
    assert load("mine", STUDENT) == record_of(STUDENT)


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
