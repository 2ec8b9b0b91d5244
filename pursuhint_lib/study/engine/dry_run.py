"""A method on random images, with networks that have fresh weights: what can be known of a run before it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...clustering import segment_middles
from ...data import Batch, describe, example_input, image_counts
from ...settings import Data, Pair, Profile, StudentSettings
from ...training import FrozenTeacher, Objective, TeacherOutput, autocast, seeded_model
from ..grid.arms import Choice
from ..grid.cells import cell_settings
from ..grid.profiles import network_points


@dataclass(frozen=True)
class Trial:
    """A pair on a batch of random images: the teacher, what it says of them at all its sub-blocks, and labels
    [N] as of the training images.
    """

    teacher: FrozenTeacher
    batch: Batch
    output: TeacherOutput
    labels: Tensor

    def first(self, count: int) -> "Trial":
        """The same on the first images of the batch."""
        features = {name: maps[:count] for name, maps in self.output.features.items()}
        output = TeacherOutput(self.output.logits[:count], features)
        return replace(self, batch=Batch(*(part[:count] for part in self.batch)), output=output)


def random_batch(data: Data, images: int, device: torch.device) -> Batch:
    """So many random images of the data set's shape, with labels of its classes in turn."""
    generator, numbers = torch.Generator().manual_seed(0), torch.arange(images)
    pixels = torch.randn(images, *example_input(data).shape[1:], generator=generator)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return Batch(*(part.to(device) for part in (pixels, numbers % describe(data).classes, numbers)))


def trial(profile: Profile, pair: Pair, images: int, device: torch.device) -> Trial:
    """The pair on so many random images."""
    data = profile.student_data
    batch, labels = random_batch(data, images, device), torch.arange(image_counts(data)[0])
    model = settled(seeded_model(pair.teacher, data, 0).to(device), batch.images)
    teacher = FrozenTeacher(model, network_points(pair.teacher, data).candidates)
    return Trial(teacher, batch, teacher(batch.images), labels % describe(data).classes)


def training_step(
    profile: Profile, objective: Objective, batch: Batch, output: TeacherOutput | None
) -> Callable[[], Tensor]:
    """A training step, which gives the loss and leaves the weights as they are, should they stay finite."""
    optimizer = torch.optim.SGD(objective.train().parameters(), lr=0.0, momentum=0.9, fused=True)
    # Past the first stage, in which some methods do less.
    objective.epoch, objective.epochs = profile.student.epochs - 1, profile.student.epochs

    def step() -> Tensor:
        with autocast(batch.images.device, profile.precision):
            loss = objective(*batch, output)["total"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    return step


def trial_runs(profile: Profile, pair: Pair, method: str) -> dict[str, StudentSettings]:
    """A run with all hints from one sub-block for every shape there is, and one from the middles of segments;
    one run without hint layers.
    """
    points = network_points(pair.teacher, profile.data)
    choices = {"middles": Choice(segment_middles(len(points.candidates), pair.k), "")}
    choices |= {
        "×".join(map(str, shape)): Choice((points.shapes.index(shape),) * pair.k, "")
        for shape in points.shapes
    }
    # Weights that are not tuned yet do not matter here.
    stated = replace(profile, tuning=None, weights=replace(profile.weights, tuned_by=None))
    cell = cell_settings(stated, pair, method, profile.seeds[0], choices)
    return {arm.name: cell.run(arm) for arm in cell.arms}


@torch.no_grad()
def settled(model: nn.Module, images: Tensor) -> nn.Module:
    """The network with BatchNorm statistics of these images: with those of a fresh one, features vanish or
    explode with depth.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    model.train()(images)
    return model
