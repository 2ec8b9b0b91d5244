"""SimKD: a student that answers through the teacher's classifier."""

import copy

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from ..settings import SettingsError
from ..taps import LayerTap
from .adapters import bottleneck

# A linear classifier, computed again from the features, may differ from the teacher's answers by rounding
# only.
TOLERANCE = 1e-3


class ReusedClassifier(nn.Module):
    """A student, a projector from its last sub-block to the teacher's, and the teacher's classifier, frozen.

    Chen et al., "Knowledge Distillation with the Reused Teacher Classifier" (2022). The student's own
    classifier is not used.

    **Arguments:** ``student``, and its last sub-block ``point`` with a map of ``shape`` [C, H, W];
    ``classifier`` and ``teacher_shape`` as given by ``linear_classifier``.
    """

    def __init__(
        self, student: nn.Module, point: str, shape: Size, classifier: nn.Linear, teacher_shape: Size
    ):
        super().__init__()
        channels, self.size = teacher_shape[0], tuple(map(min, shape[1:], teacher_shape[1:]))
        self.student = student
        self.projector = nn.Sequential(
            *bottleneck(shape[0], max(1, channels // 2), channels), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.classifier = copy.deepcopy(classifier).requires_grad_(False)
        self._tap = LayerTap(student, [point])

    def forward(self, images: Tensor) -> Tensor:
        with self._tap:
            self.student(images)
            (features,) = self._tap.features.values()
        if features.shape[2:] != self.size:
            features = F.adaptive_avg_pool2d(features, self.size)
        return self.classifier(self.projector(features).mean((2, 3)))


def linear_classifier(teacher: nn.Module, name: str, point: str, example: Tensor) -> tuple[nn.Linear, Size]:
    """The teacher's classifier, and the shape [C, H, W] of the map at its last sub-block, of which the
    classifier reads the mean over space.

    **Arguments:** ``name`` of the teacher for messages; ``point`` its last sub-block; ``example`` image [1,
    C, H, W], for the shape only.

    **Raises:** ``SettingsError`` where the answers are not a linear function of that mean, as found out on
    random images.
    """
    # Under a fork, so that the weights that are drawn afterwards do not depend on this.
    with torch.random.fork_rng(devices=[]), torch.no_grad(), LayerTap(teacher.eval(), [point]) as tap:
        images = torch.randn(4, *example.shape[1:]).to(next(teacher.parameters()).device)
        answers = teacher(images)
        (features,) = tap.features.values()
    channels, classes = features.shape[1], answers.shape[1]
    fitting = [
        m
        for m in teacher.modules()
        if isinstance(m, nn.Linear) and (m.in_features, m.out_features) == (channels, classes)
    ]
    for classifier in fitting:
        if torch.allclose(
            classifier(features.mean((2, 3))),
            answers,
            rtol=TOLERANCE,
            atol=TOLERANCE * float(answers.abs().max()),
        ):
            return classifier, features.shape[1:]
    raise SettingsError(
        f"simkd gives a student the classifier of {name}, which must then be linear in the mean of the last "
        f"sub-block ({point}), and is not; "
        "choose a teacher that ends in its last sub-block, mean and linear classifier, such as the CIFAR "
        "resnets, or leave simkd out"
    )
