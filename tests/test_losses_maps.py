"""Losses on feature maps against their definitions written as plain loops."""

from itertools import product

import pytest
import torch
from test_losses import PAIRS_OF_SHAPES, draw, pooled, unit

from pursuhint_lib import losses


def smaller(student, teacher):
    """Both maps as a list of images [C, H, W], pooled to the smaller size."""
    size = [min(s, t) for s, t in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    return [[pooled(image, *size) for image in maps] for maps in (student, teacher)]


def naive_factor_transfer(student, teacher):
    differences = []
    for s, t in zip(*smaller(student, teacher), strict=True):
        _, height, width = s.shape
        cells = list(product(range(height), range(width)))
        a, b = (unit([sum(float(v) ** 2 for v in x[:, i, j]) / len(x) for i, j in cells]) for x in (s, t))
        differences += [abs(x - y) for x, y in zip(a, b, strict=True)]
    return sum(differences) / len(differences)


def naive_neuron_selectivity(student, teacher):
    def mean_kernel(a, b):
        values = [sum(x * y for x, y in zip(p, q, strict=True)) ** 2 for p in a for q in b]
        return sum(values) / len(values)

    total = 0.0
    for images in zip(*smaller(student, teacher), strict=True):
        s, t = ([unit(channel.flatten().tolist()) for channel in image] for image in images)
        total += mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t)
    return total / len(student)


def naive_activation_boundary(student, teacher, margin):
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        if s > -margin and t <= 0:
            total += (s + margin) ** 2
        if s <= margin and t > 0:
            total += (s - margin) ** 2
    return total / len(student)


def flow(a, b):
    """M[c][d] of two maps of one image."""
    height, width = (min(x, y) for x, y in zip(a.shape[1:], b.shape[1:], strict=True))
    a, b = pooled(a, height, width), pooled(b, height, width)
    cells = list(product(range(height), range(width)))
    return [
        [sum(float(a[c, i, j] * b[d, i, j]) for i, j in cells) / len(cells) for d in range(len(b))]
        for c in range(len(a))
    ]


def naive_flow_of_solution(student_maps, teacher_maps):
    total = 0.0
    for k in range(len(student_maps) - 1):
        squares = []
        for image in range(len(student_maps[0])):
            m_s, m_t = (flow(maps[k][image], maps[k + 1][image]) for maps in (student_maps, teacher_maps))
            squares += [
                (x - y) ** 2 for p, q in zip(m_s, m_t, strict=True) for x, y in zip(p, q, strict=True)
            ]
        total += sum(squares) / len(squares)
    return total


def naive_hierarchical_context(student_maps, teacher_maps):
    total = 0.0
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        weight, weights, errors = 1.0, 0.0, 0.0
        side = student.shape[2]
        for size in [side] + [n for n in (4, 2, 1) if n < side]:
            squares = []
            for s, t in zip(student, teacher, strict=True):
                difference = pooled(s, size, size) - pooled(t, size, size)
                squares += [v * v for v in difference.flatten().tolist()]
            errors += weight * sum(squares) / len(squares)
            weights += weight
            weight /= 2
        total += errors / weights
    return total


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [*PAIRS_OF_SHAPES, ((1, 3, 2, 2), (1, 2, 2, 2)), ((2, 9, 2, 2), (2, 12, 2, 3))],
)
def test_losses_on_maps_of_unequal_size_equal_their_definitions(student_shape, teacher_shape):
    s, t = draw(*student_shape), draw(*teacher_shape, seed=1)
    assert float(losses.factor_transfer(s, t)) == pytest.approx(naive_factor_transfer(s, t), rel=1e-10)
    assert float(losses.neuron_selectivity(s, t)) == pytest.approx(naive_neuron_selectivity(s, t), rel=1e-10)


