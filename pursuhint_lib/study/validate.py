"""Would every method of a profile work with its pairs? Found out on random images with fresh weights, before anything is trained."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import pandas as pd
import torch
from torch import Tensor, nn

from ..clustering import segment_middles
from ..data import Batch, describe, example_input, image_counts
from ..settings import Data, Pair, Profile, SettingsError, StudentSettings
from ..training import FrozenTeacher, TeacherOutput, build_learner, seeded_model
from .arms import Choice
from .check import NOTE, OK, WRONG, Finding
from .profile import network_points
from .runs import cell_settings

# Random images; some methods need two, and BatchNorm some more.
IMAGES = 4
# A gradient below this is one of rounding: AT at a map of one pixel, which is 1 after normalising whatever the student does.
ROUNDING = 1e-10


def points_table(network: str, data: Data) -> pd.DataFrame:
    """The candidate hint points of a network; those of one shape and size that follow each other share a row.

    **Returns:** columns sub-blocks (1-based), names, shape [C, H, W], parameters (of each: all since the sub-block before), stage
    (whether the last of them ends one).
    """
    points = network_points(network, data)
    sizes = _sizes(seeded_model(network, data, 0), example_input(data), points.candidates)
    numbered = zip(range(1, len(sizes) + 1), points.candidates, points.shapes, sizes, strict=True)
    rows = []
    for (shape, size), group in groupby(numbered, key=lambda row: row[2:]):
        members = list(group)
        (first, name, *_), (last, last_name, *_) = members[0], members[-1]
        numbers, names = (f"{first}", name) if first == last else (f"{first}–{last}", f"{name} … {last_name}")
        ends = "ends" if last_name in points.ends else ""
        rows.append({"sub-blocks": numbers, "names": names, "shape": "×".join(map(str, shape)), "parameters": size, "stage": ends})
    return pd.DataFrame(rows)


@torch.no_grad()
def _sizes(model: nn.Module, example: Tensor, names: Sequence[str]) -> list[int]:
    """Parameters of the modules that finish from one named module to the next, the latter included."""
    sizes = [0]
    for name, module in model.named_modules():
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))

        def finish(_module, _inputs, _output, own=own, last=name in names):
            sizes[-1] += own
            if last:
                sizes.append(0)

        module.register_forward_hook(finish)
    model.eval()(example)
    return sizes[: len(names)]


def validate(profile: Profile) -> list[Finding]:
    """A finding for every pair, and one for every method that would fail or learn nothing from some sub-blocks."""
    return [finding for pair in profile.pairs for finding in _validate_pair(profile, pair)]


def _validate_pair(profile: Profile, pair: Pair) -> Iterator[Finding]:
    what, points = f"pair {pair.teacher} → {pair.student}", network_points(pair.teacher, profile.data)
    batch = _random_batch(profile.data)
    teacher = FrozenTeacher(_settled(seeded_model(pair.teacher, profile.data, 0), batch.images), points.candidates)
    output, labels = teacher(batch.images), torch.arange(image_counts(profile.data)[0]) % describe(profile.data).classes
    wrong = []
    for method in profile.methods:
        try:
            runs = _trial_runs(profile, pair, method)
            blind = [shape for shape, run in runs.items() if not _reaches_student(run, teacher.model, output, batch, labels)]
        except (SettingsError, ValueError, RuntimeError) as error:
            wrong.append(method)
            yield Finding(f"{what}, {method}", WRONG, " ".join(str(error).split()))
            continue
        if blind:
            yield Finding(
                f"{what}, {method}", NOTE, f"nothing is learned from sub-blocks of shape {', '.join(blind)}: no gradient reaches the student"
            )
    tried = f"{len(profile.methods) - len(wrong)} of {len(profile.methods)} methods, with each of {len(set(points.shapes))} shapes of sub-blocks"
    yield Finding(what, OK, f"{tried}: parts built, loss finite, gradient in the student and not in the teacher")


def _trial_runs(profile: Profile, pair: Pair, method: str) -> dict[str, StudentSettings]:
    """A run with all hints from one sub-block for every shape there is, and one from the middles of segments; one run without hint points."""
    points = network_points(pair.teacher, profile.data)
    choices = {"middles": Choice(segment_middles(len(points.candidates), pair.k), "")}
    choices |= {"×".join(map(str, shape)): Choice((points.shapes.index(shape),) * pair.k, "") for shape in points.shapes}
    cell = cell_settings(profile, pair, method, profile.seeds[0], choices)
    return {arm.name: cell.run(arm) for arm in cell.arms}


def _reaches_student(run: StudentSettings, teacher: nn.Module, output: TeacherOutput, batch: Batch, labels: Tensor) -> bool:
    """Whether the loss of the method alone has a gradient in the student.

    **Raises:** ``SettingsError`` where a loss or gradient is not finite, or reaches the teacher; what building the parts raises.
    """
    learner = build_learner(run, teacher, labels).train()
    learner.epochs = run.schedule.epochs
    # In the first epochs some methods train parts of their own only, and in the last ones others have no loss any more.
    for epoch in dict.fromkeys((run.schedule.epochs - 1, 0)):
        learner.epoch = epoch
        found = learner(*batch, output)
        loss = found.get("hint") if run.hint_weight else found["total"]
        if loss is None:
            continue
        _require_finite("loss", loss)
        loss.backward()
        gradients = [p.grad for p in learner.network.parameters() if p.grad is not None]
        _require_finite("gradient", *gradients)
        if any(parameter.grad is not None for parameter in teacher.parameters()):
            raise SettingsError("the gradient of the loss reaches the teacher")
        if any(bool(gradient.abs().max() > ROUNDING) for gradient in gradients):
            return True
    return False


def _require_finite(what: str, *tensors: Tensor) -> None:
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise SettingsError(f"the {what} is not finite on random images")


def _random_batch(data: Data) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, *example_input(data).shape[1:], generator=generator)
    return Batch(images, torch.arange(IMAGES) % describe(data).classes, torch.arange(IMAGES))


@torch.no_grad()
def _settled(model: nn.Module, images: Tensor) -> nn.Module:
    """The network with BatchNorm statistics of these images: with those of a fresh one, features vanish or explode with depth."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    model.train()(images)
    return model
