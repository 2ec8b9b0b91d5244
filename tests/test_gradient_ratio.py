"""The gradient of the hint loss over that of the task: against hand-made gradients, and without a trace in
the training.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from trainings import forget, killed_before

from pursuhint_lib import training
from pursuhint_lib.data import Batch, load_splits
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.settings import Arm, Data, DistillSettings, Schedule, TeacherSettings
from pursuhint_lib.training.trainee import Trainee

DATA = Data("digits", train_images=64, held_out=50)
SCHEDULE = Schedule(epochs=2, batch_size=32, learning_rate=0.05, milestones=(1,))
TEACHER = TeacherSettings(
    "resnet14", Data("digits", train_images=60, test_images=50), SCHEDULE, profile="test"
)
ENDS = ("layer1.1", "layer2.1", "layer3.1")
ACCELERATOR = training.accelerator_for_this_process()
ARMS = (Arm("light", ENDS, hint_weight=0.5), Arm("heavy", ENDS, hint_weight=50.0))


def settings(method="fitnet", **changes) -> DistillSettings:
    base = DistillSettings(
        teacher=TEACHER,
        student="resnet8x0.25",
        method=method,
        arms=ARMS,
        student_points=("layer1.0", "layer2.0", "layer3.0"),
        ce_weight=1.0,
        kd_weight=0.5,
        hint_weight=10.0,
        temperature=4.0,
        data=DATA,
        schedule=SCHEDULE,
        seed=3,
        profile="test",
    )
    return replace(base, **changes)


class Linear(nn.Module):
    """A network of two numbers whose losses are linear in them, beside a method with a number of its own:
    gradients are known in advance.
    """

    rests, epoch, epochs = False, 0, 1

    def __init__(self, **weights: float):
        super().__init__()
        self.network = nn.ParameterList([nn.Parameter(torch.tensor([0.5, -1.0]))])
        self.method = nn.ParameterList([nn.Parameter(torch.tensor(7.0))])
        self.given = weights

    def weights(self):
        return self.given

    def forward(self, images, labels, indices, teacher):
        slopes = {"ce": [3.0, 0.0], "kd": [0.0, 8.0], "hint": [5.0, 12.0]}
        parts = {name: (torch.tensor(slope) * self.network[0]).sum() for name, slope in slopes.items()}
        parts["hint"] = parts["hint"] + 1000 * self.method[0]
        return {"total": sum(weight * parts[name] for name, weight in self.given.items()), **parts}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        # ‖0.1 · (5, 12)‖ / ‖(3, 0) + 0.5 · (0, 8)‖
        ({"ce": 1.0, "kd": 0.5, "hint": 0.1}, 1.3 / 5),
        ({"ce": 0.0, "kd": 2.0, "hint": 10.0}, 130 / 16),
        # In a stage of its own the hint has nothing beside it; without a hint there is nothing to compare.
        ({"hint": 1.0}, None),
        ({"ce": 1.0, "kd": 1.0}, None),
        # Steps whose ratio is not finite do not count.
        ({"ce": 1.0, "kd": 1.0, "hint": float("inf")}, None),
    ],
)
def test_the_ratio_is_that_of_known_gradients(weights, expected):
    trainee = Trainee("one", Linear(**weights), TEACHER, ACCELERATOR, to_measure=3)
    batch = Batch(torch.zeros(2, 1), torch.zeros(2), torch.arange(2))
    for _ in range(2):
        trainee.prepare(0)
        trainee.step(batch, None)
    assert trainee.gradient_ratio == (None if expected is None else pytest.approx(expected, rel=1e-5))
    assert trainee.to_measure == 1


def test_steps_that_are_not_finite_are_left_out_of_the_mean():
    objective = Linear(ce=1.0, hint=1.0)
    trainee = Trainee("one", objective, TEACHER, ACCELERATOR, to_measure=2)
    for weight in (float("nan"), 1.0):
        objective.given["hint"] = weight
        trainee.step(Batch(torch.zeros(2, 1), torch.zeros(2), torch.arange(2)), None)
    assert trainee.gradient_ratio == pytest.approx(13 / 3, rel=1e-5)


@pytest.mark.parametrize("method", ["fitnet", "at", "vid"])
def test_the_ratio_on_record_is_that_of_two_backward_passes(method):
    """Parts of the loss are differentiated one after the other, in a loop of its own with a plain
    optimiser.
    """
    records = training.distill(settings(method), measured_steps=3)
    teacher = training.FrozenTeacher(training.load_teacher(TEACHER), ENDS)
    images = load_splits(DATA, torch.device("cpu")).train
    batches = [batch for epoch in range(2) for batch in images.train_batches(32, 3, epoch)]
    for arm, record in zip(ARMS, records, strict=True):
        objective = training.build_objective(settings(method).run(arm), teacher.model).train()
        optimizer = torch.optim.SGD(objective.parameters(), momentum=0.9, weight_decay=5e-4, fused=False)
        found = []
        for step, batch in enumerate(batches[:3]):
            gradients = {}
            for kept in (("hint",), ("ce", "kd")):
                # BatchNorm's running statistics do not matter in training.
                optimizer.zero_grad()
                parts = objective(*batch, teacher(batch.images))
                sum(
                    {"ce": 1.0, "kd": 0.5, "hint": arm.hint_weight}[name] * parts[name] for name in kept
                ).backward()
                gradients[kept] = {p: p.grad.clone() for p in objective.parameters() if p.grad is not None}
            hint, task = gradients.values()
            norms = [
                np.sqrt(
                    sum((g[p].double().numpy() ** 2).sum() for p in objective.network.parameters() if p in g)
                )
                for g in (hint, task)
            ]
            found.append(norms[0] / norms[1])
            for parameter in objective.parameters():
                parameter.grad = hint.get(parameter, 0) + task.get(parameter, torch.zeros_like(parameter))
            # The rate falls in the second epoch, which is the third step.
            optimizer.param_groups[0]["lr"] = 0.05 if step < 2 else 0.005
            optimizer.step()
        assert record.metrics["gradient_ratio"] == pytest.approx(np.mean(found), rel=2e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_measuring_changes_no_bit_of_the_training(threads, precision):
    training.train_teacher(TEACHER)
    torch.set_num_threads(threads)
    found = []
    for steps in (0, 3, 200):
        records = training.distill(settings(precision=precision), measured_steps=steps)
        weights = [load_file(StudyPaths("test").weights(record.name)) for record in records]
        found.append((records, weights))
        forget(records)
    (plain, plain_weights), *measured = found
    assert not any("gradient_ratio" in record.metrics for record in plain)
    for records, weights in measured:
        for a, b, left, right in zip(plain, records, plain_weights, weights, strict=True):
            # The name, which holds the hash of the settings, is the same too.
            assert (a.name, a.settings, a.history) == (b.name, b.settings, b.history)
            assert b.metrics["gradient_ratio"] > 0
            assert {**a.metrics, "gradient_ratio": b.metrics["gradient_ratio"]} == b.metrics
            assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_resumed_training_goes_on_with_the_mean(saved_between_batches):
    whole = training.distill(settings("at"), measured_steps=3)
    forget(whole)
    with killed_before(epoch=1, batch=0):
        training.distill(settings("at"), measured_steps=3)
    for before, after in zip(whole, training.distill(settings("at"), measured_steps=3), strict=True):
        assert json.dumps(before.metrics) == json.dumps(after.metrics)
