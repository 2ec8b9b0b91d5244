"""Differences by pair and method: their variance, intervals and words against independent routes, and how
often they are wrong in simulated studies.
"""

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special, stats

from pursuhint_lib.statistics import (
    combination,
    contrasts,
    heterogeneity,
    margins,
    one_family,
    paired_share,
    run_noise,
    weightings,
)
from pursuhint_lib.statistics.noise import moderate

# Seeds of each cell of the CIFAR study, and the standard deviation of a run there.
SEEDS = {("a", "fitnet"): 5, ("a", "at"): 5, ("a", "vid"): 3, ("a", "sp"): 3, ("b", "at"): 3, ("c", "at"): 3}
SPREADS = dict(zip(SEEDS, (0.6, 1.2, 0.6, 0.8, 0.9, 0.9), strict=True))
ARMS = ("none", "stage-ends", "pursuhint-r2", "pursuhint-cka", "segment-middles", "last")


def study(generator, means=None, cells=None) -> pd.DataFrame:
    """Runs of a study: mean of the arm in the cell, effect of the seed, noise of the cell."""
    rows = []
    for (pair, method), seeds in (cells or SEEDS).items():
        shared = generator.normal(size=seeds)
        for arm in ARMS:
            mean = 43 + (means or {}).get((pair, method, arm), 0)
            found = mean + shared + generator.normal(size=seeds) * SPREADS[pair, method]
            rows += [(pair, method, arm, seed, arm, value) for seed, value in enumerate(found)]
    return pd.DataFrame(rows, columns=["pair", "method", "arm", "seed", "points", "accuracy"])


def test_a_single_random_set_tells_of_no_cell_and_of_no_sum_over_cells():
    """What any random set would give is unknown then."""
    frame = study(np.random.default_rng(1)).replace({"arm": {"last": "random-1"}})
    table = contrasts(frame, "stage-ends", "random-")
    assert len(table) == len(SEEDS)
    assert np.isinf(table["error"]).all()
    assert np.isnan(heterogeneity(table, run_noise(frame))["p"])
    assert weightings(table).empty


# ---- the noise of a run


def test_pairing_gains_what_seeds_have_in_common():
    """Against the variances of all pairs of arms, paired and not."""
    table = np.random.default_rng(3).normal(size=(6, 4)) + 2 * np.arange(6)[:, None]
    rows = [(arm, seed, str(arm), table[seed, arm]) for seed in range(6) for arm in range(4)]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "points", "accuracy"])
    pairs = [(i, j) for i in range(4) for j in range(i)]
    paired = np.mean([np.var(table[:, i] - table[:, j], ddof=1) for i, j in pairs])
    apart = np.mean([np.var(table[:, i], ddof=1) + np.var(table[:, j], ddof=1) for i, j in pairs])
    assert paired_share(frame) == pytest.approx(1 - paired / apart)
    assert paired_share(frame) > 0.7
    for too_few in (frame[frame["seed"] == 0], frame[frame["arm"] == 0], frame.assign(accuracy=40.0)):
        assert np.isnan(paired_share(too_few))


def test_the_variance_of_a_run_is_that_of_a_two_way_table():
    frame = study(np.random.default_rng(0))
    noise = run_noise(frame)
    for cell, rows in frame.groupby(["pair", "method"]):
        table = rows.pivot(index="seed", columns="arm", values="accuracy").to_numpy()
        rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        assert noise.loc[cell, "freedom"] == freedom
        assert noise.loc[cell, "variance"] == pytest.approx((rest**2).sum() / freedom)


def test_runs_that_are_the_same_the_student_alone_and_failed_runs_do_not_count():
    frame = study(np.random.default_rng(1))
    double = frame[frame["arm"] == "last"].assign(arm="another", points="last")
    alone = frame[frame["arm"] == "last"].assign(arm="alone", points="", accuracy=1.0)
    failed = frame[frame["arm"] == "last"].assign(arm="failed", points="f", accuracy=float("nan"))
    pd.testing.assert_frame_equal(run_noise(pd.concat([frame, double, alone, failed])), run_noise(frame))


