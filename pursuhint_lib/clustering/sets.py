"""Sets of sub-blocks that need no features: the controls that a clever choice has to beat."""

import math

import numpy as np


def segment_middles(layers: int, k: int) -> tuple[int, ...]:
    """Middle sub-block of each of k equal depth segments: where the paper's k-means ends, or nearly, when the
    metric tells depth only.

    **Returns:** k ascending 0-based indices, 1 ≤ k ≤ ``layers``; segment j of [0, layers) is [j·layers/k,
    (j+1)·layers/k), and of two middles the earlier one is taken, as the paper's rule does.
    """
    if not 1 <= k <= layers:
        raise ValueError(
            f"k is {k}; {layers} sub-blocks have 1 to {layers} segments, so give k between these"
        )
    return tuple(((2 * j + 1) * layers - 1) // (2 * k) for j in range(k))


def random_points(layers: int, k: int, draws: int, *, seed: int = 0) -> list[tuple[int, ...]]:
    """``draws`` different random sets of k sub-blocks, each ascending.

    Draw i does not depend on how many draws are asked for.

    **Raises:** ``ValueError`` if there are fewer than ``draws`` different sets.
    """
    if (sets := math.comb(layers, k)) < draws:
        raise ValueError(
            f"only {sets} different sets of {k} among {layers} sub-blocks; {draws} random arms were asked "
            "for; give fewer or another k"
        )
    generator = np.random.default_rng(seed)
    found: list[tuple[int, ...]] = []
    while len(found) < draws:
        points = tuple(sorted(int(i) for i in generator.choice(layers, size=k, replace=False)))
        if points not in found:
            found.append(points)
    return found
