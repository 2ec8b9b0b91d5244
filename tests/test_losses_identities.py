"""What is known of single losses beyond their definition: limits, invariances, what they keep in memory."""

import math

import losses_by_hand as by_hand
import pytest
import torch
from test_losses import LOGITS, TARGET, draw, numbers

from pursuhint_lib import losses

close = torch.testing.assert_close


def logits():
    return 3 * draw(*LOGITS), 3 * draw(*LOGITS, seed=1)


# ---- on logits


def test_kd_of_logits_that_saturate_the_softmax_is_linear_in_them():
    student = torch.tensor([[2000.0, -2000.0]])
    assert float(losses.kd(student, -student, 4.0)) == pytest.approx(16 * 1000, rel=1e-5)


def test_parts_of_decoupled_kd_add_up_to_kd():
    """KD = TCKD + (1 − the teacher's probability of the label) · NCKD, image by image. Of two classes the
    rest is one class, which says nothing.
    """
    s, t = logits()
    for image in range(len(TARGET)):
        one = slice(image, image + 1)
        share = 1 - torch.softmax(t[image] / 4, 0)[TARGET[image]]
        close(
            losses.decoupled_kd(s[one], t[one], TARGET[one], 1.0, share, 4.0), losses.kd(s[one], t[one], 4.0)
        )
    close(
        losses.decoupled_kd(s[:, :2], t[:, :2], TARGET % 2, 1.0, 8.0, 4.0),
        losses.kd(s[:, :2], t[:, :2], 4.0),
    )


def test_weights_of_soft_labels_are_constants():
    """The gradient is that of a soft cross-entropy with fixed weights: T · w (p_s − p_t) / B."""
    s, t = logits()
    losses.weighted_soft_labels(s.requires_grad_(), t, TARGET, 4.0).backward()
    for a, b, label, found in zip(*map(numbers, (s, t, TARGET, s.grad)), strict=True):
        weight = 1 - math.exp(-by_hand.cross_entropy(a, label) / (by_hand.cross_entropy(b, label) + 1e-7))
        expected = 4 * weight * (by_hand.softmax(a / 4) - by_hand.softmax(b / 4)) / len(TARGET)
        assert found == pytest.approx(expected)


def test_standardised_kd_ignores_shift_and_scale_of_each_image_and_dist_the_shift():
    s, t = logits()
    shift, scale = torch.arange(5)[:, None], torch.tensor([0.5, 1, 2, 3, 10.0])[:, None]
    close(
        losses.standardised_kd(s * scale + shift, t, 2.0),
        losses.standardised_kd(s, t, 2.0),
        rtol=1e-5,
        atol=0,
    )
    close(losses.dist(s + shift, t, 1.0, 1.0, 2.0), losses.dist(s, t, 1.0, 1.0, 2.0))


# ---- on maps


@pytest.mark.parametrize(
    ("size_a", "size_b", "expected"),
    [
        ((8, 8), (4, 4), (4, 4)),
        ((2, 2), (6, 6), (2, 2)),
        ((7, 7), (4, 4), (4, 4)),
        ((6, 2), (3, 4), (3, 2)),
        ((4, 4), (4, 2), (4, 2)),
        ((5, 4), (5, 4), (5, 4)),
    ],
)
def test_match_size_pools_the_larger_to_the_smaller(size_a, size_b, expected):
    given = draw(2, 3, *size_a), draw(2, 5, *size_b, seed=1)
    for before, after in zip(given, losses.match_size(*given), strict=True):
        assert after.numpy() == pytest.approx(
            numbers(torch.stack([torch.from_numpy(by_hand.pooled(x, *expected)) for x in before.numpy()]))
        )
        assert size_a != size_b or after is before


def test_variational_information_is_least_where_the_variance_is_the_squared_error():
    mean, teacher = draw(4, 3, 2, 2), draw(4, 3, 2, 2, seed=1)
    best = (mean - teacher).square().mean((0, 2, 3)).requires_grad_()
    loss = losses.variational_information(mean, best, teacher)
    loss.backward()
    assert best.grad.abs().max() < 1e-12
    assert all(losses.variational_information(mean, factor * best, teacher) > loss for factor in (0.8, 1.25))


def test_the_activation_boundary_is_counted_at_its_edges_and_not_beyond_them():
    s, t = 2 * draw(3, 4, 5, 2), draw(3, 4, 5, 2, seed=1)
    t[0, 0], s[0, 1, 0], s[0, 2, 0] = 0, 1, -1
    assert float(losses.activation_boundary(s, t)) == pytest.approx(
        by_hand.activation_boundary(*map(numbers, (s, t)))
    )
    side = torch.where(t > 0, 1.0, -1.0).double()
    assert losses.activation_boundary(1.5 * side, t) == 0
    assert losses.activation_boundary(0.5 * side, t) == 0.25 * t[0].numel()
    assert losses.activation_boundary(-side, t) == 4 * t[0].numel()


def test_a_constant_difference_has_the_same_hierarchical_context_at_every_size():
    levels = [draw(2, 3, side, side) for side in (8, 3, 1)]
    assert float(losses.hierarchical_context([x + 2 for x in levels], levels)) == pytest.approx(4 * 3)


