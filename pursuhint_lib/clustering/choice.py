"""The choice of hint layers: how many, by a number or a criterion, and which."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..settings import choose
from .algorithms import TIE, HintPoints, checked, cluster, least

# Within-cluster sums below this count as this, for the logarithm of a perfect clustering is −∞.
FLOOR = 1e-12


@dataclass(frozen=True)
class KCurve:
    """How well each number of points does.

    **Arguments:** ``criterion`` a name in ``CRITERIA``; ``algorithm`` a name in ``ALGORITHMS``; ``ks`` the
    numbers tried; ``values`` of the criterion and their standard ``errors``, one per k; ``best`` the k that
    the criterion's rule takes.
    """

    criterion: str
    algorithm: str
    ks: tuple[int, ...]
    values: tuple[float, ...]
    errors: tuple[float, ...]
    best: int


def choose_hint_points(
    similarity: Tensor | np.ndarray, k: int | str, algorithm: str = "kmeans-index", *, seed: int = 0
) -> HintPoints:
    """Cluster the sub-blocks and return the cluster centres.

    **Arguments:** ``similarity`` [L, L]; ``k`` number of points, 1 ≤ k ≤ L, or the name in ``CRITERIA`` of
    the way to find it; ``algorithm`` a name in ``ALGORITHMS``; ``seed`` for what is random in algorithm and
    criterion.

    **Raises:** ``ValueError`` for a matrix that is not square, finite and symmetric with diagonal 1, k out of
    range, two centres on one sub-block, or fewer clusters than k; ``SettingsError`` for an unknown algorithm
    or criterion; ``RuntimeError`` if the solver behind k-medoids fails.
    """
    if isinstance(k, str):
        k = k_curve(similarity, k, algorithm, seed=seed).best
    similarity = checked(similarity, k)
    points = cluster(similarity, k, algorithm, seed)
    for earlier, later in itertools.pairwise(points.indices):
        if earlier == later:
            raise ValueError(
                f"{algorithm} puts two centres on sub-block {later + 1}, as others are exactly like it; take "
                "a smaller k or kmedoids"
            )
    return points


def k_curve(
    similarity: Tensor | np.ndarray,
    criterion: str,
    algorithm: str = "kmeans-index",
    *,
    largest: int | None = None,
    draws: int = 50,
    seed: int = 0,
) -> KCurve:
    """Try numbers of points and say which is best.

    - ``silhouette`` (Rousseeuw 1987), k ≥ 2: mean over sub-blocks of how much nearer their own cluster is
      than the next one; best is the largest value. It is NaN where there is only one non-empty cluster.
    - ``gap`` (Tibshirani, Walther & Hastie 2001), k ≥ 1: how much smaller the log objective is than in
      ``draws`` matrices in which similarity fades with depth but has no borders; best is the first k within a
      standard error of the peak. (The authors stop at the first k that the next does not beat, which equal
      blocks defeat: two clusters cut three blocks badly.)

    **Arguments:** ``similarity`` [L, L]; ``largest`` k to try, at most L−1, by default at most 10; ``seed``
    of the draws and the algorithm.

    **Raises:** ``SettingsError`` for an unknown criterion or algorithm; ``ValueError`` for fewer than 3
    sub-blocks, ``largest`` below 2, no draws, sub-blocks too much alike for a silhouette, or a matrix that
    ``choose_hint_points`` refuses.
    """
    similarity = checked(similarity, 1)
    measure = CRITERIA[choose("criterion", criterion, CRITERIA)]
    layers, largest = len(similarity), 10 if largest is None else largest
    if layers < 3 or largest < 2 or draws < 1:
        raise ValueError(
            f"finding k takes at least 3 sub-blocks, largest 2 and 1 draw; given are {layers}, {largest} and "
            f"{draws}"
        )
    return measure(similarity, algorithm, min(largest, layers - 1), draws, seed)


def _silhouette_curve(similarity: np.ndarray, algorithm: str, largest: int, _draws: int, seed: int) -> KCurve:
    from sklearn.metrics import silhouette_score

    distance = (1 - similarity).clip(min=0)  # rounding may make similarities a little larger than 1
    np.fill_diagonal(distance, 0)
    ks = range(2, largest + 1)
    labels = [cluster(similarity, k, algorithm, seed).labels for k in ks]
    values = [
        float(silhouette_score(distance, found, metric="precomputed")) if len(set(found)) > 1 else math.nan
        for found in labels
    ]
    if np.isnan(values).all():
        raise ValueError(
            f"{algorithm} leaves one non-empty cluster at every k, for the sub-blocks are alike; give k as a "
            "number"
        )
    return KCurve(
        "silhouette",
        algorithm,
        tuple(ks),
        tuple(values),
        (0.0,) * len(ks),
        ks[least(-np.nan_to_num(values, nan=-math.inf))],
    )


def _gap_curve(similarity: np.ndarray, algorithm: str, largest: int, draws: int, seed: int) -> KCurve:
    ks = range(1, largest + 1)
    generator = np.random.default_rng(seed)
    matrices = [similarity, *(_borderless(similarity, generator) for _ in range(draws))]
    logs = np.log(
        [[max(cluster(matrix, k, algorithm, seed).objective, FLOOR) for k in ks] for matrix in matrices]
    )
    gaps = (
        logs[1:] - logs[0]
    )  # before averaging, so that gaps are exactly 0 where the references equal the matrix
    values, errors = gaps.mean(axis=0), gaps.std(axis=0) * math.sqrt(1 + 1 / draws)
    peak = int(values.argmax())
    best = next(k for k in ks if values[k - 1] >= values[peak] - errors[peak] - TIE)
    return KCurve("gap", algorithm, tuple(ks), tuple(values.tolist()), tuple(errors.tolist()), best)


def _borderless(similarity: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random matrix with the same similarities at each distance in depth, whichever sub-blocks they
    belonged to.
    """
    upper = sum(
        np.diag(generator.permutation(similarity.diagonal(lag)), lag) for lag in range(1, len(similarity))
    )
    return upper + upper.T + np.eye(len(similarity))


# Name → function (similarity, algorithm, largest k, draws, seed) → KCurve. A new criterion is one entry.
CRITERIA: dict[str, Callable[[np.ndarray, str, int, int, int], KCurve]] = {
    "silhouette": _silhouette_curve,
    "gap": _gap_curve,
}
