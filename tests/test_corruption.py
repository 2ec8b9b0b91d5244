"""A file that the study reads is damaged: it says so in one line that names the file, or makes the same
again; it never goes on with something else.

Where nobody can know what was meant, as in a profile or a JPEG, what is read has another name: settings or
data checksum of a record differ.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import Kind, outcomes
from damaged import KINDS, PATHS, TEACHER, a_record, an_image, plain, profile, similarity, stability
from safetensors.torch import load_file

from pursuhint_lib import records, teachers, training
from pursuhint_lib.cli import main
from pursuhint_lib.data.decoding import test_pixels as centre_pixels
from pursuhint_lib.data.decoding import train_pixels
from pursuhint_lib.files import sha256
from pursuhint_lib.models import build_model, load_checkpoint
from pursuhint_lib.paths import (
    CONFIG,
    NOTEBOOKS,
    StudyPaths,
    teacher_file,
)
from pursuhint_lib.settings import Data, Schedule, SettingsError, TeacherSettings
from pursuhint_lib.study.engine import execution as engine
from pursuhint_lib.study.engine import plan
from pursuhint_lib.study.experiments.stability import stability_frame
from pursuhint_lib.study.grid.hint_layers import hint_choices
from pursuhint_lib.study.grid.profiles import load_profile
from pursuhint_lib.teachers import Teacher, find


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with a small study, of which every test damages one file and puts it right again."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        use(folder, patch)
        profile = load_profile("smoke")
        for k in (2, 3):
            hint_choices(profile, TEACHER, k)
        stability_frame(profile, TEACHER, 3)
    return folder


def use(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Data, work and results are in the folder."""
    for name in ("data", "work", "results"):
        patch.setenv(f"PURSUHINT_{name.upper()}", str(folder / name))


@pytest.fixture(autouse=True)
def in_its_folder(own_folders, study, monkeypatch):
    """The tests of this file share one folder."""
    use(study, monkeypatch)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_a_damaged_file_is_refused_or_made_again(make):
    refused, replaced = KINDS[make]
    found = outcomes(make())
    assert not [name for name, outcome in found.items() if outcome == "other"]
    assert refused <= {name for name, outcome in found.items() if outcome == "refused"}
    assert found["another's"] == replaced


def test_a_public_teacher_with_a_known_checksum_is_refused_when_a_bit_is_wrong(monkeypatch):
    path = teacher_file(TEACHER)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": build_model(TEACHER, 10, 1).state_dict()}, path)
    entry = Teacher(
        TEACHER,
        TEACHER,
        "digits",
        10,
        50.0,
        (0.3070,),
        (0.3764,),
        sha256(path),
        ("https://example.org/x.pth",),
    )
    monkeypatch.setattr(teachers, "teacher_entry", lambda name: entry)
    assert {*outcomes(Kind(path, b"another", lambda: str(find(TEACHER)))).values()} == {"refused"}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older format"])
def test_weights_that_were_cut_anywhere_are_refused(zipped, tmp_path):
    path, network = tmp_path / "mine.pth", torch.nn.Linear(3, 2)
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(
            SettingsError, match=r"mine.pth (cannot be read as a checkpoint: .|is damaged)"
        ) as refused:
            load_checkpoint(network, path)
        assert "\n" not in str(refused.value)


def test_weights_that_torch_would_not_read_at_all_are_refused(tmp_path):
    path, network = tmp_path / "mine.pth", torch.nn.Linear(3, 2)
    torch.save(network.state_dict(), path)
    content = bytearray(path.read_bytes())
    # A tensor that is marked as a folder: in the list at the end, 8 bytes before its name, behind that of the
    # archive.
    content[content.rindex(b"mine/data/0") - 8] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(
        SettingsError,
        match=r"mine.pth cannot be read as a checkpoint: mine/data/0 in it is not what was saved",
    ):
        load_checkpoint(network, path)


# ---- what nobody can know to be wrong has another name


def test_a_damaged_jpeg_is_refused_or_gives_another_data_checksum():
    kind = an_image("jpg")
    assert outcomes(replace(kind, read=lambda: kind.read()[0]))["zeros"] == "refused"
    # As it is read while training, too.
    for read in (
        lambda: centre_pixels(kind.path, 8).tolist(),
        lambda: train_pixels(kind.path, 8, np.random.default_rng(0)).tolist(),
    ):
        assert outcomes(replace(kind, read=read))["half"] == "refused"


def test_a_damaged_profile_is_refused_or_gives_runs_of_another_name(tmp_path):
    path = tmp_path / "mine.yaml"
    content = (CONFIG / "quick.yaml").read_bytes().replace(b"name: quick", b"name: mine")
    path.write_bytes(content)
    # A wrong value is named itself, not the file.
    kind = Kind(path, content, lambda: load_profile(str(path)), flips=150, named=("",))
    found = outcomes(kind)
    assert {found[name] for name in ("empty", "zeros", "zeros in the middle")} == {"refused"}


# ---- what the work folder holds is made again


TINY = TeacherSettings(
    "resnet8", Data("digits", train_images=60, test_images=50), Schedule(3, 30, 0.05), profile="tiny"
)


