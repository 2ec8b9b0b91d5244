"""From a similarity matrix to hint layers: the paper's k-means and other algorithms."""

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor

from ..settings import choose

# The paper's k-means stops after so many rounds if its centres never settle.
MAX_ROUNDS = 80


# Up to so many sets of medoids are simply all tried (54 sub-blocks: K ≤ 4).
MAX_SETS = 500_000


# HiGHS calls a set optimal that is within 1e-6 of the optimum; in these units that is 1e-12.
UNITS = 1e6


# Sums closer than this are ties, since rounding must not decide; either layer of a pair, for one, is its
# medoid.
TIE = 1e-9


@dataclass(frozen=True)
class HintPoints:
    """Chosen sub-blocks of a teacher.

    **Arguments:**

    - ``indices``: K sub-block indices, 0-based, ascending.
    - ``labels``: for each of the L sub-blocks, which hint layer (0 … K−1) it belongs to.
    - ``algorithm``: name in ``ALGORITHMS``.
    - ``objective``: sum over sub-blocks of 1 − similarity to their hint layer; smaller is tighter.
    - ``converged``, ``iterations``: whether the algorithm settled, and after how many rounds it did or gave
      up.
    - ``cycle``: the ascending sets of centres that a k-means was seen to go round in, from the first repeated
      one on.
    """

    indices: tuple[int, ...]
    labels: tuple[int, ...]
    algorithm: str
    objective: float
    converged: bool
    iterations: int
    cycle: tuple[tuple[int, ...], ...] = ()


class Clustering(NamedTuple):
    """What an algorithm returns; fields as in ``HintPoints``, whose ``indices`` are the ``centres``."""

    centres: tuple[int, ...]
    labels: tuple[int, ...]
    converged: bool = True
    iterations: int = 1
    cycle: tuple[tuple[int, ...], ...] = ()


class Round(NamedTuple):
    """One round of the paper's k-means: K centres in cluster order, and for each of the L sub-blocks its
    cluster.
    """

    centres: tuple[int, ...]
    labels: tuple[int, ...]


def kmeans_rounds(similarity: Tensor | np.ndarray, k: int) -> list[Round]:
    """The paper's k-means, round by round (rule of the public capsule's k_means.py).

    Centres start evenly in depth. Each round assigns every sub-block to its most similar centre and moves
    each centre to the member whose index is nearest to the members' mean index, rounded down; an empty
    cluster keeps its centre. The metric draws the borders, the index picks the sub-block.

    **Arguments:** ``similarity`` [L, L]; ``k`` number of points, 1 ≤ k ≤ L.

    **Returns:** rounds up to the fixed point or to the first whose centres were there before; at most
    ``MAX_ROUNDS`` + 1.

    **Raises:** ``ValueError`` as ``choose_hint_points`` does for the matrix and k.
    """
    similarity = checked(similarity, k)
    centres = tuple(j * (len(similarity) - 1) // max(1, k - 1) for j in range(k))
    rounds, visited = [], set()
    while len(rounds) <= MAX_ROUNDS:
        labels = _assign(similarity, centres)
        rounds.append(Round(centres, tuple(labels.tolist())))
        moved = _move(centres, labels)
        if moved == centres or centres in visited:
            break
        visited.add(centres)
        centres = moved
    return rounds


def checked(similarity: Tensor | np.ndarray, k: int) -> np.ndarray:
    """The matrix in float64, if it is a similarity matrix of at least k layers."""
    similarity = np.asarray(similarity, dtype=np.float64)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"a similarity matrix is square; this one has shape {similarity.shape}")
    if not np.isfinite(similarity).all():
        row = int((~np.isfinite(similarity)).sum(1).argmax())
        raise ValueError(f"the similarity matrix holds NaN or infinity in the row of sub-block {row + 1}")
    skew = np.abs(similarity - similarity.T)
    if (skew > 1e-8).any():
        row, column = np.unravel_index(skew.argmax(), skew.shape)
        raise ValueError(
            f"the similarity matrix is not symmetric in sub-blocks {row + 1} and {column + 1}; average it "
            "with its transpose"
        )
    error = np.abs(similarity.diagonal() - 1)
    if (error > 1e-6).any():
        worst = int(error.argmax())
        raise ValueError(
            f"sub-block {worst + 1} is {similarity[worst, worst]:g} like itself, not 1; give similarities "
            "scaled to 1, not distances"
        )
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= len(similarity):
        raise ValueError(
            f"k is {k!r}; this teacher has {len(similarity)} sub-blocks, so give k between 1 and "
            f"{len(similarity)}"
        )
    return similarity


