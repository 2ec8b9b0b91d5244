"""Would every method of a profile work with its pairs? Found out on random images with fresh weights, before
anything is trained.
"""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import groupby

import pandas as pd
import torch
from torch import Tensor, nn

from ...data import DATASETS, DataError, describe, example_input, load_splits
from ...distillers import distiller
from ...gradients import Convolutions, wrong_convolution
from ...settings import Data, Pair, Profile, SettingsError, StudentSettings
from ...training import (
    FrozenTeacher,
    autocast,
    build_objective,
    gradient_ratio,
    load_teacher,
    seeded_model,
    teacher_weights,
)
from ..grid.cells import methods_of
from ..grid.profiles import network_points
from ..grid.weights import has_arms, hint_weight
from .check import NOTE, OK, WRONG, Finding
from .dry_run import Trial, trial, trial_runs
from .estimate import ROWS

# Random images; some methods need two, and BatchNorm some more.
IMAGES = 4
# Images that convolutions are tried on at least: with fewer, torch may compute some otherwise.
LEAST_IMAGES = 16
# A gradient below this is one of rounding: AT at a map of one pixel, which is 1 after normalising whatever
# the student does.
ROUNDING = 1e-10
# Of the gradient of a hint loss over that of CE + KD: below, a hint is as good as none, and above, the
# student does little but imitate.
SENSIBLE = (0.01, 10.0)


