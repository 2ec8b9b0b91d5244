"""Small inputs from which every figure is drawn, and what a drawn one shows."""

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from pursuhint_lib import plots
from pursuhint_lib.clustering import HintPoints, KCurve, choose_hint_points, kmeans_rounds

LAYERS = 9
MATRIX = np.exp(-np.abs(np.subtract.outer(np.arange(LAYERS), np.arange(LAYERS))) / 4)
POINTS = HintPoints((1, 4, 7), (0, 0, 0, 1, 1, 1, 2, 2, 2), "kmeans-index", 1.0, True, 2)
OTHER_POINTS = HintPoints((0, 8), (0,) * 5 + (1,) * 4, "kmeans-index", 1.0, True, 2)
ARMS = ("none", "stage-ends", "pursuhint-r2", "random-1")
# Which of nine sub-blocks they take, and which of these end a stage.
TAKEN, ENDS = {"stage-ends": (2, 5, 8), "pursuhint-r2": (1, 4, 7), "random-1": (0, 1, 8)}, (2, 5, 8)
INFINITY = float("inf")


def histories(seeds: int = 2) -> dict:
    run = {"epoch": [0, 1, 2, 3], "accuracy": [None, 50.0, None, 70.0]}
    return {
        arm: [run | {"accuracy": [None, 50.0 + seed, None, place + 70.0 + 2 * seed]} for seed in range(seeds)]
        for place, arm in enumerate(ARMS)
    }


def accuracies(low: float = 88.0, high: float = 92.0) -> pd.DataFrame:
    rows = [
        (method, arm, seed, 90.0 + seed)
        for method in ("FitNet", "AT")
        for arm in ARMS
        for seed in (0, 1)
        if (method, arm) != ("AT", "random-1")
    ]
    return pd.DataFrame(rows, columns=["method", "arm", "seed", "accuracy"]).assign(
        mean=90.5, low=low, high=high
    )


def panel(low: float = -1.0, high: float = 2.0, means: tuple = (0.5, -0.25, 1.5)) -> pd.DataFrame:
    rows = [
        {"label": f"row {arm}", "arm": arm, "mean": mean, "low": low, "high": high, "n": 2}
        for arm, mean in zip(ARMS[1:], means, strict=True)
    ]
    return pd.DataFrame(rows)


def networks(low: float = 70.0, high: float = 75.0) -> pd.DataFrame:
    rows = [
        ("resnet56", "teacher", 861_620, 73.0),
        ("resnet20", "student alone", 278_324, 69.0),
        ("resnet20", "best student", 278_324, 71.0),
    ]
    rows += [("resnet8", "student alone", 78_000, 60.0)]
    return pd.DataFrame(rows, columns=["network", "role", "parameters", "accuracy"]).assign(
        low=low, high=high
    )


BY_K = {k: choose_hint_points(MATRIX, k, "kmedoids") for k in (2, 3, 4)}
CURVE = KCurve("silhouette", "kmedoids", (2, 3, 4), (0.1, 0.4, 0.2), (0.0, 0.05, 0.1), 3)
AGREEMENT = pd.DataFrame([[0.0, 1.25], [1.25, 0.0]], index=["first", "second"], columns=["first", "second"])
FREQUENCY = np.linspace(0, 1, LAYERS)


def changes() -> pd.DataFrame:
    """Agreement after changes: two kinds, two metrics, one value missing."""
    rows = [
        ("bootstrap", "r2", 0.4),
        ("bootstrap", "r2", 0.8),
        ("bootstrap", "cka", 1.0),
        ("test images", "r2", np.nan),
        ("test images", "cka", 0.3),
    ]
    return pd.DataFrame(rows, columns=["kind", "metric", "ari"])


def qualities() -> pd.DataFrame:
    numbers = np.arange(1, LAYERS + 1)
    return pd.DataFrame(
        {
            "number": numbers,
            "quality": numbers / 9,
            "separation": numbers / 18,
            "information": 0.1,
            "efficiency": 0.4,
        }
    )


def searched() -> pd.DataFrame:
    rows = [
        (weight, arm, 40 + weight / 10, weight / 9) for weight in (1, 10, 100) for arm in ("last", "first")
    ]
    return pd.DataFrame(rows, columns=["weight", "arm", "accuracy", "gradient_ratio"])


def sets() -> pd.DataFrame:
    """Two seeds of three sets, of which a rule takes one."""
    rows = [
        (f"{a}-5", seed, 44.0 + a, 4 - a, ("stage-ends",) * (a == 2)) for a in (1, 2, 3) for seed in (0, 1)
    ]
    frame = pd.DataFrame(rows, columns=["set", "seed", "mean", "rank", "named"])
    return frame.assign(
        accuracy=frame["mean"] + frame["seed"] - 0.5, named=frame["named"].where(frame["named"] != ())
    )


