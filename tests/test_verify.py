"""Checksums of a results folder, comparing two of them, and what a record says of its run; test_smoke.py
verifies a whole study.
"""

import hashlib
import json
import os
import shutil
import subprocess

import PIL.Image
import pytest
import torch

from pursuhint_lib import records, training
from pursuhint_lib.cli import main
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.settings import Arm, Data, DistillSettings, Schedule, SettingsError, TeacherSettings
from pursuhint_lib.study.grid.profiles import load_profile
from pursuhint_lib.study.publish import verify
from pursuhint_lib.study.publish.verify import changed_files, differing_files, sums_file, write_sums
from pursuhint_lib.training.runs import RECORDS_ONLY

FILES = (
    "records/a+b_seed0.json",
    "alone/records/a.json",
    "hints/net-k3.json",
    "figures/one.svg",
    "tables/one.csv",
)


@pytest.fixture
def folder(tmp_path):
    """A results folder with checksums, and files that do not belong to the results."""
    root = tmp_path / "results" / "smoke"
    for name in (*FILES, "notebooks/.ipynb_checkpoints/one.ipynb", "records/a.json.123.tmp", "notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f'{{"{name}": 91.25}}\n')
    write_sums(root)
    return root


def test_checksums_are_those_of_sha256sum_sorted_and_complete(folder):
    lines = sums_file(folder).read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == sorted(FILES)
    assert lines[0].split()[0] == hashlib.sha256((folder / sorted(FILES)[0]).read_bytes()).hexdigest()
    assert changed_files(folder) == []
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


@pytest.mark.parametrize("name", FILES)
def test_one_edited_digit_ends_with_1_and_the_name_of_the_file(folder, name, capsys):
    (folder / name).write_text((folder / name).read_text().replace("91.25", "91.35"))
    assert main(["verify", str(folder)]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"error: {name} has changed\n"
    assert captured.out == ""


def test_files_that_are_missing_or_not_listed_are_named(folder):
    (folder / FILES[0]).unlink()
    (folder / "tables" / "two.csv").write_text("1")
    assert changed_files(folder) == [f"{FILES[0]} is missing", "tables/two.csv is not listed"]


@pytest.mark.parametrize("line", ["", "nonsense", "0123  tables/one.csv"])
def test_a_damaged_list_of_checksums_is_named(folder, line):
    sums_file(folder).write_text(f"{line}\n{sums_file(folder).read_text()}")
    assert changed_files(folder) == ["SHA256SUMS: line 1 is no checksum"]


@pytest.mark.parametrize(
    ("name", "profile"), [("", ()), ("nowhere", ()), ("results/smoke", ("smock",)), ("results/other", ())]
)
def test_what_is_no_results_folder_of_a_known_profile_ends_with_2_and_one_line(
    folder, tmp_path, name, profile, capsys
):
    (tmp_path / "results" / "other" / "records").mkdir(parents=True)
    assert main(["verify", str(tmp_path / name), *profile]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1


# ---- comparing


def picture(path, colour=(10, 20, 30), level=9):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (30, 20), colour).save(path, compress_level=level)


def notebook(path, profile="smoke", printed="91.25"):
    cells = [
        {
            "cell_type": "code",
            "metadata": {"tags": ["injected-parameters"]},
            "source": ["# Parameters\n", f'profile = "{profile}"\n'],
            "outputs": [],
        },
        {
            "cell_type": "code",
            "metadata": {},
            "source": ["print(accuracy)"],
            "outputs": [{"output_type": "stream", "text": [printed]}],
        },
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells}))


def test_pictures_are_compared_by_pixels_and_notebooks_without_their_profile(tmp_path):
    for root, level, profile in ((tmp_path / "a", 9, "smoke"), (tmp_path / "b", 0, "/elsewhere/smoke.yaml")):
        picture(root / "figures" / "same.png", level=level)
        notebook(root / "notebooks" / "same.ipynb", profile)
        picture(root / "figures" / "other.png", colour=(10, 20, 30 + level))
        notebook(root / "notebooks" / "other.ipynb", printed=f"91.{level}")
        for name, drawn in (("same", "<svg/>"), ("other", f"<svg width='{level}'/>")):
            (root / "figures" / f"{name}.svg").write_text(drawn)
        (root / "records").mkdir()
        (root / "records" / "one.json").write_text(str(level))
    (tmp_path / "a" / "figures" / "torn.png").write_bytes(b"no picture")
    picture(tmp_path / "b" / "figures" / "torn.png")
    (tmp_path / "a" / "figures" / "old.svg").write_bytes(b"")
    (tmp_path / "b" / "figures" / "new.svg").write_bytes(b"")
    assert differing_files(tmp_path / "a", tmp_path / "b") == [
        "figures/new.svg is missing",
        "figures/old.svg is drawn by no notebook",
        "figures/other.png is not what the records give",
        "figures/other.svg is not what the records give",
        "figures/torn.png is not what the records give",
        "notebooks/other.ipynb is not what the records give",
    ]


