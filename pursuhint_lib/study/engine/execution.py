"""Running a plan: snakemake as the engine, one owner per profile, and a running account of how far it is."""

import contextlib
import fcntl
import importlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import psutil
import torch

from ...forks import serve
from ...paths import SNAKEFILE, StudyPaths, gpu_lock
from ...settings import SettingsError
from ..grid.cells import results_frame
from ..grid.profiles import load_profile
from .estimate import Estimate
from .launch import THREADS
from .plan import Step

# Every process of a run carries the run's id in its environment, so that orphans of a killed run can be
# found.
MARK = "PURSUHINT_RUN"
# Seconds between two looks at the steps, and between two lines about one step.
POLL = 0.5
# Seconds that processes have to save their state when they are told to end.
GRACE = 30.0
REPORT = 15.0
# What the last line of a step's log says when there was not enough memory, and what to do. A kernel that is
# killed cannot say why.
FEWER = "give fewer --cores, so that fewer steps run at once, or a smaller batch_size or profile_images"
OUT_OF_MEMORY = {
    "Kernel died": f"the operating system ended its process, most often for want of memory: {FEWER}",
    "MemoryError": f"not enough memory: {FEWER}",
    "can't allocate memory": f"not enough memory: {FEWER}",
    "CUDA out of memory": "not enough memory on the GPU: give a smaller batch_size or fewer arms, or end "
    "what else uses the card",
}
# What steps import, beside what is imported here: kernels have the debugger, and assert_close has torch's
# distributed tensors.
IMPORTED = (
    "sklearn.cluster",
    "sklearn.datasets",
    "sklearn.model_selection",
    "ipykernel.debugger",
    "ipykernel.kernelapp",
    "ipywidgets",
    "matplotlib_inline.backend_inline",
    "papermill.cli",
    "torch.distributed.tensor",
    "pursuhint_lib.study.engine.take_over",
    "pursuhint_lib.study.publish.published",
)
# What a kernel tells matplotlib before that is imported.
INLINE = "module://matplotlib_inline.backend_inline"
# Seconds that the engine has to cancel the jobs of a cluster.
CANCEL = 60.0


@contextlib.contextmanager
def owned(profile: str) -> Iterator[str]:
    """Hold a profile for this process, once no other does: one run at a time. What a killed run left behind
    is ended first.

    The operating system keeps the lock: of two that start at the same instant one gets it, a process that
    dies lets go of it, whatever number the next one has, and on a shared disk it holds on every machine.
    """
    file = StudyPaths(profile).run_lock
    file.parent.mkdir(parents=True, exist_ok=True)
    # Never removed: who waits for it would get the lock of a file that is no more.
    with file.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"profile {profile} is being run by {_owner(lock)}; waiting for it to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if killed := _read_owner(lock):
            end_orphans(killed["run"])
        run = uuid.uuid4().hex
        lock.truncate(0)
        lock.write(json.dumps({"pid": os.getpid(), "host": platform.node(), "run": run}))
        lock.flush()
        try:
            yield run
        finally:
            lock.truncate(0)


def _read_owner(lock: TextIO) -> dict | None:
    """What the last owner wrote; nothing once it has ended well."""
    lock.seek(0)
    with contextlib.suppress(ValueError):
        owner = json.loads(lock.read())
        return owner if isinstance(owner, dict) and {"pid", "host", "run"} <= owner.keys() else None
    return None


def _owner(lock: TextIO) -> str:
    owner = _read_owner(lock)
    if not owner:
        return "another process"
    return f"process {owner['pid']}" + ("" if owner["host"] == platform.node() else f" on {owner['host']}")