def interrupted(settings: TeacherSettings, monkeypatch) -> Path:
    """Train until two states are saved; returns the checkpoint."""
    save, saved = training.fitting.save_state, []

    def dying(*arguments):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(save(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(training.interruptions, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(training.interruptions, "SAVING_SHARE", float("inf"))
        patch.setattr(training.fitting, "save_state", dying)
        with pytest.raises(KeyboardInterrupt):
            training.train_teacher(settings)
    return StudyPaths(settings.profile).checkpoint(records.record_name(settings))


def test_a_damaged_checkpoint_gives_way_to_the_one_before_or_to_a_new_beginning(monkeypatch, capsys):
    folder = StudyPaths("tiny").checkpoint("").parent
    other = interrupted(replace(TINY, seed=1), monkeypatch).read_bytes()
    path = interrupted(TINY, monkeypatch)
    stored = {file: file.read_bytes() for file in folder.iterdir()}
    whole = stored[path]

    def read() -> list:
        record = training.train_teacher(TINY, force=True)
        weights = plain(load_file(StudyPaths("tiny").weights(record.name)))
        for file, content in stored.items():
            if not file.is_file():
                file.write_bytes(content)
        return [record.metrics, record.history, weights]

    found = outcomes(Kind(path, other, read, flips=3))
    assert {*found.values()} == {"same"}
    assert capsys.readouterr().out.count("is not used: ") == len(found)
    # The trainee of every teacher has the same name; the file says which training it is of.
    path.write_bytes(other)
    stored[training.checkpoints.previous(path)] = other
    training.checkpoints.previous(path).write_bytes(other)
    before = read()
    assert capsys.readouterr().out.count("it is of another training") == 2
    # A state of other images is whole, but not gone on from.
    path.write_bytes(whole)
    training.checkpoints._write({**training.checkpoints._read(path), "data": "of yesterday"}, path)
    training.checkpoints.previous(path).unlink()
    assert read() == before
    assert capsys.readouterr().out.count("the images have changed since") == 1
    stored.clear()
    assert read() == before


def test_a_damaged_stamp_sets_off_its_step_anew():
    (start, *_) = plan.make_plan(profile(), "smoke")
    stamp, output = Path(start.stamp), PATHS.figures / "x.svg"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.touch()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps({"step": start.name, "seconds": 1.0, "outputs": [str(output)]}))
    other = json.dumps({"step": "05_results", "seconds": 1.0, "outputs": [str(output)]}).encode()
    found = outcomes(Kind(stamp, other, lambda: plan.make_plan(profile(), "smoke")[0].done, flips=40))
    assert "refused" not in found.values()
    # A bit in the seconds, which are only told, leaves the step done.
    assert all(outcome == "other" for name, outcome in found.items() if not name.startswith("bit"))
    stamp.unlink()


def test_a_damaged_plan_is_written_anew():
    made = plan.make_plan(profile(), "smoke")
    plan.write_plan(profile(), made, 2, 0)
    assert {
        *outcomes(
            Kind(PATHS.plan, b"{}", lambda: plan.write_plan(profile(), made, 2, 0).read_bytes())
        ).values()
    } == {"same"}


def test_a_damaged_progress_file_is_passed_over():
    (start, *_) = plan.make_plan(profile(), "smoke")
    path = PATHS.progress(start.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"label": "training", "done": 1, "total": 3, "unit": "epoch", "figures": ""}))
    found = outcomes(Kind(path, b"[1]", lambda: list(engine._running(PATHS, {start.name: start})), flips=60))
    assert "refused" not in found.values()


def test_a_damaged_lock_holds_nobody_up():
    def read() -> bool:
        with engine.owned("smoke") as run:
            return json.loads(PATHS.run_lock.read_text())["run"] == run

    PATHS.run_lock.parent.mkdir(parents=True, exist_ok=True)
    PATHS.run_lock.write_text(json.dumps({"pid": 1, "host": "here", "run": "killed"}))
    assert {*outcomes(Kind(PATHS.run_lock, b'{"pid": 1}', read)).values()} == {"same"}


# ---- notebooks


def test_a_damaged_notebook_is_refused_or_sets_off_its_steps_anew(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    shutil.copytree(NOTEBOOKS, folder)
    monkeypatch.setattr(plan, "NOTEBOOKS", folder)
    path = folder / "03_distillation.ipynb"

    def keys() -> list:
        return [step.key for step in plan.make_plan(profile(), "smoke") if step.notebook == path.stem]

    other = (folder / "04_imagenet.ipynb").read_bytes()
    # Some messages are of a parameter and name the notebook by its name alone.
    found = outcomes(Kind(path, other, keys, flips=40, named=(path.name,)))
    assert "same" not in found.values()
    assert {outcome for name, outcome in found.items() if not name.startswith("bit")} == {"refused"}
    path.unlink()
    with pytest.raises(SettingsError, match="03_distillation.ipynb is no whole notebook"):
        keys()


# ---- the command line


@pytest.mark.parametrize("make", [a_record, similarity, stability], ids=lambda make: make.__name__)
def test_the_command_line_says_it_in_one_line_with_exit_status_2(make, capsys):
    kind = make()
    content = kind.path.read_bytes()
    kind.path.write_bytes(content[: len(content) // 2])
    try:
        assert main(["run", "smoke", "--plan"]) == 2
    finally:
        kind.path.write_bytes(content)
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert str(kind.path) in err
