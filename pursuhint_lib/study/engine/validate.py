"""Would every method of a profile work with its pairs? Found out on random images with fresh weights, before
anything is trained.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import pandas as pd
import torch
from torch import Tensor, nn

from ...data import example_input
from ...settings import Data, Pair, Profile, SettingsError, StudentSettings
from ...training import build_objective, seeded_model
from ..grid.cells import methods_of
from ..grid.profiles import network_points
from .check import NOTE, OK, WRONG, Finding
from .dry_run import Trial, trial, trial_runs

# Random images; some methods need two, and BatchNorm some more.
IMAGES = 4
# A gradient below this is one of rounding: AT at a map of one pixel, which is 1 after normalising whatever
# the student does.
ROUNDING = 1e-10


def points_table(network: str, data: Data) -> pd.DataFrame:
    """The candidate hint points of a network; those of one shape and size that follow each other share a row.

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
    """
    return [finding for pair in profile.pairs for finding in _validate_pair(profile, pair)]


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


def _require_finite(what: str, *tensors: Tensor) -> None:
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise SettingsError(f"the {what} is not finite on random images")
