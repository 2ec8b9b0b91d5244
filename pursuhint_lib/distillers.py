"""Distillation methods: what each trains beside the student, and the loss that it returns.

``DISTILLERS`` is the only list of methods; a new one is a class (if it has parts to train) and an entry.
A method sees the K student maps and the K teacher maps, matched in depth order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from . import losses

Maps = Sequence[Tensor]
Shapes = Sequence[Size]


class AttentionTransfer(nn.Module):
    """AT: attention maps alike at every hint point. No trainable parts."""

    def __init__(self, student_shapes: Shapes, teacher_shapes: Shapes):
        super().__init__()

    def forward(self, student_maps: Maps, teacher_maps: Maps) -> Tensor:
        return losses.attention_transfer(student_maps, teacher_maps)


class SimilarityPreserving(nn.Module):
    """SP: the batch's Gram matrices alike, summed over the hint points (the original uses the last map only). No trainable parts."""

    def __init__(self, student_shapes: Shapes, teacher_shapes: Shapes):
        super().__init__()

    def forward(self, student_maps: Maps, teacher_maps: Maps) -> Tensor:
        return sum(losses.similarity_preserving(s, t) for s, t in zip(student_maps, teacher_maps, strict=True))


class FitNet(nn.Module):
    """FitNet, one-stage: a regressor per hint point predicts the teacher's map; squared errors summed over points.

    The original trains one point, before the task loss; here all K at once, beside it, as the paper's capsule does.
    """

    def __init__(self, student_shapes: Shapes, teacher_shapes: Shapes):
        super().__init__()
        self.regressors = nn.ModuleList(_regressor(s, t) for s, t in zip(student_shapes, teacher_shapes, strict=True))

    def forward(self, student_maps: Maps, teacher_maps: Maps) -> Tensor:
        triples = zip(self.regressors, student_maps, teacher_maps, strict=True)
        return sum(losses.hint(*losses.match_size(regress(s), t)) for regress, s, t in triples)


def _regressor(student: Size, teacher: Size) -> nn.Module:
    """Convolution, BatchNorm and ReLU from the student's shape [C, H, W] to the teacher's.

    Half or double the size by stride; otherwise a 1×1 convolution, and the larger map is pooled to the
    smaller. (The public code uses one valid convolution of kernel 1 + H_s − H_t where the student is
    larger and refuses the rest; a hint point away from the stage ends makes every combination possible.)
    """
    (channels, height, _), (out, target, _) = student, teacher
    if height == 2 * target:
        convolution = nn.Conv2d(channels, out, 3, stride=2, padding=1)
    elif 2 * height == target:
        convolution = nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1)
    else:
        convolution = nn.Conv2d(channels, out, 1)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU())


class VariationalInformation(nn.Module):
    """VID: per hint point a network predicts the mean of the teacher's map, with one trained variance per channel; summed over points."""

    # So that the variance softplus(θ) + 1e-5 starts at 5, as in the authors' code.
    START = 5.0
    FLOOR = 1e-5

    def __init__(self, student_shapes: Shapes, teacher_shapes: Shapes):
        super().__init__()
        self.means = nn.ModuleList(_mean_network(s[0], t[0]) for s, t in zip(student_shapes, teacher_shapes, strict=True))
        start = torch.log(torch.expm1(torch.tensor(self.START - self.FLOOR)))
        self.scales = nn.ParameterList(nn.Parameter(start.repeat(t[0])) for t in teacher_shapes)

    def forward(self, student_maps: Maps, teacher_maps: Maps) -> Tensor:
        total = student_maps[0].new_zeros(())
        for mean, scale, student, teacher in zip(self.means, self.scales, student_maps, teacher_maps, strict=True):
            student, teacher = losses.match_size(student, teacher)
            total = total + losses.variational_information(mean(student), F.softplus(scale) + self.FLOOR, teacher)
        return total


def _mean_network(channels: int, out: int) -> nn.Module:
    """Three 1×1 convolutions without bias, as in the authors' code."""
    return nn.Sequential(
        nn.Conv2d(channels, out, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(out, out, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(out, out, 1, bias=False),
    )


@dataclass(frozen=True)
class Distiller:
    """An entry of ``DISTILLERS``.

    **Arguments:**

    - ``title``: as figures call it.
    - ``source``: the paper.
    - ``build``: (student shapes, teacher shapes) → module that maps (student maps, teacher maps) to a scalar;
      ``None`` for methods that use no hint points, and so have no arms.
    - ``hint_weight``: the literature's weight of its loss.
    - ``uses_teacher``: whether the logits of the teacher are used (KD).
    """

    title: str
    source: str
    build: Callable[[Shapes, Shapes], nn.Module] | None = None
    hint_weight: float = 0.0
    uses_teacher: bool = True


# Weights are those of the standard CIFAR-100 benchmark (RepDistiller).
DISTILLERS: dict[str, Distiller] = {
    "ce": Distiller("student alone", "no distillation, cross-entropy only", uses_teacher=False),
    "kd": Distiller("KD", "Hinton et al. 2015"),
    "fitnet": Distiller("FitNet", "Romero et al. 2015", FitNet, 100.0),
    "at": Distiller("AT", "Zagoruyko & Komodakis 2017", AttentionTransfer, 1000.0),
    "vid": Distiller("VID", "Ahn et al. 2019", VariationalInformation, 1.0),
    "sp": Distiller("SP", "Tung & Mori 2019", SimilarityPreserving, 3000.0),
}
