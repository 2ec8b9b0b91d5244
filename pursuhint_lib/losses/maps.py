"""Losses on feature maps [B, C, H, W]."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import require_same_shape, unit


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two tensors of the same shape (the student's after its regressor).

    **Arguments:** [B, C, H, W] each.

    **Returns:** scalar. Romero et al., "FitNets" (2015), eq. 3.
    """
    return F.mse_loss(student, teacher)


def match_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps [B, C, H, W] to the spatial size of the smaller."""
    size = tuple(min(x, y) for x, y in zip(a.shape[2:], b.shape[2:], strict=True))
    return _pool(a, size), _pool(b, size)


def _pool(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Average-pool to a size; where it divides the map's, by the plain pooling, which is several times faster
    and gives the same.
    """
    if maps.shape[2:] == size:
        return maps
    if any(have % want for have, want in zip(maps.shape[2:], size, strict=True)):
        return F.adaptive_avg_pool2d(maps, size)
    return F.avg_pool2d(maps, tuple(have // want for have, want in zip(maps.shape[2:], size, strict=True)))


class _MeanSquare(torch.autograd.Function):
    """Mean over channels of the squares: [B, C, H, W] → [B, H, W], with one pass over the map forward and one
    back.

    (The derivative of ``x.square().mean(1)`` takes four passes over tensors of the map's size, which is most
    of the time of AT.)
    """

    @staticmethod
    def forward(context, maps: Tensor) -> Tensor:
        context.save_for_backward(maps)
        return torch.linalg.vector_norm(maps, dim=1).square() / maps.shape[1]

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        (maps,) = context.saved_tensors
        return maps * (gradient * (2 / maps.shape[1]))[:, None]


def attention_map(features: Tensor) -> Tensor:
    """Where a layer is active: mean over channels of the squares, unit length per image. [B, C, H, W] → [B,
    H·W].
    """
    return F.normalize(_MeanSquare.apply(features).flatten(1), dim=1)


def attention_transfer(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of attention maps, summed over the K hint layers.

    **Arguments:** K maps [B, C, H, W] of each side; channels may differ, sizes follow ``match_size``.

    **Returns:** scalar. Zagoruyko & Komodakis, "Paying More Attention to Attention" (2017), eq. 2.
    """
    pairs = [match_size(s, t) for s, t in zip(student_maps, teacher_maps, strict=True)]
    return sum((attention_map(s) - attention_map(t)).square().mean() for s, t in pairs)


def factor_transfer(student_factor: Tensor, teacher_factor: Tensor) -> Tensor:
    """FT: mean absolute difference of the attention maps of two factors, mean |q(s) − q(t)| with q
    ``attention_map``.

    **Arguments:** maps [B, C, H, W], the student's from its translator, the teacher's from its paraphraser;
    channels may differ, sizes follow ``match_size``.

    **Returns:** scalar. Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer"
    (2018), as in RepDistiller: the paper normalises the factors themselves.
    """
    student, teacher = match_size(student_factor, teacher_factor)
    return (attention_map(student) - attention_map(teacher)).abs().mean()


def variational_information(mean: Tensor, variance: Tensor, teacher: Tensor) -> Tensor:
    """Negative log-likelihood of the teacher's map under a Gaussian, up to a constant: ½ ((μ − t)²/v + log
    v).

    **Arguments:** ``mean`` [B, C, H, W] predicted from the student; ``variance`` [C], positive;
    ``teacher`` [B, C, H, W].

    **Returns:** scalar, mean over all entries. Ahn et al., "Variational Information Distillation" (2019), eq.
    5.
    """
    variance = variance[:, None, None]
    return 0.5 * ((mean - teacher).square() / variance + torch.log(variance)).mean()


def neuron_selectivity(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """NST: where channels are active, as a set of directions: squared maximum mean discrepancy under the
    kernel k(x, y) = (x · y)².

    Each channel's map, flattened to unit length, is a point: mean k(t, t) + mean k(s, s) − 2 mean k(s, t)
    over pairs of channels, mean over the batch. With the channels as rows of X [C, HW], Σ (x · y)² over all
    pairs is ‖X Yᵀ‖²_F = tr(YᵀY XᵀX) = ⟨XᵀX, YᵀY⟩_F. So the whole is ‖XᵀX / C_s − YᵀY / C_t‖²_F, from one HW ×
    HW matrix of each side, or three sums of squares of C × C matrices: whichever takes fewer products.

    **Arguments:** maps [B, C, H, W]; channels may differ, sizes follow ``match_size``.

    **Returns:** scalar ≥ 0. Huang & Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity
    Transfer" (2017).
    """
    x, y = (unit(maps.flatten(2)) for maps in match_size(student_map, teacher_map))
    s, t, pixels = x.shape[1], y.shape[1], x.shape[2]
    if pixels * (s + t) < s * s + t * t + s * t:
        return (x.mT @ x / s - y.mT @ y / t).square().sum((1, 2)).mean()
    return (x @ x.mT).square().mean() + (y @ y.mT).square().mean() - 2 * (x @ y.mT).square().mean()


def activation_boundary(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """AB at one hint layer: the student's pre-activations on the teacher's side of zero, by a margin m.

    (1/B) Σ over entries of (s + m)² where t ≤ 0 and s > −m, (s − m)² where t > 0 and s ≤ m, and 0 elsewhere.
    The published total over n points is the caller's: 3/1000 · Σ_i 2^(i − n + 1) times this for i = 0 … n −
    1, so that the last point counts in full and each earlier one half of the next.

    **Arguments:** maps before their ReLU [B, C, H, W] of the same shape (the student's after its connector);
    ``margin`` m ≥ 0.

    **Returns:** scalar. Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by
    Hidden Neurons" (2019).

    **Raises:** ``ValueError`` for unequal shapes.
    """
    require_same_shape(student, teacher)
    # How far a student's entry is from the wanted side, for either sign.
    shortfall = F.relu(margin - torch.where(teacher > 0, student, -student))
    return shortfall.square().sum() / len(student)


def flow_of_solution(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """FSP: how channels of one hint layer go with those of the next, as the teacher's.

    Of consecutive maps a, b of one network, matched by ``match_size``: M = (1/HW) Σ_xy a_xy b_xyᵀ [C_a, C_b].
    Mean squared difference of the two networks' M, summed over the K − 1 pairs.

    **Arguments:** K ≥ 2 maps [B, C, H, W] of each side, C equal at each point; H and W may differ.

    **Returns:** scalar. Yim et al., "A Gift from Knowledge Distillation" (2017), eqs. 1–2.

    **Raises:** ``ValueError`` for fewer than two points or unequal channels.
    """
    channels = [[maps.shape[1] for maps in side] for side in (student_maps, teacher_maps)]
    if channels[0] != channels[1]:
        raise ValueError(
            "FSP needs as many channels in the student as in the teacher at every hint layer: got "
            f"{channels[0]} and {channels[1]}"
        )
    if len(student_maps) < 2:
        raise ValueError(f"FSP needs at least 2 hint layers: got {len(student_maps)}")
    pairs = zip(pairwise(student_maps), pairwise(teacher_maps), strict=True)
    return sum((_flow(*student) - _flow(*teacher)).square().mean() for student, teacher in pairs)


def _flow(a: Tensor, b: Tensor) -> Tensor:
    """Channel products of two maps, mean over space: [B, C_a, C_b]."""
    a, b = (maps.flatten(2) for maps in match_size(a, b))
    return a @ b.mT / a.shape[2]


def hierarchical_context(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """ReviewKD's loss: mean squared difference of maps at full size and pooled to 4×4, 2×2 and 1×1, summed
    over the levels.

    Per level the weighted mean of those errors with weight 1 for the full size, then half of the one before
    for each pooled size (those not smaller than the map are left out).

    **Arguments:** maps [B, C, H, W] of the same shape at each level.

    **Returns:** scalar. Chen et al., "Distilling Knowledge via Knowledge Review" (2021), as in the authors'
    code.

    **Raises:** ``ValueError`` for unequal shapes.
    """
    total = 0.0
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        require_same_shape(student, teacher)
        # Pooling is linear, so the difference is pooled once instead of both maps.
        difference = student - teacher
        errors = [difference.square().mean()]
        errors += [
            F.adaptive_avg_pool2d(difference, size).square().mean()
            for size in (4, 2, 1)
            if size < min(difference.shape[2:])
        ]
        weights = [0.5**i for i in range(len(errors))]
        total = total + sum(weight * error for weight, error in zip(weights, errors, strict=True)) / sum(
            weights
        )
    return total
