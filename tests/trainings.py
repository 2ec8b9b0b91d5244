"""Settings of small trainings, and what they leave behind."""

import contextlib
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from pursuhint_lib import records, training
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.settings import Arm, Data, DistillSettings, Schedule, TeacherSettings

DATA = Data("digits", train_images=60, test_images=50)
SCHEDULE = Schedule(epochs=2, batch_size=32, learning_rate=0.05, milestones=(1,))
TEACHER = TeacherSettings("resnet14", DATA, SCHEDULE, profile="test")
ENDS = ("layer1.0", "layer2.0", "layer3.0")
ARMS = (
    Arm("none"),
    Arm("first", ("layer1.0", "layer1.1", "layer2.0")),
    Arm("ends", ("layer1.1", "layer2.1", "layer3.1")),
)
HINTED = ("fitnet", "at", "vid", "sp")


def settings(method="at", arms=ARMS, **changes) -> DistillSettings:
    base = DistillSettings(
        teacher=TEACHER,
        student="resnet8x0.25",
        method=method,
        arms=arms,
        student_points=ENDS,
        ce_weight=1.0,
        kd_weight=1.0,
        hint_weight=10.0,
        temperature=4.0,
        data=DATA,
        schedule=SCHEDULE,
        seed=3,
        profile="test",
    )
    return replace(base, **changes)


def weights(record: records.Record) -> dict[str, torch.Tensor]:
    return load_file(StudyPaths("test").weights(record.name))


def forget(found: Iterable[records.Record]) -> None:
    """Remove records, so that their runs are trained again."""
    for record in found:
        (StudyPaths("test").records / f"{record.name}.json").unlink()


@contextlib.contextmanager
def killed_before(epoch: int, batch: int):
    """Within this context a training dies before a batch at which it would go on from a state."""
    run_epoch = training.fitting.run_epoch

    def dying(given, *at, **keywords):
        if at == (epoch, batch):
            raise KeyboardInterrupt
        return run_epoch(given, *at, **keywords)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.fitting, "run_epoch", dying)
        yield


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
