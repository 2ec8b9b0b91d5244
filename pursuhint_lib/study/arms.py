"""Arms: ways to choose the teacher's hint points, the paper's among them, each with its reason in words."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..clustering import HintPoints, choose_hint_points, random_points, segment_middles
from ..settings import choose

# So many random sets are drawn at once at most; draw i is the same however many are used.
MAX_RANDOM_ARMS = 50


@dataclass(frozen=True)
class LayerMap:
    """What an arm may look at.

    **Arguments:** ``layers`` number of sub-blocks L; ``stage_ends`` 0-based indices; ``similarity`` metric → [L, L].
    """

    layers: int
    stage_ends: tuple[int, ...]
    similarity: dict[str, np.ndarray]


@dataclass(frozen=True)
class Choice:
    """An arm's answer: 0-based indices in depth order, why, and the clustering behind it if there is one."""

    indices: tuple[int, ...]
    reason: str
    clusters: HintPoints | None = None


def _clustered(algorithm: str) -> Callable[[LayerMap, int, str], Choice]:
    def select(layer_map: LayerMap, k: int, metric: str) -> Choice:
        points = choose_hint_points(layer_map.similarity[metric], k, algorithm)
        return Choice(points.indices, _explain(points, layer_map.similarity[metric], metric), points)

    return select


def _explain(points: HintPoints, similarity: np.ndarray, metric: str) -> str:
    """Why each point was chosen, in a sentence per point."""
    labels = np.array(points.labels)
    sentences = []
    for label, index in enumerate(points.indices):
        members = np.flatnonzero(labels == label)
        # Without the diagonal: a layer is always like itself.
        inside = (similarity[np.ix_(members, members)].sum() - len(members)) / max(1, len(members) * (len(members) - 1))
        others = [similarity[np.ix_(members, np.flatnonzero(labels == other))].mean() for other in range(len(points.indices)) if other != label]
        alike = f"mean {metric} inside {inside:.2f}" if len(members) > 1 else f"{metric} has it on its own"
        nearest = f", to the nearest other cluster {max(others):.2f}" if others else ""
        sentences.append(f"Sub-block {index + 1} stands for {_ranges(members)}: {alike}{nearest}.")
    if not points.converged:
        sentences.append(f"The centres still moved after {points.iterations} rounds.")
    return " ".join(sentences)


def _ranges(members: Sequence[int]) -> str:
    """1-based members as runs: '1–4, 6'."""
    runs: list[list[int]] = []
    for member in members:
        if runs and member == runs[-1][1] + 1:
            runs[-1][1] = member
        else:
            runs.append([member, member])
    return ", ".join(f"{a + 1}–{b + 1}" if a != b else f"{a + 1}" for a, b in runs)


def _random(layer_map: LayerMap, k: int, number: str) -> Choice:
    draw = int(number)
    return Choice(random_points(layer_map.layers, k, draw)[draw - 1], f"Random set {draw}: {k} of the {layer_map.layers} sub-blocks.")


# Name, or prefix ending in "-" → function (layer map, k, what follows the prefix) → Choice. A new arm is one entry.
ARMS: dict[str, Callable[[LayerMap, int, str], Choice]] = {
    "none": lambda layer_map, k, _: Choice((), "No hint points: the same loss without its hint term."),
    "stage-ends": lambda layer_map, k, _: Choice(layer_map.stage_ends, "The last sub-block of each stage, as the field does."),
    "pursuhint-": _clustered("kmeans-index"),
    "kmedoids-": _clustered("kmedoids"),
    "segment-middles": lambda layer_map, k, _: Choice(segment_middles(layer_map.layers, k), f"Middles of {k} equal segments of depth."),
    "random-": _random,
    "first": lambda layer_map, k, _: Choice(tuple(range(k)), f"The first {k} sub-blocks."),
    "last": lambda layer_map, k, _: Choice(tuple(range(layer_map.layers - k, layer_map.layers)), f"The last {k} sub-blocks."),
}


def _entry(arm: str) -> tuple[str, str]:
    """Key in ``ARMS`` and what follows it."""
    prefix = next((key for key in ARMS if key.endswith("-") and arm.startswith(key)), None)
    return (prefix, arm.removeprefix(prefix)) if prefix else (arm, "")


def check_arm(arm: str, metrics: Sequence[str]) -> None:
    """Refuse an arm that does not exist, or that needs a metric which the profile does not compute."""
    key, rest = _entry(arm)
    shown = {"pursuhint-": "pursuhint-<metric>", "kmedoids-": "kmedoids-<metric>", "random-": f"random-<1 … {MAX_RANDOM_ARMS}>"}
    if key not in ARMS:
        choose("arm", arm, [shown.get(name, name) for name in ARMS])
    if key == "random-":
        if not (re.fullmatch(r"[1-9]\d*", rest) and int(rest) <= MAX_RANDOM_ARMS):
            choose("arm", arm, [shown[key]])
    elif key.endswith("-"):
        choose(f"arm {arm}: metric", rest, metrics)


def max_random_arm(arms: Sequence[str]) -> int:
    """Highest number of a random arm; 0 without any."""
    return max((int(_entry(arm)[1]) for arm in arms if _entry(arm)[0] == "random-"), default=0)


def choose_points(arm: str, layer_map: LayerMap, k: int) -> Choice:
    """Hint points of an arm.

    **Arguments:** ``arm`` a name that ``check_arm`` accepts; ``k`` number of points.
    """
    key, rest = _entry(arm)
    return ARMS[key](layer_map, k, rest)
