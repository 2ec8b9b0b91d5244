"""Distillation methods: what each trains beside the student, and the loss that it returns.

``DISTILLERS`` is the only list of methods; a new one is a class (if it has parts to train) and an entry. A
method with hint layers sees the K student maps and the K teacher maps, matched in the order of the points; a
method on the answers sees logits and labels, and takes the place of KD. Any sum of entries is a method, too:
``at+rkd``. So is an entry in a module of the user's own, named by its import path: ``my_methods:my_method``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, nn

from .. import losses
from ..settings import SettingsError, choose
from ..settings.user_code import FORM, is_import_path, load, own_code
from .embeddings import TEMPERATURE, ContrastiveMemory, Embedded, pooled
from .maps import (
    ActivationBoundary,
    FactorTransfer,
    FitNet,
    FlowOfSolution,
    KnowledgeReview,
    PerPoint,
    SemanticCalibration,
    VariationalInformation,
)
from .signals import Signals, Task, warmth


class Answers(nn.Module):
    """A loss of the logits of both sides and the labels, in the place of KD. No trainable parts."""

    def __init__(self, loss: Callable[[Signals], Tensor], task: Task):
        super().__init__()
        self.loss = loss

    def forward(self, signals: Signals) -> Tensor:
        return self.loss(signals)


@dataclass(frozen=True)
class Distiller:
    """An entry of ``DISTILLERS``.

    **Arguments:**

    - ``title``: as figures call it. ``source``: the paper. ``compares``: what of student and teacher, and
      how.
    - ``build``: function of ``Task`` → module that maps ``Signals`` to a scalar; ``None`` for ``ce`` and
      ``kd``.
    - ``weight``: the literature's weight of its loss.
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

    @property
    def uses_teacher(self) -> bool:
        """Whether the teacher is asked at all."""
        return self.kd or self.build is not None

    @property
    def adds(self) -> bool:
        """Whether it is nothing but a loss, so that it can be part of a sum."""
        return self.build is not None and not self.stages and not self.reuses_classifier


def _on_pooled(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Task], nn.Module]:
    return partial(PerPoint, lambda student, teacher: loss(pooled(student), pooled(teacher)))


def _attention(student: Tensor, teacher: Tensor) -> Tensor:
    return losses.attention_transfer([student], [teacher])


def _at_one_size(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Task], nn.Module]:
    return partial(PerPoint, lambda student, teacher: loss(*losses.match_size(student, teacher)))


def _answers(loss: Callable[[Signals], Tensor]) -> dict:
    return {"build": partial(Answers, loss), "hints": False, "kd": False}


# Temperature of KD on standardised logits, and the weight of the classes other than the label's in DKD: the
# authors take 2 for resnet56 → resnet20, and up to 8 for larger pairs.
STANDARDISED_TEMPERATURE = 2.0
DKD_BETA = 2.0

