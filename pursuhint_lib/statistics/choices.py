"""Questions to all arms together: whether their choice matters, whether a score predicts it, and where an arm
stands among random ones.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import special

from ..digits import settled
from .comparisons import RANDOM
from .effects import holm
from .noise import CELL


def score_correlations(
    frame: pd.DataFrame, scores: pd.DataFrame, *, draws: int = 9999, seed: int = 0
) -> pd.DataFrame:
    """Whether a score of the points predicts accuracy: Spearman's rank correlation across arms, per (pair,
    method), averaged over these cells.

    Arms with the same score, and the same accuracy in all cells of a pair, are one (they took the same
    points). The p-value is that of a permutation test: the scores of the arms are shuffled, in the same way
    for all methods, and for all pairs whose arms have the same scores, as those of one teacher do.

    **Arguments:** ``scores`` with columns pair, arm, score, value.

    **Returns:** one row per score: score, rho (mean over cells), low, high (over cells), cells, arms (of the
    smallest pair), p, p_holm.
    """
    generator, rows = np.random.default_rng(seed), []
    means = frame.pivot_table(index=["pair", "arm"], columns="method", values="accuracy", sort=False)
    # Not every pair need have been trained with these methods.
    for score, values in scores[scores["pair"].isin(frame["pair"])].groupby("score", sort=False):
        cells = []
        for pair, value in values.groupby("pair", sort=False):
            table = (
                means.loc[[pair]]
                .droplevel("pair")
                .dropna(axis=1, how="all")
                .join(value.set_index("arm")["value"], how="inner")
                .drop_duplicates()
            )
            if len(table) > 2:
                cells.append(_ranked(table))
        if not cells:
            continue
        rho = np.concatenate([accuracy @ value for accuracy, value in cells])
        shuffled = _shuffled_rho(cells, draws, generator)
        p = (1 + np.sum(np.abs(shuffled) >= abs(rho.mean()) - 1e-12)) / (1 + draws)
        arms = min(len(value) for _, value in cells)
        rows.append(
            {
                "score": score,
                "rho": rho.mean(),
                "low": rho.min(),
                "high": rho.max(),
                "cells": len(rho),
                "arms": arms,
                "p": p,
            }
        )
    table = pd.DataFrame(rows, columns=["score", "rho", "low", "high", "cells", "arms", "p"])
    return table.assign(p_holm=holm(table["p"]))


def _shuffled_rho(
    cells: Sequence[tuple[np.ndarray, np.ndarray]], draws: int, generator: np.random.Generator
) -> np.ndarray:
    """The mean correlations [draws] after the scores were shuffled among the arms; equal scores in the same
    way.
    """
    places = {score.tobytes(): np.tile(np.arange(len(score)), (draws, 1)) for _, score in cells}
    orders = {score: generator.permuted(arms, axis=1) for score, arms in places.items()}
    found = [score[orders[score.tobytes()]] @ accuracy.T for accuracy, score in cells]
    return np.concatenate(found, axis=1).mean(axis=1)


def _ranked(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the accuracies [methods, arms] and of the scores [arms], centred and of unit length, so that
    products are correlations.
    """
    ranks = table.rank().to_numpy().T
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=1, keepdims=True)
    # Where all are equal there is no order, and no correlation.
    ranks = np.divide(ranks, lengths, out=np.zeros_like(ranks), where=lengths > 0)
    return ranks[:-1], ranks[-1]


