"""A study that is told to end, or whose terminal closes, ends with its processes, or goes on under nohup."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from process_state import gone

from pursuhint_lib.study.engine import execution as engine
from pursuhint_lib.study.engine.estimate import Estimate
from pursuhint_lib.study.engine.plan import make_plan, write_plan
from pursuhint_lib.study.grid.profiles import load_profile

# Threads of the numerical libraries make Python 3.12 and later warn of fork; they are idle here.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def in_a_copy(work: Callable[[], int], hangup=signal.SIG_DFL) -> multiprocessing.Process:
    """A copy of this process, which takes no time to start and may be sent signals; ``hangup`` is what it
    does with SIGHUP when it begins.
    """

    def answers_signals():
        # Tests that were started under nohup, or in the background, ignore some.
        signal.signal(signal.SIGHUP, hangup)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.exit(work())

    process = multiprocessing.get_context("fork").Process(target=answers_signals)
    process.start()
    return process


def stand_in(seconds: float, ran: Path) -> Callable[[], int]:
    """The study with a process that only waits in the engine's place; ``ran`` gets its number."""

    def run() -> int:
        profile = load_profile("smoke")
        steps = make_plan(profile, "smoke")
        wait = [sys.executable, "-S", "-c", f"import time; time.sleep({seconds})"]

        def start(_command, **options):
            started = subprocess.Popen(wait, **options)
            ran.write_text(str(started.pid))
            return started

        engine.forking = lambda *_: contextlib.nullcontext()
        engine.subprocess = SimpleNamespace(Popen=start, STDOUT=subprocess.STDOUT)
        with engine.owned("smoke") as run:
            expected = Estimate({step.name: 1.0 for step in steps}, 1, 0, 0.0)
            command = engine.engine_command(write_plan(profile, steps, 1, 0), 1, 0, [])
            return engine.execute("smoke", run, steps, expected, command)

    return run


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name
)
def test_a_signal_ends_the_run_and_its_processes_and_lets_go_of_the_profile(number, tmp_path):
    ran = tmp_path / "pid"
    process = in_a_copy(stand_in(60, ran))
    deadline = time.monotonic() + 20
    while not (ran.exists() and ran.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(process.pid, number)
    process.join(timeout=20)
    assert process.exitcode == 130
    assert gone(int(ran.read_text()))
    with engine.owned("smoke"):
        pass


def test_under_nohup_a_terminal_that_closes_ends_nothing(tmp_path):
    ran = tmp_path / "pid"
    process = in_a_copy(stand_in(1.5, ran), hangup=signal.SIG_IGN)
    while not ran.exists():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGHUP)
    process.join(timeout=20)
    assert process.exitcode == 0
