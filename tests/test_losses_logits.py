"""Losses on logits against their definitions written as plain loops."""

import math

import pytest
import torch
from test_losses import draw, naive_kd, softmax

from pursuhint_lib import losses

TARGET = torch.tensor([0, 6, 3, 3, 1])


def logits(seed=0):
    return 3 * draw(5, 7, seed=seed)


def cross_entropy(row, label):
    return -math.log(softmax(row)[label])


def naive_weighted_soft_labels(student, teacher, target, temperature):
    total = 0.0
    for s, t, label in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
        weight = 1 - math.exp(-cross_entropy(s, label) / (cross_entropy(t, label) + 1e-7))
        p_s, p_t = (softmax([v / temperature for v in row]) for row in (s, t))
        total += weight * sum(-b * math.log(a) for a, b in zip(p_s, p_t, strict=True))
    return temperature**2 * total / len(target)


def naive_decoupled_kd(student, teacher, target, alpha, beta, temperature):
    total = 0.0
    for s, t, label in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
        p_s, p_t = (softmax([v / temperature for v in row]) for row in (s, t))
        two_s, two_t = ([p[label], 1 - p[label]] for p in (p_s, p_t))
        rest_s, rest_t = (
            softmax([v / temperature for c, v in enumerate(row) if c != label]) for row in (s, t)
        )
        total += alpha * sum(b * math.log(b / a) for a, b in zip(two_s, two_t, strict=True))
        total += beta * sum(b * math.log(b / a) for a, b in zip(rest_s, rest_t, strict=True))
    return temperature**2 * total / len(target)


def pearson(a, b):
    a, b = ([v - sum(x) / len(x) for v in x] for x in (a, b))
    lengths = math.sqrt(sum(v * v for v in a)) * math.sqrt(sum(v * v for v in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (lengths + 1e-8)


def naive_dist(student, teacher, beta, gamma, temperature):
    p_s, p_t = ([softmax([v / temperature for v in row]) for row in x.tolist()] for x in (student, teacher))
    images, classes = range(len(p_s)), range(len(p_s[0]))
    inter = 1 - sum(pearson(p_s[b], p_t[b]) for b in images) / len(images)
    intra = 1 - sum(pearson([p_s[b][c] for b in images], [p_t[b][c] for b in images]) for c in classes) / len(
        classes
    )
    return temperature**2 * (beta * inter + gamma * intra)


def naive_standardised_kd(student, teacher, temperature):
    scored = []
    for x in (student, teacher):
        rows = []
        for row in x.tolist():
            mean = sum(row) / len(row)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in row) / (len(row) - 1))
            rows.append([(v - mean) / (deviation + 1e-7) for v in row])
        scored.append(torch.tensor(rows, dtype=torch.float64))
    return naive_kd(*scored, temperature)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_losses_on_logits_equal_their_definitions(temperature):
    s, t = logits(), logits(seed=1)
    pairs = {
        losses.weighted_soft_labels(s, t, TARGET, temperature): naive_weighted_soft_labels(
            s, t, TARGET, temperature
        ),
        losses.decoupled_kd(s, t, TARGET, 1.0, 8.0, temperature): naive_decoupled_kd(
            s, t, TARGET, 1.0, 8.0, temperature
        ),
        losses.dist(s, t, 1.0, 2.0, temperature): naive_dist(s, t, 1.0, 2.0, temperature),
        losses.standardised_kd(s, t, temperature): naive_standardised_kd(s, t, temperature),
    }
    for value, expected in pairs.items():
        assert float(value) == pytest.approx(expected, rel=1e-10)


def test_parts_of_decoupled_kd_add_up_to_kd():
    """KD = TCKD + (1 − the teacher's probability of the label) · NCKD, image by image."""
    s, t = logits(), logits(seed=1)
    for b in range(len(TARGET)):
        image = (s[b : b + 1], t[b : b + 1])
        share = 1 - torch.softmax(t[b] / 4, 0)[TARGET[b]]
        torch.testing.assert_close(
            losses.decoupled_kd(*image, TARGET[b : b + 1], 1.0, share, 4.0), losses.kd(*image, 4.0)
        )


