"""Accuracies that others have published, for comparison: never part of a mean, a ranking or a verdict."""

from collections.abc import Mapping, Sequence

import pandas as pd

from ...paths import CONFIG
from ...records import Record
from ...settings import Pair, Profile
from ...teachers import TEACHERS

# (data set, teacher, student) → method → top-1 in % and who has published it. CIFAR-100, 240 epochs:
# the two results tables of RepDistiller (Tian et al., arXiv 1910.10699), where methods stand beside
# cross-entropy only, without KD, but for kd itself. ImageNet, 100 epochs.
PUBLISHED: dict[tuple[str, str, str], dict[str, tuple[float, str]]] = {
    key: {row.method: (row.accuracy, row.by) for row in rows.itertuples()}
    for key, rows in pd.read_csv(CONFIG / "published.csv").groupby(
        ["dataset", "teacher", "student"], sort=False
    )
}


def published(dataset: str, teacher: str, student: str, method: str) -> tuple[float, str] | None:
    """Published top-1 in % of a method with the layers that its authors use, and who says so; nothing if none
    is known.
    """
    return PUBLISHED.get((dataset, teacher, student), {}).get(method)


def published_alone(dataset: str, network: str) -> tuple[float, str] | None:
    """Published top-1 in % of a network without a teacher, with the full recipe of its authors, and who says
    so; nothing if none is known.
    """
    known = TEACHERS.get(network)
    if known and known.dataset == dataset:
        return known.accuracy, "RepDistiller"
    found = (
        methods["ce"]
        for (data, _, student), methods in PUBLISHED.items()
        if (data, student) == (dataset, network)
    )
    return next(found, None)


def published_table(profile: Profile, frame: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy of every pair and method beside what is published for them; methods with hint layers in
    the arm ``stage-ends``.

    **Arguments:** ``frame`` as ``runs.results_frame`` gives it.

    **Returns:** columns pair, method, here, n (seeds), published, by, difference; empty where nothing is
    published.
    """
    rows = []
    for (pair, teacher, student, method), cell in frame.groupby(
        ["pair", "teacher", "student", "method"], sort=False
    ):
        known = published(profile.data.dataset, teacher, student, method)
        arms = list(dict.fromkeys(cell["arm"]))
        own = cell[cell["arm"] == ("stage-ends" if len(arms) > 1 else arms[0])]["accuracy"].dropna()
        if known and len(own):
            shared = {"pair": pair, "method": method, "here": own.mean(), "n": len(own)}
            rows.append(
                {**shared, "published": known[0], "by": known[1], "difference": own.mean() - known[0]}
            )
    return pd.DataFrame(rows, columns=["pair", "method", "here", "n", "published", "by", "difference"])


def accuracy_table(
    profile: Profile, pair: Pair, method: str, records: Mapping[str, Sequence[Record]]
) -> pd.DataFrame:
    """Accuracy of every arm beside what is published for the method, which is with the stage ends where it
    has hint layers.

    **Arguments:** ``records``: arm → one record per seed.

    **Returns:** columns arm, n (runs that did not fail), top-1, top-5 (means in %), published, difference,
    images/s (through all students at once), waiting (share of the time, in %), processes.
    """
    known = published(profile.data.dataset, pair.teacher, pair.student, method)
    rows = []
    for arm, runs in records.items():
        ok = [run for run in runs if run.status == "ok"]
        top1, top5, speed, waiting = (
            _mean([(run.metrics | run.provenance).get(name) for run in ok])
            for name in ("accuracy", "top5_accuracy", "images_per_second", "data_wait")
        )
        comparable = known is not None and arm == ("stage-ends" if len(records) > 1 else arm)
        row = {"arm": arm, "n": len(ok), "top-1": top1, "top-5": top5}
        row["published"] = f"{known[0]:.2f} ({known[1]})" if comparable else ""
        row["difference"] = f"{top1 - known[0]:+.2f}" if comparable else ""
        processes = max((run.provenance["processes"] for run in ok), default=0)
        rows.append(row | {"images/s": speed, "waiting, %": 100 * waiting, "processes": processes})
    return pd.DataFrame(rows)


def _mean(values: Sequence[float | None]) -> float:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else float("nan")
