"""What is compared: differences of arms within a seed, per group, and mean accuracies as tables."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .effects import holm, paired_effect, pooled_effect

CELL = ["pair", "method", "seed"]

PURSUHINT = "pursuhint-"
RANDOM = "random-"
STAGE_RANDOM = "stage-random-"


def arms_of(frame: pd.DataFrame, family: str) -> list[str]:
    """Arms of a family: all with a prefix that ends in ``-`` (``pursuhint-``, ``random-``), or the one arm of
    that name.
    """
    arms = list(dict.fromkeys(frame["arm"]))
    return [arm for arm in arms if (arm.startswith(family) if family.endswith("-") else arm == family)]


def differences(frame: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Accuracy of every arm minus the reference's in the same (pair, method, seed).

    **Arguments:** ``reference`` an arm, or a family such as ``random-``, whose mean is taken.

    **Returns:** the rows of the other arms with a column ``difference`` in points; missing where the
    reference is.
    """
    members = arms_of(frame, reference)
    base = frame[frame["arm"].isin(members)].groupby(CELL)["accuracy"].mean().rename("reference")
    others = frame[~frame["arm"].isin(members)].join(base, on=CELL)
    return others.assign(difference=others["accuracy"] - others["reference"]).drop(columns="reference")


def deviations(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of every arm minus the mean of all arms of the frame in the same (pair, method, seed).

    Arms that took the same points are the same runs, and count once in the mean.

    **Returns:** the rows of the frame with a column ``difference`` in points.
    """
    mean = frame.drop_duplicates([*CELL, "points"]).groupby(CELL)["accuracy"].mean().rename("reference")
    joined = frame.join(mean, on=CELL)
    return joined.assign(difference=joined["accuracy"] - joined["reference"]).drop(columns="reference")


def effects(diffs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Paired effect per group, with Holm's adjustment over all groups.

    **Returns:** one row per group: ``by``, mean, low, high, n, p, p_holm.
    """
    rows = []
    for key, group in diffs.groupby(list(by), sort=False):
        rows.append(dict(zip(by, key, strict=True)) | pooled_effect(group).row())
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"])) if rows else table


def mean_with_interval(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean accuracy per group over seeds with Student's 95 % interval: ``by``, mean, low, high, n."""
    rows = []
    for key, group in frame.groupby(list(by), sort=False):
        rows.append(dict(zip(by, key, strict=True)) | paired_effect(group["accuracy"]).row())
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "n"])


def text_table(means: pd.DataFrame, rows: str, columns: str) -> pd.DataFrame:
    """Means as text, ``93.12 ± 0.40``: one row per value of ``rows``, one column per value of ``columns``.

    **Arguments:** ``means`` as ``mean_with_interval`` or ``effects`` return it.
    """
    halves = (means["high"] - means["low"]) / 2
    text = [
        f"{mean:.2f} ± {half:.2f}" if np.isfinite(half) else f"{mean:.2f}"
        for mean, half in zip(means["mean"], halves, strict=True)
    ]
    table = means.assign(text=text).pivot(index=rows, columns=columns, values="text")
    table = table.loc[list(dict.fromkeys(means[rows])), list(dict.fromkeys(means[columns]))].fillna("–")
    return table.reset_index().rename_axis(columns=None)
