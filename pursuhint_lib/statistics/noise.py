"""How far a run lies from what its arm and its seed lead one to expect: the variance that every interval of a
difference rests on.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import special

# What one variance is estimated for.
CELL = ("pair", "method")


def run_noise(frame: pd.DataFrame, by: Sequence[str] = CELL) -> pd.DataFrame:
    """Variance of a run in every cell, with that of the other cells in mind.

    Arms and seeds are taken out of a cell as additive effects, by least squares; what is left is the noise of
    a run. Arms that took the same layers are the same runs, and the student alone has no part in it.

    **Arguments:** ``frame`` of runs with the columns ``by``, arm, seed, points and accuracy; runs without
    accuracy are left out. ``by`` names a cell.

    **Returns:** indexed by cell: variance and freedom, own; moderated and moderated_freedom as ``moderate``
    gives them.
    """
    return _by_cell(frame[frame["arm"] != "alone"], by, ("points", "seed"))


def run_spread(frame: pd.DataFrame) -> pd.DataFrame:
    """Variance of a run about the mean of its arm, which has in it what all runs of a seed have in common;
    otherwise as ``run_noise``, and with the student alone.
    """
    points = frame["points"].mask(frame["arm"] == "alone", "alone")
    return _by_cell(frame.assign(points=points), CELL, ("points",))


def _by_cell(frame: pd.DataFrame, by: Sequence[str], taken_out: Sequence[str]) -> pd.DataFrame:
    """What ``run_noise`` returns, of what these columns do not explain."""
    rows = {}
    for cell, runs in frame.groupby(list(by), sort=False):
        distinct = runs.dropna(subset="accuracy").drop_duplicates(["seed", "points"])
        rows[cell] = _residual(distinct, taken_out)
    index = pd.MultiIndex.from_tuples(rows, names=list(by))
    table = pd.DataFrame(rows.values(), index=index, columns=["variance", "freedom"])
    moderated, freedom = moderate(table["variance"].to_numpy(), table["freedom"].to_numpy())
    return table.assign(moderated=moderated, moderated_freedom=freedom)


def _residual(runs: pd.DataFrame, taken_out: Sequence[str]) -> tuple[float, int]:
    """Mean square of what the columns do not explain as additive effects, and its degrees of freedom."""
    places = [pd.factorize(runs[column])[0] for column in taken_out]
    design = np.hstack([np.eye(place.max(initial=0) + 1)[place] for place in places])
    accuracy = runs["accuracy"].to_numpy(float)
    effects, _, rank, _ = np.linalg.lstsq(design, accuracy, rcond=None)
    freedom = len(runs) - int(rank)
    if freedom < 1:
        return float("nan"), 0
    fitted = design @ effects
    return float(np.sum((accuracy - fitted) ** 2) / freedom), freedom


def paired_share(frame: pd.DataFrame) -> float:
    """What pairing by seed gains in one cell: the share of the variance of a difference between two arms that
    it takes out. By chance it can lie below 0.

    **Arguments:** ``frame`` with the columns arm, seed, points and accuracy; seeds that lack an arm are left
    out.

    **Returns:** 1 − v / u, where v is the mean square of what arms and seeds do not explain, and u that of
    what arms alone do not; NaN for fewer than two arms or seeds, or where u is 0.
    """
    runs = frame[frame["arm"] != "alone"]
    apart = runs.pivot_table(index="seed", columns="points", values="accuracy").dropna()
    apart -= apart.mean()
    left, arms = apart.sub(apart.mean(axis=1), axis=0), apart.shape[1]
    alone = float((apart**2).to_numpy().sum()) / max(1, arms)
    if min(apart.shape) < 2 or not alone:
        return float("nan")
    return 1 - float((left**2).to_numpy().sum()) / (arms - 1) / alone


def moderate(variances: np.ndarray, freedoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances drawn towards what they have in common, by empirical Bayes (Smyth 2004).

    Each is s² ~ σ² χ²_d / d, and 1/σ² over cells is χ²_{d₀} / (d₀ s₀²). d₀ and s₀² follow from mean and
    variance of log s²; the moderated variance is (d₀ s₀² + d s²) / (d₀ + d), with d₀ + d degrees of freedom.

    **Arguments:** ``variances`` [cells], NaN or 0 where nothing is known; ``freedoms`` [cells].

    **Returns:** moderated variances and degrees of freedom [cells]; without any known variance NaN and 0.
    """
    known = (freedoms > 0) & (variances > 0)
    s2, d = variances[known], freedoms[known].astype(float)
    if not len(s2):
        return np.full(len(variances), np.nan), np.zeros(len(variances))
    logs = np.log(s2) - special.digamma(d / 2) + np.log(d / 2)
    spread = logs.var(ddof=1) - special.polygamma(1, d / 2).mean() if len(s2) > 1 else 0.0
    own = np.where(freedoms > 0, np.nan_to_num(variances) * freedoms, 0.0)
    if spread <= 0:
        # They differ by no more than chance: one variance for all of them.
        return np.full(len(variances), own.sum() / d.sum()), np.full(len(variances), d.sum())
    prior = 2 * _inverse_trigamma(spread)
    centre = np.exp(logs.mean() + special.digamma(prior / 2) - np.log(prior / 2))
    # Together they know no more than all runs do.
    total = np.minimum(prior + freedoms, d.sum())
    return (prior * centre + own) / (prior + freedoms), total


def _inverse_trigamma(value: float) -> float:
    """x with trigamma(x) = value, by Newton's method on 1/trigamma, which is convex and nearly linear."""
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = special.polygamma(1, x)
        step = trigamma * (1 - trigamma / value) / special.polygamma(2, x)
        x += step
        if -step / x < 1e-10:
            break
    return float(x)
