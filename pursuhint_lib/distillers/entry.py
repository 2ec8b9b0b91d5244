"""What is said of a method: its title and source, its loss, and what it needs."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from .signals import Task


@dataclass(frozen=True)
class Distiller:
    """An entry of ``DISTILLERS``.

    **Arguments:**

    - ``title``: as figures call it. ``source``: the paper. ``compares``: what of student and teacher, and
      how.
    - ``build``: function of ``Task`` → module that maps ``Signals`` to a scalar; ``None`` for ``ce`` and
      ``kd``.
    - ``weight``: the literature's weight of its loss.
    - ``formula``: its loss in LaTeX. A hint layer has maps S of the student and T of the teacher,
      [B, C, H, W]; s and t are one image's, z its logits, y its label; a bar is the mean over all that is not
      summed over.
    - ``hints``: whether it uses hint layers, and so has arms.
    - ``ce``, ``kd``: whether cross-entropy and KD stand beside it; methods on the logits take the place of
      KD.
    - ``least_points``: of the hint layers.
    - ``stages``: the method alone in the first eighth of the epochs, and the task without it afterwards. (The
      originals put that stage before the schedule; here it is part of it, so that every run has as many
      epochs.)
    - ``warm_up``: its weight grows from 0 in the first twelfth of the epochs.
    - ``reuses_classifier``: the student answers through a projector and the teacher's classifier; the only
      hint layer is the last sub-block.
    - ``parts``: of a sum, each with its weight.
    """

    title: str
    source: str
    compares: str
    build: Callable[[Task], nn.Module] | None = None
    weight: float = 0.0
    hints: bool = True
    ce: bool = True
    kd: bool = True
    least_points: int = 1
    stages: bool = False
    warm_up: bool = False
    reuses_classifier: bool = False
    parts: dict[str, float] = field(default_factory=dict)
    formula: str = ""

    @property
    def uses_teacher(self) -> bool:
        """Whether the teacher is asked at all."""
        return self.kd or self.build is not None

    @property
    def adds(self) -> bool:
        """Whether it is nothing but a loss, so that it can be part of a sum."""
        return self.build is not None and not self.stages and not self.reuses_classifier
