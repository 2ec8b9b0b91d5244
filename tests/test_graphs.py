"""Recorded steps on a GPU give what usual steps give. Nothing of this can be tested without one."""

from dataclasses import replace

import pytest
import torch

from pursuhint_lib import training
from pursuhint_lib.data import Data, load_splits
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.settings import Arm, DistillSettings, Schedule, TeacherSettings
from pursuhint_lib.training import graphs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")

# 300 images in batches of 32: the last one has 12, and runs as usual.
DATA = Data("digits", train_images=300, test_images=100)
SCHEDULE = Schedule(epochs=8, batch_size=32, learning_rate=0.05, milestones=(4, 6))
TEACHER = TeacherSettings("resnet14", DATA, SCHEDULE, profile="test")
ARMS = (Arm("a", ("layer1.0", "layer1.1", "layer2.0")), Arm("b", ("layer1.1", "layer2.1", "layer3.1")))


def settings(method: str) -> DistillSettings:
    return DistillSettings(
        teacher=TEACHER,
        student="resnet8x0.25",
        method=method,
        arms=ARMS,
        student_points=("layer1.0", "layer2.0", "layer3.0"),
        ce_weight=1.0,
        kd_weight=1.0,
        hint_weight=10.0,
        temperature=4.0,
        data=DATA,
        schedule=SCHEDULE,
        seed=3,
        profile="test",
    )


@pytest.mark.parametrize("method", ["at", "fitnet", "fitnet-stages", "reviewkd", "vid", "crd"])
def test_recorded_steps_give_the_losses_of_usual_ones(method, monkeypatch):
    training.train_teacher(TEACHER)
    recorded = training.distill(settings(method))
    for record in recorded:
        (StudyPaths("test").records / f"{record.name}.json").unlink()
    monkeypatch.setattr(graphs, "USUAL_STEPS", 10**9)
    usual = training.distill(settings(method))
    for a, b in zip(recorded, usual, strict=True):
        for column in (name for name in a.history if name.startswith("loss_")):
            first = [
                (x, y) for x, y in zip(a.history[column], b.history[column], strict=True) if x is not None
            ][:2]
            # The same mathematics by other algorithms: equal at the start, and chaos only later.
            assert [x for x, _ in first] == pytest.approx([y for _, y in first], rel=2e-2), column
        assert a.metrics["accuracy"] == pytest.approx(b.metrics["accuracy"], abs=10)


def test_steps_are_recorded_at_all(monkeypatch):
    replays = []
    replay = graphs.GraphedSteps._replay
    monkeypatch.setattr(
        graphs.GraphedSteps, "_replay", lambda self: (replays.append(len(self.graphs)), replay(self))
    )
    training.train_teacher(TEACHER)
    training.distill(settings("at"))
    # In each of 8 epochs 9 full batches, of which the first three run as usual; the teacher's training is
    # recorded as well.
    assert replays.count(2) == 8 * 6
    assert replays.count(1) == 8 * 6


def test_a_step_that_cannot_be_recorded_runs_as_usual(monkeypatch, capsys):
    training.train_teacher(TEACHER)
    step = training.trainees.Trainee.step

    def looks_at_the_loss(self, *arguments):
        step(self, *arguments)
        float(self.sums["total"])

    monkeypatch.setattr(training.trainees.Trainee, "step", looks_at_the_loss)
    (record, _) = training.distill(
        replace(settings("at"), schedule=replace(SCHEDULE, epochs=1, milestones=()))
    )
    assert record.status == "ok"
    assert "CUDA graphs cannot be used here" in capsys.readouterr().out


def test_the_device_keeps_a_copy_of_nothing_that_the_cpu_must_draw():
    splits = load_splits(DATA, torch.device("cuda"))
    teacher = training.FrozenTeacher(training.load_teacher(TEACHER), ARMS[0].teacher_points)
    objective = training.build_objective(
        settings("crd").run(ARMS[0]), teacher.model, splits.train.labels.cpu()
    )
    assert objective.draws_on_cpu
    assert not training.build_objective(settings("at").run(ARMS[0]), teacher.model).draws_on_cpu
