"""Distillation methods: what each trains beside the student, and the loss that it returns.

``DISTILLERS`` is the only list of methods; a new one is a class (if it has parts to train) and an entry. A
method with hint layers sees the K student maps and the K teacher maps, matched in the order of the points; a
method on the answers sees logits and labels, and takes the place of KD. Any sum of entries is a method, too:
``at+rkd``. So is an entry in a module of the user's own, named by its import path: ``my_methods:my_method``.
"""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from .. import losses
from ..settings import SettingsError, choose
from ..settings.user_code import FORM, is_import_path
from .embeddings import TEMPERATURE, ContrastiveMemory, Embedded, pooled
from .entry import Distiller
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
from .own import own_entry
from .signals import Signals, Task, warmth


class Answers(nn.Module):
    """A loss of the logits of both sides and the labels, in the place of KD. No trainable parts."""

    def __init__(self, loss: Callable[[Signals], Tensor], task: Task):
        super().__init__()
        self.loss = loss

    def forward(self, signals: Signals) -> Tensor:
        return self.loss(signals)


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
        "student alone",
        "no distillation, cross-entropy only",
        "the labels only",
        hints=False,
        kd=False,
        formula=r"-\overline{\log p_y(z_s)}",
    ),
    "kd": Distiller(
        "KD",
        "Hinton et al. 2015",
        "softened logits: T² · KL(teacher ‖ student)",
        hints=False,
        formula=r"T^2\,\overline{\mathrm{KL}\big(p(z_t/T)\,\|\,p(z_s/T)\big)},\quad p=\mathrm{softmax}",
    ),
    "fitnet": Distiller(
        "FitNet",
        "Romero et al. 2015",
        "maps, after a regressor: mean squared error",
        FitNet,
        100.0,
        formula=r"\sum_{layers}\overline{\big(r(S)-T\big)^2},"
        r"\quad r\text{ a trained convolution with BatchNorm}",
    ),
    "fitnet-stages": Distiller(
        "FitNet in two stages",
        "Romero et al. 2015",
        "as FitNet, in a stage of its own before the task",
        FitNet,
        100.0,
        stages=True,
        formula=r"\sum_{layers}\overline{\big(r(S)-T\big)^2},"
        r"\quad r\text{ a trained convolution with BatchNorm}",
    ),
    "at": Distiller(
        "AT",
        "Zagoruyko & Komodakis 2017",
        "where a layer is active: mean of squared channels, unit length per image",
        partial(PerPoint, _attention),
        1000.0,
        formula=r"\sum_{layers}\overline{\big(a(S)-a(T)\big)^2},"
        r"\quad a(X)=\frac{m}{\lVert m\rVert},\; m_{hw}=\tfrac1C\sum_c X_{chw}^2",
    ),
    "vid": Distiller(
        "VID",
        "Ahn et al. 2019",
        "maps as draws from a Gaussian that the student predicts: negative log-likelihood",
        VariationalInformation,
        1.0,
        formula=r"\sum_{layers}\overline{\frac{\big(\mu(S)-T\big)^2}{2\sigma_c^2}+\tfrac12\log\sigma_c^2},"
        r"\quad \mu,\sigma\text{ trained}",
    ),
    "sp": Distiller(
        "SP",
        "Tung & Mori 2019",
        "which images are alike: Gram matrices of the batch, rows of unit length",
        partial(PerPoint, losses.similarity_preserving),
        3000.0,
        formula=r"\sum_{layers}\overline{\big(g(S)-g(T)\big)^2},"
        r"\quad g(X)=XX^\top\text{ over the images, rows of unit length}",
    ),
    "cc": Distiller(
        "CC",
        "Peng et al. 2019",
        "embeddings of neighbours in the batch: products of absolute differences of student and teacher",
        partial(Embedded, losses.correlation_congruence),
        0.02,
        formula=r"\sum_{layers}\overline{|s_i-t_i|\cdot|s_{i+1}-t_{i+1}|},"
        r"\quad s,t\text{ trained embeddings of image }i",
    ),
    "rkd": Distiller(
        "RKD",
        "Park et al. 2019",
        "distances and angles between images, on pooled maps",
        _on_pooled(losses.relational),
        1.0,
        formula=r"\sum_{layers}25\,\overline{h\big(d_{ij}^s-d_{ij}^t\big)}"
        r"+50\,\overline{h\big(\angle_{ijk}^s-\angle_{ijk}^t\big)},"
        r"\quad h\text{ Huber}",
    ),
    "pkt": Distiller(
        "PKT",
        "Passalis & Tefas 2018",
        "probabilities made of cosines between images, on pooled maps: KL",
        _on_pooled(losses.probabilistic_transfer),
        30000.0,
        formula=r"\sum_{layers}\overline{q_{ij}\log\frac{q_{ij}}{p_{ij}}},"
        r"\quad p_{ij}\propto 1+\cos(s_i,s_j),\; q_{ij}\propto 1+\cos(t_i,t_j)",
    ),
    "nst": Distiller(
        "NST",
        "Huang & Wang 2017",
        "channels as samples of activation patterns: squared MMD with the kernel (x·y)²",
        partial(PerPoint, losses.neuron_selectivity),
        50.0,
        formula=r"\sum_{layers}\overline{k(T,T)}+\overline{k(S,S)}-2\,\overline{k(S,T)},"
        r"\quad k(x,y)=(x\cdot y)^2\text{ of unit channels}",
    ),
    "ab": Distiller(
        "AB",
        "Heo et al. 2019",
        "which neurons are on: squared hinge on the sign of each activation; in a stage before the task",
        ActivationBoundary,
        1.0,
        stages=True,
        formula=r"\sum_{layers}\frac1B\sum\begin{cases}\max(0,1-r(S))^2&T>0\\"
        r"\max(0,1+r(S))^2&T\le0\end{cases},"
        r"\quad r\text{ trained}",
    ),
    "ft": Distiller(
        "FT",
        "Kim et al. 2018",
        "where a paraphrase of the teacher's map is active, as translated by the student: mean absolute "
        "difference",
        FactorTransfer,
        200.0,
        formula=r"\sum_{layers}\overline{\big|a(f(S))-a(g(T))\big|},"
        r"\quad a\text{ as in AT, }f,g\text{ trained}",
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
        formula=r"\sum_{l}\overline{\big(M_l^S-M_l^T\big)^2},"
        r"\quad M_{cd}=\tfrac1{HW}\sum_{hw}X^{(l)}_{chw}X^{(l+1)}_{dhw}",
    ),
    "reviewkd": Distiller(
        "ReviewKD",
        "Chen et al. 2021",
        "maps, predicted from all deeper ones of the student: squared error at four sizes",
        KnowledgeReview,
        1.0,
        warm_up=True,
        formula=r"\sum_{layers}\sum_n w_n\,\overline{\big(P_n(f(S,\text{deeper}))-P_n(T)\big)^2},"
        r"\quad P_n\text{ pools to }n\times n",
    ),
    "crd": Distiller(
        "CRD",
        "Tian et al. 2020",
        "embeddings of one image against those of 16 384 others, in a memory: noise contrastive estimation",
        ContrastiveMemory,
        0.8,
        formula=r"-\overline{\log h(s,t_+)+\sum_k\log\big(1-h(s,t_k)\big)"
        r"}\text{, and with }s,t\text{ exchanged},"
        r"\quad h=\frac{q}{q+N/M},\;q\propto e^{s\cdot t/\tau}",
    ),
    "crd-batch": Distiller(
        "CRD in batch",
        "Tian et al. 2020, with the batch's other images as negatives",
        "embeddings of one image against those of the others: InfoNCE, both ways",
        partial(Embedded, partial(losses.contrastive_in_batch, temperature=TEMPERATURE)),
        0.8,
        formula=r"-\sum_{layers}"
        r"\tfrac12\,\overline{\log\frac{e^{s_i\cdot t_i/\tau}}{\sum_je^{s_i\cdot t_j/\tau}}}"
        r"+\tfrac12\,\overline{\log\frac{e^{t_i\cdot s_i/\tau}}{\sum_je^{t_i\cdot s_j/\tau}}},"
        r"\quad s,t\text{ trained embeddings of unit length}",
    ),
    "semckd": Distiller(
        "SemCKD",
        "Chen et al. 2021",
        "every teacher map with every student map, weighted by attention: mean squared error",
        SemanticCalibration,
        400.0,
        formula=r"\sum_{i,j}\overline{\alpha_{ij}\,\big(f_{ij}(S_i)-T_j\big)^2},"
        r"\quad\alpha\text{ attention between layers}",
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
        formula=r"\overline{\big(f(S)-T\big)^2},\quad f\text{ a trained projector}",
    ),
    "wsl": Distiller(
        "WSL",
        "Zhou et al. 2021",
        "soft labels, weighted by how much harder the image is for the student",
        weight=2.25,
        **_answers(
            lambda s: losses.weighted_soft_labels(s.student_logits, s.teacher_logits, s.labels, s.temperature)
        ),
        formula=r"T^2\,\overline{w\cdot\big(-\textstyle\sum p(z_t/T)\log p(z_s/T)\big)},"
        r"\quad w=1-e^{-\mathrm{CE}(z_s)/\mathrm{CE}(z_t)}",
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
        formula=r"T^2\,\big(\mathrm{KL}(\text{label or not})+2\,\mathrm{KL}(\text{among the others})\big)",
    ),
    "dist": Distiller(
        "DIST",
        "Huang et al. 2022",
        "softmax rows and columns: 1 − Pearson correlation",
        weight=2.0,
        **_answers(lambda s: losses.dist(s.student_logits, s.teacher_logits, 1.0, 1.0, s.temperature)),
        formula=r"T^2\,\big(1-\overline{\rho(\text{rows of }p)}+1-\overline{\rho(\text{columns of }p)}\big),"
        r"\quad\rho\text{ Pearson}",
    ),
    "kd-standardised": Distiller(
        "KD standardised",
        "Sun et al. 2024",
        "KD on logits of mean 0 and deviation 1, T = 2",
        weight=9.0,
        **_answers(
            lambda s: losses.standardised_kd(s.student_logits, s.teacher_logits, STANDARDISED_TEMPERATURE)
        ),
        formula=r"T^2\,\overline{\mathrm{KL}\big(p(\hat z_t/T)\,\|\,p(\hat z_s/T)\big)},"
        r"\quad\hat z=\frac{z-\bar z}{\mathrm{sd}(z)},\;T=2",
    ),
}


# Alone, KD is the term that stands beside every method; in a sum it is a part like any other.
KD_IN_A_SUM = Distiller(
    "KD",
    DISTILLERS["kd"].source,
    DISTILLERS["kd"].compares,
    weight=1.0,
    formula=DISTILLERS["kd"].formula,
    **_answers(lambda s: losses.kd(s.student_logits, s.teacher_logits, s.temperature)),
)


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
    entries = DISTILLERS | {name: own_entry(name) for name in names if is_import_path(name)}
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
        formula=r"\;+\;".join(rf"w_{{{part.title}}}\Big[{part.formula}\Big]" for part in parts),
    )
