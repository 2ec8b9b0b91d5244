"""The networks of a training: a frozen teacher that is only asked, and objectives with their losses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import describe, example_input
from ..distillers import (
    ContrastiveMemory,
    ReusedClassifier,
    Signals,
    Task,
    distiller,
    in_first_stage,
    linear_classifier,
    warmth,
)
from ..losses import kd
from ..models import build_model
from ..models.rewriting import avoid_corruption, folded
from ..settings import Data, StudentSettings
from ..taps import LayerTap, point_shapes


@dataclass(frozen=True)
class TeacherOutput:
    """What the teacher says of one batch: logits [B, classes] and the maps at the union of all
    arms' points.
    """

    logits: Tensor
    features: dict[str, Tensor]


class FrozenTeacher:
    """A teacher that is only asked: in eval mode, without gradients, never wrapped, never updated.

    It is a copy of ``model`` with BatchNorm folded into the convolutions, which computes the same up to
    rounding.
    """

    def __init__(self, model: nn.Module, points: Sequence[str]):
        self.model = folded(model, kept=points).requires_grad_(False)
        self.tap = LayerTap(self.model, points)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> TeacherOutput:
        with self.tap:
            logits = self.model(images)
            return TeacherOutput(
                logits.float(), {name: maps.float() for name, maps in self.tap.features.items()}
            )


class Objective(nn.Module):
    """A network in training and its loss; a student with hints also has the parts that its method trains.

    **Arguments:**

    - ``network``: maps images to logits.
    - ``run``: the student's settings; not given for a teacher, which learns from the labels alone.
    - ``method``: maps ``Signals`` to a scalar; not given for ``ce`` and ``kd``.
    """

    def __init__(
        self, network: nn.Module, run: StudentSettings | None = None, method: nn.Module | None = None
    ):
        super().__init__()
        self.network, self.method, self.run = network, method, run
        self.points = run.student_points if run else ()
        if isinstance(network, ReusedClassifier):
            self.points = ("projector",)
        self.tap = LayerTap(network, self.points)
        self.epoch, self.epochs = 0, 1
        self.draws_on_cpu = any(isinstance(part, ContrastiveMemory) for part in self.modules())

    @property
    def rests(self) -> bool:
        """Whether some parameters may have no gradient in some epochs: of a method that learns in stages, or
        a classifier that is replaced.
        """
        own = self.method is not None and any(True for _ in self.method.parameters())
        stages = self.run is not None and distiller(self.run.method).stages
        return own or stages or isinstance(self.network, ReusedClassifier)

    def weights(self) -> dict[str, float]:
        """Weights of the losses in this epoch; what is not named is not part of the total."""
        if self.run is None:
            return {"ce": 1.0}
        entry, task = distiller(self.run.method), {"ce": self.run.ce_weight, "kd": self.run.kd_weight}
        if entry.stages:
            return {"hint": self.run.hint_weight} if in_first_stage(self.epoch, self.epochs) else task
        return {
            **task,
            "hint": self.run.hint_weight * (warmth(self.epoch, self.epochs) if entry.warm_up else 1.0),
        }

    def forward(
        self, images: Tensor, labels: Tensor, indices: Tensor, teacher: TeacherOutput | None
    ) -> dict[str, Tensor]:
        """Named losses of one batch: ``total`` and its unweighted parts, scalars."""
        # The tap is open during training steps only, so that evaluation pays nothing for it.
        with self.tap:
            logits = self.network(images).float()
            features = {name: maps.float() for name, maps in self.tap.features.items()}
        weights, parts = self.weights(), {"ce": F.cross_entropy(logits, labels)}
        # Losses stay in float32 whatever the networks run in: squares of small differences do not survive
        # bfloat16.
        with torch.autocast(images.device.type, enabled=False):
            if weights.get("kd"):
                parts["kd"] = kd(logits, teacher.logits, self.run.temperature)
            if "hint" in weights and self.method is not None:
                maps = (
                    [features[name] for name in self.points],
                    [teacher.features[name] for name in self.run.teacher_points],
                )
                answers = logits, teacher.logits, labels, indices
                parts["hint"] = self.method(
                    Signals(*maps, *answers, self.run.temperature, self.epoch, self.epochs)
                )
        return {
            "total": sum(weights[name] * loss for name, loss in parts.items() if name in weights),
            **parts,
        }


def seeded_model(name: str, data: Data, seed: int) -> nn.Module:
    """A network whose initial weights depend on its name and the seed only, in the memory layout that
    convolutions like.
    """
    entry = describe(data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(name, entry.classes, entry.channels).to(memory_format=torch.channels_last)


def build_objective(
    run: StudentSettings, teacher: nn.Module | None, labels: Tensor | None = None
) -> Objective:
    """A student with fresh seeded weights and the trainable parts of its method.

    **Arguments:** ``teacher`` gives the shapes at the hint layers; not needed for runs without hints.
    ``labels`` [N] of the training images, for methods that remember them.

    **Raises:** ``SettingsError`` where the method cannot work with this teacher.
    """
    student = seeded_model(run.student, run.data, run.seed)
    entry = distiller(run.method, run.part_weights)
    if entry.build is None:
        return Objective(student, run)
    example, task = example_input(run.data), Task(labels=labels)
    with torch.random.fork_rng(devices=[]):
        # Not the student's own seed, so that an adapter's weights do not repeat the student's.
        torch.manual_seed(run.seed + 1_000_003)
        if run.teacher_points:
            shapes = point_shapes(teacher, example.to(next(teacher.parameters()).device), run.teacher_points)
            task = replace(
                task, student_shapes=point_shapes(student, example, run.student_points), teacher_shapes=shapes
            )
        if entry.reuses_classifier:
            classifier = linear_classifier(teacher, run.teacher.network, run.teacher_points[0], example)
            student = ReusedClassifier(student, run.student_points[0], task.student_shapes[0], *classifier)
        method = avoid_corruption(entry.build(task))
    return Objective(student, run, method)
