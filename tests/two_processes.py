"""What the processes of a test do, started by torchrun: ``two_processes.py FOLDER METHOD …`` trains and
writes FOLDER/<process>.json.

Not a test file: tests/test_processes.py starts it, and runs ``outcome`` in its own process for comparison.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pursuhint_lib import training
from pursuhint_lib.data import Images, load_splits
from pursuhint_lib.models import MODELS
from pursuhint_lib.processes import rank
from pursuhint_lib.settings import Arm, Data, DistillSettings, Schedule, TeacherSettings

# Batches of 16, and a last one of 5 that two processes share as 3 and 2; test batches of 500 and 101.
DATA = Data("digits", train_images=53, test_images=601)
SCHEDULE = Schedule(epochs=3, batch_size=16, learning_rate=0.05, milestones=(2,))
TEACHER = TeacherSettings(network="plain", data=DATA, schedule=SCHEDULE, profile="together")
ARMS = (Arm("none"), Arm("first", ("first",)), Arm("second", ("second",)))


class Plain(nn.Module):
    """A network without statistics of the batch: what it learns does not depend on how batches are shared
    out.
    """

    def __init__(self, classes: int, channels: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, stride=2), nn.ReLU())
        self.classify = nn.Linear(12, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.second(self.first(images)).mean((2, 3)))


class Normalised(Plain):
    """The same with BatchNorm."""

    def __init__(self, classes: int, channels: int):
        super().__init__(classes, channels)
        self.first.insert(1, nn.BatchNorm2d(8))
        self.second.insert(1, nn.BatchNorm2d(12))


NETWORKS = {"plain": Plain, "normalised": Normalised}


def settings(method: str, **changes) -> DistillSettings:
    """A small study of one method, whose single student point is the end of the network."""
    shared = {
        "teacher": TEACHER,
        "student": "plain",
        "method": method,
        "arms": ARMS,
        "student_points": ("second",),
        "ce_weight": 1.0,
    }
    weights = {"kd_weight": 1.0, "hint_weight": 5.0, "temperature": 4.0}
    return DistillSettings(
        **{
            **shared,
            **weights,
            "data": DATA,
            "schedule": SCHEDULE,
            "seed": 3,
            "profile": "together",
            **changes,
        }
    )


CASES = {
    "at": settings("at"),
    # Memories of all images, and negatives drawn for the whole batch.
    "crd": settings("crd", hint_weight=0.8),
    # The other methods of the profile imagenet.
    # Its regressor has BatchNorm.
    "fitnet": settings("fitnet", hint_weight=1.0, schedule=replace(SCHEDULE, sync_batchnorm=True)),
    "vid": settings("vid", hint_weight=1.0),
    "crd-batch": settings("crd-batch", hint_weight=0.8),
    "wsl": settings("wsl", arms=ARMS[:1], student_points=(), kd_weight=0.0, hint_weight=2.25),
    "wsl+at": settings("wsl+at", kd_weight=0.0, part_weights=(2.25, 5.0), hint_weight=1.0),
    "normalised": settings(
        "at", student="normalised", schedule=replace(SCHEDULE, sync_batchnorm=True), arms=ARMS[:2]
    ),
    # Long enough to be killed.
    "long": settings("at", schedule=replace(SCHEDULE, epochs=20, milestones=(10,)), arms=ARMS[:2]),
}


def outcome(case: str, slowly: float = 0.0) -> dict:
    """Train a case; returns histories, weights, and the images of this process in the order in which they
    were seen.

    **Arguments:** ``slowly``: seconds to wait in every step.
    """
    seen, step = [], training.trainee.Trainee.step

    def watched(trainee, batch, *arguments):
        seen.append(batch.indices.tolist())
        time.sleep(slowly)
        return step(trainee, batch, *arguments)

    training.trainee.Trainee.step = watched
    try:
        records = training.distill(CASES[case])
    finally:
        training.trainee.Trainee.step = step
    weights = [
        torch.cat([value.flatten().double() for value in weights_of(record).values()]).tolist()
        for record in records
    ]
    told = {
        "histories": [record.history for record in records],
        "answers": [record.answers for record in records],
    }
    return {"seen": seen, "weights": weights, **told}


def weights_of(record) -> dict[str, Tensor]:
    """State dict of a finished student."""
    from safetensors.torch import load_file

    from pursuhint_lib.paths import StudyPaths

    return load_file(StudyPaths("together").weights(record.name))


if __name__ == "__main__":
    folder, *cases = sys.argv[1:]
    MODELS.update(NETWORKS)
    # A state to go on from is saved between any two batches.
    training.interruptions.CHECKPOINT_SECONDS, training.interruptions.SAVING_SHARE = 0.0, float("inf")
    # Images are evaluated in 13 batches, of which the first process takes seven and the other six.
    Images.ordered_batches.__defaults__ = (50, 0, 1)
    training.accelerator_for_this_process()
    load_splits(DATA, torch.device("cpu"))
    found = {case: outcome(case, slowly=0.02 if case == "long" else 0.0) for case in cases}
    (Path(folder) / f"{rank()}.json").write_text(json.dumps(found))
