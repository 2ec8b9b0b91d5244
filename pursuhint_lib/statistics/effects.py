"""A mean difference and what is known of it: interval, p-value, equivalence, adjustment for many comparisons;
single samples and pooled cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.05


@dataclass(frozen=True)
class Effect:
    """A mean difference over ``n`` seeds, its standard error (infinite where nothing is known of it) and the
    degrees of freedom of that.
    """

    mean: float
    error: float
    freedom: float
    n: int

    @property
    def half_width(self) -> float:
        """Half of Student's 95 % interval."""
        return (
            float(stats.t.ppf(1 - LEVEL / 2, self.freedom) * self.error)
            if np.isfinite(self.error)
            else np.inf
        )

    @property
    def low(self) -> float:
        """Lower end of Student's 95 % interval."""
        return self.mean - self.half_width if np.isfinite(self.error) else -np.inf

    @property
    def high(self) -> float:
        """Upper end of Student's 95 % interval."""
        return self.mean + self.half_width if np.isfinite(self.error) else np.inf

    @property
    def p(self) -> float:
        """Two-sided p-value of no difference."""
        if self.error == 0:
            return float(self.mean == 0)
        return (
            float(2 * stats.t.sf(abs(self.mean) / self.error, self.freedom))
            if np.isfinite(self.error)
            else 1.0
        )

    def row(self) -> dict:
        """For tables: mean, low, high, n, p."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n, "p": self.p}


def paired_effect(differences: Sequence[float]) -> Effect:
    """Mean of paired differences [n]; nothing is known of its error for a single one.

    Missing differences (failed runs) are left out and lower ``n``.
    """
    values = _finite(np.asarray(differences, dtype=float))
    values = values[~np.isnan(values)]
    n = len(values)
    mean = float(values.mean()) if n else float("nan")
    return Effect(mean, float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else np.inf, n - 1, n)


def _finite(values: np.ndarray) -> np.ndarray:
    if np.isinf(values).any():
        raise ValueError("differences hold infinity; an accuracy is finite, so leave that run out (as NaN)")
    return values


def pooled_effect(diffs: pd.DataFrame, unit: str = "seed") -> Effect:
    """Mean over cells (pair × method × arm) of the mean over the units that each has.

    What cells have in common within a unit counts once: its standard error is cluster-robust. Two kinds of
    clusters are tried, all that has one seed, and all that has one seed within a pair, and the wider interval
    is taken. The first knows little of its error where pairs have nothing in common; the second is too narrow
    where they have something. A cell with one unit leaves the error unknown.

    **Arguments:** ``diffs`` with the columns difference and ``unit``, and those of pair, method and arm that
    vary; missing differences are left out. ``unit`` seed, or arm where the sets of layers are the sample.

    **Returns:** the effect, ``n`` units.
    """
    table = _by_cell(diffs, unit)
    if table.empty:
        return paired_effect([])
    mean, n = float(table.mean(axis=1).mean()), table.shape[1]
    if table.notna().sum(axis=1).min() < 2:
        return Effect(mean, np.inf, 0, n)
    clusterings = [[table], _within_pairs(table)]
    return max(
        (Effect(mean, *_cluster_robust(blocks), n) for blocks in clusterings),
        key=lambda effect: effect.half_width,
    )


def _by_cell(diffs: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Mean differences [cells, units]; missing where a cell lacks a unit."""
    _finite(diffs["difference"].to_numpy(float))
    cell = [column for column in ("pair", "method", "arm") if column in diffs and column != unit]
    return diffs.dropna(subset="difference").pivot_table(
        index=cell, columns=unit, values="difference", sort=False
    )


def _within_pairs(table: pd.DataFrame) -> list[pd.DataFrame]:
    return (
        [rows.dropna(axis=1, how="all") for _, rows in table.groupby(level="pair", sort=False)]
        if "pair" in table.index.names
        else [table]
    )


def _cluster_robust(blocks: Sequence[pd.DataFrame]) -> tuple[float, float]:
    """Standard error and degrees of freedom of the mean of the rows' means, the columns [cells, units] of
    every block being clusters.

    The bias-reduced sandwich (CR2) of Bell and McCaffrey (2002) with their degrees of freedom. With unequal
    numbers of units the plain one is too narrow; with equal numbers this is Student's interval of the
    clusters' means.
    """
    variance = trace = squares = 0.0
    for block in blocks:
        shares, covariance = _shares(block)
        variance += shares @ shares
        trace += np.trace(covariance)
        squares += np.sum(covariance**2)
    return float(np.sqrt(variance) / sum(map(len, blocks))), float(trace**2 / squares)


def _shares(block: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """What each unit adds to the sum of the rows' means [units], and how these vary together if runs are
    independent [units, units].

    The covariance is in units of a run's variance. A residual is too small by √((n − 1)/n) where a row has n
    units, as the row's own mean is taken off; the weights mend that.
    """
    present = block.notna().to_numpy(float)
    n = present.sum(axis=1, keepdims=True)
    weights = present / np.sqrt(n * (n - 1))
    residuals = block.sub(block.mean(axis=1), axis=0).fillna(0).to_numpy()
    covariance = np.diag(np.sum(weights**2, axis=0)) - (weights**2 / n).T @ present
    return np.sum(weights * residuals, axis=0), covariance


def bootstrap_interval(
    diffs: pd.DataFrame, unit: str = "seed", *, resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of ``pooled_effect``: units drawn with replacement
    within every pair.

    It is too narrow for less than about 8 units, and infinite where a cell has one.
    """
    table = _by_cell(diffs, unit)
    if table.empty or table.notna().sum(axis=1).min() < 2:
        return -np.inf, np.inf
    samples = [_shares(block)[0] * block.shape[1] / len(table) for block in _within_pairs(table)]
    drawn = stats.bootstrap(
        samples,
        lambda *resampled, axis: sum(sample.mean(axis=axis) for sample in resampled),
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    mean = float(table.mean(axis=1).mean())
    return mean + float(drawn.low), mean + float(drawn.high)


def equivalence_p(effect: Effect, margin: float) -> float:
    """p-value of two one-sided t-tests (TOST): small when the mean difference surely lies within ±margin.

    Schuirmann (1987). ``margin`` is in the unit of the differences, > 0.
    """
    if not margin > 0:
        raise ValueError(f"margin is {margin}; give a number above 0")
    if np.isinf(effect.error):
        return 1.0
    if effect.error == 0:
        return float(abs(effect.mean) >= margin)
    below = stats.t.sf((effect.mean + margin) / effect.error, effect.freedom)
    above = stats.t.sf((margin - effect.mean) / effect.error, effect.freedom)
    return float(max(below, above))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values [m] adjusted for m comparisons, step-down. Holm (1979)."""
    p = np.asarray(p_values, dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(
            f"p-values {p[~((p >= 0) & (p <= 1))].tolist()} are not probabilities; give numbers between 0 "
            "and 1"
        )
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted
