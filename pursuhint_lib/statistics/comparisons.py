"""Families of arms, and mean accuracies as tables."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .effects import paired_effect

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


def mean_with_interval(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean accuracy per group over seeds with Student's 95 % interval: ``by``, mean, low, high, n."""
    rows = []
    for key, group in frame.groupby(list(by), sort=False):
        rows.append(dict(zip(by, key, strict=True)) | paired_effect(group["accuracy"]).row())
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "n"])


def text_table(means: pd.DataFrame, rows: str, columns: str) -> pd.DataFrame:
    """Means as text, ``93.12 ± 0.40``: one row per value of ``rows``, one column per value of ``columns``.

    **Arguments:** ``means`` as ``mean_with_interval`` returns it.
    """
    halves = (means["high"] - means["low"]) / 2
    text = [
        f"{mean:.2f} ± {half:.2f}" if np.isfinite(half) else f"{mean:.2f}"
        for mean, half in zip(means["mean"], halves, strict=True)
    ]
    table = means.assign(text=text).pivot(index=rows, columns=columns, values="text")
    table = table.loc[list(dict.fromkeys(means[rows])), list(dict.fromkeys(means[columns]))].fillna("–")
    return table.reset_index().rename_axis(columns=None)
