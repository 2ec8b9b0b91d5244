"""Teachers as a sample: what the paper's layers give over others for any teacher of their kind, not only for
those that were tried.
"""

import numpy as np
import pandas as pd
from scipy import stats

from .contrasts import worded
from .effects import Effect, equivalence_p


def over_teachers(effects: pd.DataFrame) -> pd.DataFrame:
    """Mean over teachers of a difference, with a 95 % interval about any teacher.

    Every teacher counts the same. The variance of the mean is that between the teachers' differences, which
    has the noise of training in it: a t-test of the teachers' differences. Where both rules take the same
    layers of a teacher there is no difference to learn from, and the teacher is left out. Beside it the sign
    test, which asks only for how many teachers the difference is above 0.

    **Arguments:** ``effects`` of one student as ``statistics.compared`` gives them: minus, pair, method,
    mean, error and margin (pp).

    **Returns:** one row per minus and method: minus, method, n (teachers), positive (teachers above 0), mean,
    low, high (pp), p, p_sign, margin (the teachers' mean), spread (standard deviation between teachers
    without the noise of training, pp), and p_holm and word as ``statistics.contrasts`` gives them; Holm's
    adjustment is over the methods of one minus.

    **Raises:** ``ValueError`` where no teacher has a difference.
    """
    if effects["mean"].isna().all():
        raise ValueError("no teacher has a difference to learn from; compare other arms, or more teachers")
    tables = []
    for minus, found in effects.dropna(subset="mean").groupby("minus", sort=False):
        rows = [
            {"minus": minus, "method": method} | _over_teachers(cells)
            for method, cells in found.groupby("method", sort=False)
        ]
        tables.append(worded(pd.DataFrame(rows)))
    return pd.concat(tables, ignore_index=True)


def _over_teachers(cells: pd.DataFrame) -> dict[str, float]:
    differences, n = cells["mean"].to_numpy(), len(cells)
    variance = float(differences.var(ddof=1)) if n > 1 else np.inf
    effect = Effect(float(differences.mean()), np.sqrt(variance / n), n - 1, n)
    margin = float(cells["margin"].mean())
    # A difference of exactly 0 speaks for neither side.
    positive, negative = int((differences > 0).sum()), int((differences < 0).sum())
    sign = stats.binomtest(positive, positive + negative).pvalue if positive + negative else 1.0
    return effect.row() | {
        "positive": positive,
        "p_sign": float(sign),
        "margin": margin,
        "p_same": equivalence_p(effect, margin) if margin > 0 else 1.0,
        "spread": float(np.sqrt(max(variance - float((cells["error"] ** 2).mean()), 0.0))),
    }
