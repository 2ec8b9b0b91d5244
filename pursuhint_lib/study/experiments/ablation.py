"""What the choice of hint layers hangs on: metric × number of points × algorithm, and how far the rule uses
the metric at all. And what a selector looks at, as a number for every set of points: does it predict the
student's accuracy?
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ...clustering import HintPoints, choose_hint_points, segment_middles
from ...settings import Pair, Profile
from ...similarity import paper_metrics
from ..grid.arms import LayerMap
from ..grid.hint_layers import stored_choices, stored_similarity
from .stability import mean_shift, rand_index

Grid = dict[tuple[str, str], dict[int, HintPoints]]


def selection_grid(
    similarity: Mapping[str, np.ndarray], ks: Sequence[int], algorithms: Sequence[str]
) -> Grid:
    """(metric, algorithm) → k → hint layers; a k for which an algorithm has no answer is left out."""
    grid: Grid = {}
    for metric, matrix in similarity.items():
        for algorithm in algorithms:
            found = grid.setdefault((metric, algorithm), {})
            for k in ks:
                try:
                    found[k] = choose_hint_points(matrix, k, algorithm)
                except ValueError:
                    continue
    return grid


def ablation_frame(grid: Grid) -> pd.DataFrame:
    """One row per metric, algorithm and k.

    **Returns:** columns metric, algorithm, k, sub-blocks (1-based), excess (objective over that of the exact
    k-medoids), ari (adjusted Rand index with the paper's clusters on the same metric), from paper and from
    middles (mean shift in sub-blocks), settled.
    """
    rows = []
    for (metric, algorithm), by_k in grid.items():
        for k, points in by_k.items():
            paper, best = grid[metric, "kmeans-index"].get(k, points), grid[metric, "kmedoids"][k]
            rows.append(
                {
                    "metric": metric,
                    "algorithm": algorithm,
                    "k": k,
                    "sub-blocks": " ".join(str(i + 1) for i in points.indices),
                    "excess": points.objective - best.objective,
                    "ari": rand_index(points.labels, paper.labels),
                    "from paper": mean_shift(points.indices, paper.indices),
                    "from middles": mean_shift(points.indices, segment_middles(len(points.labels), k)),
                    "settled": points.converged,
                }
            )
    return pd.DataFrame(rows)


def centre_rule(points: HintPoints, similarity: np.ndarray) -> pd.DataFrame:
    """The paper's centre of each cluster beside the member that is most like the others, and what the
    difference costs.

    **Returns:** columns members, centre, medoid (1-based), mean similarity to centre, to medoid (of the other
    members).
    """
    labels, rows = np.array(points.labels), []
    for label, centre in enumerate(points.indices):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            continue
        # Without itself: a layer is always like itself.
        means = (similarity[np.ix_(members, members)].sum(0) - 1) / (len(members) - 1)
        medoid = int(members[np.argmax(np.round(means, 9))])
        to_centre = float(means[list(members).index(centre)]) if centre in members else float("nan")
        rows.append(
            {
                "members": len(members),
                "centre": centre + 1,
                "medoid": medoid + 1,
                "to centre": to_centre,
                "to medoid": float(means.max()),
            }
        )
    return pd.DataFrame(rows, columns=["members", "centre", "medoid", "to centre", "to medoid"])


def depth_share(similarity: np.ndarray, stage_ends: Sequence[int]) -> dict[str, float]:
    """How much of the variance between entries of a matrix (diagonal left out) the architecture alone
    explains.

    **Returns:** ``distance``: by the distance in depth of the two sub-blocks; ``stages``: by the stages that
    they are in.
    """
    layers = len(similarity)
    i, j = np.triu_indices(layers, 1)
    values = similarity[i, j]
    stage = np.searchsorted(np.asarray(stage_ends), np.arange(layers))
    total = ((values - values.mean()) ** 2).sum()
    shares = {}
    for name, groups in (("distance", j - i), ("stages", stage[i] * layers + stage[j])):
        means = pd.Series(values).groupby(groups).transform("mean").to_numpy()
        shares[name] = float(1 - ((values - means) ** 2).sum() / total) if total > 0 else float("nan")
    return shares


def assignment_margins(points: HintPoints, similarity: np.ndarray) -> list[float]:
    """Per sub-block: similarity to its own hint layer minus that to the most similar other one, [L].

    A hint layer's own margin is 1 minus its similarity to the next; with one hint layer there is nothing to
    compare with, and margins are 0.
    """
    margins = []
    for layer, label in enumerate(points.labels):
        others = [similarity[layer, centre] for place, centre in enumerate(points.indices) if place != label]
        margins.append(float(similarity[layer, points.indices[label]] - max(others)) if others else 0.0)
    return margins


def shift_table(choices: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Mean shift in sub-blocks between every two choices of the same size: a square frame."""
    return pd.DataFrame({a: {b: mean_shift(choices[a], choices[b]) for b in choices} for a in choices})


def rand_table(labels: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Adjusted Rand index between every two clusterings, given as the cluster of each sub-block [L]: a square
    frame.
    """
    return pd.DataFrame({a: {b: rand_index(labels[b], labels[a]) for b in labels} for a in labels})


def coverage(similarity: np.ndarray, points: Sequence[int]) -> float:
    """How well some sub-blocks stand for all: the mean over all of the similarity [L, L] to the nearest of
    them, which k-medoids maximises.
    """
    return float(similarity[:, list(points)].max(axis=1).mean())


def point_scores(profile: Profile, pair: Pair) -> pd.DataFrame:
    """Scores of the sets of hint layers that the profile's arms take, where these are as many as the
    student's, in order.

    **Returns:** columns pair, arm, score (``coverage`` under each of the paper's metrics; ``quality`` and
    ``depth``, means over the points; ``deepest``, the number of the last of them), value. Empty while the
    teacher's hint layers are not known.
    """
    report = stored_similarity(profile, pair.teacher)
    if report is None:
        return pd.DataFrame(columns=["pair", "arm", "score", "value"])
    rows = []
    for arm, choice in stored_choices(profile, pair.teacher, pair.k, profile.arms).items():
        points = list(choice.indices)
        if len(points) == pair.k and not choice.students and points == sorted(points):
            scores = _scores(profile, report.layer_map, points)
            rows += [
                {"pair": pair.name, "arm": arm, "score": name, "value": value}
                for name, value in scores.items()
            ]
    return pd.DataFrame(rows)


def _scores(profile: Profile, layer_map: LayerMap, points: Sequence[int]) -> dict[str, float]:
    covered = {
        f"coverage, {metric}": coverage(layer_map.similarity[metric], points)
        for metric in paper_metrics(profile.metrics)
    }
    return covered | {
        "quality": float(np.mean([layer_map.quality[i] for i in points])),
        "depth": float(np.mean(points)) + 1,
        "deepest": points[-1] + 1.0,
    }
