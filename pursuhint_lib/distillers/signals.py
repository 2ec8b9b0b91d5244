"""What a method is told: of the pair before training (``Task``), and of one batch (``Signals``)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Size, Tensor

Maps = Sequence[Tensor]
Shapes = Sequence[Size]

# Shares of the epochs: 30 of 240 for a stage before the task (RepDistiller), 20 of 240 for a weight to grow
# (mdistiller).
FIRST_STAGE = 1 / 8
WARM_UP = 1 / 12


@dataclass(frozen=True)
class Task:
    """What the parts of a method are built for.

    **Arguments:** ``student_shapes``, ``teacher_shapes`` [C, H, W] at the K hint layers; ``labels`` [N] of
    the training images, for methods that remember every image.
    """

    student_shapes: Shapes = ()
    teacher_shapes: Shapes = ()
    labels: Tensor | None = None

    @property
    def points(self) -> list[tuple[Size, Size]]:
        """(student shape, teacher shape) of every hint layer."""
        return list(zip(self.student_shapes, self.teacher_shapes, strict=True))


@dataclass(frozen=True)
class Signals:
    """What a method may look at of one batch of B images.

    **Arguments:** ``student_maps``, ``teacher_maps`` K maps [B, C, H, W] each; ``student_logits``,
    ``teacher_logits`` [B, classes]; ``labels`` [B]; ``indices`` [B] of the images in the training set;
    ``temperature`` of the logits; ``epoch`` of ``epochs``, from 0.
    """

    student_maps: Maps = ()
    teacher_maps: Maps = ()
    student_logits: Tensor | None = None
    teacher_logits: Tensor | None = None
    labels: Tensor | None = None
    indices: Tensor | None = None
    temperature: float = 1.0
    epoch: int = 0
    epochs: int = 1

    @property
    def points(self) -> list[tuple[Tensor, Tensor]]:
        """(student map, teacher map) of every hint layer."""
        return list(zip(self.student_maps, self.teacher_maps, strict=True))


def in_first_stage(epoch: int, epochs: int) -> bool:
    """Whether an epoch (from 0) belongs to the stage before the task: the first eighth of all, at
    least one.
    """
    return epoch < max(1, math.ceil(FIRST_STAGE * epochs))


def warmth(epoch: int, epochs: int) -> float:
    """Share of its weight that a method has in an epoch (from 0) while the weight grows, linearly over the
    first twelfth.
    """
    return min(1.0, (epoch + 1) / (WARM_UP * epochs))
