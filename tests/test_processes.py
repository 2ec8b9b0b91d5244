"""Training in two processes on a CPU: the same as in one, whatever ends one of them, and resumable in another
number.
"""

import json
import signal
import subprocess
import time
from itertools import chain
from pathlib import Path

import psutil
import pytest
import torch
from two_processes import CASES, NETWORKS, TEACHER, outcome

from pursuhint_lib import training
from pursuhint_lib.models import MODELS
from pursuhint_lib.paths import ROOT, StudyPaths
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.study.engine.launch import environment, launch_command
from pursuhint_lib.study.grid.profiles import load_profile
from pursuhint_lib.training.fitting import check_shares

SCRIPT = ROOT / "tests" / "two_processes.py"
SHARED = [case for case in CASES if case != "long"]
# Largest difference that rounding makes; nothing where a process compares the images of its part alone.
TOLERANCES = dict.fromkeys(SHARED, 1e-5) | {"normalised": 1e-4, "fitnet": 1e-4, "crd-batch": None}


def start(folder: Path, *cases: str, processes: int = 2, **variables: str) -> subprocess.Popen:
    """Start the processes, with work and results in the folder, and one core each."""
    folder.mkdir(exist_ok=True)
    command = launch_command([str(folder), *cases], processes)
    module = command.index("-m", 3)
    command[module : module + 1] = [str(SCRIPT)]
    places = {f"PURSUHINT_{name.upper()}": str(folder / name) for name in ("work", "results", "data")}
    told = {**environment(processes), **places, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(command, env=told, stdout=log, stderr=subprocess.STDOUT)


def found(folder: Path, processes: int = 2) -> list[dict]:
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(processes)]


def use(folder: Path, monkeypatch) -> None:
    """Work and results of this process are in the folder."""
    for name in ("work", "results"):
        monkeypatch.setenv(f"PURSUHINT_{name.upper()}", str(folder / name))


