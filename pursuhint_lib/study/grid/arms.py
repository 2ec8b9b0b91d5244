"""Arms: ways to choose the teacher's hint layers, the paper's among them, each with its reason in words."""

import itertools
import math
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
# Stands in a profile for one arm per set with one sub-block in each stage, of which there may be so many.
STAGE_SETS, STAGE_SET, MAX_STAGE_SETS = "stage-sets", "stage-set-", 100


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

    def stages(self, k: int) -> list[range]:
        """The sub-blocks of each of the last ``k`` stages, in order; of all stages where these are fewer."""
        first = (0, *(end + 1 for end in self.stage_ends))
        return [range(start, end + 1) for start, end in zip(first, self.stage_ends, strict=False)][-k:]


@dataclass(frozen=True)
class Choice:
    """An arm's answer.

    **Arguments:**

    - ``indices``: 0-based sub-blocks of the teacher.
    - ``reason``: why, in words.
    - ``students``: for each of them the student's hint layer, 0-based, that learns from it; one each, in
      order, when not given.
    - ``clusters``, ``reasons``: the clustering behind it, if there is one, and a reason per point.
    """

    indices: tuple[int, ...]
    reason: str
    students: tuple[int, ...] = ()
    clusters: HintPoints | None = None
    reasons: tuple[Reason, ...] = ()

    @property
    def matched(self) -> tuple[tuple[int, int], ...]:
        """(the teacher's sub-block, the student's hint layer) of every hint, 0-based."""
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


def _stage_random(layer_map: LayerMap, k: int, number: str) -> Choice:
    # Draw i is place i of a shuffle of all sets, so that each is as likely and none comes twice.
    stages = layer_map.stages(k)
    sizes = [len(stage) for stage in stages]
    drawn = np.random.default_rng(0).permutation(math.prod(sizes))[int(number) - 1]
    points = (stage[int(place)] for stage, place in zip(stages, np.unravel_index(drawn, sizes), strict=True))
    reason = f"Random set {number}: one of the {math.prod(sizes)} with one sub-block in each stage."
    return Choice(tuple(points), reason)


def _stage_set(_layer_map: LayerMap, _k: int, numbers: str) -> Choice:
    points = tuple(int(number) - 1 for number in numbers.split("-"))
    return Choice(points, f"Sub-blocks {numbers.replace('-', ', ')}: one in each stage.")


def _ends(layer_map: LayerMap, k: int) -> tuple[tuple[int, ...], str]:
    """The teacher's last k stage ends, and a sentence where that leaves some out."""
    stages = len(layer_map.stage_ends)
    note = f" Only the last {k} of {stages} stages: the student has {k} hint layers." if k < stages else ""
    return layer_map.stage_ends[-k:], note


def _stage_ends(layer_map: LayerMap, k: int, _: str) -> Choice:
    ends, note = _ends(layer_map, k)
    return Choice(ends, f"The last sub-block of each stage, as the field does.{note}")


def _reversed(layer_map: LayerMap, k: int, _: str) -> Choice:
    ends, note = _ends(layer_map, k)
    reason = (
        f"The stage ends in reverse order: the student's shallowest hint layer learns from the deepest.{note}"
    )
    return Choice(ends[::-1], reason)


def _final_end(layer_map: LayerMap, k: int, _: str) -> Choice:
    reason = "The last stage end alone: the student's last hint layer learns from it"
    return Choice(layer_map.stage_ends[-1:], f"{reason}, at the weight of all {k} hints together.", (k - 1,))


def _all(layer_map: LayerMap, k: int, _: str) -> Choice:
    students = tuple(layer * k // layer_map.layers for layer in range(layer_map.layers))
    reason = (
        f"All {layer_map.layers} sub-blocks: each of the student's {k} hint layers learns from those of its "
        "segment of depth, which share its weight."
    )
    return Choice(tuple(range(layer_map.layers)), reason, students)


def _deepened(layer_map: LayerMap, k: int, metric: str) -> Choice:
    points, end = _paper_points(layer_map, k, metric), layer_map.stage_ends[-1]
    reason = (
        f"The paper's layers under {metric}, with the deepest of them, {points[-1] + 1}, moved to the "
        f"last stage end, {end + 1}."
    )
    return Choice((*points[:-1], end), reason)


def _shallowed(layer_map: LayerMap, k: int, metric: str) -> Choice:
    (ends, note), deepest = _ends(layer_map, k), _paper_points(layer_map, k, metric)[-1]
    moved = f"moved to the paper's deepest layer under {metric}, {deepest + 1}."
    reason = f"The stage ends, with the deepest of them, {ends[-1] + 1}, {moved}{note}"
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
    "none": lambda layer_map, k, _: Choice((), "No hint layers: the same loss without its hint term."),
    "stage-ends": _stage_ends,
    "final-end": _final_end,
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
    "stage-random-": _stage_random,
    STAGE_SET: _stage_set,
    "first": lambda layer_map, k, _: Choice(tuple(range(k)), f"The first {k} sub-blocks."),
    "last": lambda layer_map, k, _: Choice(
        tuple(range(layer_map.layers - k, layer_map.layers)), f"The last {k} sub-blocks."
    ),
    "all": _all,
    # The paper's layers and the stage ends with their deepest layer exchanged: is it that which makes
    # the difference?
    "deepened-": _deepened,
    "shallowed-": _shallowed,
    "reversed": _reversed,
}
# Prefixes of the arms that need a stage of the teacher per hint layer.
STAGE_ARMS = ("stage-", "reversed", "shallowed-")
# Prefixes of the arms that numbers follow, not a metric → as a message shows them.
NUMBERED = {
    "random-": f"random-<1 … {MAX_RANDOM_ARMS}>",
    "stage-random-": f"stage-random-<1 … {MAX_RANDOM_ARMS}>",
    STAGE_SET: "stage-set-<sub-block>-<sub-block>-…",
}