def test_moderation_solves_the_equations_of_smyth():
    """Mean and variance of log s² give d₀ and s₀²; here by a root of it, there by Newton's steps."""
    generator = np.random.default_rng(2)
    freedoms = generator.integers(4, 40, size=12)
    variances = generator.chisquare(freedoms) / freedoms * generator.lognormal(0, 0.8, size=12)
    logs = np.log(variances) - special.digamma(freedoms / 2) + np.log(freedoms / 2)
    excess = logs.var(ddof=1) - special.polygamma(1, freedoms / 2).mean()
    prior = optimize.brentq(lambda d: special.polygamma(1, d / 2) - excess, 1e-3, 1e6)
    centre = np.exp(logs.mean() + special.digamma(prior / 2) - np.log(prior / 2))
    found, freedom = moderate(variances, freedoms)
    assert found == pytest.approx((prior * centre + freedoms * variances) / (prior + freedoms))
    assert freedom == pytest.approx(np.minimum(prior + freedoms, freedoms.sum()))


def test_variances_that_are_equal_become_their_mean_and_what_is_unknown_is_filled():
    found, freedom = moderate(np.array([1.0, 1.0, np.nan]), np.array([10, 20, 0]))
    assert found.tolist() == [1.0, 1.0, 1.0]
    assert freedom.tolist() == [30, 30, 30]
    found, freedom = moderate(np.array([np.nan]), np.array([0]))
    assert np.isnan(found).all()
    assert freedom.tolist() == [0]


# ---- one difference


def test_a_difference_is_the_mean_over_seeds_with_the_moderated_error():
    frame = study(np.random.default_rng(3))
    noise = run_noise(frame)
    table = contrasts(frame, "pursuhint-", "stage-ends").set_index(["pair", "method"])
    for cell, rows in frame.groupby(["pair", "method"]):
        arms = rows.pivot(index="seed", columns="arm", values="accuracy")
        ours = (arms["pursuhint-r2"] + arms["pursuhint-cka"]) / 2 - arms["stage-ends"]
        error = np.sqrt(noise.loc[cell, "moderated"] * 1.5 / len(arms))
        low, high = stats.t.interval(0.95, noise.loc[cell, "moderated_freedom"], ours.mean(), error)
        assert table.loc[cell, ["mean", "error", "low", "high", "n"]].tolist() == pytest.approx(
            [ours.mean(), error, low, high, len(arms)]
        )


def test_only_seeds_with_all_runs_count():
    frame = study(np.random.default_rng(4), cells={("a", "at"): 5})
    frame.loc[(frame["seed"] == 2) & (frame["arm"] == "last"), "accuracy"] = float("nan")
    (row,) = contrasts(frame, "last", "none").itertuples()
    kept = frame[frame["seed"] != 2].groupby("arm")["accuracy"].mean()
    assert (row.n, row.mean) == (4, pytest.approx(kept["last"] - kept["none"]))


def test_the_same_layers_are_not_tested_and_those_that_are_shared_count_once():
    frame = study(np.random.default_rng(5), cells={("a", "at"): 3, ("b", "at"): 3})
    same = frame["pair"].eq("a") & frame["arm"].eq("pursuhint-cka")
    frame.loc[same, "points"] = "pursuhint-r2"
    values = frame.loc[frame["pair"].eq("a") & frame["arm"].eq("pursuhint-r2"), "accuracy"].to_numpy()
    frame.loc[same, "accuracy"] = values
    twice = contrasts(frame, "pursuhint-", "none").set_index("pair")
    once = contrasts(frame[~same], "pursuhint-", "none").set_index("pair")
    assert twice.loc["a", "mean"] == pytest.approx(once.loc["a", "mean"])
    assert twice.loc["a", "error"] == pytest.approx(once.loc["a", "error"])
    against = contrasts(frame, "pursuhint-cka", "pursuhint-r2").set_index("pair")
    assert against.loc["a", "word"] == "not tested: the same layers"
    assert np.isnan(against.loc["a", "mean"])
    assert against.loc["b", "p_holm"] == against.loc["b", "p"], "only what is tested is adjusted for"


