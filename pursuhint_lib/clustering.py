"""From a similarity matrix to hint points, and the controls that a clever choice has to beat.

A similarity matrix is float [L, L]; hint points are 0-based sub-block indices in depth order.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

# The paper's k-means stops after so many rounds if its centres never settle.
MAX_ROUNDS = 80
# Up to so many sets of medoids are simply all tried (54 sub-blocks: K ≤ 4).
MAX_SETS = 500_000


@dataclass(frozen=True)
class HintPoints:
    """Chosen sub-blocks of a teacher.

    **Arguments:**

    - ``indices``: K sub-block indices, 0-based, ascending.
    - ``labels``: for each of the L sub-blocks, which hint point (0 … K−1) it belongs to.
    - ``algorithm``: name in ``ALGORITHMS``.
    - ``objective``: sum over sub-blocks of 1 − similarity to their hint point; smaller is tighter.
    - ``converged``, ``iterations``: whether and after how many rounds the algorithm settled.
    """

    indices: tuple[int, ...]
    labels: tuple[int, ...]
    algorithm: str
    objective: float
    converged: bool
    iterations: int


def choose_hint_points(similarity: Tensor | np.ndarray, k: int, algorithm: str = "kmeans-index", *, seed: int = 0) -> HintPoints:
    """Cluster the sub-blocks and return the cluster centres.

    **Arguments:** ``similarity`` [L, L]; ``k`` number of points, 1 ≤ k ≤ L; ``algorithm`` a name in
    ``ALGORITHMS``; ``seed`` of the starts, for algorithms that have random ones.

    **Returns:** ``HintPoints``.

    **Raises:** ``ValueError`` for a matrix that is not square or not finite, or k out of range; ``KeyError``
    for an unknown algorithm.
    """
    similarity = np.asarray(similarity, dtype=np.float64)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"a similarity matrix is square; this one has shape {similarity.shape}")
    if not np.isfinite(similarity).all():
        row = int((~np.isfinite(similarity)).sum(1).argmax())
        raise ValueError(f"the similarity matrix holds NaN or infinity in the row of sub-block {row + 1}")
    if not 1 <= k <= len(similarity):
        raise ValueError(f"k is {k}; this teacher has {len(similarity)} sub-blocks, so give k between 1 and {len(similarity)}")
    centres, converged, iterations = ALGORITHMS[algorithm](similarity, k, seed)
    centres = sorted(centres)
    labels = _assign(similarity, centres)
    objective = float(sum(1 - similarity[layer, centres[label]] for layer, label in enumerate(labels)))
    return HintPoints(tuple(centres), tuple(labels), algorithm, objective, converged, iterations)


def _assign(similarity: np.ndarray, centres: Sequence[int]) -> list[int]:
    """Most similar centre of each layer [L]; ties go to the earlier one."""
    return [int(label) for label in np.argmin(1 - similarity[:, list(centres)], axis=1)]


def _kmeans_index(similarity: np.ndarray, k: int, _seed: int) -> tuple[list[int], bool, int]:
    """The paper's k-means (rule of the public capsule's k_means.py).

    Centres start evenly in depth. Each round assigns every layer to its most similar centre and moves
    each centre to the member whose index is nearest to the members' mean index, rounded down; an
    empty cluster keeps its centre. The metric draws the borders, the index picks the layer.
    """
    layers = len(similarity)
    centres = [j * (layers - 1) // (k - 1) for j in range(k)] if k > 1 else [0]
    for iteration in range(1, MAX_ROUNDS + 1):
        labels = np.array(_assign(similarity, centres))
        moved = []
        for label, centre in enumerate(centres):
            members = np.flatnonzero(labels == label)
            target = int(members.mean()) if len(members) else centre
            moved.append(int(min(members, key=lambda m: (abs(m - target), m))) if len(members) else centre)
        if moved == centres:
            return centres, True, iteration
        centres = moved
    return centres, False, MAX_ROUNDS


def _kmedoids(similarity: np.ndarray, k: int, seed: int) -> tuple[list[int], bool, int]:
    """Centres that minimise the sum of 1 − similarity: exact where all sets can be tried, else the best of 20 descents."""
    distance = 1 - similarity
    if math.comb(len(distance), k) <= MAX_SETS:
        sets = np.array(list(itertools.combinations(range(len(distance)), k)))
        costs = np.zeros(len(sets))
        for row in distance:
            costs += row[sets].min(axis=1)
        return [int(i) for i in sets[np.argmin(costs)]], True, 1
    generator = np.random.default_rng(seed)
    starts = [generator.choice(len(distance), size=k, replace=False).tolist() for _ in range(20)]
    descents = [_swap_descent(distance, start) for start in starts]
    _, centres, iterations = min(descents, key=lambda d: (d[0], sorted(d[1])))
    return centres, True, iterations


def _swap_descent(distance: np.ndarray, centres: list[int]) -> tuple[float, list[int], int]:
    """Swap one medoid for one other layer, best swap first, until none helps (PAM's second phase)."""
    cost = distance[:, centres].min(axis=1).sum()
    for iteration in itertools.count(1):
        best = (cost, centres)
        for position in range(len(centres)):
            rest = distance[:, centres[:position] + centres[position + 1 :]].min(axis=1, initial=np.inf)
            costs = np.minimum(rest[:, None], distance).sum(axis=0)
            candidate = int(costs.argmin())
            if costs[candidate] < best[0] - 1e-12:
                best = (costs[candidate], [*centres[:position], candidate, *centres[position + 1 :]])
        if best[1] is centres:
            return float(cost), centres, iteration
        cost, centres = best


# Name → function (similarity, k, seed) → (centres, converged, iterations). A new selector is one entry.
ALGORITHMS: dict[str, Callable[[np.ndarray, int, int], tuple[list[int], bool, int]]] = {
    "kmeans-index": _kmeans_index,
    "kmedoids": _kmedoids,
}


def segment_middles(layers: int, k: int) -> tuple[int, ...]:
    """Middle sub-block of each of k equal depth segments: where the paper's k-means ends, or nearly, when the metric tells depth only.

    **Returns:** k ascending 0-based indices; segment j of [0, layers) is [j·layers/k, (j+1)·layers/k), and of two middles
    the earlier one is taken, as the paper's rule does.
    """
    return tuple(((2 * j + 1) * layers - 1) // (2 * k) for j in range(k))


def random_points(layers: int, k: int, draws: int, *, seed: int = 0) -> list[tuple[int, ...]]:
    """``draws`` different random sets of k sub-blocks, each ascending.

    Draw i does not depend on how many draws are asked for.

    **Raises:** ``ValueError`` if there are fewer than ``draws`` different sets.
    """
    if math.comb(layers, k) < draws:
        raise ValueError(f"only {math.comb(layers, k)} different sets of {k} among {layers} sub-blocks; {draws} random arms were asked for")
    generator = np.random.default_rng(seed)
    found: list[tuple[int, ...]] = []
    while len(found) < draws:
        points = tuple(sorted(int(i) for i in generator.choice(layers, size=k, replace=False)))
        if points not in found:
            found.append(points)
    return found
