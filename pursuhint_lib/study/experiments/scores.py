"""What a selector looks at, as a number for every set of hint points: does it predict the
student's accuracy?
"""

import numpy as np
import pandas as pd

from ...settings import Pair, Profile
from ...similarity import paper_metrics
from ..grid.arms import Choice, LayerMap, choose_points
from ..grid.hint_layers import stored_similarity


def coverage(similarity: np.ndarray, points: tuple[int, ...]) -> float:
    """How well some sub-blocks stand for all: the mean over all of the similarity [L, L] to the nearest of
    them, which k-medoids maximises.
    """
    return float(similarity[:, list(points)].max(axis=1).mean())


def point_scores(profile: Profile, pair: Pair) -> pd.DataFrame:
    """Scores of the sets of hint points that the profile's arms take, where these are as many as the
    student's, in order.

    **Returns:** columns pair, arm, score (``coverage`` under each of the paper's metrics; ``quality`` and
    ``depth``, means over the points; ``deepest``, the number of the last of them), value. Empty while the
    teacher's hint points are not known.
    """
    report = stored_similarity(profile, pair.teacher)
    if report is None:
        return pd.DataFrame(columns=["pair", "arm", "score", "value"])
    layer_map, rows = report.layer_map, []
    for arm in profile.arms:
        choice = choose_points(arm, layer_map, pair.k)
        if (
            len(choice.indices) == pair.k
            and not choice.students
            and list(choice.indices) == sorted(choice.indices)
        ):
            rows += [
                {"pair": pair.name, "arm": arm, "score": name, "value": value}
                for name, value in _scores(profile, layer_map, choice).items()
            ]
    return pd.DataFrame(rows)


def _scores(profile: Profile, layer_map: LayerMap, choice: Choice) -> dict[str, float]:
    points = list(choice.indices)
    covered = {
        f"coverage, {metric}": coverage(layer_map.similarity[metric], choice.indices)
        for metric in paper_metrics(profile.metrics)
    }
    return covered | {
        "quality": float(np.mean([layer_map.quality[i] for i in points])),
        "depth": float(np.mean(points)) + 1,
        "deepest": points[-1] + 1.0,
    }
