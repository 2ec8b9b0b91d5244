"""Whether arms differ at all: against every permutation, scipy's tests, and studies whose truth is known."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pursuhint_lib.statistics import expected_range, spread_of_arms

NAN = float("nan")


def study(
    values: dict[tuple[str, str], np.ndarray], arms: list[str], points: list[str] | None = None
) -> pd.DataFrame:
    """Rows of (pair, method) → accuracies [seeds, arms]; each arm has points of its own unless they are
    given.
    """
    return pd.DataFrame(
        [
            {
                "pair": pair,
                "method": method,
                "seed": seed,
                "arm": arm,
                "points": (points or arms)[place],
                "accuracy": float(table[seed, place]),
            }
            for (pair, method), table in values.items()
            for seed in range(len(table))
            for place, arm in enumerate(arms)
        ]
    )


def noise(seed: int, seeds: int, arms: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(70, 1, (seeds, arms))


def test_p_is_the_share_of_all_permutations_that_lie_as_far_apart():
    """Two methods, three seeds, three arms: 216 ways to name the arms, all of them tried."""
    first, second = noise(1, 3, 3), noise(2, 3, 3)
    found = spread_of_arms(study({("p", "at"): first, ("p", "vid"): second}, ["a", "b", "c"]))
    centred = [table - table.mean(1, keepdims=True) for table in (first, second)]
    spreads = [
        np.std(
            [sum(table[s, order[s][a]] for table in centred for s in range(3)) / 6 for a in range(3)], ddof=1
        )
        for order in itertools.product(itertools.permutations(range(3)), repeat=3)
    ]
    assert found["spread"] == pytest.approx(spreads[0], rel=1e-12)
    assert found["chance"] == pytest.approx(np.mean(spreads), abs=0.01)
    assert found["p"] == pytest.approx(np.mean(np.array(spreads) >= spreads[0] - 1e-12), abs=0.02)
    assert (found["arms"], found["cells"], found["n"]) == (3, 2, 3)


@pytest.mark.parametrize("shift", [0.0, 0.6, 1.5])
def test_p_is_near_that_of_the_analysis_of_variance_in_blocks(shift):
    """Normal noise, one cell: F of arms beside blocks."""
    table = noise(5, 8, 5) + shift * np.arange(5) / 4
    arms, blocks = table.mean(0), table.mean(1, keepdims=True)
    rest = table - arms - blocks + table.mean()
    f = (8 * ((arms - table.mean()) ** 2).sum() / 4) / ((rest**2).sum() / 28)
    found = spread_of_arms(study({("p", "at"): table}, list("abcde")))
    assert found["p"] == pytest.approx(stats.f.sf(f, 4, 28), abs=0.03)
    assert found["best"] == "abcde"[arms.argmax()]
    assert found["lead"] == pytest.approx(np.sort(arms)[-1] - np.sort(arms)[-2])


def test_arms_without_meaning_are_found_to_differ_as_rarely_as_said_also_when_methods_share_their_noise():
    generator, below = np.random.default_rng(0), 0
    for _ in range(300):
        shared = generator.normal(0, 1, (4, 6))
        values = {
            ("p", method): 70 + shared + generator.normal(0, 0.3, (4, 6)) for method in ("at", "vid", "sp")
        }
        below += spread_of_arms(study(values, list("abcdef")), draws=199)["p"] < 0.05
    assert below <= stats.binom.ppf(0.999, 300, 0.05)


def test_an_arm_that_is_better_is_found():
    found = spread_of_arms(study({("p", "at"): noise(3, 5, 8) + 3 * (np.arange(8) == 2)}, list("abcdefgh")))
    assert found["best"] == "c"
    assert found["p"] < 0.01
    assert found["spread"] > 1.5 * found["chance"]


def test_the_same_points_are_one_arm_and_a_failed_run_takes_its_arm_out():
    table = noise(4, 4, 4)
    table[:, 3] = table[:, 1]
    alike = study({("p", "at"): table}, list("abcd"), ["1", "2", "3", "2"])
    assert spread_of_arms(alike) == spread_of_arms(alike[alike["arm"] != "d"])
    alike.loc[alike["arm"] == "a", "accuracy"] = [NAN, 70, 70, 70]
    assert spread_of_arms(alike)["arms"] == 2


def test_the_best_is_of_all_arms_and_leads_the_next_with_other_layers():
    """b takes the layers of a in one pair of two, so it is not shuffled; c is the same as b in both."""
    gains = np.array([0.0, 2.0, 2.0, 0.5])
    values = {pair: noise(6, 4, 1) + gains for pair in (("p", "at"), ("q", "at"))}
    frame = study(values, list("abcd"), ["1", "1", "1", "2"])
    frame.loc[(frame["pair"] == "q") & frame["arm"].isin(["b", "c"]), "points"] = "3"
    found = spread_of_arms(frame)
    assert found["arms"] == 2
    assert (found["best"], found["lead"]) == ("b", pytest.approx(1.5))


@pytest.mark.parametrize("means", [1, 2, 5, 12])
def test_the_expected_range_is_that_of_drawn_numbers(means):
    drawn = np.ptp(np.random.default_rng(0).normal(size=(40_000, means)), axis=1)
    assert expected_range(means) == pytest.approx(drawn.mean(), abs=4 * drawn.std() / 200 + 1e-9)


def test_one_seed_decides_nothing_and_one_arm_is_no_comparison():
    assert spread_of_arms(study({("p", "at"): noise(0, 1, 5)}, list("abcde")))["p"] == 1
    alone = spread_of_arms(study({("p", "at"): noise(0, 5, 1)}, ["a"]))
    assert (alone["p"], alone["arms"], alone["best"]) == (1, 1, "")


def test_every_method_counts_the_same_whatever_its_number_of_seeds():
    many, few = noise(7, 5, 3), noise(8, 2, 3)
    found = spread_of_arms(study({("p", "at"): many, ("p", "vid"): few}, list("abc")))
    means = [table.mean(0) - table.mean() for table in (many, few)]
    assert found["spread"] == pytest.approx(np.std(np.mean(means, axis=0), ddof=1))
    assert found["n"] == 5