def test_one_family_is_its_contrasts_adjusted_together():
    frame = study(np.random.default_rng(7), means={("c", "at", "last"): 3.0, ("a", "fitnet", "none"): 2.0})
    asked = [("last", "stage-ends"), ("none", "pursuhint-r2")]
    family = one_family(frame, asked, margin=margins(frame))
    apart = pd.concat([contrasts(frame, *arms, margin=margins(frame)) for arms in asked], ignore_index=True)
    columns = ["pair", "method", "mean", "low", "high", "p", "margin"]
    pd.testing.assert_frame_equal(family[columns], apart[columns])
    assert [*zip(family["arm"], family["reference"], strict=True)] == [asked[0]] * 6 + [asked[1]] * 6
    # As in R: p.adjust(p, "holm").
    order = np.argsort(family["p"].to_numpy())
    scaled = family["p"].to_numpy()[order] * np.arange(len(family), 0, -1)
    assert family["p_holm"].to_numpy()[order] == pytest.approx(np.minimum(1, np.maximum.accumulate(scaled)))
    assert (family["word"] == "better").sum() == 2
    assert one_family(frame, [("last", "never")]).empty


def test_random_sets_are_a_sample_too():
    generator = np.random.default_rng(6)
    frame = study(generator, cells={("a", "at"): 4})
    rows = []
    for number in range(1, 6):
        arm = frame[frame["arm"] == "last"].assign(arm=f"random-{number}", points=f"r{number}")
        rows.append(arm.assign(accuracy=arm["accuracy"] + generator.normal(scale=2)))
    whole = pd.concat([frame, *rows])
    (row,) = contrasts(whole, "stage-ends", "random-").itertuples()
    sets = pd.concat(rows).groupby("arm")["accuracy"].mean()
    single = run_noise(whole).iloc[0]
    parts = [single["moderated"] / 4, sets.var() / 5]
    assert row.mean == pytest.approx(frame[frame["arm"] == "stage-ends"]["accuracy"].mean() - sets.mean())
    assert row.error == pytest.approx(np.sqrt(sum(parts)))
    expected = sum(parts) ** 2 / (parts[0] ** 2 / single["moderated_freedom"] + parts[1] ** 2 / 4)
    assert row.freedom == pytest.approx(expected)
    single_set = whole[~whole["arm"].str.fullmatch("random-[2-5]")]
    (one,) = contrasts(single_set, "stage-ends", "random-").itertuples()
    assert (one.p, one.word) == (1.0, "not known")


def test_a_combination_is_the_sum_of_its_arms():
    frame = study(np.random.default_rng(7), cells={("a", "at"): 5})
    shares = {"last": 0.5, "none": 0.5, "stage-ends": -0.5, "segment-middles": -0.5}
    (row,) = combination(frame, shares).itertuples()
    means = frame.groupby("arm")["accuracy"].mean()
    assert row.mean == pytest.approx(sum(means[arm] * share for arm, share in shares.items()))
    assert row.error == pytest.approx(np.sqrt(run_noise(frame).iloc[0]["moderated"] / 5))
    assert combination(frame, {"last": 1.0, "nowhere": -1.0}).empty


# ---- over cells


