"""All sets with one hint layer in each stage: how far their students differ, where the stage ends and the
paper's layers stand among them, and what the place in each stage does. No set is sampled, so no number hangs
on which sets were drawn.
"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats

from ...settings import Pair, Profile, SettingsError
from ...statistics import Effect, holm, run_noise
from ..grid.arms import STAGE_SET, STAGE_SETS
from ..grid.profiles import network_points

POPULATION = "13_population"


def population_arms(profile: Profile, pair: Pair) -> list[str]:
    """The arms that are a set with one layer in each stage, if the profile has all of them, and several."""
    stages = network_points(pair.teacher, profile.data).layer_map.stages(pair.k)
    arms = [arm for arm in profile.arms if arm.startswith(STAGE_SET)]
    return arms if 1 < len(arms) == math.prod(map(len, stages)) else []


def population_executions(profile: Profile) -> list[dict]:
    """One for every pair that is trained with the whole population."""
    return [{"pair": pair.name} for pair in profile.pairs if population_arms(profile, pair)]


def population_frame(profile: Profile, pair: Pair, frame: pd.DataFrame) -> pd.DataFrame:
    """Every run of the population.

    **Arguments:** ``frame`` as ``cells.results_frame`` gives it.

    **Returns:** its rows of the pair and its sets, with the columns set (``2-5-8``), mean (over seeds, %),
    rank (of the mean within its method; 1 is the best, and sets that have failed are the last) and named
    (other arms that took the same layers).

    **Raises:** ``SettingsError`` where the profile does not train all sets.
    """
    if not (arms := population_arms(profile, pair)):
        raise SettingsError(
            f"{profile.name} does not train every set with one layer in each stage of {pair.teacher}; add "
            f"{STAGE_SETS} to its arms, or take a profile that has them"
        )
    mine = frame[frame["pair"] == pair.name]
    chosen = mine["arm"].isin(arms)
    others = mine[~chosen & (mine["points"] != "")].drop_duplicates(["arm", "points"])
    named = others.groupby("points", sort=False)["arm"].agg(tuple)
    runs = mine[chosen].assign(set=mine["arm"].str.removeprefix(STAGE_SET), named=mine["points"].map(named))
    runs["mean"] = runs.groupby(["method", "set"])["accuracy"].transform("mean")
    means = runs.drop_duplicates(["method", "set"])
    ranks = means.groupby("method")["mean"].rank(ascending=False, method="min", na_option="bottom")
    ranked = means[["method", "set"]].assign(rank=ranks.astype(int))
    return runs.merge(ranked, on=["method", "set"])


def population_spread(runs: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Whether the sets of a population differ at all: an F test of their means against the noise of a run.

    **Arguments:** ``runs`` by ``population_frame``; ``frame`` of the whole experiment, whose cells all tell
    of the noise (``statistics.run_noise``).

    **Returns:** one row per method: method, sets, n (seeds that have all of them), best and worst (means, %),
    spread (standard deviation of the sets' means without chance, pp), chance (that of a mean by chance, pp),
    F, p.
    """
    rows = []
    for method, means, n, variance, freedom in _cells(runs, frame):
        sets, between = len(means), float(means.var(ddof=1))
        rows.append(
            {
                "method": method,
                "sets": sets,
                "n": n,
                "best": means.max(),
                "worst": means.min(),
                "spread": math.sqrt(max(between - variance, 0.0)),
                "chance": math.sqrt(variance),
            }
            | _f_test(between, variance, sets - 1, freedom)
        )
    return pd.DataFrame(rows)


def stage_effects(runs: pd.DataFrame, frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the place in each stage does: main effects of the full factorial design that a population is.

    An effect is the mean over all sets with a sub-block minus that over all sets, so places in other stages
    are the same on both sides. What the main effects of all stages leave is interaction of stages, and noise.

    **Arguments:** as for ``population_spread``.

    **Returns:** one row per method and sub-block: method, stage, sub-block (1-based), mean, low, high (pp,
    with a 95 % interval), n, p; and one per method and stage: method, stage, share (of the sum of squares
    between sets), F, p, and p_holm (over all methods and stages).
    """
    places, tests = [], []
    for method, means, n, variance, freedom in _cells(runs, frame):
        total = float(((means - means.mean()) ** 2).sum())
        numbers = np.array([name.split("-") for name in means.index], dtype=int)
        for stage, column in enumerate(numbers.T, start=1):
            marginal = means.groupby(column).mean() - means.mean()
            count, alike = len(marginal), len(means) // len(marginal)
            error = math.sqrt(variance / alike * (1 - 1 / count))
            for number, effect in marginal.items():
                row = Effect(effect, error, freedom, n).row()
                places.append({"method": method, "stage": stage, "sub-block": number} | row)
            explained = alike * float((marginal**2).sum())
            test = _f_test(explained / max(1, count - 1), variance, count - 1, freedom)
            share = explained / total if total else float("nan")
            tests.append({"method": method, "stage": stage, "share": share} | test)
    table = pd.DataFrame(tests)
    return pd.DataFrame(places), table.assign(p_holm=holm(table["p"]))


def _f_test(square: float, variance: float, between: int, within: float) -> dict[str, float]:
    """F and p of a mean square with so many degrees of freedom; nothing is tested where runs have no noise,
    or none that is known.
    """
    if not (variance > 0 and between):
        return {"F": float("nan"), "p": 1.0}
    return {"F": square / variance, "p": float(stats.f.sf(square / variance, between, within))}


def _cells(runs: pd.DataFrame, frame: pd.DataFrame) -> Iterator[tuple[str, pd.Series, int, float, float]]:
    """Per method: its name, the sets' means over the seeds that have all of them, how many these are, and the
    variance of such a mean by chance with its degrees of freedom.
    """
    noise = run_noise(frame)
    for (pair, method), cell in runs.groupby(["pair", "method"], sort=False):
        table = cell.pivot(index="seed", columns="set", values="accuracy")[[*dict.fromkeys(cell["set"])]]
        table, mine = table.dropna(), noise.loc[pair, method]
        variance = float(mine["moderated"]) / (len(table) or math.nan)
        yield method, table.mean(), len(table), variance, float(mine["moderated_freedom"])
