"""Every method on a pair of one family, across families, and of torchvision's networks: it trains, and its
loss falls.
"""

from dataclasses import dataclass
from functools import cache

import pytest
import torch

from pursuhint_lib.clustering import segment_middles
from pursuhint_lib.data import Batch
from pursuhint_lib.distillers import DISTILLERS, distiller
from pursuhint_lib.models import build_model
from pursuhint_lib.settings import Data, Pair, Profile, Schedule
from pursuhint_lib.study.grid import profiles
from pursuhint_lib.study.grid.arms import Choice
from pursuhint_lib.study.grid.cells import cell_settings
from pursuhint_lib.training import FrozenTeacher, Objective, TeacherOutput, build_objective

PAIRS = {
    "one family": Pair("resnet14", "resnet8x0.25"),
    "across families": Pair("resnet8", "vgg8x0.125", ("block0.2", "block1.2", "block2.2")),
    # A teacher of five sizes of maps, down to one pixel, and a student of another kind.
    "torchvision": Pair(
        "torchvision/resnet18", "torchvision/shufflenet_v2_x0_5", ("stage2.3", "stage3.7", "stage4.3")
    ),
}
METHODS = [*DISTILLERS, "at+kd", "wsl+at", "wsl+crd", "at+crd"]
IMAGES = 16


@dataclass
class Case:
    """A pair on random images: a fixed batch, and what the teacher says of it."""

    profile: Profile
    pair: Pair
    batch: Batch
    model: torch.nn.Module
    output: TeacherOutput

    def objective(self, method: str) -> Objective:
        points = profiles.network_points(self.pair.teacher, self.profile.data)
        choice = {"middles": Choice(segment_middles(len(points.candidates), self.pair.k), "")}
        cell = cell_settings(self.profile, self.pair, method, 0, choice)
        objective = build_objective(cell.run(cell.arms[0]), self.model, torch.arange(40) % 10).train()
        objective.epochs = cell.schedule.epochs
        return objective


@cache
def case(kind: str) -> Case:
    channels = 3 if kind == "torchvision" else 1
    # Three channels: CIFAR-100's entry, of which the shape and the number of classes are used.
    data = Data("cifar100" if channels == 3 else "digits")
    schedule = Schedule(epochs=8, batch_size=IMAGES, learning_rate=0.05)
    parts = {
        "teacher": schedule,
        "student": schedule,
        "methods": ("kd",),
        "arms": ("none",),
        "seeds": (0,),
        "metrics": ("r2",),
    }
    profile = profiles.checked(Profile(name="pairs", title="pairs", data=data, pairs=(PAIRS[kind],), **parts))
    entry, generator = profiles.describe(data), torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, channels, entry.image_size, entry.image_size, generator=generator)
    batch = Batch(images, torch.arange(IMAGES) % 10, torch.arange(IMAGES))
    torch.manual_seed(0)
    model = build_model(PAIRS[kind].teacher, entry.classes, channels)
    for _ in range(20):
        # So that a fresh teacher's BatchNorm statistics are those of the images.
        model.train()(images)
    teacher = FrozenTeacher(model, profiles.network_points(PAIRS[kind].teacher, data).candidates)
    return Case(profile, profile.pairs[0], batch, teacher.model, teacher(images))


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_two_steps_in_each_of_its_stages(method, kind):
    case_ = case(kind)
    objective = case_.objective(method)
    before = {name: tensor.clone() for name, tensor in objective.network.state_dict().items()}
    teacher = {name: tensor.clone() for name, tensor in case_.model.state_dict().items()}
    optimizer = torch.optim.SGD(objective.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    for epoch in (0, 0, 7, 7):
        objective.epoch = epoch
        losses = objective(*case_.batch, case_.output)
        optimizer.zero_grad()
        losses["total"].backward()
        assert losses["total"].isfinite()
        assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
        optimizer.step()
    after = objective.network.state_dict()
    assert any("weight" in name and not torch.equal(after[name], before[name]) for name in before)
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in case_.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in case_.model.parameters())


# Each in an epoch with a loss on the student: the last of 8, or the first for methods of two stages.
# FT also in its first, in which it is the paraphraser that learns.
EPOCHS = [(method, 0 if distiller(method).stages else 7) for method in METHODS] + [("ft", 0)]


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize(("method", "epoch"), EPOCHS)
def test_its_loss_falls_over_twenty_steps_on_a_fixed_batch(method, epoch, kind):
    case_ = case(kind)
    objective = case_.objective(method)
    objective.epoch = epoch
    optimizer = torch.optim.Adam(objective.parameters(), lr=2e-3)
    values = []
    for _ in range(20):
        losses = objective(*case_.batch, case_.output)
        # The method alone, so that it is not the task that falls.
        loss = losses.get("hint", losses["total"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert sum(values[-3:]) / 3 < values[0]


@pytest.mark.parametrize("method", [name for name, entry in DISTILLERS.items() if entry.stages])
def test_methods_of_two_stages_teach_the_hints_first_and_then_the_task(method):
    case_ = case("one family")
    objective = case_.objective(method)
    first = objective(*case_.batch, case_.output)
    assert first["total"].item() == pytest.approx(DISTILLERS[method].weight * first["hint"].item())
    objective.epoch = 1
    then = objective(*case_.batch, case_.output)
    assert set(then) == {"total", "ce", "kd"}
    assert then["total"].item() == pytest.approx(then["ce"].item() + then["kd"].item())


def over_24_epochs(method: str, *epochs: int) -> list[dict]:
    """Losses of an objective that is trained for 24 epochs, in some of them."""
    case_, found = case("one family"), []
    objective = case_.objective(method)
    objective.epochs = 24
    for objective.epoch in epochs:
        found.append(objective(*case_.batch, case_.output))
    return found


@pytest.mark.parametrize("method", ["reviewkd", "dkd"])
def test_weights_that_grow_start_low(method):
    found = over_24_epochs(method, 0, 1, 23)
    rest = [losses["total"] - losses["ce"] - losses.get("kd", 0.0) for losses in found]
    full = [DISTILLERS[method].weight * losses["hint"] for losses in found]
    shares = [(a / b).item() for a, b in zip(rest, full, strict=True)]
    assert shares == pytest.approx([0.5, 1, 1], rel=1e-4)


def test_weights_that_grow_do_so_within_a_sum():
    first, second = (losses["hint"].item() for losses in over_24_epochs("dkd+at", 0, 1))
    [alone] = over_24_epochs("dkd", 0)
    assert second - first == pytest.approx(alone["hint"].item() / 2, rel=1e-3)