@pytest.mark.parametrize(("channels", "pixels"), [(9, 2), (2, 9), (4, 5), (4, 6)])
def test_both_ways_to_neuron_selectivity_agree_with_the_kernel(channels, pixels):
    """Few pixels take the pixels' products, many take the channels'."""
    s, t = draw(2, channels, 1, pixels), draw(2, channels + 1, 1, pixels, seed=1)
    assert float(losses.neuron_selectivity(s, t)) == pytest.approx(naive_neuron_selectivity(s, t), rel=1e-10)


@pytest.mark.parametrize("margin", [0.0, 1.0, 2.5])
def test_activation_boundary_equals_its_definition(margin):
    s, t = 2 * draw(3, 4, 5, 2), draw(3, 4, 5, 2, seed=1)
    t[0, 0], s[0, 1, 0], s[0, 2, 0] = 0, margin, -margin
    assert float(losses.activation_boundary(s, t, margin)) == pytest.approx(
        naive_activation_boundary(s, t, margin), rel=1e-12
    )


def test_activation_boundary_is_zero_beyond_the_margin_on_the_side_of_the_teacher_only():
    teacher = draw(2, 3, 4, 4)
    side = torch.where(teacher > 0, 1.0, -1.0).double()
    assert losses.activation_boundary(1.5 * side, teacher) == 0
    assert losses.activation_boundary(0.5 * side, teacher) == 0.25 * teacher[0].numel()
    assert losses.activation_boundary(-side, teacher) == 4 * teacher[0].numel()


POINTS = [(3, 8, 8), (2, 8, 8), (5, 4, 4), (4, 1, 1)]


def test_flow_of_solution_equals_its_definition():
    students = [draw(2, *shape, seed=i) for i, shape in enumerate(POINTS)]
    teachers = [draw(2, *shape, seed=10 + i) for i, shape in enumerate(POINTS)]
    assert float(losses.flow_of_solution(students, teachers)) == pytest.approx(
        naive_flow_of_solution(students, teachers), rel=1e-10
    )
    # The teacher's maps may be of another size than the student's.
    teachers = [draw(2, c, h + 1, w, seed=20 + i) for i, (c, h, w) in enumerate(POINTS)]
    assert float(losses.flow_of_solution(students, teachers)) == pytest.approx(
        naive_flow_of_solution(students, teachers), rel=1e-10
    )


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8])
def test_hierarchical_context_equals_its_definition(side):
    students, teachers = (
        [draw(2, 3, side, side, seed=seed), draw(2, 2, 4, 4, seed=seed + 2)] for seed in (0, 1)
    )
    expected = naive_hierarchical_context(students, teachers)
    assert float(losses.hierarchical_context(students, teachers)) == pytest.approx(expected, rel=1e-10)


def test_a_constant_difference_has_the_same_hierarchical_context_at_every_size():
    levels = [draw(2, 3, side, side) for side in (8, 3, 1)]
    assert float(losses.hierarchical_context([x + 2 for x in levels], levels)) == pytest.approx(4 * 3)


CASES = {
    "factor-transfer": losses.factor_transfer,
    "neuron-selectivity": losses.neuron_selectivity,
    "neuron-selectivity-of-few-pixels": lambda s, t: losses.neuron_selectivity(
        s[:, :, :1, :2], t[:, :, :1, :2]
    ),
    "activation-boundary": losses.activation_boundary,
    "flow-of-solution": lambda s, t: losses.flow_of_solution(
        [s, s[:, :2], s[:, 1:, ::2]], [t, t[:, :2], t[:, 1:, ::2]]
    ),
    "hierarchical-context": lambda s, t: losses.hierarchical_context([s, s[:, :, :2]], [t, t[:, :, :2]]),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_is_zero_at_identity_and_positive_elsewhere(name):
    # The boundary asks for more than the teacher's own values unless they lie beyond the margin.
    teacher = draw(3, 4, 5, 4)
    teacher += teacher.sign()
    assert abs(float(CASES[name](teacher.clone(), teacher))) < 1e-12
    for seed in range(1, 6):
        assert float(CASES[name](draw(3, 4, 5, 4, seed=seed), teacher)) > 1e-6


@pytest.mark.parametrize("name", CASES)
def test_gradient_equals_finite_differences(name):
    student, teacher = draw(2, 3, 3, 2).requires_grad_(), draw(2, 3, 3, 2, seed=1)
    assert torch.autograd.gradcheck(lambda s: CASES[name](s, teacher), (student,))


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"), [((2, 2, 4, 4), (2, 3, 2, 2)), ((2, 2, 2, 2), (2, 3, 4, 4))]
)
def test_gradient_passes_through_the_pooling(student_shape, teacher_shape):
    for loss in (losses.factor_transfer, losses.neuron_selectivity):
        teacher = draw(*teacher_shape, seed=1)
        assert torch.autograd.gradcheck(
            lambda s, loss=loss, teacher=teacher: loss(s, teacher), (draw(*student_shape).requires_grad_(),)
        )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("name", CASES)
