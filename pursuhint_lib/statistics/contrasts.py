"""Differences between arms by pair and method: the result of the study, and the one rule for it everywhere.

A difference is paired by seed. Its interval rests on the noise of a run in its cell, moderated over all
cells of the experiment (``noise``), for three seeds cannot estimate their own. A number over cells stands
beside its alternatives (``weightings``) and is no result of its own.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from .comparisons import PURSUHINT, RANDOM, STAGE_RANDOM, arms_of
from .effects import LEVEL, Effect, equivalence_p, holm
from .noise import CELL, run_noise

BETTER, WORSE, UNKNOWN, UNTESTED = "better", "worse", "not known", "not tested: the same layers"
# The share of what hints gain that is too little to matter.
SHARE = 0.1
# What PURSUhInT's layers are compared with, as a reader knows it. The last is a precondition: hints help.
REFERENCES = {
    "the stage ends": "stage-ends",
    "random sets with one layer per stage": STAGE_RANDOM,
    "random sets": RANDOM,
    "the middles of equal segments": "segment-middles",
    "no hints": "none",
}


def contrasts(
    frame: pd.DataFrame,
    family: str,
    reference: str,
    by: Sequence[str] = CELL,
    margin: pd.Series | None = None,
    noise: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Accuracy of an arm, or of the mean of a family, minus that of a reference, in every cell that has both.

    Sets of layers that arms share count once. Where the reference is a family of random sets, these are a
    sample too: the difference is from any such set (Clark 1973), with the variance of the drawn sets' means
    and degrees of freedom after Satterthwaite (1946). p-values are adjusted by Holm over the cells.

    **Arguments:** ``frame`` as ``run_noise`` takes it, of the whole experiment, since all its cells tell of
    the noise; ``family``, ``reference`` as ``comparisons.arms_of`` takes them; ``margin`` in pp by cell,
    below which a difference does not matter (``margins``); ``noise`` that of the frame, where it is known
    already.

    **Returns:** one row per cell: ``by``, mean, error, low, high (pp), n (seeds), freedom, p, margin, and
    what ``worded`` adds.
    """
    sampled, asked = reference in (RANDOM, STAGE_RANDOM), {}
    for cell, runs in frame.groupby(list(by), sort=False):
        ours, theirs = _distinct(runs, family), _distinct(runs, reference)
        if not ours or not theirs:
            continue
        if not sampled:
            ours = {layers: arm for layers, arm in ours.items() if layers not in theirs}
        asked[cell] = {arm: 1 / len(ours) for arm in ours.values()}
        if ours:
            asked[cell] |= {arm: -1 / len(theirs) for arm in theirs.values()}
    known = run_noise(frame, by) if noise is None else noise
    return worded(_estimates(frame, asked, known, margin, sampled))


def combination(frame: pd.DataFrame, shares: Mapping[str, float], by: Sequence[str] = CELL) -> pd.DataFrame:
    """A sum of the accuracies of arms, each times its share, in every cell that has them all.

    **Returns:** as ``contrasts`` does.
    """
    cells = frame.groupby(list(by), sort=False)["arm"].agg(set)
    asked = {cell: shares for cell, arms in cells.items() if arms >= shares.keys()}
    return worded(_estimates(frame, asked, run_noise(frame, by)))


def _estimates(
    frame: pd.DataFrame,
    asked: Mapping[tuple, Mapping[str, float]],
    noise: pd.DataFrame,
    margin: pd.Series | None = None,
    sampled: bool = False,
) -> pd.DataFrame:
    """One row per cell: the sum of its arms times their shares; nothing is known where it asks for none."""
    by = [*noise.index.names]
    groups, rows = frame.groupby(by, sort=False), []
    for cell, shares in asked.items():
        runs = groups.get_group(cell).drop_duplicates(["seed", "arm"])
        table = runs.pivot(index="seed", columns="arm", values="accuracy").reindex(columns=[*shares]).dropna()
        effect = _effect(table, shares, noise.loc[cell], sampled)
        least = float("nan") if margin is None else float(margin.get(cell, float("nan")))
        known = effect.row() | {"error": effect.error, "freedom": effect.freedom} if effect else {}
        same = equivalence_p(effect, least) if effect and least > 0 else 1.0
        rows.append(dict(zip(by, cell, strict=True)) | known | {"margin": least, "p_same": same})
    columns = [*by, "mean", "error", "low", "high", "n", "freedom", "p", "margin", "p_same"]
    return pd.DataFrame(rows, columns=columns)