@pytest.fixture(scope="module", autouse=True)
def networks():
    """The networks of the cases are known as long as these tests run."""
    MODELS.update(NETWORKS)
    yield
    for name in NETWORKS:
        del MODELS[name]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What two processes made of some cases, on a teacher that one has trained; and what one process makes of
    the same.
    """
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("one", "two"):
            use(folder / name, patch)
            training.train_teacher(TEACHER)
        use(folder / "one", patch)
        alone = {case: outcome(case) for case in CASES}
    launched = start(folder / "two", *SHARED)
    assert launched.wait(300) == 0, (folder / "two" / "log.txt").read_text()[-3000:]
    return folder, alone, found(folder / "two")


@pytest.mark.parametrize("case", SHARED)
def test_two_processes_share_out_the_batches_of_one(trained, case):
    _, alone, (first, second) = trained
    # What two cases have in common, the arm without hints, is trained once.
    trainees = len(alone[case]["seen"]) // (3 * 4)
    batches = [sorted(a + b) for a, b in zip(first[case]["seen"], second[case]["seen"], strict=True)]
    # One after the other in a process, at the same time in the other: the order of the trainees may differ.
    assert sorted(batches) == sorted(sorted(batch) for batch in alone[case]["seen"])
    assert all(not set(a) & set(b) for a, b in zip(first[case]["seen"], second[case]["seen"], strict=True))
    per_epoch = len(batches) // 3
    epochs = [batches[start : start + per_epoch] for start in range(0, len(batches), per_epoch)]
    assert all(sorted(chain(*epoch)) == sorted([*range(53)] * trainees) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [
        len(part) for part in (first[case]["seen"][per_epoch - 1], second[case]["seen"][per_epoch - 1])
    ] == [3, 2]


@pytest.mark.parametrize("method", load_profile("imagenet").methods)
def test_the_methods_of_imagenet_are_tried_in_two_processes(method):
    # Without hints and without KD, a student takes part in each case as its arm without hints.
    assert method in SHARED or method in ("ce", "kd")


@pytest.mark.parametrize(("case", "tolerance"), TOLERANCES.items())
def test_two_processes_train_as_one(trained, case, tolerance):
    _, alone, both = trained
    # All processes have the same networks, histories and answers at the end.
    for what in ("histories", "weights", "answers"):
        assert both[0][case][what] == both[1][case][what]
    if tolerance is None:
        assert alone[case]["weights"][1:] != both[0][case]["weights"][1:]
        return
    for mine, theirs in zip(alone[case]["histories"], both[0][case]["histories"], strict=True):
        assert mine.keys() == theirs.keys()
        for column in mine:
            assert theirs[column] == pytest.approx(mine[column], rel=tolerance, abs=tolerance), column
    for mine, theirs in zip(alone[case]["weights"], both[0][case]["weights"], strict=True):
        torch.testing.assert_close(torch.tensor(theirs), torch.tensor(mine), rtol=tolerance, atol=tolerance)
    assert both[0][case]["answers"] == alone[case]["answers"]


def test_the_first_process_alone_writes(trained):
    folder, _, _ = trained
    written = [path for path in (folder / "two").rglob("*") if path.is_file()]
    assert not [path for path in written if path.name.endswith(".tmp")]
    metrics = [
        path
        for path in written
        if path.suffix == ".jsonl" and "at_seed" in path.name and "plain_from" in path.name
    ]
    rows = [json.loads(line) for line in metrics[0].read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert all(row["images_per_second"] > 0 and 0 <= row["data_wait"] <= 1 for row in rows)


def the_processes(launched: subprocess.Popen) -> list[psutil.Process]:
    children = psutil.Process(launched.pid).children(recursive=True)
    return [child for child in children if SCRIPT.name in " ".join(child.cmdline())]


def epochs_done(folder: Path) -> int:
    files = list((folder / "work" / "together" / "metrics").glob("plain_from*.jsonl"))
    return sum(len(file.read_text().splitlines()) for file in files) // 2


def wait_for_epochs(launched: subprocess.Popen, folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while epochs_done(folder) < count:
        assert launched.poll() is None, (folder / "log.txt").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_training_goes_on_after_a_kill_and_a_request_to_end_also_in_one_process(
    trained, tmp_path, monkeypatch
):
    _, alone, _ = trained
    use(tmp_path, monkeypatch)
    training.train_teacher(TEACHER)
    killed = start(tmp_path, "long")
    wait_for_epochs(killed, tmp_path, 3)
    the_processes(killed)[1].send_signal(signal.SIGKILL)
    begun = time.monotonic()
    assert killed.wait(60) != 0
    assert time.monotonic() - begun < 60
    assert not list(StudyPaths("together").records.glob("plain_from*"))
    done = epochs_done(tmp_path)

    ended = start(tmp_path, "long")
    wait_for_epochs(ended, tmp_path, done + 3)
    ended.terminate()
    assert ended.wait(60) != 0
    assert "stopped by SIGTERM in epoch" in (tmp_path / "log.txt").read_text()
    later = epochs_done(tmp_path)
    assert done + 3 <= later < 20

    assert start(tmp_path, "long", processes=1).wait(120) == 0
    (last,) = found(tmp_path, 1)
    # What was done in two processes was not done again.
    assert len(last["long"]["seen"]) <= (20 - later + 1) * 4 * 2
    for mine, theirs in zip(alone["long"]["histories"], last["long"]["histories"], strict=True):
        assert theirs["epoch"] == mine["epoch"]
        assert theirs["loss_total"] == pytest.approx(mine["loss_total"], rel=1e-3)


def test_a_training_ends_at_its_deadline_and_goes_on_later(monkeypatch):
    training.train_teacher(TEACHER)
    monkeypatch.setenv("PURSUHINT_DEADLINE", str(time.time() - 1))
    with pytest.raises(
        training.Stopped,
        match=r"stopped at the time given with --max-minutes in epoch 1 of 20, before batch 2 of 4; ",
    ):
        training.distill(CASES["long"])
    monkeypatch.delenv("PURSUHINT_DEADLINE")
    assert {record.status for record in training.distill(CASES["long"])} == {"ok"}


@pytest.mark.parametrize(
    ("images", "batch", "processes", "expected"),
    [
        (
            100,
            50,
            3,
            "a batch of 50 images cannot be shared out evenly among 3 processes; give 1, 2, 5, 10, 25, 50 "
            "processes",
        ),
        (
            101,
            50,
            2,
            "the last of 101 images in batches of 50 are 1, too few for 2 processes, which need 2 each",
        ),
        (103, 50, 2, "the last of 103 images in batches of 50 are 3, too few"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(images, batch, processes, expected):
    with pytest.raises(SettingsError) as refused:
        check_shares(images, batch, processes)
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("images", "batch", "processes"),
    [(101, 50, 1), (104, 50, 2), (100, 50, 2), (53, 16, 2), (1_281_167, 256, 64)],
)
def test_batches_that_can_be_shared_are_taken(images, batch, processes):
    check_shares(images, batch, processes)
