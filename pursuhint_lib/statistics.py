"""Paired comparisons of arms, with intervals, equivalence tests and verdicts.

A *frame* has one row per (pair, method, arm, seed) with the column ``accuracy`` in %. Arms of one
(pair, method, seed) share initial weights and batches, so everything is computed on differences
within a seed. Seeds are the unit of replication: where several cells are pooled, what they have in common
within a seed counts once (``per_seed``), because cells of one seed share their student's initial weights and their teacher.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

CELL = ["pair", "method", "seed"]
LEVEL = 0.05

PURSUHINT = "pursuhint-"
RANDOM = "random-"


@dataclass(frozen=True)
class Effect:
    """A mean difference over ``n`` seeds, its 95 % interval, and the two-sided p-value of no difference."""

    mean: float
    low: float
    high: float
    n: int
    p: float


def _measured(differences: Sequence[float]) -> np.ndarray:
    """Differences without those that are missing."""
    values = np.asarray(differences, dtype=float)
    if np.isinf(values).any():
        raise ValueError("differences hold infinity; an accuracy is finite, so leave that run out (as NaN)")
    return values[~np.isnan(values)]


@dataclass(frozen=True)
class _Estimate:
    """A mean of ``n`` values with its standard error and the degrees of freedom of that; an infinite error where nothing is known of it."""

    mean: float
    error: float
    freedom: float
    n: int


def _over(differences: Sequence[float]) -> _Estimate:
    """Mean of differences [n]."""
    values = _measured(differences)
    n = len(values)
    mean = float(values.mean()) if n else float("nan")
    return _Estimate(mean, float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else np.inf, n - 1, n)


def _effect(estimate: _Estimate) -> Effect:
    """Student's interval and p-value; the interval is infinite where the error is."""
    mean, error, n = estimate.mean, estimate.error, estimate.n
    if np.isinf(error):
        return Effect(mean, -np.inf, np.inf, n, 1.0)
    if error == 0:
        return Effect(mean, mean, mean, n, float(mean == 0))
    half = stats.t.ppf(1 - LEVEL / 2, estimate.freedom) * error
    return Effect(mean, mean - half, mean + half, n, float(2 * stats.t.sf(abs(mean / error), estimate.freedom)))


def paired_effect(differences: Sequence[float]) -> Effect:
    """Mean of paired differences [n] with Student's interval; infinite for a single pair.

    Missing differences (failed runs) are left out and lower ``n``.
    """
    return _effect(_over(differences))


