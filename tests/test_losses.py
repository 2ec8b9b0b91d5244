"""Each loss against its published definition written as plain loops, with identities and gradients."""

import math

import pytest
import torch

from pursuhint_lib import losses

DOUBLE = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def pooled(x, height, width):
    """Adaptive average pooling of one [C, H, W] map as nested lists."""
    channels, full_height, full_width = x.shape
    result = torch.empty(channels, height, width, dtype=DOUBLE)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                top, bottom = i * full_height // height, math.ceil((i + 1) * full_height / height)
                left, right = j * full_width // width, math.ceil((j + 1) * full_width / width)
                cells = [float(x[c, a, b]) for a in range(top, bottom) for b in range(left, right)]
                result[c, i, j] = sum(cells) / len(cells)
    return result


def unit(values):
    length = math.sqrt(sum(v * v for v in values))
    return [v / length for v in values]


def softmax(values):
    powers = [math.exp(v) for v in values]
    return [p / sum(powers) for p in powers]


def naive_kd(student, teacher, temperature):
    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        p_s, p_t = (softmax([v / temperature for v in row]) for row in (s_row, t_row))
        total += sum(t * math.log(t / s) for s, t in zip(p_s, p_t, strict=True))
    return temperature**2 * total / len(student)


def naive_hint(student, teacher):
    squares = [
        (s - t) ** 2 for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    ]
    return sum(squares) / len(squares)


def naive_attention_transfer(student_maps, teacher_maps):
    total = 0.0
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        height, width = (min(s, t) for s, t in zip(student.shape[2:], teacher.shape[2:], strict=True))
        squares = []
        for image in range(len(student)):
            s, t = pooled(student[image], height, width), pooled(teacher[image], height, width)
            attention = [
                unit(
                    [
                        sum(float(v) ** 2 for v in x[:, i, j]) / len(x)
                        for i in range(height)
                        for j in range(width)
                    ]
                )
                for x in (s, t)
            ]
            squares += [(a - b) ** 2 for a, b in zip(*attention, strict=True)]
        total += sum(squares) / len(squares)
    return total


def naive_similarity_preserving(student, teacher):
    grams = []
    for x in (student, teacher):
        rows = x.flatten(1).tolist()
        grams.append(
            [unit([sum(a * b for a, b in zip(row, other, strict=True)) for other in rows]) for row in rows]
        )
    batch = len(student)
    return sum((grams[0][i][j] - grams[1][i][j]) ** 2 for i in range(batch) for j in range(batch)) / batch**2


def naive_variational_information(mean, variance, teacher):
    batch, channels, height, width = mean.shape
    total = 0.0
    for b in range(batch):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    v = float(variance[c])
                    total += 0.5 * (
                        (float(mean[b, c, i, j]) - float(teacher[b, c, i, j])) ** 2 / v + math.log(v)
                    )
    return total / mean.numel()


PAIRS_OF_SHAPES = [
    ((3, 4, 4, 4), (3, 4, 4, 4)),
    ((3, 2, 4, 4), (3, 5, 4, 4)),
    ((3, 2, 8, 8), (3, 5, 4, 4)),
    ((3, 5, 2, 2), (3, 2, 4, 4)),
    ((3, 2, 7, 7), (3, 3, 4, 4)),
    ((3, 2, 6, 2), (3, 3, 3, 4)),
]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_equals_its_definition(temperature):
    student, teacher = 3 * draw(5, 7), 3 * draw(5, 7, seed=1)
    assert float(losses.kd(student, teacher, temperature)) == pytest.approx(
        naive_kd(student, teacher, temperature), rel=1e-12
    )


def test_kd_is_finite_for_logits_that_saturate_the_softmax():
    student = torch.tensor([[2000.0, -2000.0]], requires_grad=True)
    loss = losses.kd(student, torch.tensor([[-2000.0, 2000.0]]), 4.0)
    loss.backward()
    assert loss.item() == pytest.approx(16 * 1000, rel=1e-5)
    assert student.grad.isfinite().all()


def test_hint_equals_its_definition():
    student, teacher = draw(3, 4, 5, 2), draw(3, 4, 5, 2, seed=1)
    assert float(losses.hint(student, teacher)) == pytest.approx(naive_hint(student, teacher), rel=1e-12)


@pytest.mark.parametrize(("student_shape", "teacher_shape"), PAIRS_OF_SHAPES)
def test_attention_transfer_equals_its_definition(student_shape, teacher_shape):
    student, teacher = draw(*student_shape), draw(*teacher_shape, seed=1)
    assert float(losses.attention_transfer([student], [teacher])) == pytest.approx(
        naive_attention_transfer([student], [teacher]), rel=1e-10
    )


def test_attention_transfer_sums_over_hint_points():
    students, teachers = (
        [draw(*s) for s, _ in PAIRS_OF_SHAPES],
        [draw(*t, seed=1) for _, t in PAIRS_OF_SHAPES],
    )
    assert float(losses.attention_transfer(students, teachers)) == pytest.approx(
        naive_attention_transfer(students, teachers), rel=1e-10
    )


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [*PAIRS_OF_SHAPES, ((4, 6), (4, 3, 2, 2)), ((1, 3, 2, 2), (1, 2, 2, 2))],
)
def test_similarity_preserving_equals_its_definition(student_shape, teacher_shape):
    student, teacher = draw(*student_shape), draw(*teacher_shape, seed=1)
    expected = naive_similarity_preserving(student, teacher)
    assert float(losses.similarity_preserving(student, teacher)) == pytest.approx(
        expected, rel=1e-10, abs=1e-15
    )


