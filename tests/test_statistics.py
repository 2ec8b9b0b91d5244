"""Differences, verdicts and ranks on frames whose truth is known."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pursuhint_lib.statistics import (
    CLAIMS,
    Effect,
    arms_of,
    differences,
    effects,
    equivalence_p,
    holm,
    judge_claims,
    mean_with_interval,
    paired_effect,
    pooled_effect,
    rank_among_random,
    text_table,
    verdict,
)

NAN = float("nan")
CLAIM_ALONE, CLAIM_NONE, CLAIM_ENDS, CLAIM_RANDOM, CLAIM_MIDDLES = (claim.text for claim in CLAIMS)


def make_frame(accuracies, pairs=("p",), methods=("at",)):
    """Rows of {arm: accuracy per seed}, the same in every cell."""
    rows = [
        {"pair": pair, "method": method, "arm": arm, "seed": seed, "accuracy": float(value)}
        for pair, method in itertools.product(pairs, methods)
        for arm, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("mean", "p_adjusted", "p_equivalent", "expected"),
    [
        (1.0, 0.01, 0.9, "reproduced"),
        (-1.0, 0.01, 0.9, "not reproduced"),
        (0.1, 0.5, 0.01, "not reproduced"),
        (1.0, 0.06, 0.5, "undecided"),
        (0.1, 0.01, 0.01, "reproduced"),
        (1.0, 0.05, 0.05, "undecided"),
    ],
)
def test_verdict_weighs_direction_chance_and_margin(mean, p_adjusted, p_equivalent, expected):
    assert verdict(Effect(mean, 1.0, 4, 5), p_adjusted, p_equivalent) == expected


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


def test_differences_are_taken_within_pair_method_and_seed():
    frame = pd.DataFrame(
        [
            ("p", "at", "none", 0, 70.0),
            ("p", "at", "pursuhint-r2", 0, 71.5),
            ("p", "at", "none", 1, 60.0),
            ("p", "at", "pursuhint-r2", 1, 62.0),
            ("q", "at", "none", 0, 50.0),
            ("q", "at", "pursuhint-r2", 0, 49.0),
            ("p", "sp", "none", 0, 10.0),
            ("p", "sp", "pursuhint-r2", 0, 14.0),
            ("p", "sp", "pursuhint-r2", 1, 33.0),
        ],
        columns=["pair", "method", "arm", "seed", "accuracy"],
    )
    table = differences(frame.sample(frac=1, random_state=0), "none").sort_index()
    assert set(table["arm"]) == {"pursuhint-r2"}
    assert table["difference"].tolist()[:4] == [1.5, 2.0, -1.0, 4.0]
    assert math.isnan(table["difference"].tolist()[4])
    assert list(table.columns) == [*frame.columns, "difference"]


def test_differences_from_a_family_are_taken_from_its_mean():
    frame = make_frame(
        {"random-1": [60, 70], "random-2": [64, 71], "pursuhint-r2": [63, 72], "none": [60, 60]}
    )
    table = differences(frame, "random-").set_index(["arm", "seed"])["difference"]
    assert table.to_dict() == {
        ("pursuhint-r2", 0): 1.0,
        ("pursuhint-r2", 1): 1.5,
        ("none", 0): -2.0,
        ("none", 1): -10.5,
    }


def test_differences_are_missing_where_a_run_failed_or_the_reference_is_absent():
    frame = make_frame({"none": [60, NAN, 60], "pursuhint-r2": [61, 61, NAN]})
    assert differences(frame, "none")["difference"].isna().tolist() == [False, True, True]
    assert differences(frame, "stage-ends")["difference"].isna().all()


def test_effects_average_within_a_seed_and_adjust_over_groups():
    frame = make_frame(
        {"none": [60, 60, 60], "pursuhint-r2": [61, 61.5, 62.5], "stage-ends": [60, 61, 59.5]},
        pairs=("p", "q"),
    )
    frame.loc[(frame["pair"] == "q") & (frame["arm"] == "pursuhint-r2"), "accuracy"] += [1.0, 0.0, -1.0]
    table = effects(differences(frame, "none"), ["arm"]).set_index("arm")
    expected = {"pursuhint-r2": [1.5, 1.5, 2.0], "stage-ends": [0.0, 1.0, -0.5]}
    for arm, per_seed in expected.items():
        found = table.loc[arm, ["mean", "low", "high", "n", "p"]].to_dict()
        assert found == pytest.approx(paired_effect(per_seed).row())
    assert table["p_holm"].tolist() == pytest.approx(
        holm([paired_effect(d).p for d in expected.values()]).tolist()
    )


def test_effects_of_several_keys_have_one_row_per_group_in_order():
    frame = make_frame({"none": [60, 60], "stage-ends": [61, 62], "first": [59, 60]}, pairs=("q", "p"))
    table = effects(differences(frame, "none"), ["pair", "arm"])
    assert list(zip(table["pair"], table["arm"], strict=True)) == [
        ("q", "stage-ends"),
        ("q", "first"),
        ("p", "stage-ends"),
        ("p", "first"),
    ]
    assert list(table.columns) == ["pair", "arm", "mean", "low", "high", "n", "p", "p_holm"]
    assert effects(differences(frame, "none").iloc[:0], ["arm"]).empty


BASE = np.array([60.0, 61.0, 59.0, 60.5, 62.0, 58.5])
NOISE = np.array([0.1, -0.1, 0.05, -0.05, 0.02, -0.02])


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (2 + NOISE, "reproduced"),
        (-2 + NOISE, "not reproduced"),
        (NOISE, "not reproduced"),
        (40 * NOISE + 0.5, "undecided"),
    ],
    ids=["gain", "loss", "equivalence", "noise"],
)
@pytest.mark.parametrize(
    ("reference", "claim"),
    [
        ("alone", CLAIM_ALONE),
        ("none", CLAIM_NONE),
        ("stage-ends", CLAIM_ENDS),
        ("segment-middles", CLAIM_MIDDLES),
    ],
)
def test_known_difference_gives_its_verdict(reference, claim, difference, expected):
    table = judge_claims(
        make_frame({reference: BASE, "pursuhint-r2": BASE + difference}, pairs=("p", "q")), 0.5
    )
    assert table["claim"].tolist() == [claim]
    row, effect = table.iloc[0], paired_effect(difference)
    assert row["verdict"] == expected
    assert row[["mean", "low", "high", "n", "p"]].to_dict() == pytest.approx(effect.row())
    assert row["p_equivalent"] == pytest.approx(equivalence_p(effect, 0.5))


def test_pooled_claim_has_seeds_as_its_sample():
    rng = np.random.default_rng(0)
    arms = {arm: BASE + rng.normal(size=6) for arm in ("stage-ends", "pursuhint-r2", "pursuhint-cka-linear")}
    row = judge_claims(make_frame(arms, pairs=("p", "q"), methods=("at", "sp", "vid")), 0.5).iloc[0]
    pooled = (arms["pursuhint-r2"] + arms["pursuhint-cka-linear"]) / 2 - arms["stage-ends"]
    p = stats.ttest_1samp(pooled, 0).pvalue
    assert row[["n", "cells", "p"]].tolist() == pytest.approx([6, 2 * 3 * 2, p])


def test_claims_are_adjusted_together_and_keep_their_order():
    frame = make_frame(
        {
            "none": BASE,
            "alone": BASE - 1,
            "stage-ends": BASE + 5 * NOISE,
            "pursuhint-r2": BASE + 0.3 + 3 * NOISE[::-1],
        }
    )
    table = judge_claims(frame, 0.5)
    assert table["claim"].tolist() == [CLAIM_ALONE, CLAIM_NONE, CLAIM_ENDS]
    assert table["p_holm"].tolist() == pytest.approx(holm(table["p"]).tolist())
    assert (table["p_holm"] > table["p"]).any()


@pytest.mark.parametrize(
    ("claim", "arm"),
    [
        (CLAIM_NONE, "pursuhint-r2"),
        (CLAIM_NONE, "none"),
        (CLAIM_RANDOM, "pursuhint-r2"),
        (CLAIM_RANDOM, "random-1"),
    ],
)
def test_a_failed_run_is_counted_wherever_it_happens(claim, arm):
    frame = make_frame(
        {"none": BASE, "random-1": BASE - 1, "random-2": BASE + 1, "pursuhint-r2": BASE + 2 + NOISE}
    )
    assert judge_claims(frame, 0.5)["failed"].tolist() == [0, 0]
    frame.loc[(frame["arm"] == arm) & (frame["seed"] == 2), "accuracy"] = NAN
    assert judge_claims(frame, 0.5).set_index("claim").loc[claim, "failed"] == 1


def test_seed_whose_every_run_failed_lowers_n():
    frame = make_frame({"none": BASE, "pursuhint-r2": BASE + 2 + NOISE}, pairs=("p", "q"))
    frame.loc[(frame["arm"] == "pursuhint-r2") & (frame["seed"] == 2), "accuracy"] = NAN
    row = judge_claims(frame, 0.5).iloc[0]
    assert (row["n"], row["failed"], row["cells"]) == (5, 2, 2)
    assert row["verdict"] == "reproduced"


def test_single_seed_decides_nothing():
    table = judge_claims(make_frame({"none": [60], "pursuhint-r2": [75]}, pairs=("p", "q", "r")), 0.5)
    assert table[["verdict", "n"]].values.tolist() == [["undecided", 1]]


def test_false_claims_are_rarely_reproduced_when_cells_share_their_seed():
    rng = np.random.default_rng(0)
    cells = list(itertools.product("pq", ("at", "sp"), ("pursuhint-r2", "pursuhint-cka-linear", "alone")))
    keys = pd.DataFrame(
        [(*cell, seed) for cell in cells for seed in range(5)], columns=["pair", "method", "arm", "seed"]
    )
    hinted = keys["arm"].ne("alone").to_numpy()
    reproduced = fooled = 0
    for _ in range(300):
        shared = rng.normal(size=5)[keys["seed"]] * hinted
        frame = keys.assign(accuracy=60 + shared + rng.normal(scale=0.3, size=len(keys)))
        reproduced += judge_claims(frame, 0.5)["verdict"].tolist() == ["reproduced"]
        pseudo = paired_effect(differences(frame, "alone")["difference"])
        fooled += pseudo.p < 0.05 and pseudo.mean > 0
    assert reproduced <= 0.08 * 300
    # The same frames mislead a test that takes cells for replicates, so the bound above is not idle.
    assert fooled > 0.2 * 300


def random_claim(arms, **cells):
    return judge_claims(make_frame(arms, **cells), 0.5).set_index("claim").loc[CLAIM_RANDOM]


def test_random_points_are_a_sample_too():
    sets = {"random-1": BASE - 4, "random-2": BASE + 2, "random-3": BASE + 1}
    same_in_every_seed = random_claim(sets | {"pursuhint-r2": BASE + 1})
    assert (same_in_every_seed["n"], same_in_every_seed["cells"]) == (6, 1)
    expected = stats.ttest_1samp([5, -1, 0], 0)
    interval = expected.confidence_interval(0.95)
    found = same_in_every_seed[["mean", "low", "high", "p"]]
    assert found.tolist() == pytest.approx([4 / 3, interval.low, interval.high, expected.pvalue])
    same_everywhere = random_claim(dict.fromkeys(sets, BASE) | {"pursuhint-r2": BASE + 1 + NOISE})
    assert same_everywhere[["low", "high", "p"]].tolist() == pytest.approx(
        [getattr(paired_effect(1 + NOISE), name) for name in ("low", "high", "p")]
    )


def test_variances_of_seeds_and_of_random_points_add_up():
    rng = np.random.default_rng(3)
    arms = {f"random-{number}": BASE + rng.normal(size=6) for number in range(1, 5)} | {
        "pursuhint-r2": BASE + rng.normal(size=6)
    }
    two = random_claim(arms, pairs=("p", "q"), methods=("at", "sp"))
    null = np.array([values for arm, values in arms.items() if arm.startswith("random")])
    seeds = np.var(arms["pursuhint-r2"] - null.mean(axis=0), ddof=1) / 6
    sets = np.var(null.mean(axis=1), ddof=1) / 4
    freedom = (seeds + sets) ** 2 / (seeds**2 / 5 + sets**2 / 3)
    assert (two["high"] - two["low"]) / 2 == pytest.approx(
        stats.t.ppf(0.975, freedom) * math.sqrt(seeds + sets)
    )


def test_one_random_set_says_nothing_of_random_points():
    row = random_claim({"random-1": BASE, "pursuhint-r2": BASE + 3 + NOISE})
    assert (row["verdict"], row["low"], row["high"], row["p_equivalent"]) == (
        "undecided",
        -math.inf,
        math.inf,
        1.0,
    )


def test_a_pair_without_random_points_leaves_the_random_claim_alone():
    arms = {"random-1": BASE - 4, "random-2": BASE + 2, "pursuhint-r2": BASE + 1 + NOISE}
    without = make_frame({"pursuhint-r2": BASE}, pairs=("q",))
    both = judge_claims(pd.concat([make_frame(arms), without]), 0.5).set_index("claim").loc[CLAIM_RANDOM]
    assert both[["mean", "low", "high"]].tolist() == pytest.approx(
        random_claim(arms)[["mean", "low", "high"]].tolist()
    )


def test_a_random_arm_is_one_value_over_all_cells_and_seeds():
    frame = make_frame(
        {"random-1": BASE - 4, "random-2": BASE + 2, "pursuhint-r2": BASE + 1}, methods=("at", "sp")
    )
    frame.loc[(frame["method"] == "sp") & frame["arm"].str.startswith("random"), "accuracy"] -= 10
    diffs = differences(frame, "pursuhint-")
    assert pooled_effect(diffs, "arm").row() == pytest.approx(paired_effect([-10, -4]).row())
    # A method with fewer seeds counts as much as one with all.
    fewer = diffs[(diffs["method"] == "at") | (diffs["seed"] > 0)]
    assert pooled_effect(fewer, "arm").row() == pytest.approx(paired_effect([-10, -4]).row())


def test_points_that_are_one_more_random_draw_rarely_beat_random_points():
    rng = np.random.default_rng(0)
    keys = pd.DataFrame(
        itertools.product(
            "pq", ("at", "sp"), ["pursuhint-r2", *(f"random-{number}" for number in range(1, 6))], range(5)
        ),
        columns=["pair", "method", "arm", "seed"],
    )
    sets = keys.groupby(["pair", "arm"], sort=False).ngroup()
    decided = fooled = 0
    for _ in range(300):
        frame = keys.assign(
            accuracy=60 + rng.normal(scale=1.0, size=12)[sets] + rng.normal(scale=0.3, size=len(keys))
        )
        # Centred: over many teachers PURSUhInT's points are as good as random ones, and its own draw is not
        # the question.
        own = frame["arm"].eq("pursuhint-r2")
        frame.loc[own, "accuracy"] += 60 - frame[own].groupby("pair")["accuracy"].transform("mean")
        decided += judge_claims(frame, 1e-6)["verdict"].tolist() != ["undecided"]
        fooled += paired_effect(differences(frame, "random-").groupby("seed")["difference"].mean()).p < 0.05
    assert decided <= 0.08 * 300
    # Seeds alone as the sample are misled, so the bound above is not idle.
    assert fooled > 0.4 * 300


def test_mean_with_interval_equals_scipys_t_interval():
    frame = make_frame({"none": [60, 61, 63.5], "first": [50, NAN, 52]}, pairs=("q", "p"))
    table = mean_with_interval(frame, ["pair", "arm"])
    order = [("q", "none"), ("q", "first"), ("p", "none"), ("p", "first")]
    assert list(zip(table["pair"], table["arm"], strict=True)) == order
    for row in table.itertuples():
        values = [60, 61, 63.5] if row.arm == "none" else [50, 52]
        interval = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert (row.n, row.mean, row.low, row.high) == pytest.approx(
            (len(values), np.mean(values), *interval)
        )


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


def test_rank_is_the_share_of_random_arms_beaten_and_a_tie_is_not():
    frame = make_frame(
        {
            "random-1": [60, 62],
            "random-2": [64, 64],
            "random-3": [66, 64],
            "random-4": [70, 70],
            "pursuhint-r2": [65, 64],
            "first": [50, 52],
            "tie": [63, 65],
        }
    )
    table = rank_among_random(frame).set_index("arm")
    assert table["better_than"].to_dict() == {"pursuhint-r2": 0.5, "first": 0.0, "tie": 0.25}
    assert table["mean"].to_dict() == {"pursuhint-r2": 64.5, "first": 51.0, "tie": 64.0}
    null = table[["random_mean", "random_low", "random_high"]]
    assert null.drop_duplicates().values.tolist() == [[65.0, 61.0, 70.0]]


def test_rank_leaves_out_cells_without_random_arms():
    frames = [make_frame({"random-1": [60], "none": [61]}), make_frame({"none": [61]}, pairs=("q",))]
    assert rank_among_random(pd.concat(frames))["pair"].tolist() == ["p"]


@pytest.mark.parametrize("arms", [["none", "stage-ends"], ["pursuhint-r2", "first"], ["last"]])
def test_a_study_without_the_reference_arms_has_tables_without_rows(arms):
    frame = make_frame(dict.fromkeys(arms, BASE))
    claims, ranks = judge_claims(frame, 0.5), rank_among_random(frame)
    assert claims.empty
    assert {"claim", "mean", "low", "high", "n", "cells", "failed"} <= set(claims.columns)
    assert {"p_holm", "p_equivalent", "verdict"} <= set(claims.columns)
    assert ranks.empty
    assert "better_than" in ranks.columns
