"""Families of arms, and mean accuracies as tables."""

import numpy as np
import pandas as pd

from .effects import Effect
from .noise import CELL, run_spread

PURSUHINT = "pursuhint-"
RANDOM = "random-"
STAGE_RANDOM = "stage-random-"


def arms_of(frame: pd.DataFrame, family: str) -> list[str]:
    """Arms of a family: all with a prefix that ends in ``-`` (``pursuhint-``, ``random-``), or the one arm of
    that name.
    """
    arms = list(dict.fromkeys(frame["arm"]))
    return [arm for arm in arms if (arm.startswith(family) if family.endswith("-") else arm == family)]


def mean_with_interval(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy of every arm over seeds, with a 95 % interval.

    Two or three seeds cannot estimate their own spread, so the interval rests on ``noise.run_spread``.

    **Arguments:** ``frame`` as ``run_spread`` takes it.

    **Returns:** pair, method, arm, mean, low, high, n.
    """
    spread, rows = run_spread(frame), []
    for (*cell, arm), runs in frame.groupby([*CELL, "arm"], sort=False):
        known, n = spread.loc[tuple(cell)], int(runs["accuracy"].count())
        error = np.sqrt(known["moderated"] / n) if n and known["moderated_freedom"] else np.inf
        effect = Effect(runs["accuracy"].mean(), float(error), known["moderated_freedom"], n)
        rows.append(dict(zip([*CELL, "arm"], [*cell, arm], strict=True)) | effect.row())
    return pd.DataFrame(rows, columns=[*CELL, "arm", "mean", "low", "high", "n"])


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
