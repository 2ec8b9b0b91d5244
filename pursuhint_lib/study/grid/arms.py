"""Arms: ways to choose the teacher's hint points, the paper's among them, each with its reason in words."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...clustering import HintPoints, choose_hint_points, random_points, segment_middles
from ...settings import SettingsError, choose
from ...settings.user_code import is_import_path
from ...similarity import METRICS
from .reasons import Reason, describe_walk, explain

# So many random sets are drawn at once at most; draw i is the same however many are used.
MAX_RANDOM_ARMS = 50


@dataclass(frozen=True)
class LayerMap:
    """What an arm may look at.

    **Arguments:** ``layers`` number of sub-blocks L; ``stage_ends`` 0-based indices; ``similarity`` metric →
    [L, L]; ``quality`` score of each sub-block (``quality.layer_quality``).
    """

    layers: int
    stage_ends: tuple[int, ...]
    similarity: dict[str, np.ndarray]
    quality: tuple[float, ...] = ()


@dataclass(frozen=True)
class Choice:
    """An arm's answer.

    **Arguments:**

    - ``indices``: 0-based sub-blocks of the teacher.
    - ``reason``: why, in words.
    - ``students``: for each of them the 0-based student point that learns from it; one each, in order, when
      not given.
    - ``clusters``, ``reasons``: the clustering behind it, if there is one, and a reason per point.
    """

    indices: tuple[int, ...]
    reason: str
    students: tuple[int, ...] = ()
    clusters: HintPoints | None = None
    reasons: tuple[Reason, ...] = ()

    @property
    def matched(self) -> tuple[tuple[int, int], ...]:
        """(teacher sub-block, student point) of every hint, 0-based."""
        return tuple(zip(self.indices, self.students or range(len(self.indices)), strict=True))


def _clustered(algorithm: str) -> Callable[[LayerMap, int, str], Choice]:
    def select(layer_map: LayerMap, k: int, metric: str) -> Choice:
        similarity = layer_map.similarity[metric]
        points = choose_hint_points(similarity, k, algorithm)
        reasons = explain(points, similarity)
        text = " ".join(reason.sentence(metric) for reason in reasons) + describe_walk(points)
        return Choice(points.indices, text, clusters=points, reasons=reasons)

    return select


def _random(layer_map: LayerMap, k: int, number: str) -> Choice:
    draw = int(number)
    return Choice(
        random_points(layer_map.layers, k, draw)[draw - 1],
        f"Random set {draw}: {k} of the {layer_map.layers} sub-blocks.",
    )


def _all(layer_map: LayerMap, k: int, _: str) -> Choice:
    students = tuple(layer * k // layer_map.layers for layer in range(layer_map.layers))
    reason = (
        f"All {layer_map.layers} sub-blocks: each of the {k} student points learns from those of its "
        "segment of depth, which share its weight."
    )
    return Choice(tuple(range(layer_map.layers)), reason, students)


def _deepened(layer_map: LayerMap, k: int, metric: str) -> Choice:
    points, end = _paper_points(layer_map, k, metric), layer_map.stage_ends[-1]
    reason = (
        f"The paper's points under {metric}, with the deepest of them, {points[-1] + 1}, moved to the "
        f"last stage end, {end + 1}."
    )
    return Choice((*points[:-1], end), reason)


def _shallowed(layer_map: LayerMap, k: int, metric: str) -> Choice:
    ends, deepest = layer_map.stage_ends, _paper_points(layer_map, k, metric)[-1]
    reason = (
        f"The stage ends, with the deepest of them, {ends[-1] + 1}, moved to the paper's deepest point "
        f"under {metric}, {deepest + 1}."
    )
    return Choice((*ends[:-1], deepest), reason)


def _paper_points(layer_map: LayerMap, k: int, metric: str) -> tuple[int, ...]:
    return choose_hint_points(layer_map.similarity[metric], k).indices


def _quality(layer_map: LayerMap, k: int, _: str) -> Choice:
    ranked = sorted(range(layer_map.layers), key=lambda layer: (-layer_map.quality[layer], layer))
    scores = ", ".join(f"{layer + 1} ({layer_map.quality[layer]:.2f})" for layer in ranked[:k])
    return Choice(tuple(sorted(ranked[:k])), f"The {k} sub-blocks of the best class geometry: {scores}.")


# Name, or prefix ending in "-" → function (layer map, k, what follows the prefix) → Choice. A new arm is one
# entry.
ARMS: dict[str, Callable[[LayerMap, int, str], Choice]] = {
    "none": lambda layer_map, k, _: Choice((), "No hint points: the same loss without its hint term."),
    "stage-ends": lambda layer_map, k, _: Choice(
        layer_map.stage_ends, "The last sub-block of each stage, as the field does."
    ),
    "pursuhint-": _clustered("kmeans-index"),
    "settled-": _clustered("kmeans-settled"),
    "kmedoids-": _clustered("kmedoids"),
    "segments-": _clustered("segments"),
    "agglomerative-": _clustered("agglomerative"),
    "spectral-": _clustered("spectral"),
    "quality": _quality,
    "segment-middles": lambda layer_map, k, _: Choice(
        segment_middles(layer_map.layers, k), f"Middles of {k} equal segments of depth."
    ),
    "random-": _random,
    "first": lambda layer_map, k, _: Choice(tuple(range(k)), f"The first {k} sub-blocks."),
    "last": lambda layer_map, k, _: Choice(
        tuple(range(layer_map.layers - k, layer_map.layers)), f"The last {k} sub-blocks."
    ),
    "all": _all,
    # The paper's points and the stage ends with their deepest point exchanged: is it that point which makes
    # the difference?
    "deepened-": _deepened,
    "shallowed-": _shallowed,
    "reversed": lambda layer_map, k, _: Choice(
        layer_map.stage_ends[::-1],
        "The stage ends in reverse order: the shallowest student point learns from the deepest.",
    ),
}
# Prefixes of the arms that have as many points as the teacher has stages, whatever k is.
STAGE_ARMS = ("stage-ends", "reversed", "shallowed-")


def exchange_arms(metric: str) -> tuple[str, str, str, str]:
    """The stage ends, the two sets that are mixed of them and the paper's points, and the paper's points
    under a metric.
    """
    return "stage-ends", f"deepened-{metric}", f"shallowed-{metric}", f"pursuhint-{metric}"


def _entry(arm: str) -> tuple[str, str]:
    """Key in ``ARMS`` and what follows it."""
    prefix = next((key for key in ARMS if key.endswith("-") and arm.startswith(key)), None)
    return (prefix, arm.removeprefix(prefix)) if prefix else (arm, "")


def check_arm(arm: str, metrics: Sequence[str]) -> None:
    """Refuse an arm that does not exist, or that needs a metric which the profile does not compute."""
    key, rest = _entry(arm)
    drawn = f"random-<1 … {MAX_RANDOM_ARMS}>"
    if key not in ARMS:
        named = {
            name: [f"{name}{metric}" for metric in metrics] if name.endswith("-") else [name] for name in ARMS
        } | {"random-": [drawn]}
        choose("arm", arm, [shown for names in named.values() for shown in names])
    if key == "random-":
        if not (re.fullmatch(r"[1-9]\d*", rest) and int(rest) <= MAX_RANDOM_ARMS):
            choose("arm", arm, [drawn])
    elif key.endswith("-") and rest not in metrics:
        if rest in METRICS or is_import_path(rest):
            raise SettingsError(
                f"arm {arm}: metric {rest!r} is not computed; add it to metrics, or take one of them; valid: "
                f"{', '.join(metrics)}"
            )
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