def end_orphans(run: str) -> None:
    """End every process of a run but this one: politely, so that trainings save their state, then
    for good.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == run:
                found.append(process)
                process.terminate()
    _, alive = psutil.wait_procs(found, timeout=GRACE)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def execute(profile: str, run: str, steps: Sequence[Step], expected: Estimate, command: Sequence[str]) -> int:
    """Run the open steps of a plan and tell how it goes. No process of the run is left when it returns.

    **Arguments:** ``run`` the id that ``owned`` gave; ``command`` as ``engine_command`` gives it.

    **Returns:** snakemake's exit status.
    """
    paths = StudyPaths(profile)
    for step in steps:
        if not step.done:
            # A log of an earlier run would make a step that never began look failed.
            paths.step_log(step.name).unlink(missing_ok=True)
    environment = {**os.environ, MARK: run}
    source = steps[0].parameters["profile"]
    here = contextlib.nullcontext() if elsewhere(command) else forking(source, paths.forks, environment)
    with paths.engine_log.open("w") as log, here:
        engine = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            with _interruptible():
                _follow(engine, paths, steps, expected)
        except KeyboardInterrupt:
            print("\nStopping; finished runs are kept, and the same command goes on from here.", flush=True)
            if elsewhere(command):
                # Interrupted, the engine cancels its jobs; ended, it would leave them with the cluster.
                engine.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    engine.wait(timeout=CANCEL)
            return 130
        finally:
            end_orphans(run)
    return engine.returncode


def forking(source: str, place: Path, environment: dict[str, str]) -> contextlib.AbstractContextManager:
    """A process from which steps of one core are forked, or nothing where that cannot be: each is then a
    process of its own.

    **Arguments:** ``source`` a profile; ``place`` the socket at which forks are asked for; ``environment`` of
    the process.
    """
    # A fork cannot use a GPU that the process before it has looked at.
    if sys.platform != "linux" or torch.cuda.is_available():
        return contextlib.nullcontext()
    place.unlink(missing_ok=True)
    told = {"MPLBACKEND": INLINE} | environment | dict.fromkeys(THREADS, "1")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            # By its name alone, for an address has 107 bytes at most.
            with contextlib.chdir(place.parent):
                listener.bind(place.name)
            listener.listen()
            return subprocess.Popen(
                [sys.executable, "-m", "pursuhint_lib", "fork", source, str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=told,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )
    except OSError:
        # Not every disk can hold a socket.
        return contextlib.nullcontext()


def fork_steps(source: str, listener: int) -> None:
    """Be the process that steps are forked from: with all that they import, the profile checked, and the
    records read.

    **Arguments:** ``listener`` number of the open socket at which they are asked for.
    """
    for module in IMPORTED:
        importlib.import_module(module)
    results_frame(load_profile(source))
    serve(socket.socket(fileno=listener))
    # The run is gone; what is left of it must not outlive it.
    end_orphans(os.environ[MARK])


def engine_command(plan: Path, cores: int, gpus: int, options: Sequence[str]) -> list[str]:
    """Snakemake's command line for a plan.

    **Arguments:** ``options`` are passed on unchanged; with an executor of their own they replace the local
    cores.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)]
    command += ["--directory", str(plan.parent)]
    # One owner per profile is seen to above, so snakemake's own lock could only be a stale one.
    command += ["--nolock", "--rerun-incomplete", "--rerun-triggers", "input", "--keep-going"]
    # A kernel can lose the race for its ports when several start at once; a second try loads what the first
    # has trained. The Snakefile does not say so, since every snakemake that a cluster's job starts would try
    # twice again.
    command += ["--retries", "1"]
    if not elsewhere(options):
        command += ["--cores", str(cores), "--resources", f"gpu={gpus}"]
    return [*command, *options]


