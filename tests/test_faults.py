"""What the machine can do to a study: a full disk, no permission, no network, signals, a clock that jumps.
One line says it; nothing is lost.
"""

import ast
import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from process_state import runs

from pursuhint_lib import records, teachers
from pursuhint_lib.cli import main
from pursuhint_lib.paths import CONFIG, ROOT, StudyPaths
from pursuhint_lib.study.grid import profiles
from pursuhint_lib.study.grid.profiles import load_profile
from pursuhint_lib.training import interruptions as interruptions
from pursuhint_lib.training import train_teacher

# Threads of the numerical libraries make Python 3.12 and later warn of fork; they are idle here.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

PAIR = "resnet14-resnet8x0.25"


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path):
        self.folder = folder

    def fill(self) -> None:
        """Leave no space."""
        with contextlib.suppress(OSError), (self.folder / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))

    def empty(self) -> None:
        (self.folder / "filler").unlink()


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    """A disk that is soon full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    yield from mounted(folder, "size=16m")


def mounted(folder: Path, options: str) -> Iterator[Disk]:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options.encode()):
        pytest.skip(f"a file system cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    try:
        yield Disk(folder)
    finally:
        libc.umount2(os.fsencode(folder), 2)


def outcomes(profile: str = "smoke") -> dict[str, tuple]:
    """What is on record, without what differs from run to run."""
    found = [records.read(file) for file in StudyPaths(profile).records.glob("*.json")]
    return {record.name: (record.status, record.metrics, record.history) for record in found}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Outcomes of one (pair, method) on a healthy machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("data", "work", "results"):
            patch.setenv(f"PURSUHINT_{name.upper()}", str(tmp_path_factory.mktemp("healthy") / name))
        assert main(["train", "smoke", PAIR, "kd"]) == 0
        return outcomes()


@pytest.mark.parametrize("full", ["WORK", "RESULTS"])
def test_a_full_disk_ends_a_training_in_one_line_and_it_goes_on_when_there_is_room(
    full, disk, undisturbed, monkeypatch, capsys
):
    monkeypatch.setenv(f"PURSUHINT_{full}", str(disk.folder / "inside"))
    (disk.folder / "inside").mkdir()
    # A checkpoint after every batch: checkpoints, weights and records all want their space.
    monkeypatch.setattr(interruptions, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(interruptions, "SAVING_SHARE", 1e9)
    disk.fill()
    assert main(["train", "smoke", PAIR, "kd"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith(
        f"error: no space left on the disk of {disk.folder}/inside (0 MiB free); make room there, or set "
        f"PURSUHINT_{full} to "
    )
    assert line.endswith("the same command goes on from there")
    assert not list(disk.folder.rglob("*.tmp"))
    before = outcomes()
    disk.empty()
    assert main(["train", "smoke", PAIR, "kd"]) == 0
    assert before.items() <= outcomes().items()
    # A teacher whose weights were saved before the disk was full is not trained again for its students alone.
    students = {name for name in undisturbed if not name.startswith("teacher")}
    assert students <= outcomes().keys()
    assert all(undisturbed[name] == outcome for name, outcome in outcomes().items())


def test_a_disk_that_is_full_from_the_start_is_told_before_anything_runs(disk, monkeypatch, capsys):
    monkeypatch.setenv("PURSUHINT_WORK", str(disk.folder))
    disk.fill()
    assert main(["run", "smoke"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(28, "No space left on device"),
            ("no space left on the disk of ", "make room", "PURSUHINT_"),
        ),
        (OSError(122, "Disk quota exceeded"), ("no space left on the disk of ", "make room")),
        (
            PermissionError(13, "Permission denied", "/a/b"),
            ("no permission", "/a/b", "change its mode or owner"),
        ),
        (OSError(30, "Read-only file system", "/a/b"), ("Read-only file system", "/a/b", "mended")),
        (OSError(5, "Input/output error"), ("Input/output error", "mended")),
        (TimeoutError(), ("TimeoutError", "mended")),
    ],
    ids=["full", "quota", "permission", "read-only", "broken", "nameless"],
)
def test_what_the_system_refuses_is_one_line_with_a_remedy(error, words, monkeypatch, capsys):
    def refuse(_source):
        raise error

    monkeypatch.setattr(profiles, "load_profile", refuse)
    assert main(["train", "smoke", PAIR, "kd"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert all(word in said for word in words), said


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Permissions of a user who owns nothing; root would have them all."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


@pytest.mark.parametrize("closed", ["WORK", "RESULTS"])
def test_a_folder_that_may_not_be_written_is_named_with_the_remedy(closed, monkeypatch, capsys):
    # Loads every module that nobody might not be allowed to read.
    assert main(["run", "smoke", "--check"]) == 0
    capsys.readouterr()
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("DATA", "WORK", "RESULTS"):
            (Path(temporary) / name).mkdir()
            (Path(temporary) / name).chmod(0o555 if name == closed else 0o777)
            monkeypatch.setenv(f"PURSUHINT_{name}", str(Path(temporary) / name))
        Path(temporary).chmod(0o755)
        with nobody():
            status = main(["run", "smoke"])
        said = capsys.readouterr().err
        assert status == 2
        assert f"cannot write to {temporary}/{closed} (Permission denied)" in said
        assert f"make it writable or set PURSUHINT_{closed}" in said
        assert said.count("\n") == 1


def profile_file(folder: Path, **changes) -> str:
    file = folder / "mine.yaml"
    file.write_text(
        yaml.safe_dump({**yaml.safe_load((CONFIG / "smoke.yaml").read_text()), "name": "mine", **changes})
    )
    return str(file)


def test_an_image_in_the_middle_that_cannot_be_read_is_named_before_training(tmp_path, capsys):
    draws = np.random.default_rng(0)
    for split, label, number in np.ndindex(2, 2, 6):
        folder = tmp_path / "data" / "pets" / ("train", "test")[split] / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    broken = tmp_path / "data" / "pets" / "train" / "class1" / "3.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    file = profile_file(
        tmp_path,
        data={"dataset": "imagefolder", "root": "pets", "image_size": 8},
        example_pair=None,
        metrics=["cka-linear"],
        arms=["none", "stage-ends"],
    )
    assert main(["run", file]) == 2
    said = capsys.readouterr().err
    assert f"{broken} is not a readable image: " in said
    assert said.count("\n") == 1
    broken.write_bytes(whole)
    assert train_teacher(load_profile(file).teacher_settings("resnet14")).status == "ok"


def unreachable(*_arguments, **_keywords):
    raise URLError(OSError(101, "Network is unreachable"))


def test_without_a_network_it_is_said_where_the_images_belong(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torchvision.datasets.utils.urllib.request, "urlopen", unreachable)
    file = profile_file(
        tmp_path,
        data={"dataset": "cifar10"},
        pairs=[{"teacher": "resnet14", "student": "resnet8"}],
        example_pair=None,
    )
    assert main(["run", file]) == 2
    said = capsys.readouterr().err
    assert "Network is unreachable" in said
    assert str(tmp_path / "data") in said
    assert said.count("\n") == 1


def test_without_a_network_it_is_said_where_a_teacher_belongs(monkeypatch):
    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    teacher = next(entry for entry in teachers.TEACHERS.values() if entry.addresses)
    with pytest.raises(
        ValueError,
        match="cannot be downloaded from https://.*Network is unreachable.*; put .* at .*teachers.* by hand",
    ):
        teachers.fetch(teacher)


# Clock
# --------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_disturbs_no_training(monkeypatch, undisturbed):
    jumps = iter([1e9, -1e9] * 10_000)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + next(jumps))
    assert main(["train", "smoke", PAIR, "kd"]) == 0
    assert outcomes() == undisturbed
    for file in StudyPaths("smoke").records.glob("*.json"):
        assert 0 <= records.read(file).provenance["seconds"] < 600


def test_durations_are_measured_with_a_clock_that_does_not_jump():
    asked = {
        file.name
        for file in (ROOT / "pursuhint_lib").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("time.time", "datetime.now", "time.localtime")
    }
    # The time of day of a metric, and the time given with --max-minutes, which counts for processes on
    # several machines.
    assert asked == {"fitting.py", "interruptions.py", "run.py"}


# The whole study
# --------------------------------------------------------------------------------------------------


def environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PURSUHINT_RESULTS": str(folder / "results"),
        "PURSUHINT_WORK": str(folder / "work"),
        "OMP_NUM_THREADS": "1",
    }


def start(folder: Path, **options) -> subprocess.Popen:
    command = [str(ROOT / "run_all.sh"), "smoke"]
    return subprocess.Popen(
        command, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def written(folder: Path) -> dict[str, int]:
    """Name → time of writing, which changes when a run is repeated."""
    return {
        file.name: file.stat().st_mtime_ns
        for file in (folder / "results" / "smoke" / "records").glob("*.json")
    }


def wait_for_students(folder: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not any(name.startswith("resnet8") for name in written(folder)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def marked(folder: Path) -> list[int]:
    """Living processes that work in the folder."""
    wanted, found = f"PURSUHINT_WORK={folder / 'work'}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0") and runs(int(entry.name)):
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_two_runs_at_once_share_one_study(tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    said = [process.communicate(timeout=900) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    first, second = sorted((out for out, _ in said), key=len)[::-1]
    assert "waiting for it to end" in second
    assert "waiting" not in first
    assert "Nothing to do: all 12 steps are done and every run is on record; nothing is trained." in second
    assert (
        len(written(tmp_path))
        == len(
            {json.loads(f.read_text())["name"] for f in (tmp_path / "results/smoke/records").glob("*.json")}
        )
        > 20
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_study_that_is_told_to_end_leaves_no_process_and_goes_on(number, tmp_path):
    process = start(tmp_path)
    wait_for_students(tmp_path, process)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert marked(tmp_path) == []
    before = written(tmp_path)
    again = start(tmp_path)
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, err
    assert before.items() <= written(tmp_path).items()
    assert "All 12 steps are done" in out


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_study_with_one_line_and_nothing_is_lost(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    for disk in mounted(folder, "size=700m"):
        process = start(folder)
        wait_for_students(folder, process)
        used = shutil.disk_usage(folder).used
        # Smaller, so that nobody has to write 700 MiB.
        subprocess.run(["mount", "-o", f"remount,size={used // 4096 * 4 + 8}k", str(disk.folder)], check=True)
        _, err = process.communicate(timeout=600)
        assert process.returncode not in (0, None)
        (line,) = [line for line in err.splitlines() if "no space left" in line]
        assert line.startswith(f"error: no space left on the disk of {folder}")
        assert "Traceback" not in err
        before = written(folder)
        subprocess.run(["mount", "-o", "remount,size=700m", str(disk.folder)], check=True)
        again = start(folder)
        out, err = again.communicate(timeout=600)
        assert again.returncode == 0, err
        assert before.items() <= written(folder).items()
        assert "All 12 steps are done" in out
