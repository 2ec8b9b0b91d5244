"""Losses between the images of a batch, and contrastive ones, against their definitions written as plain
loops.
"""

import math

import pytest
import torch
from test_losses import draw

from pursuhint_lib import losses


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def length(a):
    return math.sqrt(dot(a, a))


def naive_correlation_congruence(student, teacher):
    rows = [
        [abs(s - t) for s, t in zip(*pair, strict=True)]
        for pair in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    return sum(dot(rows[i], rows[i + 1]) for i in range(len(rows) - 1)) / (len(rows) - 1)


def huber(difference):
    return 0.5 * difference**2 if abs(difference) < 1 else abs(difference) - 0.5


def distances_and_angles(rows):
    images = range(len(rows))
    step = [[[b - a for a, b in zip(rows[i], rows[j], strict=True)] for j in images] for i in images]
    distance = [
        [0.0 if i == j else math.sqrt(max(dot(step[i][j], step[i][j]), 1e-12)) for j in images]
        for i in images
    ]
    positive = [d for row in distance for d in row if d > 0]
    mean = sum(positive) / len(positive)
    angles = []
    for i in images:
        for j in images:
            for k in images:
                lengths = length(step[i][j]) * length(step[i][k])
                angles.append(dot(step[i][j], step[i][k]) / lengths if lengths else 0.0)
    return [d / mean for row in distance for d in row], angles


def naive_relational(student, teacher, distance_weight, angle_weight):
    (d_s, a_s), (d_t, a_t) = (distances_and_angles(x.tolist()) for x in (student, teacher))
    distance = sum(huber(s - t) for s, t in zip(d_s, d_t, strict=True)) / len(d_s)
    return distance_weight * distance + angle_weight * sum(
        huber(s - t) for s, t in zip(a_s, a_t, strict=True)
    ) / len(a_s)


def naive_probabilistic_transfer(student, teacher):
    chances = []
    for x in (student, teacher):
        rows = [[v / (length(row) + 1e-7) for v in row] for row in x.tolist()]
        closeness = [[(dot(a, b) + 1) / 2 for b in rows] for a in rows]
        chances.append([v / sum(row) for row in closeness for v in row])
    terms = [t * math.log((t + 1e-7) / (s + 1e-7)) for s, t in zip(*chances, strict=True)]
    return sum(terms) / len(terms)


def naive_contrastive_in_batch(student, teacher, temperature):
    total, images = 0.0, range(len(student))
    for anchors, candidates in ((student.tolist(), teacher.tolist()), (teacher.tolist(), student.tolist())):
        for i in images:
            powers = [
                math.exp(dot(anchors[i], c) / (length(anchors[i]) * length(c)) / temperature)
                for c in candidates
            ]
            total -= math.log(powers[i] / sum(powers)) / len(images)
    return total / 2


def naive_contrastive_memory(own, others, counted, images):
    total = 0.0
    for o_own, o_others, marks in zip(own.tolist(), others.tolist(), counted.tolist(), strict=True):
        negatives = [o for o, mark in zip(o_others, marks, strict=True) if mark]
        noise = len(negatives) * (1 / images)
        total += math.log(o_own / (o_own + noise + 1e-7))
        for o in negatives:
            total += math.log(noise / (o + noise + 1e-7))
    return -total / len(own)


@pytest.mark.parametrize(("images", "width"), [(2, 3), (6, 4), (5, 1)])
def test_losses_on_embeddings_of_equal_width_equal_their_definitions(images, width):
    s, t = draw(images, width), draw(images, width, seed=1)
    assert float(losses.correlation_congruence(s, t)) == pytest.approx(
        naive_correlation_congruence(s, t), rel=1e-12
    )
    for temperature in (0.07, 1.0):
        expected = naive_contrastive_in_batch(s, t, temperature)
        assert float(losses.contrastive_in_batch(s, t, temperature)) == pytest.approx(
            expected, rel=1e-10, abs=1e-14
        )


@pytest.mark.parametrize(("images", "student_width", "teacher_width"), [(2, 3, 5), (6, 4, 4), (7, 5, 2)])
def test_losses_on_embeddings_of_any_width_equal_their_definitions(images, student_width, teacher_width):
    s, t = draw(images, student_width), draw(images, teacher_width, seed=1)
    assert float(losses.relational(s, t)) == pytest.approx(naive_relational(s, t, 25, 50), rel=1e-10)
    assert float(losses.relational(s, t, 1.0, 0.0)) == pytest.approx(naive_relational(s, t, 1, 0), rel=1e-10)
    assert float(losses.relational(s, t, 0.0, 3.0)) == pytest.approx(naive_relational(s, t, 0, 3), rel=1e-10)
    assert float(losses.probabilistic_transfer(s, t)) == pytest.approx(
        naive_probabilistic_transfer(s, t), rel=1e-9
    )


def test_images_at_the_same_place_have_no_angle():
    s, t = draw(5, 3), draw(5, 4, seed=1)
    s[3] = s[1]
    assert float(losses.relational(s, t)) == pytest.approx(naive_relational(s, t, 25, 50), rel=1e-10)


def memory_scores(batch, drawn, images, seed=0):
    """Own scores, drawn scores, and which of the drawn count: some of every row, not the same number."""
    scores = draw(batch, drawn + 1, seed=seed).exp() / images
    counted = draw(batch, drawn, seed=seed + 1) > -0.5
    counted[:, 0] = True
    return scores[:, 0], scores[:, 1:], counted, images


@pytest.mark.parametrize(("drawn", "images"), [(1, 2), (5, 9), (40, 50000)])
def test_contrastive_memory_equals_its_definition(drawn, images):
    for batch in (1, 4):
        case = memory_scores(batch, drawn, images)
        assert float(losses.contrastive_memory(*case)) == pytest.approx(
            naive_contrastive_memory(*case), rel=1e-10
        )


def test_contrastive_memory_of_the_published_size_is_exact_in_single_precision():
    own, others, counted, images = memory_scores(2, 16884, 50000)
    exact = losses.contrastive_memory(own, others, counted, images)
    assert float(losses.contrastive_memory(own.float(), others.float(), counted, images)) == pytest.approx(
        float(exact), rel=1e-6
    )


def test_contrastive_memory_wants_a_high_own_score_and_low_others_and_ignores_what_does_not_count():
    own, others, counted, images = memory_scores(3, 6, 100)
    own.requires_grad_()
    others.requires_grad_()
    losses.contrastive_memory(own, others, counted, images).backward()
    assert (own.grad < 0).all()
    assert (others.grad[counted] > 0).all()
    assert (others.grad[~counted] == 0).all()
    assert torch.autograd.gradcheck(
        lambda a, b: losses.contrastive_memory(a, b, counted, images), (own, others)
    )


def test_contrast_in_the_batch_falls_with_alignment():
    teacher = torch.eye(4).double()
    assert float(losses.contrastive_in_batch(3 * teacher, teacher, 0.07)) < 1e-5
    assert float(losses.contrastive_in_batch(teacher.roll(1, 0), teacher, 0.07)) == pytest.approx(
        1 / 0.07, rel=1e-3
    )
    assert float(losses.contrastive_in_batch(torch.ones(4, 4).double(), teacher, 0.07)) == pytest.approx(
        math.log(4)
    )


def test_relational_ignores_position_turn_and_scale():
    s, t = draw(6, 4), draw(6, 5, seed=1)
    turn = torch.linalg.qr(draw(4, 4, seed=2)).Q
    torch.testing.assert_close(losses.relational(3 * s @ turn + 7, t), losses.relational(s, t))
    assert float(losses.relational(3 * t[:, [3, 1, 0, 2, 4]] - 7, t)) < 1e-12
    torch.testing.assert_close(
        losses.probabilistic_transfer(3 * s @ turn, t), losses.probabilistic_transfer(s, t), rtol=1e-5, atol=0
    )


CASES = {
    "correlation-congruence": losses.correlation_congruence,
    "relational": losses.relational,
    "probabilistic-transfer": losses.probabilistic_transfer,
    "contrastive-in-batch": lambda s, t: losses.contrastive_in_batch(s, t, 0.5),
    "similarity-preserving": losses.similarity_preserving,
}


@pytest.mark.parametrize("name", [name for name in CASES if name != "contrastive-in-batch"])
def test_loss_is_zero_at_identity_and_positive_elsewhere(name):
    teacher = draw(5, 4)
    assert abs(float(CASES[name](teacher.clone(), teacher))) < 1e-12
    for seed in range(1, 6):
        assert float(CASES[name](draw(5, 4, seed=seed), teacher)) > 1e-6


@pytest.mark.parametrize("name", CASES)
def test_gradient_equals_finite_differences(name):
    assert torch.autograd.gradcheck(
        lambda s: CASES[name](s, draw(3, 4, seed=1)), (draw(3, 4).requires_grad_(),)
    )


def test_gradient_reaches_the_embedding_of_a_teacher_that_is_trained():
    for name in ("correlation-congruence", "contrastive-in-batch"):
        teacher = draw(3, 4, seed=1).requires_grad_()
        CASES[name](draw(3, 4), teacher).backward()
        assert teacher.grad.norm(dim=1).min() > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e4])
