"""Methods on the K maps of each side. Each is summed over its hint layers, whatever the number in the
original.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import losses
from .adapters import bottleneck, pointwise_stack, regressor
from .signals import Signals, Task, in_first_stage


class PerPoint(nn.Module):
    """A loss of (student map, teacher map), summed over the hint layers. No trainable parts."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], task: Task):
        super().__init__()
        self.loss = loss

    def forward(self, signals: Signals) -> Tensor:
        return sum(self.loss(student, teacher) for student, teacher in signals.points)


class FitNet(nn.Module):
    """FitNet: a regressor per hint layer predicts the teacher's map; squared errors summed over points.

    The original trains one point, before the task. Here all K at once: as ``fitnet`` beside the task, as the
    paper's capsule does, and as ``fitnet-stages`` before it.
    """

    def __init__(self, task: Task):
        super().__init__()
        self.regressors = nn.ModuleList(nn.Sequential(*regressor(s, t), nn.ReLU()) for s, t in task.points)

    def forward(self, signals: Signals) -> Tensor:
        pairs = zip(self.regressors, signals.points, strict=True)
        return sum(losses.hint(*losses.match_size(regress(s), t)) for regress, (s, t) in pairs)


class VariationalInformation(nn.Module):
    """VID: per hint layer a network predicts the mean of the teacher's map, with one trained variance per
    channel; summed over points.
    """

    # So that the variance softplus(θ) + 1e-5 starts at 5, as in the authors' code.
    START = 5.0
    FLOOR = 1e-5

    def __init__(self, task: Task):
        super().__init__()
        self.means = nn.ModuleList(pointwise_stack(s[0], t[0]) for s, t in task.points)
        start = torch.log(torch.expm1(torch.tensor(self.START - self.FLOOR)))
        self.scales = nn.ParameterList(nn.Parameter(start.repeat(t[0])) for t in task.teacher_shapes)

    def forward(self, signals: Signals) -> Tensor:
        points = [losses.match_size(student, teacher) for student, teacher in signals.points]
        return sum(
            losses.variational_information(mean(student), F.softplus(scale) + self.FLOOR, teacher)
            for mean, scale, (student, teacher) in zip(self.means, self.scales, points, strict=True)
        )


class ActivationBoundary(nn.Module):
    """AB: whether each neuron is on or off, as the teacher's; every point counts double the one before it,
    the last one in full.

    The loss asks for the signs of the teacher's values before their ReLU, and those can be told after it,
    too. The student's need to be negative where the teacher is off, so a convolution with BatchNorm and
    without ReLU stands at every hint layer (the authors' code takes the student's own values before the ReLU
    where the shapes agree).
    """

    # The authors' factor in front of the sum over points.
    SCALE = 3e-3

    def __init__(self, task: Task):
        super().__init__()
        self.connectors = nn.ModuleList(regressor(s, t) for s, t in task.points)

    def forward(self, signals: Signals) -> Tensor:
        boundaries = [
            losses.activation_boundary(*losses.match_size(connect(student), teacher))
            for connect, (student, teacher) in zip(self.connectors, signals.points, strict=True)
        ]
        last = len(boundaries) - 1
        return sum(self.SCALE * 2.0 ** (i - last) * boundary for i, boundary in enumerate(boundaries))