# ---- what a record says of its run

DATA, SCHEDULE = Data("digits", train_images=60, test_images=50), Schedule(1, 32, 0.05)
TEACHER = TeacherSettings("resnet14", DATA, SCHEDULE, profile="test")
CELL = DistillSettings(
    teacher=TEACHER,
    student="resnet8x0.25",
    method="at",
    arms=(Arm("none"), Arm("some", ("layer1.1", "layer2.1"))),
    student_points=("layer1.0", "layer2.0"),
    ce_weight=1.0,
    kd_weight=1.0,
    hint_weight=10.0,
    temperature=4.0,
    data=DATA,
    schedule=SCHEDULE,
    seed=0,
    profile="test",
)


def test_nothing_is_trained_where_only_records_may_be_read(monkeypatch):
    monkeypatch.setenv(RECORDS_ONLY, "1")
    name = records.record_name(TEACHER)
    for call, missing in (
        (lambda: training.train_teacher(TEACHER), f"record {name}"),
        (lambda: training.load_teacher(TEACHER), f"a file of the folder hints that is made with {name}"),
        (lambda: training.distill(CELL), f"record {records.record_name(CELL.run(CELL.arms[0]))}"),
    ):
        with pytest.raises(SettingsError) as caught:
            call()
        assert str(caught.value).startswith(f"{missing} is missing")


def test_a_record_has_the_time_of_the_processor_and_the_checksum_of_its_teacher():
    teacher = training.train_teacher(TEACHER)
    students = training.distill(CELL)
    # Without a teacher there is none to be told.
    (alone,) = training.distill(
        DistillSettings(**{**vars(CELL), "method": "ce", "arms": CELL.arms[:1], "kd_weight": 0.0})
    )
    weights = StudyPaths("test").weights(teacher.name).read_bytes()
    assert {student.provenance["teacher_checksum"] for student in students} == {
        hashlib.sha256(weights).hexdigest()[:16]
    }
    assert not {"teacher_checksum"} & {*teacher.provenance, *alone.provenance}
    for record in (teacher, *students, alone):
        # On one core the work takes the time that passes, or less where it has to wait.
        assert 0 < record.provenance["cpu_seconds"] <= 1.5 * record.provenance["seconds"] + 0.1
    assert students[0].provenance["cpu_seconds"] == students[1].provenance["cpu_seconds"]


@pytest.mark.parametrize("installed", [True, False])
def test_on_a_gpu_the_versions_of_driver_and_cuda_are_told(tmp_path, monkeypatch, installed):
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    if installed:
        tool.write_text("#!/bin/sh\necho 570.86.15\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}/bin" if installed else str(tool.parent))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 << 20)
    records._gpu_driver.cache_clear()
    try:
        found = records.provenance(torch.device("cuda"), "abc")
    finally:
        records._gpu_driver.cache_clear()
    assert (found["gpu_driver"], found["cuda"]) == ("570.86.15" if installed else None, torch.version.cuda)
    assert not {"gpu_driver", "cuda"} & set(records.provenance(torch.device("cpu"), "abc"))


def test_weights_that_another_profile_has_tuned_are_brought_along(tmp_path, monkeypatch):
    monkeypatch.setenv("PURSUHINT_RESULTS", str(tmp_path))
    tuned = StudyPaths("cifar100-cpu").tuned_weights
    tuned.parent.mkdir()
    tuned.write_text("{}")
    profile = load_profile("cifar100-two")
    StudyPaths(profile.name).results.mkdir()
    with verify._scratch(StudyPaths(profile.name).results, profile) as again:
        assert again.parent != tmp_path
        assert (again.parent / "cifar100-cpu" / "weights.json").read_text() == "{}"
