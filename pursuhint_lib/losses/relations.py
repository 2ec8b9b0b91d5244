"""Losses on how the images of a batch relate to each other, and contrastive ones: embeddings [B, D], one row
an image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import require_same_shape, require_two_images, unit


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the batch's normalised Gram matrices, ‖G_t − G_s‖²_F / B².

    **Arguments:** [B, …] each; everything but the batch is flattened, so shapes may differ.

    **Returns:** scalar. Tung & Mori, "Similarity-Preserving Knowledge Distillation" (2019), eq. 4.
    """

    def gram(x: Tensor) -> Tensor:
        x = x.flatten(1)
        return unit(x @ x.T)

    return (gram(teacher) - gram(student)).square().mean()


def correlation_congruence(student: Tensor, teacher: Tensor) -> Tensor:
    """CC: differences from the teacher, penalised where one image shares them with the next.

    With d = |s − t| per entry, the mean over i = 1 … B − 1 of Σ_k d_ik d_(i+1)k. This is what the benchmark's
    code computes under the name; the paper compares the Gram matrices of both sides under a kernel.

    **Arguments:** embeddings [B, D] each, B ≥ 2.

    **Returns:** scalar. Peng et al., "Correlation Congruence for Knowledge Distillation" (2019), as in
    RepDistiller.

    **Raises:** ``ValueError`` for one image or unequal shapes.
    """
    require_same_shape(student, teacher)
    require_two_images(student)
    difference = (student - teacher).abs()
    return (difference[:-1] * difference[1:]).sum(1).mean()


def relational(
    student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> Tensor:
    """RKD: distances between pairs of images, and angles in triples of them, as the teacher's.

    Distances are divided by their mean over pairs of different images. The angle at image i between j and k
    is the product of the unit vectors from i to j and from i to k. Both are compared by the mean Huber loss
    (quadratic below 1), over all B² pairs and B³ triples. Images at the same place have distance 1e-6 and no
    direction; no gradient passes between them.

    **Arguments:** embeddings [B, D], D may differ between the two, B ≥ 2; the two weights.

    **Returns:** scalar. Park et al., "Relational Knowledge Distillation" (2019). Memory: tensors of B²·D and
    of B³ entries.

    **Raises:** ``ValueError`` for one image.
    """
    require_two_images(student)
    (student_distances, student_angles), (teacher_distances, teacher_angles) = (
        _geometry(student),
        _geometry(teacher),
    )
    distance = F.smooth_l1_loss(student_distances, teacher_distances)
    return distance_weight * distance + angle_weight * F.smooth_l1_loss(student_angles, teacher_angles)


def _geometry(x: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised distances [B, B] and cosines of angles [B, B, B] between the rows of [B, D]; the first index
    is the corner.
    """
    # By differences rather than by products of the rows: those cancel where the images are close to each
    # other.
    difference = x[None, :, :] - x[:, None, :]
    squared = difference.square().sum(2)
    length = squared.clamp_min(1e-12).sqrt()
    direction = difference / length.masked_fill(squared <= 1e-12, math.inf)[:, :, None]
    distance = length.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0.0)
    return distance * (len(x) * (len(x) - 1) / distance.sum()), direction @ direction.mT


def probabilistic_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """PKT: the chance that one image is taken for a neighbour of another, from their cosine, as the
    teacher's.

    P = (cosine + 1) / 2, rows (the diagonal included) divided by their sum; the loss is the mean over all B²
    entries of P_t log((P_t + 1e-7) / (P_s + 1e-7)). Lengths have 1e-7 added.

    **Arguments:** embeddings [B, D], D may differ between the two, B ≥ 2.

    **Returns:** scalar. Passalis & Tefas, "Learning Deep Representations with Probabilistic Knowledge
    Transfer" (2018).

    **Raises:** ``ValueError`` for one image.
    """
    require_two_images(student)

    def neighbours(x: Tensor) -> Tensor:
        x = unit(x, plus=1e-7)
        # Rounding can take a cosine a little below −1.
        closeness = ((x @ x.T + 1) / 2).clamp_min(0)
        return closeness / closeness.sum(1, keepdim=True)

    student, teacher = neighbours(student), neighbours(teacher)
    return (teacher * ((teacher + 1e-7) / (student + 1e-7)).log()).mean()


def contrastive_in_batch(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Contrast within the batch: from a student's embedding pick the teacher's of the same image among all B,
    and the reverse.

    Mean of the two cross-entropies of cosine / temperature [B, B], along rows and along columns, with the
    diagonal as targets (InfoNCE in both directions). The aim is CRD's; the negatives are the other images of
    the batch, whatever their class, instead of thousands from a memory, for which see ``contrastive_memory``.

    **Arguments:** embeddings [B, D] each, B ≥ 2, made unit length here; ``temperature`` > 0.

    **Returns:** scalar ≥ 0. After Tian et al., "Contrastive Representation Distillation" (2020); in-batch
    negatives as in van den Oord et al., "Representation Learning with Contrastive Predictive Coding" (2018).

    **Raises:** ``ValueError`` for one image or unequal shapes.
    """
    require_same_shape(student, teacher)
    require_two_images(student)
    scores = unit(student) @ unit(teacher).T / temperature
    same = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, same) + F.cross_entropy(scores.T, same)) / 2


def contrastive_memory(own: Tensor, others: Tensor, counted: Tensor, images: int) -> Tensor:
    """CRD's loss for one side: tell an image's own entry of the memory from K drawn ones, by noise
    contrastive estimation.

    −(1/B) Σ_b [log(o_0 / (o_0 + m P + ε)) + Σ_k log(m P / (o_k + m P + ε))], with m = K, P = 1 / ``images``,
    ε = 1e-7. The whole of CRD is this for the student's embedding against the teacher's memory, plus this for
    the reverse.

    **Arguments:** positive scores, exp(cosine / temperature) over the frozen constant Z: ``own`` [B] with the
    image's own entry and ``others`` [B, M] with drawn ones, of which those ``counted`` [B, M] (true or false)
    are its K negatives; ``images`` in the memory.

    **Returns:** scalar. Tian et al., "Contrastive Representation Distillation" (2020), as in the authors'
    code.
    """
    noise = counted.sum(1, dtype=own.dtype) / images
    # log1p, as a negative's score is small against the noise: each of thousands of terms is a logarithm of
    # nearly 1.
    negatives = torch.where(counted, torch.log1p((others + 1e-7) / noise[:, None]), 0.0)
    return (torch.log((own + noise + 1e-7) / own) + negatives.sum(1)).mean()
