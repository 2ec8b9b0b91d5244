"""The population of sets with one hint layer in each stage: its ranks, spread and effects of place, against
least squares on explicit designs.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from scipy import stats

from pursuhint_lib import plots
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.study.experiments.population import (
    population_arms,
    population_executions,
    population_frame,
    population_spread,
    stage_effects,
)
from pursuhint_lib.study.grid.profiles import load_profile, network_points

SEEDS = 3
# True effects of the places in the stages of resnet20, pp.
EFFECTS = {2: 0.5, 5: 1.0, 8: 2.0, 9: -2.0}


@pytest.fixture(scope="module")
def profile():
    return load_profile("cifar100-sets")


@pytest.fixture(scope="module")
def frame(profile) -> pd.DataFrame:
    """Results of one method: places matter by ``EFFECTS``, seeds too, and a run has noise."""
    pair, generator, rows = profile.pairs[0], np.random.default_rng(4), []
    names = network_points(pair.teacher, profile.data).candidates
    seeds = generator.normal(size=SEEDS)
    for numbers in product((1, 2, 3), (4, 5, 6), (7, 8, 9)):
        mean = 45 + sum(EFFECTS.get(number, 0.0) for number in numbers)
        points, values = " ".join(names[number - 1] for number in numbers), generator.normal(size=SEEDS)
        arms = ["stage-set-" + "-".join(map(str, numbers))]
        arms += {(3, 6, 9): ["stage-ends"], (2, 5, 8): ["pursuhint-r2", "segment-middles"]}.get(numbers, [])
        rows += [
            (pair.name, "at", arm, seed, points, mean + seeds[seed] + values[seed])
            for arm in arms
            for seed in range(SEEDS)
        ]
    rows += [(pair.name, "at", "none", seed, "", 43 + seeds[seed]) for seed in range(SEEDS)]
    return pd.DataFrame(rows, columns=["pair", "method", "arm", "seed", "points", "accuracy"])


@pytest.fixture(scope="module")
def runs(profile, frame) -> pd.DataFrame:
    return population_frame(profile, profile.pairs[0], frame)


def test_a_pair_has_a_notebook_where_every_set_is_trained(profile):
    (pair,) = profile.pairs
    assert population_executions(profile) == [{"pair": pair.name}]
    assert len(population_arms(profile, pair)) == 27
    one_less = replace(profile, arms=tuple(arm for arm in profile.arms if arm != "stage-set-1-4-7"))
    assert population_executions(one_less) == []
    assert population_executions(load_profile("quick")) == []


def test_sets_are_ranked_and_those_of_rules_are_named(runs):
    ranks = runs.drop_duplicates("set").set_index("set")
    assert sorted(ranks["rank"]) == list(range(1, 28))
    means = runs.groupby("set")["accuracy"].mean()
    assert all(ranks.loc[name, "rank"] == 1 + (means > means[name]).sum() for name in means.index)
    assert ranks["named"].dropna().to_dict() == {
        "2-5-8": ("pursuhint-r2", "segment-middles"),
        "3-6-9": ("stage-ends",),
    }


def residual(rows: pd.DataFrame, *factors) -> tuple[float, int]:
    """Sum of squares that factors do not explain, by least squares, and its degrees of freedom."""
    design = np.hstack([pd.get_dummies(factor).to_numpy(float) for factor in factors])
    fitted, _, rank, _ = np.linalg.lstsq(design, rows["accuracy"].to_numpy(), rcond=None)
    return float(((rows["accuracy"] - design @ fitted) ** 2).sum()), len(rows) - rank


def noise(runs: pd.DataFrame, frame: pd.DataFrame) -> tuple[float, int]:
    """Variance of a run, and its degrees of freedom; no hints are a 28th arm that tells of it.

    With one pair and method there are no others towards which the variance could be moderated.
    """
    rows = pd.concat([runs, frame[frame["arm"] == "none"]])
    error, freedom = residual(rows, rows["arm"], rows["seed"])
    return error / freedom, freedom


def test_the_spread_is_tested_as_a_linear_model_does(runs, frame):
    (row,) = population_spread(runs, frame).to_dict("records")
    variance, freedom = noise(runs, frame)
    without, fewer = residual(runs, runs["seed"])
    full, more = residual(runs, runs["set"], runs["seed"])
    assert fewer - more == 26
    expected = (without - full) / 26 / variance
    assert row["F"] == pytest.approx(expected)
    assert row["p"] == pytest.approx(stats.f.sf(expected, 26, freedom))
    assert (row["sets"], row["n"]) == (27, SEEDS)
    truth = [
        sum(EFFECTS.get(n, 0.0) for n in numbers)
        for numbers in product(range(1, 4), range(4, 7), range(7, 10))
    ]
    assert row["spread"] == pytest.approx(np.std(truth, ddof=1), abs=0.3)
    assert row["chance"] == pytest.approx(np.sqrt(variance / SEEDS))


def test_places_have_the_effects_and_tests_of_a_linear_model(runs, frame):
    places, stages = stage_effects(runs, frame)
    numbers = runs["set"].str.split("-", expand=True)
    variance, freedom = noise(runs, frame)
    full, _ = residual(runs, *(numbers[i] for i in range(3)), runs["seed"])
    for row in stages.itertuples():
        others = [numbers[i] for i in range(3) if i != row.stage - 1]
        less, _ = residual(runs, *others, runs["seed"])
        expected = (less - full) / 2 / variance
        assert pytest.approx(expected) == row.F
        assert row.p == pytest.approx(stats.f.sf(expected, 2, freedom))
    assert stages["share"].sum() < 1
    assert places.groupby("stage")["mean"].sum().abs().max() < 1e-9
    for row in places.itertuples():
        mine = runs[numbers[row.stage - 1] == str(row[3])]["accuracy"]
        assert row.mean == pytest.approx(mine.mean() - runs["accuracy"].mean())
        # The mean of a third of the runs, minus that of all.
        half = stats.t.ppf(0.975, freedom) * np.sqrt(variance * (1 / len(mine) - 1 / len(runs)))
        assert row.high - row.mean == pytest.approx(half)


def test_without_noise_or_differences_nothing_is_tested(runs, frame):
    same = [table.assign(accuracy=40.0) for table in (runs, frame)]
    assert population_spread(*same)["p"].tolist() == [1.0]
    assert stage_effects(*same)[1]["p_holm"].tolist() == [1.0] * 3
    single = [table[table["seed"] == 0] for table in (runs, frame)]
    assert population_spread(*single)["p"].tolist() == [1.0]
    places, _ = stage_effects(*single)
    assert np.isinf(places["low"]).all()
    assert plots.place_effects({"AT": places}, [2, 5, 8]).axes[0].lines


def test_a_set_that_has_failed_is_the_last_and_nothing_is_tested(profile, frame):
    failed = frame.assign(accuracy=frame["accuracy"].where(frame["arm"] != "stage-set-1-4-7"))
    runs = population_frame(profile, profile.pairs[0], failed)
    assert set(runs.loc[runs["set"] == "1-4-7", "rank"]) == {27}
    assert population_spread(runs, failed)[["n", "p"]].to_numpy().tolist() == [[0, 1.0]]
    assert stage_effects(runs, failed)[1]["p_holm"].tolist() == [1.0] * 3
    assert plots.ranked_sets({"AT": runs}, {"AT": 43.0}).axes


def test_a_profile_without_the_population_is_told_so(frame):
    quick = load_profile("quick")
    with pytest.raises(SettingsError, match="quick does not train every set .* add stage-sets to its arms"):
        population_frame(quick, quick.pairs[0], frame)


def test_the_figure_shows_every_set_at_its_rank_and_rules_in_colour(runs):
    figure = plots.ranked_sets({"AT": runs, "again": runs}, {"AT": 43.0, "again": 43.0})
    first = figure.axes[0]
    ranked = runs.drop_duplicates("set").sort_values("rank")
    assert [label.get_text() for label in first.get_yticklabels()] == ranked["set"].tolist()
    seeds, means, *rules = [dots for dots in first.collections if isinstance(dots, PathCollection)]
    assert len(seeds.get_offsets()) == 27 * SEEDS
    np.testing.assert_allclose(means.get_offsets(), [*zip(ranked["mean"], range(27), strict=True)])
    assert {dots.get_label() for dots in rules} == {
        "PURSUhInT, R²-CCA\n= segment middles",
        "stage ends",
    }
    for dots in rules:
        ((x, y),) = dots.get_offsets()
        assert x == pytest.approx(ranked["mean"].iloc[int(y)])