def elsewhere(options: Sequence[str]) -> bool:
    """Whether the engine's options, or a profile that they name, say where jobs run."""
    return any(
        option.startswith(("-e", "--executor", "--profile", "--workflow-profile")) for option in options
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """A context in which SIGTERM and a terminal that closes do what Ctrl-C does. Under nohup the terminal may
    close.
    """
    signals = [signal.SIGTERM] + [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)
    previous = {number: signal.signal(number, _interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupt(number, _frame) -> None:
    if number == signal.SIGHUP:
        # Nobody reads any more, and to write to a terminal that is gone is an error.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
    raise KeyboardInterrupt


def _follow(engine: subprocess.Popen, paths: StudyPaths, steps: Sequence[Step], expected: Estimate) -> None:
    """Print a line when a step ends, and now and then what the running ones do, until the engine ends."""
    waiting = {step.name: step for step in steps if not step.done}
    clock, reported = _Clock(expected), time.monotonic()
    for name in waiting:
        # What an earlier run left would be told as if it were of this one.
        paths.progress(name).unlink(missing_ok=True)
    while True:
        over = engine.poll() is not None
        for name, step in list(waiting.items()):
            if Path(step.stamp).is_file():
                del waiting[name]
                clock.step_over(waiting)
                seconds = json.loads(Path(step.stamp).read_text())["seconds"]
                print(
                    f"[{len(steps) - len(waiting):2d}/{len(steps)}] {name}: done in {seconds:.0f} "
                    f"s{clock.left() if waiting else ''}",
                    flush=True,
                )
                reported = time.monotonic()
        if over:
            return
        if time.monotonic() - reported > REPORT:
            for line in _running(paths, waiting):
                print(f"        … {line}{clock.left()}", flush=True)
            reported = time.monotonic()
        time.sleep(POLL)


class _Clock:
    """Time left: the estimate, corrected by how fast the finished steps went."""

    def __init__(self, expected: Estimate):
        self._expected, self._begun = expected, time.monotonic()
        self._over = self._begun + expected.seconds

    def step_over(self, waiting: dict[str, Step]) -> None:
        """Correct the end when a step is over and these are still to be done."""
        rest, now = self._expected.wall(waiting), time.monotonic()
        behind = self._expected.seconds - rest
        # The first steps are short, so they say little of the speed.
        pace = (now - self._begun) / behind if behind > 0.1 * self._expected.seconds else 1.0
        self._over = now + pace * rest

    def left(self) -> str:
        """Time from now to the end, in words."""
        return f"; about {duration(max(1.0, self._over - time.monotonic()))} left"


def _running(paths: StudyPaths, waiting: dict[str, Step]) -> Iterator[str]:
    for name in waiting:
        file = paths.progress(name)
        if file.is_file():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                state = json.loads(file.read_text())
                counted = f"{state['unit']} {state['done']} of {state['total']}"
                yield f"{state['label']}: {counted} {state['figures']}".rstrip()


def failed_steps(profile: str, steps: Sequence[Step]) -> list[tuple[str, str]]:
    """(step, reason) of steps that began and did not end: the last line of an error in their log."""
    found = []
    for step in steps:
        log = StudyPaths(profile).step_log(step.name)
        if not Path(step.stamp).is_file() and log.is_file():
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            found.append((step.name, _reason(lines[-1].strip()) if lines else "no output"))
    return found


def _reason(said: str) -> str:
    """Why a step failed, from the last line of its log."""
    remedy = next((remedy for symptom, remedy in OUT_OF_MEMORY.items() if symptom in said), None)
    return f"{remedy} ({said})" if remedy else said


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def run_in_slot(command: Sequence[str]) -> int:
    """Run a command with a GPU for itself: wait for a free one of those that this process sees, and hide the
    others.

    **Returns:** the command's exit status.

    **Raises:** ``SettingsError`` where there is no GPU to wait for, or nothing to run.
    """
    if not command:
        raise SettingsError("slot -- is followed by no command; give the one that needs a GPU")
    if not (gpus := torch.cuda.device_count()):
        raise SettingsError("slot waits for a GPU, and this machine has none; run the command without it")
    # As they are named outside: by number, UUID or MIG name. What CUDA does not know ends the list for it.
    given = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus))))
    while True:
        for card in given.replace(" ", "").split(",")[:gpus]:
            path = gpu_lock(card)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                return subprocess.call(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": card})
        time.sleep(1)
