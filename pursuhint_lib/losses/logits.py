"""Losses on logits [B, classes]."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import centred, require_two_images


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation, T² · KL(teacher ‖ student) at temperature T, mean over the batch.

    **Arguments:** logits [B, classes]; ``temperature`` T > 0.

    **Returns:** scalar. Hinton et al., "Distilling the Knowledge in a Neural Network" (2015).
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def weighted_soft_labels(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, temperature: float
) -> Tensor:
    """WSL: soft cross-entropy at temperature T, weighted per image by how much worse than the teacher the
    student does.

    T² · mean over b of w_b · Σ_c −p_t log p_s, with w = 1 − exp(−CE_s / (CE_t + 1e-7)) from the
    cross-entropies with the labels at T = 1. The weights are constants: no gradient passes through them.

    **Arguments:** logits [B, classes]; ``target`` [B] class indices; ``temperature`` T > 0.

    **Returns:** scalar. Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance
    Tradeoff Perspective" (2021).
    """
    with torch.no_grad():
        student_error, teacher_error = (
            F.cross_entropy(z, target, reduction="none") for z in (student_logits, teacher_logits)
        )
        weight = -torch.expm1(-student_error / (teacher_error + 1e-7))
    soft = F.softmax(teacher_logits / temperature, dim=1)
    cross_entropy = -(soft * F.log_softmax(student_logits / temperature, dim=1)).sum(1)
    return temperature**2 * (weight * cross_entropy).mean()


def decoupled_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
) -> Tensor:
    """DKD: α · KD of the label against all the rest, plus β · KD among the rest.

    Both parts are T² · KL, mean over the batch: the first of the two-way split (p_y, 1 − p_y), the second of
    the softmax over the classes other than the label. (The authors' code keeps the label's logit and
    subtracts 1000 from it; here it is left out.) Their factor min(epoch / 20, 1) is the caller's.

    **Arguments:** logits [B, classes]; ``target`` [B] class indices; weights ``alpha``, ``beta``;
    ``temperature`` T > 0.

    **Returns:** scalar. Zhao et al., "Decoupled Knowledge Distillation" (2022).
    """
    # Indices of the other classes, [B, classes − 1]: those from the label on move up by one.
    others = torch.arange(student_logits.shape[1] - 1, device=target.device).repeat(len(target), 1)
    others = others + (others >= target[:, None])

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        rest = logits.gather(1, others)
        # The one logit that stands for all the rest at this temperature.
        merged = temperature * torch.logsumexp(rest / temperature, dim=1, keepdim=True)
        return torch.cat([logits.gather(1, target[:, None]), merged], dim=1), rest

    (student_pair, student_rest), (teacher_pair, teacher_rest) = split(student_logits), split(teacher_logits)
    return alpha * kd(student_pair, teacher_pair, temperature) + beta * kd(
        student_rest, teacher_rest, temperature
    )


def dist(
    student_logits: Tensor, teacher_logits: Tensor, beta: float, gamma: float, temperature: float
) -> Tensor:
    """DIST: class probabilities that correlate with the teacher's, T² · (β · inter + γ · intra).

    ``inter`` is 1 − the mean over images of the correlation between the two rows of softmax(z / T); ``intra``
    is 1 − the mean over classes of the correlation between the two columns. As in the authors' code the
    correlation has 1e-8 in its denominator; where a row or column is constant it is 0, with zero gradient.

    **Arguments:** logits [B, classes], B ≥ 2; weights ``beta``, ``gamma``; ``temperature`` T > 0.

    **Returns:** scalar. Huang et al., "Knowledge Distillation from A Stronger Teacher" (2022).

    **Raises:** ``ValueError`` for a batch of one image, whose columns have no correlation.
    """
    require_two_images(student_logits)
    student, teacher = (F.softmax(z / temperature, dim=1) for z in (student_logits, teacher_logits))
    inter, intra = 1 - _correlation(student, teacher).mean(), 1 - _correlation(student.T, teacher.T).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of the rows of two matrices [N, M] → [N, 1]."""
    (a, length_a, constant_a), (b, length_b, constant_b) = centred(a), centred(b)
    lengths = (length_a * length_b + 1e-8).masked_fill(constant_a | constant_b, math.inf)
    return (a * b).sum(1, keepdim=True) / lengths


def standardised_kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KD of z-scores: each image's logits minus their mean, over their standard deviation (unbiased) + 1e-7;
    then ``kd``, T² included.

    The student need not match the scale of the teacher's logits. Constant logits become zeros, with zero
    gradient.

    **Arguments:** logits [B, classes]; ``temperature`` T > 0.

    **Returns:** scalar. Sun et al., "Logit Standardization in Knowledge Distillation" (2024).
    """

    def score(logits: Tensor) -> Tensor:
        difference, length, constant = centred(logits)
        deviation = length / math.sqrt(logits.shape[1] - 1)
        return difference / (deviation + 1e-7).masked_fill(constant, math.inf)

    return kd(score(student_logits), score(teacher_logits), temperature)