def test_neuron_selectivity_of_dead_channels_counts_them_as_points_at_zero():
    s, t = draw(2, 3, 4, 4), draw(2, 2, 4, 4, seed=1)
    s[:, 0] = 0
    expected = by_hand.neuron_selectivity(*map(numbers, (s, t)))
    assert float(losses.neuron_selectivity(s, t)) == pytest.approx(expected, rel=1e-10)


# ---- between images


def test_images_at_the_same_place_have_no_angle():
    s, t = draw(5, 3), draw(5, 4, seed=1)
    s[3] = s[1]
    assert float(losses.relational(s, t)) == pytest.approx(by_hand.relational(*map(numbers, (s, t))))


def test_relations_ignore_turn_and_scale_and_relational_also_position():
    s, t = draw(6, 4), draw(6, 5, seed=1)
    turn = torch.linalg.qr(draw(4, 4, seed=2)).Q
    close(losses.relational(3 * s @ turn + 7, t), losses.relational(s, t))
    assert float(losses.relational(3 * t[:, [3, 1, 0, 2, 4]] - 7, t)) < 1e-12
    close(
        losses.probabilistic_transfer(3 * s @ turn, t),
        losses.probabilistic_transfer(s, t),
        rtol=1e-5,
        atol=0,
    )


def test_probabilistic_transfer_survives_cosines_that_rounding_takes_below_minus_one():
    # 254^-½ lies just above the middle between two bfloat16 numbers, so every entry is rounded up and the
    # cosine is −1.0078.
    student = (torch.ones(6, 254) * torch.tensor([1.0, -1, 1, -1, 1, -1])[:, None]).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses.probabilistic_transfer(student, draw(6, 8, seed=1).float())
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_contrast_in_the_batch_falls_with_alignment():
    teacher = torch.eye(4).double()
    assert float(losses.contrastive_in_batch(3 * teacher, teacher, 0.07)) < 1e-5
    wrong, none = teacher.roll(1, 0), torch.ones(4, 4).double()
    assert float(losses.contrastive_in_batch(wrong, teacher, 0.07)) == pytest.approx(1 / 0.07, rel=1e-3)
    assert float(losses.contrastive_in_batch(none, teacher, 0.07)) == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    ("loss", "options"), [("correlation_congruence", ()), ("contrastive_in_batch", (0.5,))]
)
def test_gradients_reach_the_embedding_of_a_teacher_that_is_trained(loss, options):
    teacher = draw(3, 4, seed=1).requires_grad_()
    getattr(losses, loss)(draw(3, 4), teacher, *options).backward()
    assert teacher.grad.norm(dim=1).min() > 0


def memory_scores(batch, drawn, images):
    """Own scores, drawn scores, and which of the drawn count: some of every row, not the same number."""
    scores, counted = draw(batch, drawn + 1).exp() / images, draw(batch, drawn, seed=1) > -0.5
    counted[:, 0] = True
    return scores[:, 0], scores[:, 1:], counted, images


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("drawn", "images"), [(1, 2), (5, 9), (40, 50000)])
def test_contrastive_memory_equals_its_definition(drawn, images, batch):
    case = memory_scores(batch, drawn, images)
    expected = by_hand.contrastive_memory(*map(numbers, case))
    assert float(losses.contrastive_memory(*case)) == pytest.approx(expected, rel=1e-10)


def test_contrastive_memory_of_the_published_size_is_exact_in_single_precision():
    own, others, *rest = memory_scores(2, 16884, 50000)
    single = losses.contrastive_memory(own.float(), others.float(), *rest)
    assert float(single) == pytest.approx(float(losses.contrastive_memory(own, others, *rest)), rel=1e-6)


def test_contrastive_memory_wants_a_high_own_score_and_low_others_and_ignores_what_does_not_count():
    own, others, counted, images = memory_scores(3, 6, 100)
    scores = own.requires_grad_(), others.requires_grad_()
    losses.contrastive_memory(*scores, counted, images).backward()
    assert (own.grad < 0).all()
    assert (others.grad[counted] > 0).all()
    assert (others.grad[~counted] == 0).all()
    assert torch.autograd.gradcheck(lambda a, b: losses.contrastive_memory(a, b, counted, images), scores)


# ---- memory


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "largest"),
    [
        # Neither 64² channel pairs nor 256² pixel pairs.
        ("neuron_selectivity", (1, 64, 2, 2), (1, 64, 2, 2), 64 * 4),
        ("neuron_selectivity", (1, 4, 16, 16), (1, 4, 16, 16), 4 * 256),
        # The published batch: differences of pairs, not the [64, 64, 64, 512] of all triples.
        ("relational", (64, 512), (64, 256), 64 * 64 * 512),
    ],
)
def test_nothing_larger_is_kept_for_the_gradient(loss, student, teacher, largest):
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        getattr(losses, loss)(draw(*student).requires_grad_(), draw(*teacher, seed=1))
    assert max(sizes) == largest