def bootstrap_interval(differences: Sequence[float], *, resamples: int = 9999, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of paired differences [n], n ≥ 2 (too narrow for n below about 8)."""
    values = _measured(differences)
    if len(values) < 2:
        raise ValueError(f"a bootstrap needs at least 2 differences, not {len(values)}; take more seeds")
    result = stats.bootstrap((values,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(seed))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def equivalence_p(differences: Sequence[float], margin: float) -> float:
    """p-value of two one-sided t-tests (TOST): small when the mean difference surely lies within ±margin.

    Schuirmann (1987). ``margin`` is in the unit of the differences, > 0.
    """
    return _equivalence_p(_over(differences), margin)


def _equivalence_p(estimate: _Estimate, margin: float) -> float:
    if not margin > 0:
        raise ValueError(f"margin is {margin}; give a number above 0")
    if np.isinf(estimate.error):
        return 1.0
    if estimate.error == 0:
        return float(abs(estimate.mean) >= margin)
    below = stats.t.sf((estimate.mean + margin) / estimate.error, estimate.freedom)
    above = stats.t.sf((margin - estimate.mean) / estimate.error, estimate.freedom)
    return float(max(below, above))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values [m] adjusted for m comparisons, step-down. Holm (1979)."""
    p = np.asarray(p_values, dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values {p[~((p >= 0) & (p <= 1))].tolist()} are not probabilities; give numbers between 0 and 1")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def verdict(effect: Effect, p_adjusted: float, p_equivalent: float) -> str:
    """What the data says of the claim that a difference is positive.

    ``reproduced``: positive beyond chance. ``not reproduced``: negative beyond chance, or surely too small
    to matter. ``undecided``: neither.
    """
    if p_adjusted < LEVEL and effect.mean > 0:
        return "reproduced"
    if p_adjusted < LEVEL or p_equivalent < LEVEL:
        return "not reproduced"
    return "undecided"


def arms_of(frame: pd.DataFrame, family: str) -> list[str]:
    """Arms of a family: all with a prefix that ends in ``-`` (``pursuhint-``, ``random-``), or the one arm of that name."""
    arms = list(dict.fromkeys(frame["arm"]))
    return [arm for arm in arms if (arm.startswith(family) if family.endswith("-") else arm == family)]


def differences(frame: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Accuracy of every arm minus the reference's in the same (pair, method, seed).

    **Arguments:** ``reference`` an arm, or a family such as ``random-``, whose mean is taken.

    **Returns:** the rows of the other arms with a column ``difference`` in points; missing where the reference is.
    """
    members = arms_of(frame, reference)
    base = frame[frame["arm"].isin(members)].groupby(CELL)["accuracy"].mean().rename("reference")
    others = frame[~frame["arm"].isin(members)].join(base, on=CELL)
    return others.assign(difference=others["accuracy"] - others["reference"]).drop(columns="reference")


def per_seed(diffs: pd.DataFrame) -> pd.Series:
    """One value per seed, whose mean is the mean over all cells (pair × method × arm), each the mean over the seeds that it has.

    Where every cell has every seed these are the means within each seed. Where some have fewer, a seed's value is the overall mean and
    the seed's share of the deviations from the cells' means, so that Student's interval of the values is that of a cluster-robust standard error
    with seeds as clusters (Liang and Zeger 1986, with the factor S/(S − 1) for S seeds).

    **Arguments:** ``diffs`` with the columns seed and difference, and those of pair, method and arm that vary; missing differences are left out.
    """
    return _per_cluster(diffs, "seed", ("pair", "method", "arm"))


def per_random_arm(diffs: pd.DataFrame) -> pd.Series:
    """One value per random arm as ``per_seed`` gives one per seed: the mean over all pairs and methods of what PURSUhInT's points gain on it.

    An arm has the same number in every pair, and a draw of its own for every teacher, so its values are one draw.

    **Arguments:** ``diffs`` the differences of the random arms from PURSUhInT's points, as ``differences(frame, PURSUHINT)`` gives them.
    """
    random = diffs[diffs["arm"].isin(arms_of(diffs, RANDOM))]
    return -_per_cluster(random, "arm", ("pair", "method"))


def _per_cluster(diffs: pd.DataFrame, cluster: str, cell: Sequence[str]) -> pd.Series:
    found = diffs.dropna(subset="difference")
    if found.empty:
        return pd.Series(dtype=float)
    cells = found.groupby([column for column in cell if column in found])["difference"]
    share = (found["difference"] - cells.transform("mean")) / cells.transform("count")
    return cells.mean().mean() + share.groupby(found[cluster]).sum() * found[cluster].nunique() / cells.ngroups


def effects(diffs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Paired effect per group, with Holm's adjustment over all groups.

    **Returns:** one row per group: ``by``, mean, low, high, n, p, p_holm.
    """
    rows = []
    for key, group in diffs.groupby(list(by), sort=False):
        rows.append(dict(zip(by, key, strict=True)) | asdict(paired_effect(per_seed(group))))
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"])) if rows else table


def _from_random(seeds: _Estimate, sets: _Estimate) -> _Estimate:
    """A mean difference from the random arms as an estimate of that from *any* random set of layers, not just from those that were drawn.

    What is drawn at random is a sample too, and its variance counts: a test that takes the drawn sets for all there are finds differences too
    often (Clark 1973). The variances add up, with degrees of freedom after Satterthwaite (1946); that is on the safe side, as noise of the
    random arms' runs is in both (Cameron, Gelbach and Miller 2011, without the term that they subtract).

    **Arguments:** ``seeds``, ``sets`` the estimate with seeds and with random arms as the sample.
    """
    variances = np.array([seeds.error**2, sets.error**2])
    present = variances > 0
    if np.isinf(variances).any() or not present.any():
        return replace(seeds, error=float(np.sqrt(variances.sum())))
    freedoms = np.array([seeds.freedom, sets.freedom])
    freedom = variances.sum() ** 2 / np.sum(variances[present] ** 2 / freedoms[present])
    return replace(seeds, error=float(np.sqrt(variances.sum())), freedom=float(freedom))


@dataclass(frozen=True)
class Claim:
    """A statement of the form 'accuracy of these arms is higher than of the reference'."""

    text: str
    arms: str
    reference: str


# The first two must hold before the other three mean anything; the third is the paper's, the last two are its controls.
CLAIMS = (
    Claim("Hints at PURSUhInT's points beat the student alone", PURSUHINT, "alone"),
    Claim("The hint loss helps: PURSUhInT's points beat no hints, with the same CE and KD", PURSUHINT, "none"),
    Claim("PURSUhInT's points beat the usual stage ends", PURSUHINT, "stage-ends"),
    Claim("PURSUhInT's points beat random points", PURSUHINT, RANDOM),
    Claim("The similarity metric adds something: PURSUhInT's points beat the middles of equal segments", PURSUHINT, "segment-middles"),
)


def judge_claims(frame: pd.DataFrame, margin: float) -> pd.DataFrame:
    """A verdict on every claim whose arms are in the frame, pooled over pairs, methods and the arms of a family.

    Seeds are the sample; against random points the sets that were drawn are one, too, so that the claim is about random points and not about these.
    Failed runs have no accuracy and are left out of the means, which flatters the arms that fail; ``failed`` says how many.

    **Arguments:** ``margin`` in points: a difference that is too small to matter.

    **Returns:** one row per claim: claim, mean, low, high, n (seeds), cells (pair × method × arm), failed (runs of either side),
    p, p_holm, p_equivalent, verdict.
    """
    rows = []
    for claim in CLAIMS:
        if not arms_of(frame, claim.arms) or not arms_of(frame, claim.reference):
            continue
        involved = frame[frame["arm"].isin(arms_of(frame, claim.arms) + arms_of(frame, claim.reference))]
        diffs = differences(involved, claim.reference)
        estimate = _over(per_seed(diffs))
        if claim.reference == RANDOM:
            estimate = _from_random(estimate, _over(per_random_arm(differences(involved, PURSUHINT))))
        counts = {"cells": len(diffs.groupby(["pair", "method", "arm"])), "failed": int(involved["accuracy"].isna().sum())}
        row = {"claim": claim.text} | asdict(_effect(estimate)) | counts
        rows.append(row | {"p_equivalent": _equivalence_p(estimate, margin)})
    columns = ["claim", "mean", "low", "high", "n", "p", "cells", "failed", "p_equivalent"]
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = holm(table["p"])
    verdicts = [
        verdict(Effect(row["mean"], row["low"], row["high"], row["n"], row["p"]), row["p_holm"], row["p_equivalent"]) for _, row in table.iterrows()
    ]
    return table.assign(verdict=verdicts)


def mean_with_interval(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean accuracy per group over seeds with Student's 95 % interval: ``by``, mean, low, high, n."""
    rows = []
    for key, group in frame.groupby(list(by), sort=False):
        effect = paired_effect(group["accuracy"])
        rows.append(dict(zip(by, key, strict=True)) | {"mean": effect.mean, "low": effect.low, "high": effect.high, "n": effect.n})
    return pd.DataFrame(rows)


def text_table(means: pd.DataFrame, rows: str, columns: str) -> pd.DataFrame:
    """Means as text, ``93.12 ± 0.40``: one row per value of ``rows``, one column per value of ``columns``.

    **Arguments:** ``means`` as ``mean_with_interval`` or ``effects`` return it.
    """
    halves = (means["high"] - means["low"]) / 2
    text = [f"{mean:.2f} ± {half:.2f}" if np.isfinite(half) else f"{mean:.2f}" for mean, half in zip(means["mean"], halves, strict=True)]
    table = means.assign(text=text).pivot(index=rows, columns=columns, values="text")
    table = table.loc[list(dict.fromkeys(means[rows])), list(dict.fromkeys(means[columns]))].fillna("–")
    return table.reset_index().rename_axis(columns=None)


def score_correlations(frame: pd.DataFrame, scores: pd.DataFrame, *, draws: int = 9999, seed: int = 0) -> pd.DataFrame:
    """Whether a score of the points predicts accuracy: Spearman's rank correlation across arms, per (pair, method), averaged over these cells.

    Arms with the same score, and the same accuracy in all cells of a pair, are one (they took the same points). The p-value is that of a
    permutation test: the scores of the arms are shuffled, in the same way for all methods, and for all pairs whose arms have the same scores,
    as those of one teacher do.

    **Arguments:** ``scores`` with columns pair, arm, score, value.

    **Returns:** one row per score: score, rho (mean over cells), low, high (over cells), cells, arms (of the smallest pair), p, p_holm.
    """
    generator, rows = np.random.default_rng(seed), []
    means = frame.pivot_table(index=["pair", "arm"], columns="method", values="accuracy", sort=False)
    # Not every pair need have been trained with these methods.
    for score, values in scores[scores["pair"].isin(frame["pair"])].groupby("score", sort=False):
        cells = []
        for pair, value in values.groupby("pair", sort=False):
            table = means.loc[[pair]].droplevel("pair").dropna(axis=1, how="all").join(value.set_index("arm")["value"], how="inner").drop_duplicates()
            if len(table) > 2:
                cells.append(_ranked(table))
        if not cells:
            continue
        rho = np.concatenate([accuracy @ value for accuracy, value in cells])
        shuffled = [_shuffled_rho(cells, generator) for _ in range(draws)]
        p = (1 + np.sum(np.abs(shuffled) >= abs(rho.mean()) - 1e-12)) / (1 + draws)
        arms = min(len(value) for _, value in cells)
        rows.append({"score": score, "rho": rho.mean(), "low": rho.min(), "high": rho.max(), "cells": len(rho), "arms": arms, "p": p})
    table = pd.DataFrame(rows, columns=["score", "rho", "low", "high", "cells", "arms", "p"])
    return table.assign(p_holm=holm(table["p"]))


def _shuffled_rho(cells: Sequence[tuple[np.ndarray, np.ndarray]], generator: np.random.Generator) -> float:
    """The mean correlation after the scores were shuffled among the arms; equal scores in the same way."""
    orders = {value.tobytes(): generator.permutation(len(value)) for _, value in cells}
    return float(np.mean(np.concatenate([accuracy @ value[orders[value.tobytes()]] for accuracy, value in cells])))


def _ranked(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the accuracies [methods, arms] and of the scores [arms], centred and of unit length, so that products are correlations."""
    ranks = table.rank().to_numpy().T
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=1, keepdims=True)
    # Where all are equal there is no order, and no correlation.
    ranks = np.divide(ranks, lengths, out=np.zeros_like(ranks), where=lengths > 0)
    return ranks[:-1], ranks[-1]


def deviations(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of every arm minus the mean of all arms of the frame in the same (pair, method, seed).

    Arms that took the same points are the same runs, and count once in the mean.

    **Returns:** the rows of the frame with a column ``difference`` in points.
    """
    mean = frame.drop_duplicates([*CELL, "points"]).groupby(CELL)["accuracy"].mean().rename("reference")
    joined = frame.join(mean, on=CELL)
    return joined.assign(difference=joined["accuracy"] - joined["reference"]).drop(columns="reference")


def spread_of_arms(frame: pd.DataFrame, *, draws: int = 9999, seed: int = 0) -> dict:
    """Whether the arms of a frame differ at all: how far their means lie apart, and how far they would if arms were names without meaning.

    Where it does not matter which points an arm takes, its accuracies within a seed could as well be another arm's. The p-value is that of
    the permutation test of this: arms are shuffled within every seed, in the same way for all pairs and methods, as seeds are the unit of
    replication (Fisher and Pitman's test in blocks). Every (pair, method) counts the same. Arms with the same points as an earlier one, or
    with a failed run, are left out.

    **Arguments:** ``frame`` of arms with points only.

    **Returns:** arms, cells (pair × method), n (seeds), spread (standard deviation of the arms' means, points), chance (its mean over the
    shuffles), p, best (the arm of the highest mean) and lead (its mean minus that of the next, points).
    """
    same = frame.pivot_table(index="pair", columns="arm", values="points", aggfunc="first", sort=False)
    table = frame.pivot(index=CELL, columns="arm", values="accuracy")
    arms = [arm for place, arm in enumerate(same) if not any((same[arm] == same[other]).any() for other in same.columns[:place])]
    table = table[arms].dropna(axis=1)
    cells = table.groupby(level=["pair", "method"])
    shares = table.sub(table.mean(axis=1), axis=0) / cells.ngroups / cells.transform("count")
    by_seed = shares.groupby(level="seed").sum()
    found = by_seed.sum().sort_values(ascending=False)
    counts = {"arms": len(found), "cells": cells.ngroups, "n": len(by_seed)}
    if len(found) < 2:
        return counts | {"spread": float("nan"), "chance": float("nan"), "p": 1.0, "best": "", "lead": float("nan")}
    generator = np.random.default_rng(seed)
    shuffled = np.array([generator.permuted(by_seed.to_numpy(), axis=1).sum(axis=0).std(ddof=1) for _ in range(draws)])
    spread = found.std(ddof=1)
    p = (1 + np.sum(shuffled >= spread - 1e-12)) / (1 + draws)
    return counts | {"spread": spread, "chance": shuffled.mean(), "p": p, "best": found.index[0], "lead": found.iloc[0] - found.iloc[1]}


def rank_among_random(frame: pd.DataFrame) -> pd.DataFrame:
    """Where each other arm stands in the distribution of the random arms, by mean accuracy per (pair, method).

    **Returns:** pair, method, arm, mean, random_mean, random_low, random_high (range of the random arms' means),
    better_than (share of the random arms that are beaten).
    """
    means = frame.groupby(["pair", "method", "arm"], sort=False)["accuracy"].mean().dropna()
    rows = []
    for (pair, method), cell in means.groupby(level=[0, 1], sort=False):
        cell = cell.droplevel([0, 1])
        null = cell[[arm for arm in cell.index if arm.startswith(RANDOM)]]
        if null.empty:
            continue
        shared = {"pair": pair, "method": method, "random_mean": null.mean(), "random_low": null.min(), "random_high": null.max()}
        rows += [{**shared, "arm": arm, "mean": cell[arm], "better_than": float((null < cell[arm]).mean())} for arm in cell.index.drop(null.index)]
    return pd.DataFrame(rows, columns=["pair", "method", "arm", "mean", "random_mean", "random_low", "random_high", "better_than"])
