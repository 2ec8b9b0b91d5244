"""Why each hint layer was chosen: its cluster, how alike that is inside, and how far the nearest other
cluster is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...clustering import HintPoints


@dataclass(frozen=True)
class Reason:
    """Why one sub-block is a hint layer.

    **Arguments:**

    - ``sub_block``: its number, 1-based. ``members``: numbers of the sub-blocks it stands for, itself
      included.
    - ``inside``: mean similarity of the members to each other; nothing for a cluster of one.
    - ``nearest``: number of the hint layer of the nearest other cluster; nothing if there is no other.
    - ``outside``: mean similarity of the members to those of the nearest other cluster.
    """

    sub_block: int
    members: tuple[int, ...]
    inside: float | None
    nearest: int | None
    outside: float | None

    @property
    def margin(self) -> float | None:
        """By how much the members are more like each other than like the nearest other cluster."""
        return None if self.inside is None or self.outside is None else self.inside - self.outside

    def sentence(self, metric: str) -> str:
        """The reason as a person reads it."""
        if self.inside is None:
            text = f"Sub-block {self.sub_block} stands for itself alone"
        else:
            text = (
                f"Sub-block {self.sub_block} stands for {ranges(self.members)}: mean {metric} inside "
                f"{self.inside:.2f}"
            )
        if self.outside is not None:
            text += f", to the nearest other cluster (of {self.nearest}) {self.outside:.2f}"
        return text + (f", margin {self.margin:.2f}." if self.margin is not None else ".")


def explain(points: HintPoints, similarity: np.ndarray) -> tuple[Reason, ...]:
    """A reason for every hint layer.

    **Arguments:** ``similarity`` [L, L], the matrix that the points were chosen on.
    """
    labels = np.array(points.labels)
    clusters = [np.flatnonzero(labels == label) for label in range(len(points.indices))]
    reasons = []
    for label, (index, members) in enumerate(zip(points.indices, clusters, strict=True)):
        pairs = len(members) * (len(members) - 1)
        # Without the diagonal: a layer is always like itself.
        inside = float((similarity[np.ix_(members, members)].sum() - len(members)) / pairs) if pairs else None
        others = {
            o: float(similarity[np.ix_(members, c)].mean())
            for o, c in enumerate(clusters)
            if o != label and len(members) and len(c)
        }
        nearest = max(others, key=others.__getitem__) if others else None
        number = None if nearest is None else points.indices[nearest] + 1
        reasons.append(
            Reason(index + 1, tuple(int(m) + 1 for m in members), inside, number, others.get(nearest))
        )
    return tuple(reasons)


def describe_walk(points: HintPoints) -> str:
    """What to say of centres that never settle; empty if they did."""
    if points.converged:
        return ""
    if not points.cycle:
        return f" The centres still moved after {points.iterations} rounds."
    sets = "; ".join(", ".join(str(i + 1) for i in centres) for centres in points.cycle)
    taken = (
        "the tightest of them"
        if points.algorithm == "kmeans-settled"
        else f"the one after {points.iterations} rounds"
    )
    return (
        f" The centres never settle: they go round in a cycle of {len(points.cycle)} sets ({sets}); "
        "taken "
        f"is {taken}."
    )


def ranges(members: Sequence[int]) -> str:
    """Ascending numbers as runs: '1–4, 6'."""
    runs: list[list[int]] = []
    for member in members:
        if runs and member == runs[-1][1] + 1:
            runs[-1][1] = member
        else:
            runs.append([member, member])
    return ", ".join(f"{a}–{b}" if a != b else f"{a}" for a, b in runs)
