"""A method on random images, with networks that have fresh weights: what can be known of a run before it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...clustering import segment_middles
from ...data import Batch, describe, example_input, image_counts
from ...settings import Pair, Profile, StudentSettings
from ...training import FrozenTeacher, TeacherOutput, seeded_model
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


def trial(profile: Profile, pair: Pair, images: int, device: torch.device) -> Trial:
    """The pair on so many random images."""
    data = profile.student_data
    generator, classes = torch.Generator().manual_seed(0), describe(data).classes
    pixels = torch.randn(images, *example_input(data).shape[1:], generator=generator).contiguous(
        memory_format=torch.channels_last
    )
    batch = Batch(
        *(part.to(device) for part in (pixels, torch.arange(images) % classes, torch.arange(images)))
    )
    model = settled(seeded_model(pair.teacher, data, 0).to(device), batch.images)
    teacher = FrozenTeacher(model, network_points(pair.teacher, data).candidates)
    return Trial(teacher, batch, teacher(batch.images), torch.arange(image_counts(data)[0]) % classes)


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