def _effect(
    table: pd.DataFrame, shares: Mapping[str, float], noise: pd.Series, sampled: bool
) -> Effect | None:
    """One difference; nothing where no arms are asked for, or no seed has all of them.

    **Arguments:** ``table`` accuracies [seeds, arms]; ``sampled`` whether the arms with a negative share are
    a sample of sets.
    """
    if table.empty or not shares:
        return None
    weights, n = np.array([*shares.values()]), len(table)
    mean = float((table.to_numpy() @ weights).mean())
    single, freedom = noise["moderated"] / n, noise["moderated_freedom"]
    if not sampled:
        error = np.sqrt(single * np.sum(weights**2))
        return Effect(mean, float(np.nan_to_num(error, nan=np.inf)), freedom, n)
    sets = table.mean()[weights < 0]
    between = sets.var(ddof=1) / len(sets) if len(sets) > 1 else np.inf
    parts = np.array([single * np.sum(weights[weights > 0] ** 2), between])
    if not np.isfinite(parts).all():
        return Effect(mean, np.inf, 0, n)
    freedoms = np.array([freedom, max(1, len(sets) - 1)])
    return Effect(mean, float(np.sqrt(parts.sum())), float(parts.sum() ** 2 / np.sum(parts**2 / freedoms)), n)