def cluster(similarity: np.ndarray, k: int, algorithm: str, seed: int) -> HintPoints:
    """Run an algorithm; two centres may fall on one layer."""
    found = ALGORITHMS[choose("algorithm", algorithm, ALGORITHMS)](similarity, k, seed)
    objective = float(
        sum(1 - similarity[layer, found.centres[label]] for layer, label in enumerate(found.labels))
    )
    return HintPoints(found.centres, found.labels, algorithm, objective, *found[2:])


def _assign(similarity: np.ndarray, centres: Sequence[int]) -> np.ndarray:
    """Most similar centre of each layer [L]; ties go to the earlier one."""
    return np.argmin(1 - similarity[:, list(centres)], axis=1)


def _move(centres: tuple[int, ...], labels: np.ndarray) -> tuple[int, ...]:
    """Each cluster's member that is nearest to the mean index, rounded down; the earlier of two."""
    moved = list(centres)
    for label in set(labels.tolist()):
        members = np.flatnonzero(labels == label)
        moved[label] = int(members[np.abs(members - int(members.mean())).argmin()])
    return tuple(moved)


def least(costs: np.ndarray) -> np.ndarray:
    """Index of the first of the smallest along the first axis."""
    return (costs <= costs.min(axis=0) + TIE).argmax(axis=0)


def _around_centres(similarity: np.ndarray, centres: Sequence[int], *course) -> Clustering:
    """Clusters of given centres: every layer belongs to its most similar one. ``course``: further fields of
    ``Clustering``.
    """
    centres = tuple(sorted(centres))
    return Clustering(centres, tuple(_assign(similarity, centres).tolist()), *course)


def _around_medoids(similarity: np.ndarray, labels: np.ndarray) -> Clustering:
    """Given clusters [L], numbered by their medoids; of two equally central members the earlier is the
    medoid.
    """
    owner = np.empty(len(labels), dtype=int)
    for label in set(labels.tolist()):
        members = np.flatnonzero(labels == label)
        spread = (1 - similarity[np.ix_(members, members)]).sum(axis=0)
        owner[members] = members[least(spread)]
    centres, labels = np.unique(owner, return_inverse=True)
    return Clustering(tuple(centres.tolist()), tuple(labels.tolist()))


def _kmeans_index(similarity: np.ndarray, k: int, _seed: int) -> Clustering:
    """The paper's k-means: its fixed point, or where it is after ``MAX_ROUNDS``."""
    visited = [centres for centres, _ in kmeans_rounds(similarity, k)]
    cycle = tuple(tuple(sorted(centres)) for centres in visited[visited.index(visited[-1]) : -1])
    if cycle:
        # The last round is back at cycle[0]; the paper's walk goes round until its rounds are used up.
        return _around_centres(
            similarity, cycle[(MAX_ROUNDS + 1 - len(visited)) % len(cycle)], False, MAX_ROUNDS, cycle
        )
    return _around_centres(similarity, visited[-1], len(visited) <= MAX_ROUNDS, min(len(visited), MAX_ROUNDS))


def _kmeans_settled(similarity: np.ndarray, k: int, seed: int) -> Clustering:
    """The paper's k-means, but a cycle ends at the tightest of its sets, the lexicographically first of
    equals.
    """
    found = _kmeans_index(similarity, k, seed)
    if not found.cycle:
        return found
    sets = sorted(found.cycle)
    costs = (1 - similarity[:, sets]).min(axis=2).sum(axis=0)
    return _around_centres(similarity, sets[least(costs)], *found[2:])


def _kmedoids(similarity: np.ndarray, k: int, _seed: int) -> Clustering:
    """Centres that minimise the sum of 1 − similarity, exactly: all sets are tried, or an integer programme
    is solved.
    """
    if math.comb(len(similarity), k) > MAX_SETS:
        return _around_centres(similarity, _p_median(similarity, k))
    sets = np.array(list(itertools.combinations(range(len(similarity)), k)))
    costs = np.zeros(len(sets))
    for row in 1 - similarity:
        costs += row[sets].min(axis=1)
    return _around_centres(similarity, sets[least(costs)].tolist())


