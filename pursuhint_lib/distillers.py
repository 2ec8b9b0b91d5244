"""Distillation methods: what each trains beside the student, and the loss that it returns.

``DISTILLERS`` is the only list of methods; a new one is a class (if it has parts to train) and an entry. A method with
hint points sees the K student maps and the K teacher maps, matched in the order of the points; a method on the
answers sees logits and labels, and takes the place of KD. Any sum of entries is a method, too: ``at+rkd``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from . import losses
from .settings import SettingsError, choose

Maps = Sequence[Tensor]
Shapes = Sequence[Size]


@dataclass(frozen=True)
class Signals:
    """What a method may look at of one batch of B images.

    **Arguments:** ``student_maps``, ``teacher_maps`` K maps [B, C, H, W] each; ``student_logits``, ``teacher_logits``
    [B, classes]; ``labels`` [B]; ``temperature`` of the logits.
    """

    student_maps: Maps = ()
    teacher_maps: Maps = ()
    student_logits: Tensor | None = None
    teacher_logits: Tensor | None = None
    labels: Tensor | None = None
    temperature: float = 1.0

    @property
    def points(self) -> list[tuple[Tensor, Tensor]]:
        """(student map, teacher map) of every hint point."""
        return list(zip(self.student_maps, self.teacher_maps, strict=True))


class PerPoint(nn.Module):
    """A loss of (student map, teacher map), summed over the hint points. No trainable parts."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], student_shapes: Shapes, teacher_shapes: Shapes):
        super().__init__()
        self.loss = loss

    def forward(self, signals: Signals) -> Tensor:
        return sum(self.loss(student, teacher) for student, teacher in signals.points)


class Embedded(nn.Module):
    """A loss of two embeddings, summed over the hint points: each side's map is averaged over space and mapped to ``WIDTH`` numbers.

    Both linear maps are trained. The originals embed the last, pooled features only.
    """

    WIDTH = 128

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], student_shapes: Shapes, teacher_shapes: Shapes):
        super().__init__()
        self.loss = loss
        self.students, self.teachers = (nn.ModuleList(nn.Linear(s[0], self.WIDTH) for s in shapes) for shapes in (student_shapes, teacher_shapes))

    def forward(self, signals: Signals) -> Tensor:
        triples = zip(self.students, self.teachers, signals.points, strict=True)
        return sum(self.loss(student(_pooled(s)), teacher(_pooled(t))) for student, teacher, (s, t) in triples)


class Answers(nn.Module):
    """A loss of the logits of both sides and the labels, in the place of KD. No trainable parts."""

    def __init__(self, loss: Callable[[Signals], Tensor], student_shapes: Shapes, teacher_shapes: Shapes):
        super().__init__()
        self.loss = loss

    def forward(self, signals: Signals) -> Tensor:
        return self.loss(signals)


def _pooled(maps: Tensor) -> Tensor:
    """[B, C, H, W] → [B, C], mean over space."""
    return maps.mean((2, 3))


class FitNet(nn.Module):
    """FitNet, one-stage: a regressor per hint point predicts the teacher's map; squared errors summed over points.

    The original trains one point, before the task loss; here all K at once, beside it, as the paper's capsule does.
    """

    def __init__(self, student_shapes: Shapes, teacher_shapes: Shapes):
        super().__init__()
        self.regressors = nn.ModuleList(_regressor(s, t) for s, t in zip(student_shapes, teacher_shapes, strict=True))

    def forward(self, signals: Signals) -> Tensor:
        pairs = zip(self.regressors, signals.points, strict=True)
        return sum(losses.hint(*losses.match_size(regress(s), t)) for regress, (s, t) in pairs)


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

    def forward(self, signals: Signals) -> Tensor:
        total = signals.student_maps[0].new_zeros(())
        for mean, scale, (student, teacher) in zip(self.means, self.scales, signals.points, strict=True):
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


