"""Accuracies that others have published, for comparison: never part of a mean, a ranking or a verdict."""

from collections.abc import Mapping, Sequence

import pandas as pd

from ...distillers import distiller
from ...paths import CONFIG
from ...records import Record, load
from ...settings import Pair, Profile
from ...statistics import PURSUHINT
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


def methods_table(profile: Profile, frame: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy of each pair's teacher, student alone and methods, beside what is published for them, in
    %; a published method with hint layers has those that its authors use.

    **Arguments:** ``frame`` as ``cells.results_frame`` gives it.

    **Returns:** columns pair, method, no hints, stage ends, PURSUhInT (mean over its metrics), published, by;
    missing where there is no such run or figure.
    """
    rows = []
    for pair in profile.pairs:
        mine, shared = frame[frame["pair"] == pair.name], {"pair": f"{pair.teacher} → {pair.student}"}
        teacher = load(profile.name, profile.teacher_settings(pair.teacher))
        accuracy = teacher.metrics["accuracy"] if teacher else float("nan")
        known = published_alone(profile.data.dataset, pair.teacher)
        rows.append(shared | {"method": "the teacher", "no hints": accuracy} | _by(known))
        for method, cell in mine.groupby("method", sort=False):
            means = cell.groupby("arm")["accuracy"].mean()
            paper = cell[cell["arm"].str.startswith(PURSUHINT)].drop_duplicates("record")["accuracy"]
            row = shared | {"method": distiller(method).title}
            row["no hints"] = means.get("alone" if method == "ce" else "none")
            row |= {"stage ends": means.get("stage-ends"), "PURSUhInT": paper.mean()}
            rows.append(row | _by(published(profile.data.dataset, pair.teacher, pair.student, method)))
    columns = ["pair", "method", "no hints", "stage ends", "PURSUhInT", "published", "by"]
    return pd.DataFrame(rows, columns=columns).dropna(axis=1, how="all")


def _by(known: tuple[float, str] | None) -> dict:
    return dict(zip(("published", "by"), known, strict=True)) if known else {}


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
