"""What several losses ask of their input, and divisions that stay finite where a vector has no direction."""

import math

import torch
from torch import Tensor


def require_two_images(x: Tensor) -> None:
    """Refuse a batch of one: the loss compares the images of a batch.

    **Raises:** ``ValueError``.
    """
    if len(x) < 2:
        raise ValueError(
            "this loss compares the images of a batch with each other, so it needs at least 2 of them: got "
            f"{len(x)}"
        )


def require_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Refuse tensors that would be broadcast silently.

    **Raises:** ``ValueError``.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"this loss compares tensors of the same shape: the student's is {[*student.shape]}, the "
            f"teacher's {[*teacher.shape]}"
        )


def unit(x: Tensor, plus: float = 0.0) -> Tensor:
    """Vectors of the last dimension over their length (+ ``plus``). A zero vector has no direction: it stays
    zero, with zero gradient.

    (``F.normalize`` has the same values, but multiplies the gradient of a zero vector by 1e12.)
    """
    length = x.norm(dim=-1, keepdim=True)
    return x / (length + plus).masked_fill(length <= 1e-12, math.inf)


def centred(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors of the last dimension minus their mean; the length of that; whether it is nothing but rounding
    (a constant vector).
    """
    difference = x - x.mean(-1, keepdim=True)
    length = difference.norm(dim=-1, keepdim=True)
    return difference, length, length <= 16 * torch.finfo(x.dtype).eps * x.norm(dim=-1, keepdim=True)
