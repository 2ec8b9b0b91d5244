"""Accuracies that others have published, for comparison: never part of a mean, a ranking or a verdict."""

from collections.abc import Mapping, Sequence

import pandas as pd

from ..records import Record
from ..settings import Pair, Profile

# (data set, teacher, student) → method → top-1 in % and who has published it. ImageNet, 100 epochs.
PUBLISHED: dict[tuple[str, str, str], dict[str, tuple[float, str]]] = {
    ("imagenet", "torchvision/resnet34", "torchvision/resnet18"): {
        "ce": (69.76, "torchvision"),
        "kd": (70.68, "OSVAI/NORM"),
        "at": (70.70, "torchdistill, of the original"),
        "sp": (70.62, "OSVAI/NORM"),
        "cc": (69.96, "OSVAI/NORM"),
        "rkd": (71.34, "OSVAI/NORM"),
        "crd": (71.17, "OSVAI/NORM"),
        "semckd": (70.87, "DefangChen/SemCKD"),
        "simkd": (71.66, "DefangChen/SimKD"),
        "wsl": (72.04, "bellymonster/Weighted-Soft-Label-Distillation"),
        "reviewkd": (71.61, "dvlab-research/ReviewKD"),
        "dkd": (71.70, "megvii-research/mdistiller"),
        "dist": (72.07, "hunto/DIST_KD"),
        "kd-standardised": (71.42, "sunshangquan/logit-standardization-KD"),
    }
}


def published(dataset: str, teacher: str, student: str, method: str) -> tuple[float, str] | None:
    """Published top-1 in % of a method with the layers that its authors use, and who says so; nothing if none is known."""
    return PUBLISHED.get((dataset, teacher, student), {}).get(method)


def accuracy_table(profile: Profile, pair: Pair, method: str, records: Mapping[str, Sequence[Record]]) -> pd.DataFrame:
    """Accuracy of every arm beside what is published for the method, which is with the stage ends where it has hint points.

    **Arguments:** ``records``: arm → one record per seed.

    **Returns:** columns arm, n (runs that did not fail), top-1, top-5 (means in %), published, difference, images/s (through all students at
    once), waiting (share of the time, in %), processes.
    """
    known = published(profile.data.dataset, pair.teacher, pair.student, method)
    rows = []
    for arm, runs in records.items():
        ok = [run for run in runs if run.status == "ok"]
        top1, top5 = (_mean([run.metrics.get(name) for run in ok]) for name in ("accuracy", "top5_accuracy"))
        comparable = known is not None and arm == ("stage-ends" if len(records) > 1 else arm)
        speed, waiting = (_mean([run.provenance.get(name) for run in ok]) for name in ("images_per_second", "data_wait"))
        rows.append({
            "arm": arm, "n": len(ok), "top-1": top1, "top-5": top5, "published": f"{known[0]:.2f} ({known[1]})" if comparable else "",
            "difference": f"{top1 - known[0]:+.2f}" if comparable else "", "images/s": speed, "waiting, %": 100 * waiting,
            "processes": max((run.provenance["processes"] for run in ok), default=0),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _mean(values: Sequence[float | None]) -> float:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else float("nan")
