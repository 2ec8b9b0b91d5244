"""A mean difference and what is known of it: interval, p-value, equivalence, adjustment for several."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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
