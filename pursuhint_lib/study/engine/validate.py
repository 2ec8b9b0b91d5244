"""Would every method of a profile work with its pairs? Found out on random images with fresh weights, before
anything is trained.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from ...data import DATASETS, DataError, describe, example_input, image_counts, load_splits
from ...distillers import distiller
from ...gradients import Convolutions, wrong_convolution
from ...models import load_checkpoint, save_weights
from ...settings import Data, Pair, Profile, Schedule, SettingsError, StudentSettings
from ...training import (
    FrozenTeacher,
    Objective,
    autocast,
    build_objective,
    gradient_ratio,
    load_teacher,
    seeded_model,
    teacher_weights,
)
from ..grid.cells import methods_of
from ..grid.profiles import check_logits, network_points
from ..grid.weights import has_arms, hint_weight
from .check import NOTE, OK, WRONG, Finding, looked
from .dry_run import Trial, random_batch, training_step, trial, trial_runs
from .estimate import ROWS

CPU = torch.device("cpu")
# Random images, where batches have so many; some methods need two, and BatchNorm some more.
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
    """What is wrong with a network, in training and after its weights were saved; where nothing is, a finding
    for every pair, and one for every method that would fail or learn nothing from some sub-blocks.

    Gradients of convolutions come before all training: a wrong one may kill the process that meets it.
    """
    convolutions, learnt = Convolutions(), [profile.student_data]
    if profile.tuning:
        learnt.append(profile.tuning_data)
    sizes = _batch_sizes(profile, profile.student, *learnt)
    own = _batch_sizes(profile, profile.teacher, profile.data)
    teachers = dict.fromkeys(pair.teacher for pair in profile.all_pairs)
    students = dict.fromkeys(pair.student for pair in profile.all_pairs)
    # One that is given does not learn.
    learning = [name for name in teachers if name not in profile.checkpoints]
    trained = dict.fromkeys([*product(students, sizes), *product(learning, own)])
    running = dict.fromkeys([*students, *learning])
    for stage in (
        [(f"network {name}", _run, profile, name, convolutions) for name in running],
        [("gradients", _compare_gradients, convolutions)],
        [(f"network {name} on a batch of {size}", _learn, profile, name, size) for name, size in trained],
        [(f"network {name}", _save_and_load, profile, name) for name in teachers | students],
        [(f"pair {pair.name}", _try_pair, profile, pair, sizes) for pair in profile.pairs],
    ):
        if found := [finding for look in stage for finding in looked(*look)]:
            break
    return found


def _batch_sizes(profile: Profile, schedule: Schedule, *learnt: Data) -> list[int]:
    """Numbers of images that are learnt at once, in the last batch of an epoch and in the others, the largest
    first; of many, as many as tell whatever more would.
    """
    most, size = max(IMAGES, ROWS // describe(profile.data).image_size), schedule.batch_size
    counts = [image_counts(data)[0] for data in learnt]
    sizes = {min(most, n) for images in counts for n in (min(size, images), images % size or size)}
    return sorted(sizes, reverse=True)


def _run(profile: Profile, network: str, convolutions: Convolutions) -> None:
    """A forward pass in training mode."""
    entry = describe(profile.data)
    count = min(profile.student.batch_size, max(LEAST_IMAGES, ROWS // entry.image_size))
    images = random_batch(profile.data, max(IMAGES, count), CPU).images
    with torch.no_grad(), autocast(CPU, profile.precision), convolutions:
        check_logits(network, seeded_model(network, profile.data, 0), images, entry.classes)


def _compare_gradients(convolutions: Convolutions) -> Iterator[Finding]:
    """What is wrong with the gradients of a convolution of the networks, if they learn on a CPU."""
    wrong = None if torch.cuda.is_available() else wrong_convolution(convolutions.found)
    if wrong:
        yield Finding("gradients", WRONG, f"{wrong}; take another version of torch, or other networks")


def _learn(profile: Profile, network: str, size: int) -> None:
    """One training step on so many images."""
    objective = Objective(seeded_model(network, profile.data, 0))
    _require_finite("loss", training_step(profile, objective, random_batch(profile.data, size, CPU), None)())
    _require_finite("gradient", *objective.parameters())


def _save_and_load(profile: Profile, network: str) -> None:
    """Weights on their way through a file, as those of every student and teacher go."""
    first, second = (seeded_model(network, profile.data, seed).eval() for seed in (0, 1))
    with tempfile.TemporaryDirectory() as folder:
        save_weights(first, file := Path(folder, "saved.safetensors"))
        load_checkpoint(second, file)
    images = random_batch(profile.data, IMAGES, CPU).images
    with torch.no_grad():
        answers = first(images), second(images)
    if not torch.allclose(*answers, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise SettingsError(
            "it answers otherwise once its weights were saved and loaded; what it answers by must be "
            "parameters or persistent buffers, and nothing may be drawn in evaluation"
        )


def _try_pair(profile: Profile, pair: Pair, sizes: Sequence[int]) -> Iterator[Finding]:
    """Every method of a pair, on batches of these sizes."""
    what, points = f"pair {pair.teacher} → {pair.student}", network_points(pair.teacher, profile.data)
    whole = trial(profile, pair, max(IMAGES, sizes[0]), CPU)
    methods, wrong = methods_of(profile, pair), 0
    for method in methods:
        found = looked(f"{what}, {method}", _blind, profile, pair, method, whole)
        for size in [] if found else sizes[1:]:
            last = f"{what}, {method} on a batch of {size}"
            found += looked(last, _teach, profile, pair, method, whole.first(size))
        wrong += any(finding.state == WRONG for finding in found)
        yield from found
    count = (
        f"{len(methods) - wrong} of {len(methods)} methods, with each of {len(set(points.shapes))} "
        "shapes of sub-blocks"
    )
    yield Finding(
        what, OK, f"{count}: parts built, loss finite, gradient in the student and not in the teacher"
    )


def _blind(profile: Profile, pair: Pair, method: str, tried: Trial) -> Iterator[Finding]:
    """Shapes of sub-blocks from which a method teaches nothing."""
    runs = trial_runs(profile, pair, method)
    blind = [shape for shape, run in runs.items() if not _reaches_student(run, tried)]
    if blind:
        shapes, what = ", ".join(blind), f"pair {pair.teacher} → {pair.student}, {method}"
        said = f"nothing is learned from sub-blocks of shape {shapes}: no gradient reaches the student"
        yield Finding(what, NOTE, said)


def _teach(profile: Profile, pair: Pair, method: str, tried: Trial) -> None:
    """A method's loss and gradients on a last batch, from the middles of segments or without hint layers."""
    _reaches_student(next(iter(trial_runs(profile, pair, method).values())), tried)


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