def _p_median(similarity: np.ndarray, k: int) -> tuple[int, ...]:
    """The k medoids of least total distance, by HiGHS; where several partitions are best, those of one of
    them.

    Unknowns: open[j] ∈ {0, 1}, then share[i, j] ∈ [0, 1] of layer i that belongs to j. k are open; the shares
    of a layer, only in open ones, add up to 1. Once the open ones are known, whole shares are best, so shares
    need not be declared integer.
    """
    layers = len(similarity)
    each, column = sparse.eye_array(layers), np.ones((layers, 1))
    whole = sparse.block_array([[column.T, None], [None, sparse.kron(each, column.T)]])
    only_open = sparse.hstack([sparse.kron(column, each), -sparse.eye_array(layers**2)])
    totals = np.append(k, np.ones(layers))
    result = milp(
        UNITS * np.append(np.zeros(layers), 1 - similarity),
        integrality=np.repeat([1, 0], [layers, layers**2]),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(whole, totals, totals), LinearConstraint(only_open, lb=0)],
        options={"mip_rel_gap": 0},
    )
    if result.status != 0:
        raise RuntimeError(f"no exact k-medoids: {result.message}")
    centres = np.flatnonzero(result.x[:layers] > 0.5)
    # Of two equal medoids take the earlier, as enumeration does; a centre stays with itself even if another
    # is exactly like it.
    labels = _assign(similarity, centres)
    labels[centres] = np.arange(k)
    return _around_medoids(similarity, labels).centres


def _segments(similarity: np.ndarray, k: int, _seed: int) -> Clustering:
    """The k contiguous segments of depth that are tightest around their medoids (dynamic programming over
    borders).
    """
    layers = len(similarity)
    tightness = np.full((layers, layers), np.inf)  # [first layer of a segment, last layer]
    for first in range(layers):
        sums = (1 - similarity[first:, first:]).cumsum(axis=0)  # [last layer, medoid]
        tightness[first, first:] = np.where(np.tri(len(sums), dtype=bool), sums, np.inf).min(axis=1)
    totals, firsts = tightness[0], []  # of the best segments so far, by their last layer
    for _ in range(k - 1):
        options = totals[:-1, None] + tightness[1:]
        firsts.append(least(options) + 1)
        totals = options.min(axis=0)
    borders = [layers]
    for first in reversed(firsts):
        borders.append(int(first[borders[-1] - 1]))
    return _around_medoids(similarity, np.searchsorted(sorted(borders), np.arange(layers), side="right"))


def _agglomerative(similarity: np.ndarray, k: int, _seed: int) -> Clustering:
    """Average linkage: the two clusters with the smallest mean distance are joined until k are left."""
    if k == len(similarity):
        return _around_medoids(similarity, np.arange(k))  # scikit-learn refuses a single sample
    # Here, as below: it takes a second, and the paper's rule does without it.
    from sklearn.cluster import AgglomerativeClustering

    labels = AgglomerativeClustering(k, metric="precomputed", linkage="average").fit_predict(1 - similarity)
    return _around_medoids(similarity, labels)


def _spectral(similarity: np.ndarray, k: int, seed: int) -> Clustering:
    """Spectral clustering of the graph whose edge weights are the similarities, negative ones as 0."""
    if k == len(similarity):
        return _around_medoids(similarity, np.arange(k))  # the eigenvector solver needs k < L
    from sklearn.cluster import SpectralClustering

    with warnings.catch_warnings():
        # Blocks that share nothing are just what is looked for.
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        labels = SpectralClustering(k, affinity="precomputed", random_state=seed).fit_predict(
            similarity.clip(min=0)
        )
    if len(set(labels.tolist())) < k:
        raise ValueError(
            f"spectral clustering does not find {k} clusters, as sub-blocks are exactly alike; take a "
            "smaller k"
        )
    return _around_medoids(similarity, labels)


# Name → function (similarity, k, seed) → Clustering. A new selector is one entry.
ALGORITHMS: dict[str, Callable[[np.ndarray, int, int], Clustering]] = {
    "kmeans-index": _kmeans_index,
    "kmeans-settled": _kmeans_settled,
    "kmedoids": _kmedoids,
    "segments": _segments,
    "agglomerative": _agglomerative,
    "spectral": _spectral,
}
