"""Families, means and ranks on frames whose truth is known."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pursuhint_lib.statistics import arms_of, mean_with_interval, rank_among_random, text_table

NAN = float("nan")


def make_frame(accuracies, pairs=("p",), methods=("at",)):
    """Rows of {arm: accuracy per seed}, the same in every cell."""
    rows = [
        {"pair": pair, "method": method, "arm": arm, "seed": seed, "accuracy": float(value)}
        for pair, method in itertools.product(pairs, methods)
        for arm, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_family_is_a_prefix_or_one_name_in_order_of_appearance():
    names = ("none", "random-2", "pursuhint-r2", "random-1", "nonesuch")
    frame = make_frame({name: [1] for name in names})
    families = {
        "random-": ["random-2", "random-1"],
        "random-1": ["random-1"],
        "none": ["none"],
        "pursuhint-": ["pursuhint-r2"],
        "absent-": [],
    }
    assert {family: arms_of(frame, family) for family in families} == families


def test_a_mean_of_one_arm_has_scipys_t_interval():
    frame = make_frame({"alone": [60, 61, 63.5, NAN]}).assign(points="")
    (row,) = mean_with_interval(frame).itertuples()
    interval = stats.t.interval(0.95, 2, 61.5, stats.sem([60, 61, 63.5]))
    assert (row.n, row.mean, row.low, row.high) == pytest.approx((3, 61.5, *interval))


def test_arms_lend_each_other_their_spread_and_count_once_where_they_are_the_same_runs():
    first, second, alone = [50, 52], [60, 61, 65], [40, 40.5, 41]
    frame = make_frame({"none": first, "last": second, "quality": second, "alone": alone, "short": [NAN]})
    frame["points"] = frame["arm"].map({"last": "7", "quality": "7", "short": "2"}).fillna("")
    table = mean_with_interval(frame).set_index("arm")
    assert [*table.index] == ["none", "last", "quality", "alone", "short"]
    within = [(len(values) - 1) * np.var(values, ddof=1) for values in (first, second, alone)]
    half = stats.t.ppf(0.975, 5) * np.sqrt(sum(within) / 5)
    for arm, values in {"none": first, "last": second, "quality": second, "alone": alone}.items():
        mean, width = np.mean(values), half / np.sqrt(len(values))
        assert [*table.loc[arm, ["mean", "low", "high", "n"]]] == pytest.approx(
            [mean, mean - width, mean + width, len(values)]
        )
    assert [*table.loc["short", ["low", "high", "n"]]] == [-math.inf, math.inf, 0]


def test_intervals_of_means_of_two_seeds_hold_the_truth_as_often_as_they_say():
    generator, names = np.random.default_rng(0), [f"random-{number}" for number in range(6)]
    held = []
    for _ in range(200):
        frame = make_frame({name: generator.normal(50, 1, 2) for name in names})
        table = mean_with_interval(frame.assign(points=frame["arm"]))
        held += [*table["low"].le(50) & table["high"].ge(50)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_text_table_keeps_order_and_marks_gaps():
    means = pd.DataFrame(
        [
            ("none", "sp", 60.0, 59.5, 60.5),
            ("none", "at", 61.256, -math.inf, math.inf),
            ("first", "sp", 9.999, 9.9, 10.1),
        ],
        columns=["arm", "method", "mean", "low", "high"],
    )
    table = text_table(means, "arm", "method")
    assert list(table.columns) == ["arm", "sp", "at"]
    assert table.values.tolist() == [["none", "60.00 ± 0.50", "61.26"], ["first", "10.00 ± 0.10", "–"]]
    assert table.columns.name is None


@pytest.mark.parametrize("family", ["random-", "stage-random-"])
def test_rank_is_the_share_of_random_arms_beaten_and_a_tie_is_not(family):
    frame = make_frame(
        {
            f"{family}1": [60, 62],
            f"{family}2": [64, 64],
            f"{family}3": [66, 64],
            f"{family}4": [70, 70],
            "pursuhint-r2": [65, 64],
            "first": [50, 52],
            "tie": [63, 65],
        }
    )
    table = rank_among_random(frame, family).set_index("arm")
    assert table["better_than"].to_dict() == {"pursuhint-r2": 0.5, "first": 0.0, "tie": 0.25}
    assert table["mean"].to_dict() == {"pursuhint-r2": 64.5, "first": 51.0, "tie": 64.0}
    null = table[["random_mean", "random_low", "random_high"]]
    assert null.drop_duplicates().values.tolist() == [[65.0, 61.0, 70.0]]


def test_rank_leaves_out_cells_without_random_arms():
    frames = [make_frame({"random-1": [60], "none": [61]}), make_frame({"none": [61]}, pairs=("q",))]
    assert rank_among_random(pd.concat(frames))["pair"].tolist() == ["p"]
