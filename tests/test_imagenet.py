"""Notebook 04 on two processes at a tiny size, what ends its processes, and what is said of an ImageNet tree
before anything runs.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pursuhint_lib import data, training
from pursuhint_lib.cli import main
from pursuhint_lib.paths import NOTEBOOKS, ROOT, StudyPaths, sample_tree
from pursuhint_lib.settings import Data, Launch, SettingsError
from pursuhint_lib.study.engine import launch
from pursuhint_lib.study.grid.cells import run_cell
from pursuhint_lib.study.grid.profiles import load_profile
from pursuhint_lib.study.publish.page import Page
from pursuhint_lib.study.publish.published import accuracy_table, published

PROFILE = """
name: mini
title: a few steps in two processes
data: {dataset: imagenet-sample, image_size: 16}
teacher: {epochs: 1, batch_size: 20, learning_rate: 0.05}
student: {epochs: 2, batch_size: 20, learning_rate: 0.05}
pairs:
  - {teacher: resnet14, student: resnet8x0.25}
methods: [kd, at]
arms: [none, stage-ends, random-1]
seeds: [0]
metrics: [cka-linear]
profile_images: 100
launch: {processes: 2}
"""


def write_tree(root: Path, classes: list[str], images: dict[str, int], side: int = 24) -> None:
    """An image tree of random pictures: split → images of each class."""
    draws = np.random.default_rng(0)
    for split, count in images.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(256, size=(side, side + number, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{name}_{number}.JPEG")


@pytest.fixture
def mini(tmp_path) -> str:
    """File of a tiny profile, whose images are there."""
    write_tree(sample_tree(), [f"class{label}" for label in range(10)], {"train": 10, "val": 2})
    file = tmp_path / "mini.yaml"
    file.write_text(PROFILE)
    return str(file)


def test_notebook_04_trains_in_two_processes_and_draws(mini, tmp_path):
    drawn = tmp_path / "drawn.ipynb"
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(NOTEBOOKS / "04_imagenet.ipynb"),
        str(drawn),
        "-k",
        "python3",
        "--no-progress-bar",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "-p", "profile", mini, "-p", "method", "at"],
        cwd=NOTEBOOKS,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    profile = load_profile(mini)
    records = run_cell(profile, profile.pairs[0], "at")
    assert {record.provenance["processes"] for (record,) in records.values()} == {2}
    assert all(
        0 <= record.metrics["accuracy"] <= record.metrics["top5_accuracy"] <= 100
        for (record,) in records.values()
    )
    stem = "04_imagenet-resnet14-resnet8x0.25-at"
    published = {path.name for path in StudyPaths("mini").results.rglob("*") if path.name.startswith(stem)}
    assert {f"{stem}-{name}.svg" for name in ("points", "curves")} | {f"{stem}-accuracy.csv"} <= published
    told = [
        text
        for cell in json.loads(drawn.read_text())["cells"]
        for output in cell.get("outputs", [])
        for text in output.get("text", [])
    ]
    assert sum(": epoch 2, loss " in line and "images/s" in line for line in told) == 3


def test_a_plan_with_a_launch_uses_notebook_04(mini, capsys):
    assert main(["run", mini, "--plan"]) == 0
    out = capsys.readouterr().out
    assert "04_imagenet-resnet14-resnet8x0.25-at" in out
    assert "03_distillation" not in out
    assert "core-hours of training" in out


def started(monkeypatch, script: str) -> None:
    """In place of torchrun this Python script is started."""
    monkeypatch.setattr(launch, "launch_command", lambda worker, processes: [sys.executable, "-c", script])


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "print('error: stopped by SIGTERM in epoch 2'); raise SystemExit(1)",
            "stopped by SIGTERM in epoch 2; whole log: ",
        ),
        (
            "raise ValueError('odd')",
            "a process of the training died (ValueError: odd); the same command goes on",
        ),
        (
            "import os; os.kill(os.getpid(), 9)",
            "a process of the training died, killed from outside or for want of memory; the same",
        ),
    ],
)
def test_why_the_processes_ended_is_said(mini, monkeypatch, script, reason):
    started(monkeypatch, script)
    profile = load_profile(mini)
    with pytest.raises(RuntimeError) as ended:
        launch.train_in_processes(profile, mini, profile.pairs[0], "kd")
    assert str(ended.value).startswith(reason.partition(" (")[0])
    assert reason in str(ended.value)


def test_a_mistake_in_a_process_is_said_in_its_own_words(mini, monkeypatch):
    profile = load_profile(mini)
    started(
        monkeypatch,
        "import sys; from pursuhint_lib.cli import main; "
        f"sys.exit(main(['train', {mini!r}, 'nobody', 'kd']))",
    )
    with pytest.raises(RuntimeError, match="unknown pair 'nobody'; valid: resnet14-resnet8x0.25; whole log"):
        launch.train_in_processes(profile, mini, profile.pairs[0], "kd")


def test_one_of_several_processes_does_not_train_alone(monkeypatch):
    monkeypatch.setattr(training.device, "Accelerator", lambda **_: SimpleNamespace(num_processes=1))
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        SettingsError,
        match="this is one of 3 processes, but accelerate trains in 1; without GPUs set "
        "ACCELERATE_USE_CPU=true",
    ):
        training.accelerator_for_this_process()


@pytest.mark.parametrize(("wanted", "gpus", "expected"), [(None, 0, 1), (2, 0, 2), (None, 4, 4), (2, 4, 2)])
def test_the_number_of_processes(mini, monkeypatch, wanted, gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert launch.process_count(replace(load_profile(mini), launch=Launch(wanted))) == expected


def test_more_processes_than_gpus_are_refused(mini, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        SettingsError,
        match="launch.processes is 4, but there are 2 GPUs; give at most 2, or none for one per GPU",
    ):
        launch.process_count(replace(load_profile(mini), launch=Launch(4)))


def test_published_figures_stand_beside_the_stage_ends_only(mini):
    profile = load_profile(mini)
    profile = replace(profile, data=Data("imagenet"), pairs=(load_profile("imagenet").pairs[0],))
    record = run_cell(load_profile(mini), load_profile(mini).pairs[0], "kd")["none"][0]
    table = accuracy_table(profile, profile.pairs[0], "at", {"none": [record], "stage-ends": [record]})
    assert table["published"].tolist() == ["", "70.70 (torchdistill, of the original)"]
    assert table["difference"].tolist() == ["", f"{record.metrics['accuracy'] - 70.7:+.2f}"]
    assert published("cifar100", "resnet56", "resnet8", "at") is None
    Page(profile, "04_imagenet").table(table, "accuracy", "A table.")


class TestCheckOfATree:
    """``--check --data DIR`` for the whole of ImageNet, which has three classes with three and two images
    here.
    """

    @pytest.fixture(autouse=True)
    def small_imagenet(self, monkeypatch):
        monkeypatch.setitem(
            data.DATASETS, "imagenet", replace(data.DATASETS["imagenet"], classes=3, counts=(9, 6))
        )

    @pytest.fixture
    def profile(self, tmp_path) -> str:
        file = tmp_path / "small.yaml"
        file.write_text(
            PROFILE.replace(
                "{dataset: imagenet-sample, image_size: 16}", "{dataset: imagenet, image_size: 32}"
            )
        )
        return str(file)

    @staticmethod
    def flat(tree: Path) -> None:
        for path in list((tree / "val").rglob("*.JPEG")):
            path.rename(tree / "val" / path.name)
        for folder in [path for path in (tree / "val").iterdir() if path.is_dir()]:
            folder.rmdir()

    @staticmethod
    def truncated(tree: Path) -> None:
        broken = tree / "val" / "n01443537" / "n01443537_1.JPEG"
        broken.write_bytes(broken.read_bytes()[:-300])

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (
                None,
                " ✓ data: imagenet: image tree {}, 9 + 6 images of 3 classes, a sample of them decoded (",
            ),
            (shutil.rmtree, "{} has no train/<class>/<image>, only nothing"),
            (flat, "has no val/<class>/<image>, only train, val; see docs/reproducing.md#imagenet"),
            (lambda tree: shutil.rmtree(tree / "train" / "n01484850"), "only {}/val has n01484850"),
            (truncated, "{}/val/n01443537/n01443537_1.JPEG is not a readable image"),
        ],
    )
    def test_what_is_there_is_told(self, profile, tmp_path, capsys, change, told):
        tree = tmp_path / "tree"
        write_tree(tree, ["n01440764", "n01443537", "n01484850"], {"train": 3, "val": 2}, side=64)
        if change:
            change(tree)
            tree.mkdir(exist_ok=True)
        assert main(["run", profile, "--check", "--data", str(tree)]) == (2 if change else 0)
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line[3:].startswith("data: ")]
        assert told.format(tree) in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data", "/no/such/folder"],
            "--data /no/such/folder is no folder; give the one that holds the data sets",
        ),
        (["--max-minutes", "0"], "--max-minutes 0.0 is not possible; give a number above 0"),
    ],
)
def test_impossible_options_are_refused(arguments, message, capsys):
    assert main(["run", "smoke", *arguments]) == 2
    assert capsys.readouterr().err.strip() == f"error: {message}"


def test_cores_are_shared_out_among_the_processes_for_every_library(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    # As the workflow engine has set it for the notebook.
    monkeypatch.setenv("MKL_NUM_THREADS", "8")
    shared = launch.environment(4)
    assert {shared[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"2"}


@pytest.mark.parametrize(
    ("launched", "state", "words"),
    [
        ("{processes: 2}", "✓", "processes: 2 on this machine, 10 images of every batch each"),
        (
            "{processes: 3}",
            "✗",
            "a batch of 20 images cannot be shared out evenly among 3 processes; give 1, 2, 4, 5, 10, 20 "
            "processes",
        ),
    ],
)
def test_the_check_says_whether_the_batches_can_be_shared(mini, tmp_path, capsys, launched, state, words):
    file = tmp_path / "shared.yaml"
    file.write_text(PROFILE.replace("{processes: 2}", launched))
    assert main(["run", str(file), "--check"]) == (0 if state == "✓" else 2)
    assert any(
        line.startswith(f" {state} processes: ") and words in line
        for line in capsys.readouterr().out.splitlines()
    )