def exchange_arms(metric: str) -> tuple[str, str, str, str]:
    """The stage ends, the two sets that are mixed of them and the paper's layers, and the paper's layers
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
    if key not in ARMS:
        # What the profile can name in place of an entry that ends in "-".
        endings = {name: [f"{name}{metric}" for metric in metrics] for name in ARMS if name.endswith("-")}
        endings |= {name: [shown] for name, shown in NUMBERED.items()}
        choose("arm", arm, [shown for name in ARMS for shown in endings.get(name, [name])])
    if key in NUMBERED:
        numbers = [int(number) if re.fullmatch(r"[1-9]\d{,5}", number) else 0 for number in rest.split("-")]
        if not all(numbers) or (key != STAGE_SET and (len(numbers) > 1 or numbers[0] > MAX_RANDOM_ARMS)):
            choose("arm", arm, [NUMBERED[key]])
    elif key.endswith("-") and rest not in metrics:
        if rest in METRICS or is_import_path(rest):
            raise SettingsError(
                f"arm {arm}: metric {rest!r} is not computed; add it to metrics, or take one of them; valid: "
                f"{', '.join(metrics)}"
            )
        choose(f"arm {arm}: metric", rest, metrics)


def check_sets(arms: Sequence[str], layer_map: LayerMap, k: int) -> None:
    """Refuse numbers that a teacher's sub-blocks do not have: of a draw, or of a set with one in each stage.

    **Arguments:** ``layer_map`` of the teacher, whose matrices are not looked at; ``k`` number of points.
    """
    stages = layer_map.stages(k)
    sets = {"random-": math.comb(layer_map.layers, k), "stage-random-": math.prod(map(len, stages))}
    for arm in arms:
        key, rest = _entry(arm)
        if key in sets and int(rest) > sets[key]:
            kind = " with one in each stage" if key == "stage-random-" else ""
            there = f"there are {sets[key]} different sets of {k} sub-blocks{kind}"
            raise SettingsError(f"{there}, so {arm} cannot be drawn; take a number of at most {sets[key]}")
        if key == STAGE_SET:
            points = [int(number) - 1 for number in rest.split("-")]
            if len(points) != len(stages) or any(
                i not in stage for i, stage in zip(points, stages, strict=True)
            ):
                one = ", ".join(f"{stage[0] + 1}–{stage[-1] + 1}" for stage in stages)
                raise SettingsError(
                    f"the arm {arm} does not name one sub-block in each stage; give one of {one} each"
                )


def stage_set_arms(layer_map: LayerMap, k: int) -> tuple[str, ...]:
    """The arms that ``stage-sets`` stands for: one per set with one sub-block in each of the last k stages.

    **Returns:** their names, such as ``stage-set-2-5-8`` with 1-based sub-blocks.

    **Raises:** ``SettingsError`` if there are more than ``MAX_STAGE_SETS``.
    """
    stages = layer_map.stages(k)
    if (sets := math.prod(map(len, stages))) > MAX_STAGE_SETS:
        raise SettingsError(
            f"{STAGE_SETS} are {sets} arms, more than {MAX_STAGE_SETS}; take stage-random-1 etc."
        )
    return tuple(STAGE_SET + "-".join(str(i + 1) for i in points) for points in itertools.product(*stages))


def choose_points(arm: str, layer_map: LayerMap, k: int) -> Choice:
    """Hint layers of an arm.

    **Arguments:** ``arm`` a name that ``check_arm`` accepts; ``k`` number of points.
    """
    key, rest = _entry(arm)
    return ARMS[key](layer_map, k, rest)