@pytest.mark.parametrize("name", CASES)
def test_gradient_is_finite_and_reaches_every_image_of_the_student_only(name, scale, precision):
    student, teacher = (scale * draw(6, 8, seed=seed).float() for seed in (0, 1))
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = CASES[name](student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad.norm(dim=1).min() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "value", ["zero", "identical", "identical for the student", "one zero", "opposite", "two at one place"]
)
@pytest.mark.parametrize("name", CASES)
def test_degenerate_batches_have_bounded_gradients(name, value, precision):
    student, teacher = draw(6, 8).float(), draw(6, 8, seed=1).float()
    if value == "zero":
        student *= 0
    elif value == "one zero":
        student[2] = 0
    elif value == "opposite":
        student = student[:1] * torch.tensor([1.0, -1, 1, -1, 2, -3])[:, None]
    elif value == "two at one place":
        student[2] = student[4]
    else:
        student, teacher = (
            student[:1].repeat(6, 1),
            teacher if "student" in value else teacher[:1].repeat(6, 1),
        )
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = CASES[name](student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 1000


@pytest.mark.parametrize("name", [name for name in CASES if name != "similarity-preserving"])
def test_one_image_is_refused_in_one_line(name):
    with pytest.raises(
        ValueError,
        match="^this loss compares the images of a batch with each other, so it needs at least 2 of them: "
        "got 1$",
    ):
        CASES[name](draw(1, 4), draw(1, 4, seed=1))


def test_what_the_definitions_do_not_cover_is_refused_in_one_line():
    for name in ("correlation-congruence", "contrastive-in-batch"):
        with pytest.raises(
            ValueError, match=r"same shape: the student's is \[3, 4\], the teacher's \[3, 1\]$"
        ):
            CASES[name](draw(3, 4), draw(3, 1))


def test_relational_of_the_published_batch_holds_no_more_than_its_differences():
    """64 images of 512 channels: the largest tensor is [64, 64, 512], not the [64, 64, 64, 512] of all
    triples.
    """
    student = draw(64, 512).float().requires_grad_()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        losses.relational(student, draw(64, 256, seed=1).float())
    assert max(sizes) == 64 * 64 * 512


def test_probabilistic_transfer_survives_cosines_that_rounding_takes_below_minus_one():
    # 254^-½ lies just above the middle between two bfloat16 numbers, so every entry is rounded up and the
    # cosine is −1.0078.
    student = (torch.ones(6, 254) * torch.tensor([1.0, -1, 1, -1, 1, -1])[:, None]).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses.probabilistic_transfer(student, draw(6, 8, seed=1).float())
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
