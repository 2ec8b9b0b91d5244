"""A similarity of the user's own: a function of the features of two layers, called for every pair."""

from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from ..settings import SettingsError
from ..settings.user_code import load, own_code
from .moments import Layers

# By how much a similarity may miss what it must be: features are single precision, and so may be its
# arithmetic.
TOLERANCE = 1e-5


def own_function(metric: str) -> Callable[[Tensor, Tensor], Tensor | float]:
    """The function that an import path names.

    **Raises:** ``SettingsError`` where there is none.
    """
    return load(
        "metric",
        metric,
        lambda found: callable(found) and not isinstance(found, type),
        "a function of the features of two layers",
    )


def own_matrix(metric: str, layers: Layers) -> Tensor:
    """Similarity of every layer with every layer, float64 [L, L], symmetric.

    The function gets the features of two layers, float64 [N, Cx] and [N, Cy], row i the same image in both,
    and gives a number from -1 to 1: 1 for a layer with itself, and the same whichever comes first. The latter
    is looked at for neighbouring layers.

    **Raises:** ``SettingsError`` naming the layers for which it fails, or gives anything else.
    """
    compare, count = own_function(metric), len(layers.features)

    def value(i: int, j: int) -> float:
        pair = f"metric {metric}: {layers.labels[i]} with {layers.labels[j] if i != j else 'itself'}"
        with own_code(metric):
            # Copies, so that it may change what it is given.
            found = compare(*(layers.features[layer].to(torch.float64, copy=True) for layer in (i, j)))
        if isinstance(found, Tensor) and found.ndim == 0 and not found.is_complex():
            found = found.item()
        if not isinstance(found, Real):
            shape = f" of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""
            raise SettingsError(
                f"{pair} gives {type(found).__name__}{shape}; it must give a number, or a tensor without "
                "dimensions"
            )
        # What is no number compares false.
        if not (1 if i == j else -1) - TOLERANCE <= found <= 1 + TOLERANCE:
            raise SettingsError(
                f"{pair} gives {found:g}; a similarity must be a number from -1 to 1, and 1 for a layer with "
                "itself"
            )
        return float(found)

    matrix = torch.zeros(count, count, dtype=torch.float64)
    for i in range(count):
        for j in range(i, count):
            matrix[i, j] = matrix[j, i] = value(i, j)
    for i in range(1, count):
        there, back = float(matrix[i - 1, i]), value(i, i - 1)
        if abs(there - back) > TOLERANCE:
            raise SettingsError(
                f"metric {metric}: {layers.labels[i - 1]} with {layers.labels[i]} gives {there:g} one way "
                f"and {back:g} the other; a similarity must be symmetric"
            )
    return matrix
