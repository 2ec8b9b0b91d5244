"""Whatever ends a training or a study, and whenever: the same command goes on, repeats nothing that is done,
and ends with the same results.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pursuhint_lib.files import SEAL
from pursuhint_lib.paths import ROOT

SCRIPT = ROOT / "tests" / "killed.py"
CASES = ("at", "crd", "dropout")
# Exit statuses: killed, ended by SIGTERM before training began or after it was over, came to the end, stopped
# with its state saved.
KILLED, ENDED, DONE, STOPPED = -signal.SIGKILL, -signal.SIGTERM, 0, 75


def places(folder: Path) -> dict:
    """Environment in which results and work are in the folder."""
    return {
        **os.environ,
        "PURSUHINT_RESULTS": str(folder / "results"),
        "PURSUHINT_WORK": str(folder / "work"),
    }


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory) -> dict:
    """What came of trainings that were killed, and asked to end, again and again."""
    folder = tmp_path_factory.mktemp("killed")
    told = {
        **places(folder),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PURSUHINT_PROGRESS": str(folder / "progress.json"),
    }
    subprocess.run([sys.executable, str(SCRIPT), str(folder)], env=told, check=True, timeout=300)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_a_training_killed_at_many_points_gives_the_same_bits_and_leaves_nothing_behind(disturbed, case):
    found = disturbed[case]
    assert found["statuses"].count(KILLED) == 21
    assert found["same"]
    assert all(found["same"])
    assert not found["left"]


@pytest.mark.parametrize("case", CASES)
def test_a_training_killed_between_the_records_of_its_students_does_not_begin_anew(disturbed, case):
    # The state is that before the last batch, which the student without a record takes again.
    assert disturbed[case]["steps"] == 1


def test_some_kills_came_while_a_file_was_written(disturbed):
    assert all(found["drafts"] > 0 for found in disturbed.values())


def test_trainings_that_are_asked_to_end_save_their_state(disturbed):
    for found in disturbed.values():
        assert set(found["statuses"]) <= {KILLED, ENDED, DONE, STOPPED}
    assert any(STOPPED in found["statuses"] for found in disturbed.values())


# ---- the whole study


def contents(folder: Path) -> dict[str, dict]:
    """Records and hints without the conditions of the run."""
    files = [
        file
        for file in (folder / "results" / "smoke").rglob("*.json")
        if file.parent.name in ("records", "hints")
    ]
    stored = {str(file.relative_to(folder)): json.loads(file.read_text(encoding="utf-8")) for file in files}
    return {
        name: {key: value for key, value in content.items() if key not in ("provenance", SEAL)}
        for name, content in stored.items()
    }


def written(folder: Path) -> dict[Path, int]:
    """Record → time of writing, which changes when a run is repeated."""
    return {file: file.stat().st_mtime_ns for file in (folder / "results" / "smoke").rglob("records/*.json")}


def start(folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            [str(ROOT / "run_all.sh"), "smoke"], env=places(folder), stdout=log, stderr=subprocess.STDOUT
        )


def kill(started: subprocess.Popen, everything: bool) -> None:
    """End a study without warning: its first process, or all of them, as when the machine dies."""
    processes = [psutil.Process(started.pid)]
    processes += processes[0].children(recursive=True) if everything else []
    for process in processes:
        process.kill()
    started.wait()


@pytest.mark.slow
def test_a_study_killed_at_five_points_ends_with_the_same_results_and_trains_nothing_twice(tmp_path):
    begun = time.monotonic()
    assert start(tmp_path / "whole").wait(600) == 0, (tmp_path / "whole" / "log.txt").read_text()
    length = time.monotonic() - begun
    folder, draws, seen = tmp_path / "killed", random.Random(1), []
    for number in range(5):
        killed = start(folder)
        try:
            killed.wait(draws.uniform(0.1, 0.5) * length)
        except subprocess.TimeoutExpired:
            kill(killed, everything=number % 2 == 0)
        seen.append(written(folder))
    assert start(folder).wait(600) == 0, (folder / "log.txt").read_text()
    after = written(folder)
    for before in seen:
        assert before.items() <= after.items()
    assert len({len(before) for before in seen}) > 2, "killed in several parts of the study"
    assert contents(folder) == contents(tmp_path / "whole")
    assert not list(folder.rglob("*.tmp"))
