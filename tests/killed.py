"""Trainings that are ended again and again: ``killed.py FOLDER`` writes FOLDER/found.json, which
tests/test_kills.py looks at.

Not a test file. Every attempt is a fork of this process, which has imported everything: it begins in
milliseconds. Forks need a parent without threads, hence a process of its own.
"""

import contextlib
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file

from pursuhint_lib import files, training
from pursuhint_lib.data import load_splits
from pursuhint_lib.models import MODELS
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.settings import Arm, Data, DistillSettings, Schedule, TeacherSettings
from pursuhint_lib.training import checkpoints

PATHS = StudyPaths("killed")
DATA = Data("digits", train_images=120, test_images=60)
SCHEDULE = Schedule(epochs=5, batch_size=24, learning_rate=0.05, milestones=(3,))
TEACHER = TeacherSettings("resnet8", DATA, SCHEDULE, profile="killed")
KILLS, REQUESTS = 20, 4
# Exit status of a training that was asked to end and has saved its state.
STOPPED = 75


class Dropping(torch.nn.Module):
    """A network that draws by chance in every step."""

    def __init__(self, classes: int, channels: int):
        super().__init__()
        self.first = torch.nn.Sequential(
            torch.nn.Conv2d(channels, 8, 3), torch.nn.ReLU(), torch.nn.Dropout(0.5)
        )
        self.last = torch.nn.Linear(8, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(images).mean((2, 3)))


MODELS["dropping"] = Dropping


def settings(method: str, student: str, point: str) -> DistillSettings:
    """Two students side by side, with and without hints."""
    return DistillSettings(
        teacher=TEACHER,
        student=student,
        method=method,
        arms=(Arm("none"), Arm("some", ("layer2.0",))),
        student_points=(point,),
        ce_weight=1.0,
        kd_weight=1.0,
        hint_weight=1.0,
        temperature=4.0,
        data=DATA,
        schedule=SCHEDULE,
        seed=3,
        profile="killed",
    )


CASES = {
    "at": settings("at", "resnet8x0.25", "layer2.0"),
    # With memories of past images.
    "crd": settings("crd", "resnet8x0.25", "layer2.0"),
    "dropout": settings("at", "dropping", "first"),
}


def outcome(cell: DistillSettings) -> list:
    """What a finished training left: records without the conditions of the run, and weights."""
    found = []
    for record in training.distill(cell):
        weights = load_file(PATHS.weights(record.name))
        found.append(
            [
                {**asdict(record), "provenance": None},
                {name: tensor.tolist() for name, tensor in weights.items()},
            ]
        )
    return found


def forget() -> None:
    """Remove the records and weights of the students."""
    for file in (*PATHS.records.iterdir(), *PATHS.weights("").parent.iterdir()):
        if not file.name.startswith("teacher"):
            file.unlink()


def attempt(
    cell: DistillSettings, disturb: Callable[[int], None], prepare: Callable[[], None] = lambda: None
) -> int:
    """Train in a fork.

    **Arguments:** ``disturb`` gets the fork's number as soon as it begins to train; ``prepare`` is called in
    the fork before.

    **Returns:** the exit status, negative for a signal.
    """
    told, tells = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            prepare()
            os.write(tells, b".")
            try:
                training.distill(cell)
                status = 0
            except training.Stopped:
                status = STOPPED
        os._exit(status)
    os.close(tells)
    select.select([told], [], [])
    os.close(told)
    disturb(child)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_step(number: int) -> Callable[[], None]:
    """Makes a process kill itself at its so-manieth step of bringing files to their places: written, on the
    disk, old one moved, new one moved.
    """

    def prepare() -> None:
        left = [number]

        def dying(function: Callable) -> Callable:
            def called(*arguments):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments)

            return called

        files._to_disk, checkpoints._read, Path.replace = (
            dying(files._to_disk),
            dying(checkpoints._read),
            dying(Path.replace),
        )

    return prepare


def at_second_record() -> None:
    """Makes a process kill itself when one of two students has its record."""
    save, saved = training.runs.records.save, []

    def dying(profile: str, record) -> None:
        if saved:
            os.kill(os.getpid(), signal.SIGKILL)
        save(profile, record)
        saved.append(record)

    training.runs.records.save = dying


def after(number: int, seconds: float) -> Callable[[int], None]:
    """Sends a signal after some time."""

    def disturb(child: int) -> None:
        time.sleep(seconds)
        os.kill(child, number)

    return disturb


def disturbances(
    duration: float, statuses: list[int]
) -> Iterator[tuple[Callable[[int], None], Callable[[], None]]]:
    """How to end one attempt after the other until there have been enough kills: after a time, or at a step
    of saving a state.
    """
    draws = random.Random(0)
    while (kills := statuses.count(-signal.SIGKILL)) < KILLS:
        if kills % 3 == 2:
            yield lambda _child: None, at_step(draws.randrange(1, 20))
        else:
            yield after(signal.SIGKILL, draws.uniform(0, duration / 5)), lambda: None
    for _ in range(REQUESTS):
        yield after(signal.SIGTERM, draws.uniform(0, duration / 3)), lambda: None


def disturbed(cell: DistillSettings) -> dict:
    """Train a case without disturbance, and then again and again with all of them.

    **Returns:** ``statuses`` of all attempts; ``drafts``, how many half-written files were seen; ``same``,
    for every training that came to its end, whether it gave the same as the undisturbed one; ``left``, what
    it left behind; ``steps``, how many were taken after a kill between the records of two students.
    """
    begun = time.monotonic()
    expected = outcome(cell)
    duration = time.monotonic() - begun
    forget()
    statuses: list[int] = []
    drafts, same, left = 0, [], []

    def compare() -> None:
        same.append(outcome(cell) == expected)
        left.extend(
            file.name
            for file in (
                *PATHS.checkpoint("").parent.iterdir(),
                *PATHS.work.rglob("*.tmp"),
                *PATHS.results.rglob("*.tmp"),
            )
        )
        forget()

    step, steps = training.trainees.Trainee.step, []

    def counted(trainee, *arguments):
        steps.append(trainee.name)
        return step(trainee, *arguments)

    for disturb, prepare in disturbances(duration, statuses):
        statuses.append(attempt(cell, disturb, prepare))
        drafts += len(list(PATHS.work.rglob("*.tmp")))
        if statuses[-1] == 0:
            compare()
    compare()
    statuses.append(attempt(cell, lambda _child: None, at_second_record))
    training.trainees.Trainee.step = counted
    compare()
    training.trainees.Trainee.step = step
    return {"steps": len(steps), "statuses": statuses, "drafts": drafts, "same": same, "left": left}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    # A state to go on from is saved between any two batches.
    training.interruptions.CHECKPOINT_SECONDS, training.interruptions.SAVING_SHARE = 0.0, float("inf")
    torch.set_num_threads(1)
    training.train_teacher(TEACHER)
    load_splits(DATA, torch.device("cpu"))
    (folder / "found.json").write_text(json.dumps({name: disturbed(cell) for name, cell in CASES.items()}))