def places() -> pd.DataFrame:
    numbers = np.arange(1, 5)
    return panel().iloc[[0, 1, 2, 0]].assign(**{"sub-block": numbers, "stage": (numbers + 1) // 2})


DEPTHS = {"none": (), "stage-ends": ((2, 0), (5, 1), (8, 2)), "pursuhint-r2": ((1, 0), (4, 1), (7, 2))}

FIGURES = {
    "similarity_heatmaps": lambda: plots.similarity_heatmaps(
        {"r2": MATRIX, "cka": MATRIX}, {"r2": POINTS, "cka": OTHER_POINTS}
    ),
    "depth_strip": lambda: plots.depth_strip(DEPTHS, LAYERS, (2, 5, 8)),
    "training_curves": lambda: plots.training_curves(histories(), [2]),
    "accuracy_by_arm": lambda: plots.accuracy_by_arm(accuracies(), "some pair", TAKEN, ENDS),
    "forest": lambda: plots.forest(
        {"minus the stage ends": panel(), "minus random sets": panel()}, ("worse", "better")
    ),
    "effect_grid": lambda: plots.effect_grid({"against the stage ends": panel().assign(p_holm=0.01)}, 0.05),
    "neighbour_similarity": lambda: plots.neighbour_similarity({"r2": MATRIX, "cka": MATRIX**2}, (2, 5, 8)),
    "kmeans_rounds": lambda: plots.kmeans_rounds(
        {"r2": kmeans_rounds(MATRIX, 3), "cka": [(POINTS.indices, POINTS.labels)] * 9}
    ),
    "clusters_by_k": lambda: plots.clusters_by_k({"r2": BY_K, "cka": BY_K}),
    "cluster_margins": lambda: plots.cluster_margins(
        {"r2": POINTS}, {"r2": list(range(LAYERS))}, {"r2": ["1–3", "4–6", "7–9"]}
    ),
    "k_curves": lambda: plots.k_curves({"silhouette": {"r2": CURVE, "cka": CURVE}, "gap": {"r2": CURVE}}),
    "ablation_grid": lambda: plots.ablation_grid(
        {("r2", "kmedoids"): BY_K, ("r2", "spectral"): {}, ("cka", "kmedoids"): BY_K}
    ),
    "agreement_heatmaps": lambda: plots.agreement_heatmaps(
        {"shift": AGREEMENT, "index": AGREEMENT}, {"shift": (1, 2.5, 0), "index": (2, 0, 1)}
    ),
    "stability": lambda: plots.stability(
        {"r2": FREQUENCY, "cka": FREQUENCY}, {"r2": (1, 4, 7), "cka": (0, 4, 8)}, changes()
    ),
    "layer_quality": lambda: plots.layer_quality(qualities(), [7, 9]),
    "compression_costs": lambda: plots.compression_costs(
        networks().assign(pair="p", teacher="resnet56", method="at", arm="last"), {"parameters": "parameters"}
    ),
    "weight_sweep": lambda: plots.weight_sweep(panel().assign(weight=10), 10),
    "tuning_curve": lambda: plots.tuning_curve(searched(), 10, 1000),
    "ranked_sets": lambda: plots.ranked_sets({"AT": sets(), "FitNet": sets()}, {"AT": 43.0, "FitNet": 42.0}),
    "place_effects": lambda: plots.place_effects({"AT": places(), "FitNet": places()}, (1, 3)),
}

# One seed only: no interval, no mean of several.
SINGLE = {
    "similarity_heatmaps": lambda: plots.similarity_heatmaps(
        {"r2": MATRIX[:1, :1]}, {"r2": HintPoints((0,), (0,), "kmedoids", 0.0, True, 1)}
    ),
    "depth_strip": lambda: plots.depth_strip({"last": ((0, 0),)}, 1, (0,)),
    "training_curves": lambda: plots.training_curves({"teacher": histories(1)["none"]}, []),
    "accuracy_by_arm": lambda: plots.accuracy_by_arm(accuracies(-INFINITY, INFINITY), "", TAKEN, ENDS),
    "forest": lambda: plots.forest({"one": panel(-INFINITY, INFINITY)}),
    "weight_sweep": lambda: plots.weight_sweep(panel(-INFINITY, INFINITY).assign(weight=10), 10),
}


def dots(axis) -> list[tuple[float, float, str]]:
    """(x, y, colour) of every scattered dot."""
    return [
        (float(x), float(y), to_hex(colour))
        for collection in axis.collections
        if isinstance(collection, PathCollection)
        for (x, y), colour in zip(collection.get_offsets(), cycle(collection.get_facecolor()), strict=False)
    ]


def spans(axis) -> list[tuple[float, float, float]]:
    """(from, to, y) of every horizontal line that is drawn by ``hlines``."""
    lines = [
        collection
        for collection in axis.collections
        if not isinstance(collection, PathCollection) and hasattr(collection, "get_segments")
    ]
    return [
        (float(start[0]), float(end[0]), float(start[1]))
        for collection in lines
        for start, end in collection.get_segments()
    ]