def points_table(network: str, data: Data) -> pd.DataFrame:
    """The candidate hint layers of a network; those of one shape and size that follow each other share a row.

    **Returns:** columns sub-blocks (1-based), names, shape [C, H, W], parameters (of each: all since the
    sub-block before), stage (whether the last of them ends one).
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
        rows.append(
            {
                "sub-blocks": numbers,
                "names": names,
                "shape": "×".join(map(str, shape)),
                "parameters": size,
                "stage": ends,
            }
        )
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
    """A finding for every pair, and one for every method that would fail or learn nothing from some
    sub-blocks.

    Where a convolution has wrong gradients, that alone: it may kill the process that meets it.
    """
    unsound = _unsound(profile)
    return (
        [unsound]
        if unsound
        else [finding for pair in profile.pairs for finding in _validate_pair(profile, pair)]
    )


def _unsound(profile: Profile) -> Finding | None:
    """What is wrong with the gradients of a convolution of the networks, if they learn on a CPU."""
    if torch.cuda.is_available():
        return None
    size = describe(profile.data).image_size
    count = min(profile.student.batch_size, max(LEAST_IMAGES, ROWS // size))
    images = torch.zeros(count, *example_input(profile.data).shape[1:]).contiguous(
        memory_format=torch.channels_last
    )
    with torch.no_grad(), autocast(images.device, profile.precision), Convolutions() as convolutions:
        for network in dict.fromkeys(
            network for pair in profile.pairs for network in (pair.teacher, pair.student)
        ):
            seeded_model(network, profile.data, 0)(images)
    wrong = wrong_convolution(convolutions.found)
    remedy = "take another version of torch, or other networks"
    return Finding("gradients", WRONG, f"{wrong}; {remedy}") if wrong else None


def _validate_pair(profile: Profile, pair: Pair) -> Iterator[Finding]:
    what, points = f"pair {pair.teacher} → {pair.student}", network_points(pair.teacher, profile.data)
    tried = trial(profile, pair, IMAGES, torch.device("cpu"))
    wrong = []
    methods = methods_of(profile, pair)
    for method in methods:
        try:
            runs = trial_runs(profile, pair, method)
            blind = [shape for shape, run in runs.items() if not _reaches_student(run, tried)]
        except (SettingsError, ValueError, RuntimeError) as error:
            wrong.append(method)
            yield Finding(f"{what}, {method}", WRONG, " ".join(str(error).split()))
            continue
        if blind:
            yield Finding(
                f"{what}, {method}",
                NOTE,
                f"nothing is learned from sub-blocks of shape {', '.join(blind)}: no gradient reaches the "
                "student",
            )
    count = (
        f"{len(methods) - len(wrong)} of {len(methods)} methods, with each of {len(set(points.shapes))} "
        "shapes of sub-blocks"
    )
    yield Finding(
        what, OK, f"{count}: parts built, loss finite, gradient in the student and not in the teacher"
    )


def _reaches_student(run: StudentSettings, tried: Trial) -> bool:
    """Whether the loss of the method alone has a gradient in the student.

    **Raises:** ``SettingsError`` where a loss or gradient is not finite, or reaches the teacher; what
    building the parts raises.
    """
    teacher = tried.teacher.model
    objective = build_objective(run, teacher, tried.labels).train()
    objective.epochs = run.schedule.epochs
    # In the first epochs some methods train parts of their own only, and in the last ones others have no loss
    # any more.
    for epoch in dict.fromkeys((run.schedule.epochs - 1, 0)):
        objective.epoch = epoch
        found = objective(*tried.batch, tried.output)
        loss = found.get("hint") if run.hint_weight else found["total"]
        if loss is None:
            continue
        _require_finite("loss", loss)
        loss.backward()
        gradients = [p.grad for p in objective.network.parameters() if p.grad is not None]
        _require_finite("gradient", *gradients)
        if any(parameter.grad is not None for parameter in teacher.parameters()):
            raise SettingsError("the gradient of the loss reaches the teacher")
        if any(bool(gradient.abs().max() > ROUNDING) for gradient in gradients):
            return True
    return False


def weigh(profile: Profile) -> Iterator[Finding]:
    """How hard the hints of every method pull at a fresh student, beside CE and KD: ρ
    (``training.gradient_ratio``) on the first batch.

    Nothing is said of a pair whose trained teacher, or whose images, are not there.
    """
    for pair in profile.pairs:
        with contextlib.suppress(DataError):
            hinted = [method for method in methods_of(profile, pair) if has_arms(method)]
            if hinted and teacher_weights(profile.teacher_settings(pair.teacher)):
                DATASETS[profile.data.dataset].locate(profile.data)
                yield _weigh_pair(profile, pair, hinted)


def _weigh_pair(profile: Profile, pair: Pair, methods: Sequence[str]) -> Finding:
    runs = {method: trial_runs(profile, pair, method)["middles"] for method in methods}
    teacher = FrozenTeacher(
        load_teacher(profile.teacher_settings(pair.teacher)), next(iter(runs.values())).teacher_points
    )
    device = next(teacher.model.parameters()).device
    images = load_splits(profile.student_data, device).train
    batch, found = next(images.train_batches(profile.student.batch_size, 0, 0)), {}
    for method, run in runs.items():
        objective = build_objective(run, teacher.model, images.labels.cpu()).to(device).train()
        # At the end, when no weight grows any more.
        objective.epoch, objective.epochs = run.schedule.epochs - 1, run.schedule.epochs
        with autocast(device, profile.precision):
            ratio = gradient_ratio(objective, objective(*batch, teacher(batch.images)))
        weight = hint_weight(profile, pair, method)
        weight = run.hint_weight if weight is None else weight
        if ratio is not None and run.hint_weight:
            found[f"{distiller(method).title} {{:.2g}} at weight {weight:g}"] = (
                float(ratio) * weight / run.hint_weight
            )
    told = ", ".join(text.format(ratio) for text, ratio in found.items())
    far = not all(SENSIBLE[0] <= ratio <= SENSIBLE[1] for ratio in found.values())
    advice = (
        f"; outside {SENSIBLE[0]:g} to {SENSIBLE[1]:g} choose the weight by training: a section "
        "tuning in the profile (docs/forking.md), and python -m pursuhint_lib tune"
        if far
        else ""
    )
    what = "gradient of the hint loss over that of CE + KD, first batch, segment middles"
    return Finding(
        f"weights of {pair.teacher} → {pair.student}", NOTE if far else OK, f"{what}: {told}{advice}"
    )


def _require_finite(what: str, *tensors: Tensor) -> None:
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise SettingsError(f"the {what} is not finite on random images")
