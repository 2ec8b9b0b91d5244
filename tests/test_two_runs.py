"""Two runs of one profile: the second waits, and what a killed one left is ended."""

import contextlib
import fcntl
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import threading
import time

import pytest

from pursuhint_lib.cli import main
from pursuhint_lib.files import write_json
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.study.engine import execution as engine


def copy_that(work, *arguments) -> multiprocessing.Process:
    """A copy of this process, which takes no time to start, that does some work."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


@pytest.fixture
def owner():
    """Another process that holds the profile smoke, until the semaphore is released."""
    context = multiprocessing.get_context("fork")
    has, over = context.Semaphore(0), context.Semaphore(0)

    def hold():
        with engine.owned("smoke"):
            has.release()
            over.acquire()

    process = copy_that(hold)
    assert has.acquire(timeout=10)
    yield process, over
    process.kill()
    process.join()


def test_a_second_run_waits_until_the_first_is_over(owner, capsys):
    first, over = owner
    begun = time.monotonic()
    threading.Timer(0.3, over.release).start()
    with engine.owned("smoke"):
        assert time.monotonic() - begun > 0.25
    assert (
        capsys.readouterr().out
        == f"profile smoke is being run by process {first.pid}; waiting for it to end\n"
    )


def test_one_that_has_ended_is_not_waited_for(capsys):
    for _ in range(2):
        with engine.owned("smoke"):
            owner = json.loads(StudyPaths("smoke").run_lock.read_text())
            assert owner["pid"] == os.getpid()
        assert StudyPaths("smoke").run_lock.read_text() == ""
    assert capsys.readouterr().out == ""


def test_ctrl_c_ends_the_wait_and_leaves_the_first_alone(owner, tmp_path):
    first, _ = owner

    def second():
        # Tests that were started in the background ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with (
            (tmp_path / "said").open("w") as said,
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            status = main(["run", "smoke"])
        sys.exit(status)

    waiting, deadline = copy_that(second), time.monotonic() + 20
    while "waiting for it to end" not in (
        (tmp_path / "said").read_text() if (tmp_path / "said").exists() else ""
    ):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(waiting.pid, signal.SIGINT)
    waiting.join(timeout=10)
    assert waiting.exitcode == 130
    assert (tmp_path / "said").read_text().splitlines()[1:] == [
        "",
        "Stopped; the same command goes on from here.",
    ]
    assert json.loads(StudyPaths("smoke").run_lock.read_text())["pid"] == first.pid


def test_of_many_that_start_at_once_each_has_the_profile_alone(tmp_path):
    together = multiprocessing.get_context("fork").Barrier(6)

    def enter():
        together.wait()
        with engine.owned("smoke"):
            (tmp_path / "inside").touch(exist_ok=False)
            time.sleep(0.05)
            (tmp_path / "inside").unlink()

    started = [copy_that(enter) for _ in range(6)]
    for process in started:
        process.join(timeout=30)
    assert [process.exitcode for process in started] == [0] * 6


def test_a_run_that_is_killed_lets_go(owner, capsys):
    first, _ = owner
    first.kill()
    first.join()
    with engine.owned("smoke"):
        pass
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"pid": 1}', "\0\0"], ids=["empty", "cut", "list", "lacking", "binary"]
)
def test_a_damaged_note_of_the_owner_is_no_hindrance(content):
    lock = StudyPaths("smoke").run_lock
    lock.parent.mkdir(parents=True)
    lock.write_text(content)
    with engine.owned("smoke"):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_an_owner_on_another_machine_is_named_with_it(capsys):
    lock = StudyPaths("smoke").run_lock
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps({"pid": 7, "host": "elsewhere", "run": "theirs"}))
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(0.2, fcntl.flock, (held, fcntl.LOCK_UN)).start()
        with engine.owned("smoke"):
            pass
    assert "is being run by process 7 on elsewhere; waiting" in capsys.readouterr().out


def test_what_a_killed_run_left_behind_is_ended():
    # The number of the killed run's process may be another's by now: here it is this test's own.
    orphan = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        env={**os.environ, engine.MARK: "the-killed-run"},
    )
    lock = StudyPaths("smoke").run_lock
    write_json(lock, {"pid": os.getpid(), "host": platform.node(), "run": "the-killed-run"})
    with engine.owned("smoke"):
        assert orphan.poll() is not None
        assert json.loads(lock.read_text())["run"] != "the-killed-run"