# Weights are those of the standard CIFAR-100 benchmark (RepDistiller), or of the authors where it has none.
DISTILLERS: dict[str, Distiller] = {
    "ce": Distiller(
        "student alone", "no distillation, cross-entropy only", "the labels only", hints=False, kd=False
    ),
    "kd": Distiller("KD", "Hinton et al. 2015", "softened logits: T² · KL(teacher ‖ student)", hints=False),
    "fitnet": Distiller(
        "FitNet", "Romero et al. 2015", "maps, after a regressor: mean squared error", FitNet, 100.0
    ),
    "fitnet-stages": Distiller(
        "FitNet in two stages",
        "Romero et al. 2015",
        "as FitNet, in a stage of its own before the task",
        FitNet,
        100.0,
        stages=True,
    ),
    "at": Distiller(
        "AT",
        "Zagoruyko & Komodakis 2017",
        "where a layer is active: mean of squared channels, unit length per image",
        partial(PerPoint, _attention),
        1000.0,
    ),
    "vid": Distiller(
        "VID",
        "Ahn et al. 2019",
        "maps as draws from a Gaussian that the student predicts: negative log-likelihood",
        VariationalInformation,
        1.0,
    ),
    "sp": Distiller(
        "SP",
        "Tung & Mori 2019",
        "which images are alike: Gram matrices of the batch, rows of unit length",
        partial(PerPoint, losses.similarity_preserving),
        3000.0,
    ),
    "cc": Distiller(
        "CC",
        "Peng et al. 2019",
        "embeddings of neighbours in the batch: products of absolute differences of student and teacher",
        partial(Embedded, losses.correlation_congruence),
        0.02,
    ),
    "rkd": Distiller(
        "RKD",
        "Park et al. 2019",
        "distances and angles between images, on pooled maps",
        _on_pooled(losses.relational),
        1.0,
    ),
    "pkt": Distiller(
        "PKT",
        "Passalis & Tefas 2018",
        "probabilities made of cosines between images, on pooled maps: KL",
        _on_pooled(losses.probabilistic_transfer),
        30000.0,
    ),
    "nst": Distiller(
        "NST",
        "Huang & Wang 2017",
        "channels as samples of activation patterns: squared MMD with the kernel (x·y)²",
        partial(PerPoint, losses.neuron_selectivity),
        50.0,
    ),
    "ab": Distiller(
        "AB",
        "Heo et al. 2019",
        "which neurons are on: squared distance to the right side of 0, with a margin; in a stage before the "
        "task",
        ActivationBoundary,
        1.0,
        stages=True,
    ),
    "ft": Distiller(
        "FT",
        "Kim et al. 2018",
        "where a paraphrase of the teacher's map is active, as translated by the student: mean absolute "
        "difference",
        FactorTransfer,
        200.0,
    ),
    "fsp": Distiller(
        "FSP",
        "Yim et al. 2017",
        "products of the channels of two hint layers, mean over space: squared error; in a stage before the "
        "task",
        FlowOfSolution,
        1.0,
        least_points=2,
        stages=True,
    ),
    "reviewkd": Distiller(
        "ReviewKD",
        "Chen et al. 2021",
        "maps, predicted from all deeper ones of the student: squared error at four sizes",
        KnowledgeReview,
        1.0,
        warm_up=True,
    ),
    "crd": Distiller(
        "CRD",
        "Tian et al. 2020",
        "embeddings of one image against those of 16 384 others, in a memory: noise contrastive estimation",
        ContrastiveMemory,
        0.8,
    ),
    "crd-batch": Distiller(
        "CRD in batch",
        "Tian et al. 2020, with the batch's other images as negatives",
        "embeddings of one image against those of the others: InfoNCE, both ways",
        partial(Embedded, partial(losses.contrastive_in_batch, temperature=TEMPERATURE)),
        0.8,
    ),
    "semckd": Distiller(
        "SemCKD",
        "Chen et al. 2021",
        "every teacher map with every student map, weighted by attention: mean squared error",
        SemanticCalibration,
        400.0,
    ),
    "simkd": Distiller(
        "SimKD",
        "Chen et al. 2022",
        "the last map, projected, which then goes through the teacher's classifier: mean squared error",
        _at_one_size(losses.hint),
        1.0,
        hints=False,
        ce=False,
        kd=False,
        reuses_classifier=True,
    ),
    "wsl": Distiller(
        "WSL",
        "Zhou et al. 2021",
        "soft labels, weighted by how much harder the image is for the student",
        weight=2.25,
        **_answers(
            lambda s: losses.weighted_soft_labels(s.student_logits, s.teacher_logits, s.labels, s.temperature)
        ),
    ),
    "dkd": Distiller(
        "DKD",
        "Zhao et al. 2022",
        "KD split into the label's share and the rest: TCKD + 2 · NCKD",
        weight=1.0,
        warm_up=True,
        **_answers(
            lambda s: losses.decoupled_kd(
                s.student_logits, s.teacher_logits, s.labels, 1.0, DKD_BETA, s.temperature
            )
        ),
    ),
    "dist": Distiller(
        "DIST",
        "Huang et al. 2022",
        "softmax rows and columns: 1 − Pearson correlation",
        weight=2.0,
        **_answers(lambda s: losses.dist(s.student_logits, s.teacher_logits, 1.0, 1.0, s.temperature)),
    ),
    "kd-standardised": Distiller(
        "KD standardised",
        "Sun et al. 2024",
        "KD on logits of mean 0 and deviation 1, T = 2",
        weight=9.0,
        **_answers(
            lambda s: losses.standardised_kd(s.student_logits, s.teacher_logits, STANDARDISED_TEMPERATURE)
        ),
    ),
}


