"""Accuracies that others have published, for comparison: never part of a mean, a ranking or a verdict."""

from collections.abc import Mapping, Sequence

import pandas as pd

from ...records import Record
from ...settings import Pair, Profile
from ...teachers import TEACHERS

# CIFAR-100, 240 epochs, last epoch: the two results tables of RepDistiller (Tian et al., arXiv 1910.10699).
# Methods stand beside cross-entropy only, without KD, but for kd itself.
_CIFAR100_METHODS = (
    "ce",
    "kd",
    "fitnet",
    "at",
    "sp",
    "cc",
    "vid",
    "rkd",
    "pkt",
    "ab",
    "ft",
    "fsp",
    "nst",
    "crd",
)
_NONE = float("nan")
_CIFAR100 = {
    ("wrn_40_2", "wrn_16_2"): (
        73.26,
        74.92,
        73.58,
        74.08,
        73.83,
        73.56,
        74.11,
        73.35,
        74.54,
        72.50,
        73.25,
        72.91,
        73.68,
        75.48,
    ),
    ("wrn_40_2", "wrn_40_1"): (
        71.98,
        73.54,
        72.24,
        72.77,
        72.43,
        72.21,
        73.30,
        72.22,
        73.45,
        72.38,
        71.59,
        _NONE,
        72.24,
        74.14,
    ),
    ("resnet56", "resnet20"): (
        69.06,
        70.66,
        69.21,
        70.55,
        69.67,
        69.63,
        70.38,
        69.61,
        70.34,
        69.47,
        69.84,
        69.95,
        69.60,
        71.16,
    ),
    ("resnet110", "resnet20"): (
        69.06,
        70.67,
        68.99,
        70.22,
        70.04,
        69.48,
        70.16,
        69.25,
        70.25,
        69.53,
        70.22,
        70.11,
        69.53,
        71.46,
    ),
    ("resnet110", "resnet32"): (
        71.14,
        73.08,
        71.06,
        72.31,
        72.69,
        71.48,
        72.61,
        71.82,
        72.61,
        70.98,
        72.37,
        71.89,
        71.96,
        73.48,
    ),
    ("resnet32x4", "resnet8x4"): (
        72.50,
        73.33,
        73.50,
        73.44,
        72.94,
        72.97,
        73.09,
        71.90,
        73.64,
        73.17,
        72.86,
        72.62,
        73.30,
        75.51,
    ),
    ("vgg13", "vgg8"): (
        70.36,
        72.98,
        71.02,
        71.43,
        72.68,
        70.71,
        71.23,
        71.48,
        72.88,
        70.94,
        70.58,
        70.23,
        71.53,
        73.94,
    ),
    ("vgg13", "MobileNetV2"): (
        64.60,
        67.37,
        64.14,
        59.40,
        66.30,
        64.86,
        65.56,
        64.52,
        67.13,
        66.06,
        61.78,
        _NONE,
        58.16,
        69.73,
    ),
    ("ResNet50", "MobileNetV2"): (
        64.60,
        67.35,
        63.16,
        58.58,
        68.08,
        65.43,
        67.57,
        64.43,
        66.52,
        67.20,
        60.99,
        _NONE,
        64.96,
        69.11,
    ),
    ("ResNet50", "vgg8"): (
        70.36,
        73.81,
        70.69,
        71.84,
        73.34,
        70.25,
        70.30,
        71.50,
        73.01,
        70.65,
        70.29,
        _NONE,
        71.28,
        74.30,
    ),
    ("resnet32x4", "ShuffleV1"): (
        70.50,
        74.07,
        73.59,
        71.73,
        73.48,
        71.14,
        73.38,
        72.28,
        74.10,
        73.55,
        71.75,
        _NONE,
        74.12,
        75.11,
    ),
    ("resnet32x4", "ShuffleV2"): (
        71.82,
        74.45,
        73.54,
        72.73,
        74.56,
        71.29,
        73.40,
        73.21,
        74.69,
        74.31,
        72.50,
        _NONE,
        74.68,
        75.65,
    ),
    ("wrn_40_2", "ShuffleV1"): (
        70.50,
        74.83,
        73.73,
        73.32,
        74.52,
        71.38,
        73.61,
        72.21,
        73.89,
        73.34,
        72.03,
        _NONE,
        74.89,
        76.05,
    ),
}

# (data set, teacher, student) → method → top-1 in % and who has published it. ImageNet, 100 epochs.
PUBLISHED: dict[tuple[str, str, str], dict[str, tuple[float, str]]] = {
    ("cifar100", *pair): {
        method: (accuracy, "RepDistiller")
        for method, accuracy in zip(_CIFAR100_METHODS, row, strict=True)
        if accuracy == accuracy
    }
    for pair, row in _CIFAR100.items()
} | {
    ("cifar100", "wrn_40_2", "resnet8x4"): {"kd": (73.97, "sunshangquan/logit-standardization-KD")},
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
    },
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
    """Mean accuracy of every pair and method beside what is published for them; methods with hint points in
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
    has hint points.

    **Arguments:** ``records``: arm → one record per seed.

    **Returns:** columns arm, n (runs that did not fail), top-1, top-5 (means in %), published, difference,
    images/s (through all students at once), waiting (share of the time, in %), processes.
    """
    known = published(profile.data.dataset, pair.teacher, pair.student, method)
    rows = []
    for arm, runs in records.items():
        ok = [run for run in runs if run.status == "ok"]
        top1, top5 = (_mean([run.metrics.get(name) for run in ok]) for name in ("accuracy", "top5_accuracy"))
        comparable = known is not None and arm == ("stage-ends" if len(records) > 1 else arm)
        speed, waiting = (
            _mean([run.provenance.get(name) for run in ok]) for name in ("images_per_second", "data_wait")
        )
        rows.append(
            {
                "arm": arm,
                "n": len(ok),
                "top-1": top1,
                "top-5": top5,
                "published": f"{known[0]:.2f} ({known[1]})" if comparable else "",
                "difference": f"{top1 - known[0]:+.2f}" if comparable else "",
                "images/s": speed,
                "waiting, %": 100 * waiting,
                "processes": max((run.provenance["processes"] for run in ok), default=0),
            }
        )
    return pd.DataFrame(rows)


def _mean(values: Sequence[float | None]) -> float:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else float("nan")