def test_variational_information_equals_its_definition():
    mean, teacher, variance = draw(3, 4, 5, 2), draw(3, 4, 5, 2, seed=1), draw(4, seed=2).exp()
    assert float(losses.variational_information(mean, variance, teacher)) == pytest.approx(
        naive_variational_information(mean, variance, teacher), rel=1e-12
    )


LOSSES = {
    "kd": lambda s, t: losses.kd(s.flatten(1), t.flatten(1), 4.0),
    "hint": losses.hint,
    "attention-transfer": lambda s, t: losses.attention_transfer([s, s[:, :1]], [t, t[:, :1]]),
    "similarity-preserving": losses.similarity_preserving,
    "variational-information": lambda s, t: losses.variational_information(
        s, torch.ones(s.shape[1], dtype=s.dtype), t
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_zero_at_identity_and_positive_elsewhere(name):
    teacher = draw(3, 2, 4, 4)
    assert abs(float(LOSSES[name](teacher.clone(), teacher))) < 1e-12
    for seed in range(1, 6):
        assert float(LOSSES[name](draw(3, 2, 4, 4, seed=seed), teacher)) > 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_reaches_the_student_and_leaves_the_teacher_as_it_was(name):
    student, teacher = draw(3, 2, 4, 4).requires_grad_(), draw(3, 2, 4, 4, seed=1)
    before = teacher.clone()
    LOSSES[name](student, teacher).backward()
    assert student.grad.isfinite().all()
    assert student.grad.flatten(1).norm(dim=1).min() > 0
    assert not teacher.requires_grad
    assert teacher.grad is None
    assert torch.equal(teacher, before)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_finite_differences(name):
    student, teacher = draw(2, 2, 2, 2).requires_grad_(), draw(2, 2, 2, 2, seed=1)
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, teacher), (student,))


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [((2, 2, 4, 4), (2, 3, 2, 2)), ((2, 2, 2, 2), (2, 3, 4, 4)), ((2, 1, 4, 2), (2, 1, 2, 4))],
)
def test_gradient_of_attention_transfer_passes_through_the_pooling(student_shape, teacher_shape):
    teacher = draw(*teacher_shape, seed=1)
    assert torch.autograd.gradcheck(
        lambda s: losses.attention_transfer([s], [teacher]), (draw(*student_shape).requires_grad_(),)
    )


def test_variational_information_is_least_where_the_variance_is_the_squared_error():
    mean, teacher = draw(4, 3, 2, 2), draw(4, 3, 2, 2, seed=1)
    best = (mean - teacher).square().mean((0, 2, 3)).requires_grad_()
    loss = losses.variational_information(mean, best, teacher)
    loss.backward()
    assert best.grad.abs().max() < 1e-12
    for factor in (0.8, 1.25):
        assert losses.variational_information(mean, factor * best, teacher) > loss


@pytest.mark.parametrize(
    ("shape_a", "shape_b", "expected"),
    [
        ((8, 8), (4, 4), (4, 4)),
        ((2, 2), (6, 6), (2, 2)),
        ((7, 7), (4, 4), (4, 4)),
        ((6, 2), (3, 4), (3, 2)),
        ((4, 4), (4, 2), (4, 2)),
    ],
)
def test_match_size_pools_the_larger_to_the_smaller(shape_a, shape_b, expected):
    a, b = draw(2, 3, *shape_a), draw(2, 5, *shape_b, seed=1)
    for before, after in zip((a, b), losses.match_size(a, b), strict=True):
        torch.testing.assert_close(
            after, torch.stack([pooled(image, *expected) for image in before]), rtol=0, atol=1e-12
        )


def test_match_size_leaves_maps_of_equal_size_alone():
    a, b = draw(2, 3, 5, 4), draw(2, 6, 5, 4, seed=1)
    assert all(same is given for same, given in zip(losses.match_size(a, b), (a, b), strict=True))


@pytest.mark.parametrize("dead_side", ["student", "teacher", "both"])
def test_attention_transfer_has_a_finite_gradient_for_maps_of_zeros(dead_side):
    student, teacher = draw(2, 3, 4, 4), draw(2, 2, 4, 4, seed=1)
    if dead_side != "teacher":
        student[0] = 0
    if dead_side != "student":
        teacher[0] = 0
    student.requires_grad_()
    loss = losses.attention_transfer([student], [teacher])
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad[1].norm() > 0


def test_similarity_preserving_has_a_finite_gradient_for_a_silent_image():
    student, teacher = draw(3, 4, 2, 2), draw(3, 2, 2, 2, seed=1)
    student[0] = 0
    student.requires_grad_()
    loss = losses.similarity_preserving(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad[1].norm() > 0


def test_attention_transfer_refuses_unequal_numbers_of_points():
    with pytest.raises(ValueError, match="shorter"):
        losses.attention_transfer([draw(2, 3, 4, 4)] * 2, [draw(2, 3, 4, 4)])