def test_weights_of_soft_labels_are_constants():
    """The gradient is that of a soft cross-entropy with fixed weights: T · w (p_s − p_t) / B."""
    s, t = logits().requires_grad_(), logits(seed=1)
    losses.weighted_soft_labels(s, t, TARGET, 4.0).backward()
    for b, label in enumerate(TARGET.tolist()):
        weight = 1 - math.exp(
            -cross_entropy(s[b].tolist(), label) / (cross_entropy(t[b].tolist(), label) + 1e-7)
        )
        expected = (
            4 * weight * (torch.softmax(s[b].detach() / 4, 0) - torch.softmax(t[b] / 4, 0)) / len(TARGET)
        )
        torch.testing.assert_close(s.grad[b], expected)


def test_standardised_kd_ignores_shift_and_scale_of_each_image():
    s, t = logits(), logits(seed=1)
    moved = s * torch.tensor([0.5, 1, 2, 3, 10.0])[:, None] + torch.arange(5)[:, None]
    torch.testing.assert_close(
        losses.standardised_kd(moved, t, 2.0), losses.standardised_kd(s, t, 2.0), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        losses.dist(s + torch.arange(5)[:, None], t, 1.0, 1.0, 2.0), losses.dist(s, t, 1.0, 1.0, 2.0)
    )


CASES = {
    "weighted-soft-labels": lambda s, t: losses.weighted_soft_labels(s, t, TARGET, 4.0),
    "decoupled-kd": lambda s, t: losses.decoupled_kd(s, t, TARGET, 1.0, 8.0, 4.0),
    "dist": lambda s, t: losses.dist(s, t, 1.0, 1.0, 4.0),
    "standardised-kd": lambda s, t: losses.standardised_kd(s, t, 2.0),
}


@pytest.mark.parametrize("name", CASES)
def test_student_equal_to_the_teacher_has_the_least_loss_and_no_gradient(name):
    teacher = logits()
    student = teacher.clone().requires_grad_()
    least = CASES[name](student, teacher)
    least.backward()
    assert student.grad.abs().max() < 1e-6
    if name != "weighted-soft-labels":
        assert abs(least.item()) < 1e-4
        assert all(CASES[name](logits(seed=seed), teacher) > least + 0.01 for seed in range(1, 6))


@pytest.mark.parametrize("name", [name for name in CASES if name != "weighted-soft-labels"])
def test_gradient_equals_finite_differences(name):
    assert torch.autograd.gradcheck(lambda s: CASES[name](s, logits(seed=1)), (logits().requires_grad_(),))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("name", CASES)
def test_logits_of_any_size_give_finite_gradients_to_the_student_only(name, scale, precision):
    student, teacher = (scale * x.float().clamp(-1, 1) for x in (logits(), logits(seed=1)))
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = CASES[name](student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 100
    # Probabilities of exactly 0 and 1 do not move: correlation of saturated softmaxes has no gradient.
    assert student.grad.abs().max() > 0 or (name, scale) == ("dist", 1e4)
    assert teacher.grad is None


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
@pytest.mark.parametrize("name", CASES)
def test_constant_logits_have_bounded_gradients(name, value):
    student = torch.full((5, 7), value, requires_grad=True)
    loss = CASES[name](student, logits(seed=1).float())
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 100


@pytest.mark.parametrize("name", CASES)
def test_identical_images_have_bounded_gradients(name):
    student, teacher = (x.float()[:1].repeat(5, 1) for x in (logits(), logits(seed=1)))
    student.requires_grad_()
    loss = CASES[name](student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert 0 < student.grad.abs().max() < 100


def test_one_image_is_enough_except_for_dist():
    s, t, label = logits()[:1], logits(seed=1)[:1], TARGET[:1]
    assert float(losses.weighted_soft_labels(s, t, label, 4.0)) == pytest.approx(
        naive_weighted_soft_labels(s, t, label, 4.0)
    )
    assert float(losses.decoupled_kd(s, t, label, 1.0, 8.0, 4.0)) == pytest.approx(
        naive_decoupled_kd(s, t, label, 1.0, 8.0, 4.0)
    )
    assert float(losses.standardised_kd(s, t, 2.0)) == pytest.approx(naive_standardised_kd(s, t, 2.0))
    with pytest.raises(ValueError, match="at least 2 of them: got 1$"):
        losses.dist(s, t, 1.0, 1.0, 4.0)


def test_decoupled_kd_of_two_classes_has_nothing_among_the_rest():
    s, t = logits()[:, :2], logits(seed=1)[:, :2]
    label = torch.tensor([0, 1, 0, 1, 1])
    torch.testing.assert_close(losses.decoupled_kd(s, t, label, 1.0, 8.0, 4.0), losses.kd(s, t, 4.0))