def worded(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of one family of comparisons with their adjusted p-values and a word each.

    **Arguments:** columns mean (missing where nothing is tested), p, margin, and p_same: that of two
    one-sided tests for a difference within the margin.

    **Returns:** the same with p_holm, with p_same adjusted by Holm too, and with word: better, worse, the
    same within ±margin, not known, or not tested where both took the same layers.
    """
    tested = table["mean"].notna()
    table = table.assign(p_holm=np.nan, word=UNTESTED)
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"])
    table.loc[tested, "p_same"] = holm(table.loc[tested, "p_same"])
    for row in table[tested].itertuples():
        table.loc[row.Index, "word"] = _word(row.mean, row.p_holm, row.p_same, row.margin)
    return table


def _word(mean: float, p: float, p_same: float, margin: float) -> str:
    if p < LEVEL:
        return BETTER if mean > 0 else WORSE
    return f"the same within ±{margin:.2g}" if p_same < LEVEL else UNKNOWN


def _distinct(runs: pd.DataFrame, family: str) -> dict[str, str]:
    """Layers → the first arm of the family that took them."""
    rows = runs[runs["arm"].isin(arms_of(runs, family))]
    return {points: arm for arm, points in reversed([*zip(rows["arm"], rows["points"], strict=True)])}


def compared(frame: pd.DataFrame, family: str = PURSUHINT) -> pd.DataFrame:
    """PURSUhInT's layers, the mean over its metrics, against all of ``REFERENCES`` that there are.

    **Returns:** the rows of ``contrasts`` with a column minus, which names the reference; each reference is a
    family of its own for Holm's adjustment.
    """
    margin, noise, tables = margins(frame), run_noise(frame), []
    for title, reference in REFERENCES.items():
        tables.append(contrasts(frame, family, reference, CELL, margin, noise).assign(minus=title))
    found = [table for table in tables if len(table)]
    return pd.concat(found, ignore_index=True) if found else tables[0]


def against(frame: pd.DataFrame, reference: str, by: Sequence[str] = CELL) -> pd.DataFrame:
    """Every other arm minus a reference, in every cell, as one family of comparisons.

    **Returns:** as ``one_family`` does.
    """
    arms = [arm for arm in dict.fromkeys(frame["arm"]) if arm not in (*arms_of(frame, reference), "alone")]
    return one_family(frame, [(arm, reference) for arm in arms], by)


def one_family(
    frame: pd.DataFrame,
    compared: Iterable[tuple[str, str]],
    by: Sequence[str] = CELL,
    margin: pd.Series | None = None,
) -> pd.DataFrame:
    """Arms minus references, in every cell, as one family of comparisons: Holm's adjustment is over all rows.

    **Arguments:** ``compared``: each an arm and its reference; ``margin`` as for ``contrasts``.

    **Returns:** the rows of ``contrasts`` with the columns arm and reference.
    """
    noise, found = run_noise(frame, by), []
    for arm, reference in compared:
        table = contrasts(frame, arm, reference, by, margin, noise)
        found.append(table.drop(columns=["p_holm", "word"]).assign(arm=arm, reference=reference))
    if not any(map(len, found)):
        return contrasts(frame.iloc[:0], "", "", by, noise=noise).assign(arm="", reference="")
    return worded(pd.concat([table for table in found if len(table)], ignore_index=True))


def margins(frame: pd.DataFrame, by: Sequence[str] = CELL) -> pd.Series:
    """By cell the difference that is too small to matter, in pp: ``SHARE`` of what hints at the stage ends
    gain over no hints. Where they gain nothing there is none.
    """
    gains = contrasts(frame, "stage-ends", "none", by).set_index(list(by))["mean"]
    return (SHARE * gains).where(gains > 0)


def heterogeneity(table: pd.DataFrame, noise: pd.DataFrame) -> dict[str, float]:
    """Whether the cells of a contrast differ by more than chance: an F test with the variance pooled over all
    cells.

    **Arguments:** ``table`` as ``contrasts`` returns it; ``noise`` as ``run_noise`` does, of the same cells.

    **Returns:** F, its two degrees of freedom, and p; NaN for fewer than two cells with a finite error.
    """
    tested = table[np.isfinite(table["error"])]
    known = noise[noise["freedom"] > 0]
    cells = len(tested)
    if cells < 2 or known.empty:
        return {"F": float("nan"), "between": cells - 1, "within": 0, "p": float("nan")}
    pooled = (known["variance"] * known["freedom"]).sum() / known["freedom"].sum()
    names = list(noise.index.names)
    moderated = noise["moderated"].reindex(pd.MultiIndex.from_frame(tested[names])).to_numpy()
    # How much of a run's variance each difference has.
    weights = moderated / tested["error"].to_numpy() ** 2
    centre = np.average(tested["mean"], weights=weights)
    found = float(np.sum(weights * (tested["mean"] - centre) ** 2) / (cells - 1) / pooled)
    within = int(known["freedom"].sum())
    return {
        "F": found,
        "between": cells - 1,
        "within": within,
        "p": float(stats.f.sf(found, cells - 1, within)),
    }


def weightings(table: pd.DataFrame) -> pd.DataFrame:
    """One number over all cells, in four ways, none of which is *the* mean: every cell, every method or every
    pair counts the same, or each cell by its precision.

    **Arguments:** ``table`` as ``contrasts`` returns it, with the columns pair and method; cells without a
    finite error are left out.

    **Returns:** columns weighting, mean, low, high, p.
    """
    tested = table[np.isfinite(table["error"])]
    ways = {
        "cells equally": np.ones(len(tested)),
        "methods equally": 1 / tested.groupby("method")["mean"].transform("size"),
        "pairs equally": 1 / tested.groupby("pair")["mean"].transform("size"),
        "by precision": 1 / tested["error"] ** 2,
    }
    rows = []
    for name, weights in ways.items() if len(tested) else ():
        shares = np.asarray(weights / weights.sum())
        parts = (shares * tested["error"].to_numpy()) ** 2
        freedom = parts.sum() ** 2 / np.sum(parts**2 / tested["freedom"].to_numpy())
        mean = float(np.sum(shares * tested["mean"]))
        row = Effect(mean, float(np.sqrt(parts.sum())), float(freedom), len(tested)).row()
        rows.append({"weighting": name} | row)
    return pd.DataFrame(rows, columns=["weighting", "mean", "low", "high", "p"])
