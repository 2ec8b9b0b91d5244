"""Every loss against its definition by hand, with its gradients, on ordinary and on degenerate input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import losses_by_hand as by_hand
import pytest
import torch

from pursuhint_lib import losses

TARGET = torch.tensor([0, 6, 3, 3, 1])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(value):
    """The same in numpy."""
    if isinstance(value, list):
        return [numbers(entry) for entry in value]
    return value.detach().numpy() if isinstance(value, torch.Tensor) else value


# How the arguments of a loss are made of one tensor of the student's and one of the teacher's.


def both(s, t):
    return s, t


def with_target(s, t):
    return s, t, TARGET[: len(s)]


def with_variance(s, t):
    """Logarithms of the variances add up to zero, so the loss is zero at a perfect mean."""
    return s, torch.linspace(-1, 1, s.shape[1], dtype=s.dtype).exp(), t


def few_pixels(s, t):
    return s[:, :, :1, :2], t[:, :, :1, :2]


def two_points(s, t):
    return [s, s[:, :2]], [t, t[:, :2]]


def four_points(s, t):
    """The second is as large as the first, the third half as high, the last a single place."""
    return tuple([x, x[:, :2], x[:, 1:, ::2], x[:, :1, :1, :1]] for x in (s, t))


@dataclass(frozen=True)
class Case:
    """A loss, its definition, and the shapes, student's and teacher's, at which they are compared."""

    loss: Callable
    definition: Callable
    shape: tuple[int, ...]
    shapes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
    options: Sequence[dict] = ({},)
    arguments: Callable = both
    identity: float | None = 1e-12  # the most that the loss is at identity; None: it is not zero there
    bound: float = 100  # of the gradient, whatever is degenerate

    def __call__(self, s, t):
        return self.loss(*self.arguments(s, t), **self.options[0])

    def pair(self, shapes=None, seed=1):
        student, teacher = shapes or (self.shape, self.shape)
        return draw(*student), draw(*teacher, seed=seed)


MAPS, EMBEDDINGS, LOGITS = (3, 4, 5, 4), (6, 8), (5, 7)
ALIKE = [((3, 4, 5, 2),) * 2, ((1, 3, 2, 2),) * 2]
UNEQUAL = [
    ((3, 4, 4, 4), (3, 4, 4, 4)),
    ((3, 2, 4, 4), (3, 5, 4, 4)),
    ((3, 2, 8, 8), (3, 5, 4, 4)),
    ((3, 5, 2, 2), (3, 2, 4, 4)),
    ((3, 2, 7, 7), (3, 3, 4, 4)),
    ((3, 2, 6, 2), (3, 3, 3, 4)),
    ((1, 3, 2, 2), (1, 2, 2, 2)),
]
# Many channels of few pixels and few of many, on both sides of the place where they cost the same.
NARROW = [((2, c, 1, p), (2, c + 1, 1, p)) for c, p in ((9, 2), (2, 9), (4, 5), (4, 6))]
SQUARE = [((2, 3, side, side),) * 2 for side in (1, 2, 3, 4, 5, 8)]
WIDTHS = [((2, 3), (2, 5)), ((6, 4), (6, 4)), ((7, 5), (7, 2))]
SAME_WIDTH = [((2, 3),) * 2, ((6, 4),) * 2, ((5, 2),) * 2]
ROWS, ONE_ROW = [(LOGITS, LOGITS)], [((1, 7), (1, 7))]
WARM, COLD = {"temperature": 4.0}, {"temperature": 1.0}
WEIGHTS = {"alpha": 1.0, "beta": 8.0}

CASES = {
    "kd": Case(losses.kd, by_hand.kd, LOGITS, ROWS + ONE_ROW, (WARM, COLD)),
    "weighted-soft-labels": Case(
        losses.weighted_soft_labels,
        by_hand.weighted_soft_labels,
        LOGITS,
        ROWS + ONE_ROW,
        (WARM, COLD),
        with_target,
        identity=None,
    ),
    "decoupled-kd": Case(
        losses.decoupled_kd,
        by_hand.decoupled_kd,
        LOGITS,
        ROWS + ONE_ROW,
        (WEIGHTS | WARM, WEIGHTS | COLD),
        with_target,
    ),
    "dist": Case(
        losses.dist,
        by_hand.dist,
        LOGITS,
        ROWS,
        ({"beta": 1.0, "gamma": 2.0} | WARM, {"beta": 1.0, "gamma": 2.0} | COLD),
        identity=1e-4,
    ),
    "standardised-kd": Case(
        losses.standardised_kd, by_hand.standardised_kd, LOGITS, ROWS + ONE_ROW, (WARM, COLD)
    ),
    "hint": Case(losses.hint, by_hand.hint, MAPS, ALIKE),
    "attention-transfer": Case(
        losses.attention_transfer, by_hand.attention_transfer, MAPS, UNEQUAL, arguments=two_points
    ),
    "factor-transfer": Case(losses.factor_transfer, by_hand.factor_transfer, MAPS, UNEQUAL),
    "variational-information": Case(
        losses.variational_information, by_hand.variational_information, MAPS, ALIKE, arguments=with_variance
    ),
    "neuron-selectivity": Case(losses.neuron_selectivity, by_hand.neuron_selectivity, MAPS, UNEQUAL + NARROW),
    "neuron-selectivity-of-few-pixels": Case(
        losses.neuron_selectivity, by_hand.neuron_selectivity, MAPS, UNEQUAL, arguments=few_pixels
    ),
    "activation-boundary": Case(
        losses.activation_boundary,
        by_hand.activation_boundary,
        MAPS,
        ALIKE,
        [{"margin": margin} for margin in (1.0, 0.0, 2.5)],
    ),
    "flow-of-solution": Case(
        losses.flow_of_solution,
        by_hand.flow_of_solution,
        MAPS,
        [((2, 3, 8, 7), (2, 3, 9, 7)), ((1, 3, 4, 4), (1, 3, 4, 4))],
        arguments=four_points,
    ),
    "hierarchical-context": Case(
        losses.hierarchical_context, by_hand.hierarchical_context, MAPS, SQUARE, arguments=two_points
    ),
    "similarity-preserving": Case(
        losses.similarity_preserving,
        by_hand.similarity_preserving,
        MAPS,
        [*UNEQUAL, ((4, 6), (4, 3, 2, 2)), *WIDTHS],
    ),
    "correlation-congruence": Case(
        losses.correlation_congruence, by_hand.correlation_congruence, EMBEDDINGS, SAME_WIDTH, bound=1000
    ),
    "relational": Case(
        losses.relational,
        by_hand.relational,
        EMBEDDINGS,
        WIDTHS,
        [{}, *({"distance_weight": d, "angle_weight": a} for d, a in ((1.0, 0.0), (0.0, 3.0)))],
        bound=1000,
    ),
    "probabilistic-transfer": Case(
        losses.probabilistic_transfer, by_hand.probabilistic_transfer, EMBEDDINGS, WIDTHS, bound=1000
    ),
    "contrastive-in-batch": Case(
        losses.contrastive_in_batch,
        by_hand.contrastive_in_batch,
        EMBEDDINGS,
        SAME_WIDTH,
        [{"temperature": t} for t in (0.5, 0.07, 1.0)],
        identity=None,
        bound=1000,
    ),
}
ON_LOGITS = [name for name, case in CASES.items() if case.shape == LOGITS]
# One image has nothing to be compared with.
BETWEEN_IMAGES = ["dist", *(name for name, case in CASES.items() if case.shape == EMBEDDINGS)]

every_loss = pytest.mark.parametrize("name", CASES)
every_precision = pytest.mark.parametrize("precision", ["fp32", "bf16"])


def gradient(case, student, teacher, precision="fp32"):
    """With respect to the student, in single precision; it is finite, and nothing else has one."""
    student, teacher = student.float().requires_grad_(), teacher.float()
    before = teacher.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = case(student, teacher)
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert teacher.grad is None
    assert torch.equal(teacher, before)
    return student.grad


@every_loss
def test_it_equals_its_definition(name):
    case = CASES[name]
    for shapes in case.shapes:
        arguments = case.arguments(*case.pair(shapes))
        for options in case.options:
            expected = case.definition(*map(numbers, arguments), **options)
            assert float(case.loss(*arguments, **options)) == pytest.approx(expected, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.identity])
def test_it_is_zero_at_identity_and_positive_elsewhere(name):
    # Values beyond the margin of the boundary, which asks for more than the teacher's own unless they are.
    case, teacher = CASES[name], draw(*CASES[name].shape)
    teacher += teacher.sign()
    assert abs(float(case(teacher.clone(), teacher))) < case.identity
    for seed in range(1, 6):
        assert float(case(draw(*case.shape, seed=seed), teacher)) > 1e-4


@pytest.mark.parametrize("name", ON_LOGITS)
def test_the_teachers_logits_are_a_stationary_point(name):
    student, teacher = 3 * draw(*LOGITS).requires_grad_(), 3 * draw(*LOGITS)
    (found,) = torch.autograd.grad(CASES[name](student, teacher), student)
    assert found.abs().max() < 1e-5


# The weights of soft labels are constants in the gradient: test_losses_identities.py.
@pytest.mark.parametrize("name", [name for name in CASES if name != "weighted-soft-labels"])
def test_its_gradient_equals_finite_differences(name):
    case = CASES[name]
    for shapes in case.shapes:
        student, teacher = case.pair(shapes)
        assert torch.autograd.gradcheck(lambda s: case(s, teacher), (student.requires_grad_(),))  # noqa: B023


@every_precision
@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 1e4])
@pytest.mark.parametrize("name", [name for name in CASES if name not in ON_LOGITS])
def test_gradients_reach_every_image_at_every_scale(name, scale, precision):
    case = CASES[name]
    student, teacher = case.pair()
    found = gradient(case, scale * student, scale * teacher, precision)
    assert found.flatten(1).norm(dim=1).min() > 0


@every_precision
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("name", ON_LOGITS)
def test_gradients_of_logits_are_bounded_at_every_scale(name, scale, precision):
    found = gradient(CASES[name], *(scale * x.clamp(-1, 1) for x in CASES[name].pair()), precision)
    assert found.abs().max() < 100
    # Probabilities of exactly 0 and 1 do not move: correlation of saturated softmaxes has no gradient.
    assert found.abs().max() > 0 or (name, scale) == ("dist", 1e4)


@pytest.mark.parametrize("name", [name for name in CASES if name not in BETWEEN_IMAGES])
def test_one_image_is_enough(name):
    student, teacher = CASES[name].pair()
    found = gradient(CASES[name], student[:1], teacher[:1])
    # A row of one entry is its own direction.
    assert found.norm() > 0 or name == "similarity-preserving"


@pytest.mark.parametrize("name", BETWEEN_IMAGES)
def test_one_image_is_refused(name):
    student, teacher = CASES[name].pair()
    with pytest.raises(ValueError, match="compares the images of a batch .* at least 2 of them: got 1$"):
        CASES[name](student[:1], teacher[:1])


def degenerate(what, student, teacher):
    """The two tensors with what a dead or an untrained network may give."""
    if what in ("zero for the student", "zero for both"):
        student = torch.zeros_like(student)
    if what in ("zero for the teacher", "zero for both"):
        teacher = torch.zeros_like(teacher)
    if what in ("alike for the student", "alike for both"):
        student = student[:1].expand_as(student).clone()
    if what == "alike for both":
        teacher = teacher[:1].expand_as(teacher).clone()
    if what == "opposite":
        signs = torch.tensor([1.0, -1, 1, -1, 2, -3])[: len(student)]
        student = student[:1] * signs.reshape(-1, *[1] * (student.dim() - 1))
    if what == "zero for one image":
        student[0] = 0
    if what == "zero for one image of each":
        student[0] = teacher[0] = 0
    if what == "zero for one channel":
        student[:, 0] = 0
    if what == "two images alike":
        student[1] = student[2]
    return student, teacher


DEGENERATE = [
    *(f"zero for {where}" for where in ("the student", "the teacher", "both")),
    *(f"zero for one {what}" for what in ("image", "image of each", "channel")),
    "alike for the student",
    "alike for both",
    "opposite",
    "two images alike",
]


@every_precision
@pytest.mark.parametrize("what", DEGENERATE)
@every_loss
def test_degenerate_input_has_bounded_gradients(name, what, precision):
    case = CASES[name]
    found = gradient(case, *degenerate(what, *case.pair()), precision)
    assert found.abs().max() < case.bound


@pytest.mark.parametrize("value", [0.1, -1e4])
@pytest.mark.parametrize("name", ON_LOGITS)
def test_constant_logits_have_bounded_gradients(name, value):
    assert gradient(CASES[name], torch.full(LOGITS, value), draw(*LOGITS)).abs().max() < 100


A, B = draw(2, 3, 4, 4), draw(2, 4, 4, 4)


@pytest.mark.parametrize(
    ("loss", "arguments", "words"),
    [
        (
            "activation_boundary",
            (A, B[:, :1]),
            r"same shape: .* \[2, 3, 4, 4\], the teacher's \[2, 1, 4, 4\]$",
        ),
        ("hierarchical_context", ([A], [A[:, :, :1]]), "same shape"),
        (
            "correlation_congruence",
            (draw(3, 4), draw(3, 1)),
            r"same shape: .* \[3, 4\], the teacher's \[3, 1\]$",
        ),
        ("contrastive_in_batch", (draw(3, 4), draw(3, 1), 0.5), r"same shape: .* \[3, 4\], .* \[3, 1\]$"),
        ("attention_transfer", ([A, A], [A]), "shorter"),
        ("hierarchical_context", ([A, A], [A]), "shorter"),
        ("flow_of_solution", ([A, B], [A, A]), r"as many channels .* got \[3, 4\] and \[3, 3\]$"),
        ("flow_of_solution", ([A], [A]), "at least 2 hint layers: got 1$"),
    ],
)
def test_what_the_definition_does_not_cover_is_refused(loss, arguments, words):
    with pytest.raises(ValueError, match=words):
        getattr(losses, loss)(*arguments)
