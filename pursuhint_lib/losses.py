"""Distillation losses: one short pure function per published loss.

``B`` batch, ``C`` channels, ``H``×``W`` space, ``K`` hint points. Teacher tensors come detached.
Losses that work on maps of unequal size share one rule: the larger map is average-pooled to the
smaller (``match_size``).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation, T² · KL(teacher ‖ student) at temperature T, mean over the batch.

    **Arguments:** logits [B, classes]; ``temperature`` T > 0.

    **Returns:** scalar. Hinton et al., "Distilling the Knowledge in a Neural Network" (2015).
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two tensors of the same shape (the student's after its regressor).

    **Arguments:** [B, C, H, W] each.

    **Returns:** scalar. Romero et al., "FitNets" (2015), eq. 3.
    """
    return F.mse_loss(student, teacher)


def match_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps [B, C, H, W] to the spatial size of the smaller."""
    if a.shape[2:] == b.shape[2:]:
        return a, b
    size = tuple(min(x, y) for x, y in zip(a.shape[2:], b.shape[2:], strict=True))
    return F.adaptive_avg_pool2d(a, size), F.adaptive_avg_pool2d(b, size)


def attention_map(features: Tensor) -> Tensor:
    """Where a layer is active: mean over channels of the squares, unit length per image. [B, C, H, W] → [B, H·W]."""
    return F.normalize(features.square().mean(1).flatten(1), dim=1)


def attention_transfer(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of attention maps, summed over the K hint points.

    **Arguments:** K maps [B, C, H, W] of each side; channels may differ, sizes follow ``match_size``.

    **Returns:** scalar. Zagoruyko & Komodakis, "Paying More Attention to Attention" (2017), eq. 2.
    """
    pairs = [match_size(s, t) for s, t in zip(student_maps, teacher_maps, strict=True)]
    return sum((attention_map(s) - attention_map(t)).square().mean() for s, t in pairs)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the batch's normalised Gram matrices, ‖G_t − G_s‖²_F / B².

    **Arguments:** [B, …] each; everything but the batch is flattened, so shapes may differ.

    **Returns:** scalar. Tung & Mori, "Similarity-Preserving Knowledge Distillation" (2019), eq. 4.
    """

    def gram(x: Tensor) -> Tensor:
        x = x.flatten(1)
        return F.normalize(x @ x.T, dim=1)

    return (gram(teacher) - gram(student)).square().mean()


def variational_information(mean: Tensor, variance: Tensor, teacher: Tensor) -> Tensor:
    """Negative log-likelihood of the teacher's map under a Gaussian, up to a constant: ½ ((μ − t)²/v + log v).

    **Arguments:** ``mean`` [B, C, H, W] predicted from the student; ``variance`` [C], positive;
    ``teacher`` [B, C, H, W].

    **Returns:** scalar, mean over all entries. Ahn et al., "Variational Information Distillation" (2019), eq. 5.
    """
    variance = variance[:, None, None]
    return 0.5 * ((mean - teacher).square() / variance + torch.log(variance)).mean()