def test_the_test_of_heterogeneity_is_that_of_nested_linear_models():
    frame = study(np.random.default_rng(8), {("a", "at", "last"): 1.5}, cells=SEEDS)
    found = heterogeneity(contrasts(frame, "last", "stage-ends"), run_noise(frame))

    def rest(one_difference: bool) -> tuple[float, int]:
        """Sum of squares and freedom that are left by arms and seeds in every cell, with one difference of
        the two arms for all cells, or one each.
        """
        cell = frame["pair"] + frame["method"]
        arm = frame["arm"].replace({"last": "stage-ends"}) if one_difference else frame["arm"]
        design = [pd.get_dummies(cell + arm), pd.get_dummies(cell + frame["seed"].astype(str))]
        design += [(frame["arm"] == "last").rename("difference")] if one_difference else []
        matrix = pd.concat(design, axis=1).to_numpy(float)
        fitted, _, rank, _ = np.linalg.lstsq(matrix, frame["accuracy"].to_numpy(), rcond=None)
        left = frame["accuracy"] - matrix @ fitted
        return float((left**2).sum()), len(frame) - rank

    (one, freedom_one), (each, freedom) = rest(True), rest(False)
    expected = (one - each) / (freedom_one - freedom) / (each / freedom)
    assert (found["between"], found["within"]) == (freedom_one - freedom, freedom)
    assert found["F"] == pytest.approx(expected)
    assert found["p"] == pytest.approx(stats.f.sf(expected, freedom_one - freedom, freedom))


def test_the_weightings_are_those_of_their_names():
    table = pd.DataFrame(
        {
            "pair": ["a", "a", "b"],
            "method": ["at", "sp", "at"],
            "mean": [1.0, 4.0, 7.0],
            "error": [1.0, 1.0, 0.5],
            "freedom": [10, 10, 10],
        }
    )
    found = weightings(table).set_index("weighting")["mean"]
    assert found.to_dict() == pytest.approx(
        {"cells equally": 4.0, "methods equally": 4.0, "pairs equally": 4.75, "by precision": 33 / 6}
    )


def test_the_margin_is_a_tenth_of_what_hints_gain():
    frame = study(np.random.default_rng(9), {("a", "at", "stage-ends"): 5, ("a", "sp", "stage-ends"): -9})
    found = margins(frame)
    cell = frame[(frame["pair"] == "a") & (frame["method"] == "at")].groupby("arm")["accuracy"].mean()
    assert found["a", "at"] == pytest.approx((cell["stage-ends"] - cell["none"]) / 10)
    assert np.isnan(found["a", "sp"])


# ---- how often it is wrong


@pytest.fixture(scope="module")
def simulated() -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Studies with no difference between the two arms, and the same with one of exactly the margin."""
    generator, found = np.random.default_rng(10), []
    margin = pd.Series(1.0, index=pd.MultiIndex.from_tuples(SEEDS))
    for _ in range(250):
        same = study(generator)
        apart = same.assign(accuracy=same["accuracy"] + (same["arm"] == "last"))
        # A shift of an arm is no noise.
        told = {"margin": margin, "noise": run_noise(same)}
        found.append(tuple(contrasts(frame, "last", "stage-ends", **told) for frame in (same, apart)))
    return found


def test_intervals_miss_as_often_as_they_say(simulated):
    missed = pd.concat([(table["low"] > 0) | (table["high"] < 0) for table, _ in simulated])
    assert 0.03 <= missed.mean() <= 0.07


def test_words_are_false_in_at_most_one_family_of_twenty(simulated):
    # Two standard deviations of the count are allowed to chance.
    most = 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(simulated))
    assert np.mean([table["word"].isin(["better", "worse"]).any() for table, _ in simulated]) <= most
    assert np.mean([table["word"].str.startswith("the same").any() for _, table in simulated]) <= most


def test_what_is_there_is_found():
    frame = study(np.random.default_rng(11), {(*cell, "last"): 4.0 for cell in SEEDS})
    assert contrasts(frame, "last", "stage-ends")["word"].eq("better").all()
    assert contrasts(frame, "stage-ends", "last")["word"].eq("worse").all()
    wide = pd.Series(9.0, index=pd.MultiIndex.from_tuples(SEEDS))
    same = contrasts(frame, "segment-middles", "stage-ends", margin=wide)
    assert set(same["word"]) <= {"the same within ±9", "better", "worse"}