class FactorTransfer(nn.Module):
    """FT: the teacher's map, paraphrased to half of its channels, is what the student's translator must say.

    Per hint layer (the original has the last map only) a paraphraser learns in the first eighth of the epochs
    to rebuild the teacher's map from its factor; then it is frozen, and the student learns. The original
    trains it before the student starts; here the student learns its task meanwhile, so that a run has as many
    epochs as any other.
    """

    # The paraphraser's squared error counts 1 at the literature's weight of the method, 200.
    REBUILDING = 1 / 200

    def __init__(self, task: Task):
        super().__init__()
        channels = [(s[0], t[0], max(1, t[0] // 2)) for s, t in task.points]
        self.paraphrasers = nn.ModuleList(
            _leaky(nn.Conv2d, t, t, factor, factor) for _, t, factor in channels
        )
        self.rebuilders = nn.ModuleList(
            _leaky(nn.ConvTranspose2d, factor, factor, t, t) for _, t, factor in channels
        )
        self.translators = nn.ModuleList(
            _leaky(nn.Conv2d, s, s, factor, factor, norm=True) for s, _, factor in channels
        )

    def forward(self, signals: Signals) -> Tensor:
        if in_first_stage(signals.epoch, signals.epochs):
            rebuilt = zip(self.paraphrasers, self.rebuilders, signals.teacher_maps, strict=True)
            return self.REBUILDING * sum(
                F.mse_loss(rebuild(paraphrase(t)), t) for paraphrase, rebuild, t in rebuilt
            )
        with torch.no_grad():
            factors = [
                paraphrase(t) for paraphrase, t in zip(self.paraphrasers, signals.teacher_maps, strict=True)
            ]
        translated = zip(self.translators, signals.student_maps, factors, strict=True)
        return sum(losses.factor_transfer(translate(s), factor) for translate, s, factor in translated)


def _leaky(convolution: type[nn.Module], *channels: int, norm: bool = False) -> nn.Sequential:
    """3×3 convolutions through those numbers of channels, each with LeakyReLU of slope 0.1, and BatchNorm
    before it if ``norm``.
    """
    layers = []
    for before, after in pairwise(channels):
        layers += [
            convolution(before, after, 3, 1, 1),
            *([nn.BatchNorm2d(after)] if norm else []),
            nn.LeakyReLU(0.1),
        ]
    return nn.Sequential(*layers)


class FlowOfSolution(nn.Module):
    """FSP: products of the channels of one hint layer with those of the next, as the teacher's.

    The original needs as many channels in the student as in the teacher. Where they differ, a 1×1 convolution
    comes first.
    """

    def __init__(self, task: Task):
        super().__init__()
        self.adapters = nn.ModuleList(
            nn.Identity() if s[0] == t[0] else nn.Conv2d(s[0], t[0], 1, bias=False) for s, t in task.points
        )

    def forward(self, signals: Signals) -> Tensor:
        adapted = [adapt(s) for adapt, s in zip(self.adapters, signals.student_maps, strict=True)]
        return losses.flow_of_solution(adapted, signals.teacher_maps)


class KnowledgeReview(nn.Module):
    """ReviewKD: a teacher's map teaches the student's map of its own level and all deeper ones.

    From the deepest hint layer to the shallowest, the student's map is blended with what came from below by
    two attention maps, and a 3×3 convolution predicts the teacher's map. The levels are the K hint layers;
    the original has the stage ends and the pooled features.
    """

    WIDTH = 512

    def __init__(self, task: Task):
        super().__init__()
        middle = min(self.WIDTH, task.student_shapes[-1][0])
        self.inward = nn.ModuleList(_normed(s[0], middle, 1) for s in task.student_shapes)
        self.outward = nn.ModuleList(_normed(middle, t[0], 3) for t in task.teacher_shapes)
        self.attention = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) for _ in task.points[:-1]
        )

    def forward(self, signals: Signals) -> Tensor:
        predicted, below = [], None
        for i in reversed(range(len(self.inward))):
            own = self.inward[i](signals.student_maps[i])
            if below is not None:
                below = F.interpolate(below, own.shape[2:], mode="nearest")
                shares = self.attention[i](torch.cat([own, below], dim=1))
                own = own * shares[:, :1] + below * shares[:, 1:]
            below = F.interpolate(own, signals.teacher_maps[i].shape[2:], mode="nearest")
            predicted.append(self.outward[i](below))
        return losses.hierarchical_context(predicted[::-1], signals.teacher_maps)


def _normed(channels: int, out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(out)
    )


class SemanticCalibration(nn.Module):
    """SemCKD: every hint layer of the student learns from every one of the teacher, with attention weights
    found from the batch's Gram matrices.

    Chen et al., "Cross-Layer Distillation with Semantic Calibration" (2021), eqs. 4 to 7. A Gram matrix [B,
    B] has the batch in its shape; here each image is described by its sorted similarities to the others,
    resampled to ``WIDTH`` values, so that the last, smaller batch of an epoch can be used (the original skips
    it).
    """

    WIDTH = 32

    def __init__(self, task: Task):
        super().__init__()
        self.queries, self.keys = (
            nn.ModuleList(self._embedding() for _ in shapes)
            for shapes in (task.student_shapes, task.teacher_shapes)
        )
        self.regressors = nn.ModuleList(
            nn.ModuleList(bottleneck(s[0], 2 * t[0], t[0]) for t in task.teacher_shapes)
            for s in task.student_shapes
        )

    def _embedding(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(self.WIDTH, self.WIDTH // 2), nn.ReLU(), nn.Linear(self.WIDTH // 2, self.WIDTH // 4)
        )

    def _described(self, maps: Tensor) -> Tensor:
        flat = maps.flatten(1)
        gram = losses.common.unit(flat @ flat.T).sort(dim=1).values
        return F.interpolate(gram[:, None], self.WIDTH, mode="linear", align_corners=True)[:, 0]

    def forward(self, signals: Signals) -> Tensor:
        queries, keys = (
            [F.normalize(net(self._described(map_)), dim=1) for net, map_ in zip(nets, maps, strict=True)]
            for nets, maps in ((self.queries, signals.student_maps), (self.keys, signals.teacher_maps))
        )
        total = 0.0
        for query, student, row in zip(queries, signals.student_maps, self.regressors, strict=True):
            attention = torch.softmax(torch.stack([(query * key).sum(1) for key in keys], dim=1), dim=1)
            for weight, regress, teacher in zip(attention.unbind(1), row, signals.teacher_maps, strict=True):
                pooled_student, pooled_teacher = losses.match_size(student, teacher)
                total = (
                    total
                    + (weight * (regress(pooled_student) - pooled_teacher).square().mean((1, 2, 3))).mean()
                )
        return total / len(queries)