class SemanticCalibration(nn.Module):
    """SemCKD: every student point learns from every teacher point, with attention weights found from the batch's Gram matrices.

    Chen et al., "Cross-Layer Distillation with Semantic Calibration" (2021), eqs. 4 to 7. A Gram matrix [B, B] has the
    batch in its shape; here each image is described by its sorted similarities to the others, resampled to ``WIDTH`` values, so that
    the last, smaller batch of an epoch can be used (the original skips it).
    """

    WIDTH = 32

    def __init__(self, student_shapes: Shapes, teacher_shapes: Shapes):
        super().__init__()
        self.queries, self.keys = (nn.ModuleList(self._embedding() for _ in shapes) for shapes in (student_shapes, teacher_shapes))
        self.regressors = nn.ModuleList(nn.ModuleList(_three_layers(s[0], t[0]) for t in teacher_shapes) for s in student_shapes)

    def _embedding(self) -> nn.Module:
        return nn.Sequential(nn.Linear(self.WIDTH, self.WIDTH // 2), nn.ReLU(), nn.Linear(self.WIDTH // 2, self.WIDTH // 4))

    def _described(self, maps: Tensor) -> Tensor:
        flat = maps.flatten(1)
        gram = losses.common.unit(flat @ flat.T).sort(dim=1).values
        return F.interpolate(gram[:, None], self.WIDTH, mode="linear", align_corners=True)[:, 0]

    def forward(self, signals: Signals) -> Tensor:
        queries = [F.normalize(net(self._described(s)), dim=1) for net, s in zip(self.queries, signals.student_maps, strict=True)]
        keys = [F.normalize(net(self._described(t)), dim=1) for net, t in zip(self.keys, signals.teacher_maps, strict=True)]
        total = signals.student_maps[0].new_zeros(())
        for query, student, row in zip(queries, signals.student_maps, self.regressors, strict=True):
            attention = torch.softmax(torch.stack([(query * key).sum(1) for key in keys], dim=1), dim=1)
            for weight, regress, teacher in zip(attention.unbind(1), row, signals.teacher_maps, strict=True):
                pooled_student, pooled_teacher = losses.match_size(student, teacher)
                total = total + (weight * (regress(pooled_student) - pooled_teacher).square().mean((1, 2, 3))).mean()
        return total / len(queries)


def _three_layers(channels: int, out: int) -> nn.Module:
    """1×1, 3×3 and 1×1 convolutions with BatchNorm and ReLU between, as in the authors' code."""
    return nn.Sequential(
        nn.Conv2d(channels, 2 * out, 1, bias=False), nn.BatchNorm2d(2 * out), nn.ReLU(),
        nn.Conv2d(2 * out, 2 * out, 3, padding=1, bias=False), nn.BatchNorm2d(2 * out), nn.ReLU(),
        nn.Conv2d(2 * out, out, 1),
    )  # fmt: skip


@dataclass(frozen=True)
class Distiller:
    """An entry of ``DISTILLERS``.

    **Arguments:**

    - ``title``: as figures call it. ``source``: the paper. ``compares``: what of student and teacher, and how.
    - ``build``: (student shapes, teacher shapes) → module that maps ``Signals`` to a scalar; ``None`` for ``ce`` and ``kd``.
    - ``weight``: the literature's weight of its loss.
    - ``hints``: whether it uses hint points, and so has arms.
    - ``kd``: whether KD stands beside it; methods on the logits take its place.
    - ``least_images``: of a batch; 2 for methods that compare images with each other.
    - ``parts``: of a sum, each with its weight.
    """

    title: str
    source: str
    compares: str
    build: Callable[[Shapes, Shapes], nn.Module] | None = None
    weight: float = 0.0
    hints: bool = True
    kd: bool = True
    least_images: int = 1
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def uses_teacher(self) -> bool:
        """Whether the teacher is asked at all."""
        return self.kd or self.build is not None


def _on_pooled(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Shapes, Shapes], nn.Module]:
    return partial(PerPoint, lambda student, teacher: loss(_pooled(student), _pooled(teacher)))


def _attention(student: Tensor, teacher: Tensor) -> Tensor:
    return losses.attention_transfer([student], [teacher])


def _selectivity(student: Tensor, teacher: Tensor) -> Tensor:
    return losses.neuron_selectivity(*losses.match_size(student, teacher))


def _answers(loss: Callable[[Signals], Tensor]) -> dict:
    return {"build": partial(Answers, loss), "hints": False, "kd": False}


# Temperature of KD on standardised logits, and the weight of the classes other than the label's in DKD: the authors take 2 for
# resnet56 → resnet20, and up to 8 for larger pairs after a warm-up that is left out here.
STANDARDISED_TEMPERATURE = 2.0
DKD_BETA = 2.0
# Temperature of the contrastive loss.
CONTRAST_TEMPERATURE = 0.07

# Weights are those of the standard CIFAR-100 benchmark (RepDistiller), or of the authors where it has none.
DISTILLERS: dict[str, Distiller] = {
    "ce": Distiller("student alone", "no distillation, cross-entropy only", "the labels only", hints=False, kd=False),
    "kd": Distiller("KD", "Hinton et al. 2015", "softened logits: T² · KL(teacher ‖ student)", hints=False),
    "fitnet": Distiller("FitNet", "Romero et al. 2015", "maps, after a regressor: mean squared error", FitNet, 100.0),
    "at": Distiller(
        "AT", "Zagoruyko & Komodakis 2017", "where a layer is active: mean of squared channels, unit length per image",
        partial(PerPoint, _attention), 1000.0,
    ),
    "vid": Distiller(
        "VID", "Ahn et al. 2019", "maps as draws from a Gaussian that the student predicts: negative log-likelihood",
        VariationalInformation, 1.0,
    ),
    "sp": Distiller(
        "SP", "Tung & Mori 2019", "which images are alike: Gram matrices of the batch, rows of unit length",
        partial(PerPoint, losses.similarity_preserving), 3000.0,
    ),
    "cc": Distiller(
        "CC", "Peng et al. 2019", "embeddings of neighbours in the batch: products of absolute differences of student and teacher",
        partial(Embedded, losses.correlation_congruence), 0.02, least_images=2,
    ),
    "rkd": Distiller(
        "RKD", "Park et al. 2019", "distances and angles between images, on pooled maps",
        _on_pooled(losses.relational), 1.0, least_images=2,
    ),
    "pkt": Distiller(
        "PKT", "Passalis & Tefas 2018", "probabilities made of cosines between images, on pooled maps: KL",
        _on_pooled(losses.probabilistic_transfer), 30000.0, least_images=2,
    ),
    "nst": Distiller(
        "NST", "Huang & Wang 2017", "channels as samples of activation patterns: squared MMD with the kernel (x·y)²",
        partial(PerPoint, _selectivity), 50.0,
    ),
    "crd-batch": Distiller(
        "CRD in batch", "Tian et al. 2020, with the batch's other images as negatives",
        "embeddings of one image against those of the others: InfoNCE, both ways",
        partial(Embedded, partial(losses.contrastive_in_batch, temperature=CONTRAST_TEMPERATURE)), 0.8, least_images=2,
    ),
    "semckd": Distiller(
        "SemCKD", "Chen et al. 2021", "every teacher map with every student map, weighted by attention: mean squared error",
        SemanticCalibration, 400.0,
    ),
    "wsl": Distiller(
        "WSL", "Zhou et al. 2021", "soft labels, weighted by how much harder the image is for the student", weight=2.25,
        **_answers(lambda s: losses.weighted_soft_labels(s.student_logits, s.teacher_logits, s.labels, s.temperature)),
    ),
    "dkd": Distiller(
        "DKD", "Zhao et al. 2022", "KD split into the label's share and the rest: TCKD + 2 · NCKD", weight=1.0,
        **_answers(lambda s: losses.decoupled_kd(s.student_logits, s.teacher_logits, s.labels, 1.0, DKD_BETA, s.temperature)),
    ),
    "dist": Distiller(
        "DIST", "Huang et al. 2022", "softmax rows and columns: 1 − Pearson correlation",
        weight=2.0, least_images=2, **_answers(lambda s: losses.dist(s.student_logits, s.teacher_logits, 1.0, 1.0, s.temperature)),
    ),
    "kd-standardised": Distiller(
        "KD standardised", "Sun et al. 2024", "KD on logits of mean 0 and deviation 1, T = 2", weight=9.0,
        **_answers(lambda s: losses.standardised_kd(s.student_logits, s.teacher_logits, STANDARDISED_TEMPERATURE)),
    ),
}  # fmt: skip


# Alone, KD is the term that stands beside every method; in a sum it is a part like any other.
KD_IN_A_SUM = Distiller(
    "KD",
    DISTILLERS["kd"].source,
    DISTILLERS["kd"].compares,
    weight=1.0,
    **_answers(lambda s: losses.kd(s.student_logits, s.teacher_logits, s.temperature)),
)


class Sum(nn.Module):
    """Several methods at once, each with its own weight."""

    def __init__(self, parts: Sequence[Distiller], weights: Sequence[float], student_shapes: Shapes, teacher_shapes: Shapes):
        super().__init__()
        self.weights = tuple(weights)
        self.parts = nn.ModuleList(part.build(student_shapes, teacher_shapes) for part in parts)

    def forward(self, signals: Signals) -> Tensor:
        return sum(weight * part(signals) for weight, part in zip(self.weights, self.parts, strict=True))


def distiller(method: str, weights: Sequence[float] = ()) -> Distiller:
    """The entry of a method, or the sum of several: ``at+rkd``.

    **Arguments:** ``weights`` of the parts of a sum; the literature's when not given.

    A sum with a method on the logits (``wsl+at``, ``at+kd``) has no other KD beside it.

    **Raises:** ``SettingsError`` for a part that does not exist, that is there twice, or that has no loss to add (``ce``).
    """
    names = tuple(method.split("+"))
    if len(names) == 1:
        return DISTILLERS[choose("method", method, [*DISTILLERS, "<method>+<method>"])]
    addable = {name: entry for name, entry in DISTILLERS.items() if entry.build is not None} | {"kd": KD_IN_A_SUM}
    parts = [addable[choose(f"part of the method {method}", name, addable)] for name in names]
    if len(set(names)) < len(names):
        raise SettingsError(f"the method {method} names a part more than once")
    return Distiller(
        title=" + ".join(part.title for part in parts),
        source="; ".join(part.source for part in parts),
        compares="; ".join(part.compares for part in parts),
        build=partial(Sum, parts, weights or [part.weight for part in parts]),
        weight=1.0,
        hints=any(part.hints for part in parts),
        kd=all(part.kd for part in parts),
        least_images=max(part.least_images for part in parts),
        parts={name: part.weight for name, part in zip(names, parts, strict=True)},
    )