# Alone, KD is the term that stands beside every method; in a sum it is a part like any other.
KD_IN_A_SUM = Distiller(
    "KD",
    DISTILLERS["kd"].source,
    DISTILLERS["kd"].compares,
    weight=1.0,
    **_answers(lambda s: losses.kd(s.student_logits, s.teacher_logits, s.temperature)),
)


class Own(nn.Module):
    """What a method of the user's own has built, held to what every method gives.

    **Raises:** ``SettingsError`` where its code fails, or gives something else.
    """

    def __init__(self, name: str, build: Callable[[Task], nn.Module], task: Task):
        super().__init__()
        with own_code(name):
            method = build(task)
        if not isinstance(method, nn.Module):
            raise SettingsError(
                f"build of method {name} gives {type(method).__name__}; it must give a torch.nn.Module"
            )
        self.name, self.method = name, method

    def forward(self, signals: Signals) -> Tensor:
        with own_code(self.name):
            loss = self.method(signals)
        if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
            found = (
                f"a tensor of shape {tuple(loss.shape)} and {loss.dtype}"
                if isinstance(loss, Tensor)
                else type(loss).__name__
            )
            raise SettingsError(
                f"the loss of method {self.name} is {found}; it must be a scalar tensor of floating point, "
                "such as a mean"
            )
        return loss


def _own(name: str) -> Distiller:
    """The entry that an import path names."""
    entry = load(
        "method", name, lambda found: isinstance(found, Distiller), "a Distiller of pursuhint_lib.distillers"
    )
    if not callable(entry.build):
        raise SettingsError(
            f"method {name} builds nothing; give its Distiller a build, a function of Task that gives a "
            "torch.nn.Module"
        )
    if not (isinstance(entry.weight, (int, float)) and 0 <= entry.weight < math.inf):
        raise SettingsError(
            f"the weight of method {name} is {entry.weight!r}; give its Distiller a number of 0 or more"
        )
    return replace(entry, build=partial(Own, name, entry.build))


class Sum(nn.Module):
    """Several methods at once, each with its own weight."""

    def __init__(self, parts: Sequence[Distiller], weights: Sequence[float], task: Task):
        super().__init__()
        self.weights, self.grow = tuple(weights), tuple(part.warm_up for part in parts)
        self.parts = nn.ModuleList(part.build(task) for part in parts)

    def forward(self, signals: Signals) -> Tensor:
        warm = warmth(signals.epoch, signals.epochs)
        weights = [
            weight * warm if grows else weight for weight, grows in zip(self.weights, self.grow, strict=True)
        ]
        return sum(weight * part(signals) for weight, part in zip(weights, self.parts, strict=True))


def distiller(method: str, weights: Sequence[float] = ()) -> Distiller:
    """The entry of a method (in ``DISTILLERS``, or at an import path), or the sum of several: ``at+rkd``.

    **Arguments:** ``weights`` of the parts of a sum; the literature's when not given.

    A sum with a method on the logits (``wsl+at``, ``at+kd``) has no other KD beside it.

    **Raises:** ``SettingsError`` for a part that does not exist, that is there twice, that has no loss to add
    (``ce``), that changes more than the loss (stages, another classifier), or that an import path does not
    lead to.
    """
    names = tuple(method.split("+"))
    entries = DISTILLERS | {name: _own(name) for name in names if is_import_path(name)}
    if len(names) == 1:
        return entries[choose("method", method, [*entries, "<method>+<method>", FORM])]
    addable = {name: entry for name, entry in entries.items() if entry.adds} | {"kd": KD_IN_A_SUM}
    parts = [addable[choose(f"part of the method {method}", name, [*addable, FORM])] for name in names]
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
        least_points=max(part.least_points for part in parts),
        parts={name: part.weight for name, part in zip(names, parts, strict=True)},
    )