def spread_of_arms(frame: pd.DataFrame, *, draws: int = 9999, seed: int = 0) -> dict:
    """Whether the arms of a frame differ at all: how far their means lie apart, and how far they would if
    arms were names without meaning.

    Where it does not matter which points an arm takes, its accuracies within a seed could as well be another
    arm's. The p-value is that of the permutation test of this: arms are shuffled within every seed, in the
    same way for all pairs and methods, as seeds are the unit of replication (Fisher and Pitman's test in
    blocks). Every (pair, method) counts the same. Arms with a failed run are left out; of arms that took the
    same layers in some pair, only the first is among those that are shuffled.

    **Arguments:** ``frame`` of arms with hint layers only.

    **Returns:** arms (those that are shuffled), cells (pair × method), n (seeds), spread (standard deviation
    of the arms' means, pp), chance (its mean over the shuffles), p, best (of all arms the one of the highest
    mean) and lead (its mean minus that of the next that took other layers, pp).
    """
    same = frame.pivot_table(index="pair", columns="arm", values="points", aggfunc="first", sort=False)
    table = frame.pivot(index=[*CELL, "seed"], columns="arm", values="accuracy")[[*same]].dropna(axis=1)
    cells = table.groupby(level=["pair", "method"])
    shares = table.sub(table.mean(axis=1), axis=0) / cells.ngroups / cells.transform("count")
    by_seed, same = shares.groupby(level="seed").sum(), same[[*table]]
    ranked = by_seed.sum().sort_values(ascending=False, kind="stable", key=settled)
    others = [arm for arm in ranked.index if not same[arm].equals(same[ranked.index[0]])]
    by_seed = by_seed[_without_repetition(same)]
    found = by_seed.sum()
    counts = {"arms": len(found), "cells": cells.ngroups, "n": len(by_seed)}
    if len(found) < 2:
        unknown = float("nan")
        return counts | {"spread": unknown, "chance": unknown, "p": 1.0, "best": "", "lead": unknown}
    generator = np.random.default_rng(seed)
    shares = by_seed.to_numpy()
    drawn = np.array([generator.permuted(shares, axis=1) for _ in range(draws)])
    shuffled = drawn.sum(axis=1).std(axis=1, ddof=1)
    spread = found.std(ddof=1)
    p = (1 + np.sum(shuffled >= spread - 1e-12)) / (1 + draws)
    return counts | {
        "spread": spread,
        "chance": shuffled.mean(),
        "p": p,
        "best": ranked.index[0],
        "lead": ranked.iloc[0] - ranked[others[0]],
    }


def _without_repetition(layers: pd.DataFrame) -> list[str]:
    """Arms that took other layers than every arm before them, in all pairs.

    **Arguments:** ``layers`` [pairs, arms].
    """
    return [
        arm
        for place, arm in enumerate(layers)
        if not any((layers[arm] == layers[other]).any() for other in layers.columns[:place])
    ]


def expected_range(means: int) -> float:
    """How far the highest of so many standard normal numbers lies above the lowest, on average."""
    x = np.linspace(-10, 10, 4001)
    below = special.ndtr(x)
    return float(np.trapezoid(1 - below**means - (1 - below) ** means, x))


def rank_among_random(frame: pd.DataFrame, family: str = RANDOM) -> pd.DataFrame:
    """Where each other arm stands in the distribution of the random arms, by mean accuracy per (pair,
    method).

    **Arguments:** ``family`` of the random arms, as ``comparisons.arms_of`` takes it.

    **Returns:** pair, method, arm, mean, random_mean, random_low, random_high (range of the random arms'
    means), better_than (share of the random arms that are beaten).
    """
    means = frame.groupby(["pair", "method", "arm"], sort=False)["accuracy"].mean().dropna()
    rows = []
    for (pair, method), cell in means.groupby(level=[0, 1], sort=False):
        cell = cell.droplevel([0, 1])
        null = cell[[arm for arm in cell.index if arm.startswith(family)]]
        if null.empty:
            continue
        shared = {
            "pair": pair,
            "method": method,
            "random_mean": null.mean(),
            "random_low": null.min(),
            "random_high": null.max(),
        }
        rows += [
            {**shared, "arm": arm, "mean": cell[arm], "better_than": float((null < cell[arm]).mean())}
            for arm in cell.index.drop(null.index)
        ]
    return pd.DataFrame(
        rows,
        columns=["pair", "method", "arm", "mean", "random_mean", "random_low", "random_high", "better_than"],
    )