def test_gradient_is_finite_and_reaches_every_image_of_the_student_only(name, scale, images, precision):
    student, teacher = (scale * draw(images, 4, 5, 4, seed=seed).float() for seed in (0, 1))
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = CASES[name](student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad.flatten(1).norm(dim=1).min() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "dead",
    [
        "an image of the student",
        "a channel of the student",
        "all of the student",
        "all of the teacher",
        "all",
    ],
)
@pytest.mark.parametrize("name", CASES)
def test_maps_of_zeros_have_bounded_gradients(name, dead, precision):
    student, teacher = draw(3, 4, 5, 4).float(), draw(3, 4, 5, 4, seed=1).float()
    if "image" in dead:
        student[0] = 0
    elif "channel" in dead:
        student[:, 0] = 0
    else:
        student *= "teacher" in dead
        teacher *= "student" in dead
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = CASES[name](student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 100


def test_neuron_selectivity_of_dead_channels_counts_them_as_points_at_zero():
    s, t = draw(2, 3, 4, 4), draw(2, 2, 4, 4, seed=1)
    s[:, 0] = 0
    for b in range(2):
        x, y = ([unit(channel.flatten().tolist()) for channel in maps] for maps in (s[b, 1:], t[b]))

        def total(p, q):
            return sum(sum(i * j for i, j in zip(u, v, strict=True)) ** 2 for u in p for v in q)

        expected = total(y, y) / 4 + total(x, x) / 9 - 2 * total(x, y) / 6
        assert float(losses.neuron_selectivity(s[b : b + 1], t[b : b + 1])) == pytest.approx(
            expected, rel=1e-10
        )


def test_what_the_definitions_do_not_cover_is_refused_in_one_line():
    a, b = draw(2, 3, 4, 4), draw(2, 4, 4, 4)
    with pytest.raises(
        ValueError, match=r"same shape: the student's is \[2, 3, 4, 4\], the teacher's \[2, 1, 4, 4\]$"
    ):
        losses.activation_boundary(a, b[:, :1])
    with pytest.raises(ValueError, match="same shape"):
        losses.hierarchical_context([a], [a[:, :, :1]])
    with pytest.raises(ValueError, match="shorter"):
        losses.hierarchical_context([a, a], [a])
    with pytest.raises(ValueError, match=r"^FSP needs as many channels .* got \[3, 4\] and \[3, 3\]$"):
        losses.flow_of_solution([a, b], [a, a])
    with pytest.raises(ValueError, match="^FSP needs at least 2 points: got 1$"):
        losses.flow_of_solution([a], [a])


@pytest.mark.parametrize(("channels", "side", "largest"), [(64, 2, 64 * 4), (4, 16, 4 * 256)])
def test_neuron_selectivity_takes_the_smaller_products(channels, side, largest):
    """Nothing it keeps is larger than the maps: neither 64² channel pairs nor 256² pixel pairs."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        losses.neuron_selectivity(
            draw(1, channels, side, side).requires_grad_(), draw(1, channels, side, side, seed=1)
        )
    assert max(sizes) == largest
