"""Scores of hint layers, and whether they predict accuracy."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pursuhint_lib.clustering import choose_hint_points
from pursuhint_lib.statistics import score_correlations
from pursuhint_lib.study.experiments.ablation import coverage, point_scores
from pursuhint_lib.study.grid.hint_layers import hint_choices, layer_similarity
from pursuhint_lib.study.grid.profiles import checked, load_profile
from pursuhint_lib.training import train_teacher


def test_k_medoids_has_the_best_coverage_of_all_sets():
    points = np.random.default_rng(0).random((8, 3))
    similarity = np.exp(-((points[:, None] - points) ** 2).sum(-1))
    best = max(itertools.combinations(range(8), 3), key=lambda chosen: coverage(similarity, chosen))
    assert choose_hint_points(similarity, 3, "kmedoids").indices == best
    assert coverage(similarity, tuple(range(8))) == 1.0


def test_every_arm_with_a_point_for_each_of_the_student_has_all_scores():
    profile = checked(
        replace(
            load_profile("smoke"),
            metrics=("r2", "cka-linear"),
            arms=("none", "stage-ends", "all", "reversed", "last", "random-1"),
        )
    )
    pair = profile.pairs[0]
    assert point_scores(profile, pair).empty
    train_teacher(profile.teacher_settings(pair.teacher))
    layer_map = layer_similarity(profile, pair.teacher).layer_map
    table = point_scores(profile, pair).pivot(index="arm", columns="score", values="value")
    assert set(table.columns) == {"coverage, r2", "coverage, cka-linear", "quality", "depth", "deepest"}
    assert {"stage-ends", "random-1"} <= set(table.index)
    assert not {"none", "reversed"} & set(table.index)
    points = hint_choices(profile, pair.teacher, pair.k)["random-1"].indices
    assert table.loc["random-1", "depth"] == np.mean(points) + 1
    assert table.loc["random-1", "deepest"] == max(points) + 1
    nearest = [
        max(layer_map.similarity["r2"][layer, point] for point in points) for layer in range(layer_map.layers)
    ]
    assert table.loc["random-1", "coverage, r2"] == pytest.approx(np.mean(nearest))


def measured(seed: int, slope: float, arms: int = 6) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracies of two pairs and two methods that follow a score with a slope, and the scores."""
    generator = np.random.default_rng(seed)
    rows, scores = [], []
    for pair in ("p", "q"):
        for number in range(arms):
            value = generator.normal()
            scores.append({"pair": pair, "arm": f"random-{number}", "score": "good", "value": value})
            for method, run in itertools.product(("at", "sp"), range(3)):
                rows.append((pair, method, f"random-{number}", run, 70 + slope * value + generator.normal()))
    return pd.DataFrame(rows, columns=["pair", "method", "arm", "seed", "accuracy"]), pd.DataFrame(scores)


def test_the_correlation_is_the_mean_of_spearmans_over_pairs_and_methods():
    frame, scores = measured(0, 1.0)
    [row] = score_correlations(frame, scores, draws=99).to_dict("records")
    expected = []
    for (pair, _), cell in frame.groupby(["pair", "method"]):
        means = cell.groupby("arm")["accuracy"].mean()
        values = scores[scores["pair"] == pair].set_index("arm")["value"][means.index]
        expected.append(stats.spearmanr(means, values).statistic)
    assert row["rho"] == pytest.approx(np.mean(expected))
    assert (row["low"], row["high"]) == (pytest.approx(min(expected)), pytest.approx(max(expected)))
    assert (row["cells"], row["arms"]) == (4, 6)


def test_a_score_that_predicts_is_found_and_one_that_does_not_has_p_values_without_bias():
    assert score_correlations(*measured(1, 30.0), draws=999)["p"].item() < 0.01
    found = np.array([score_correlations(*measured(seed, 0.0), draws=99)["p"].item() for seed in range(150)])
    assert (found <= 0.1).mean() < 0.2
    assert 0.35 < found.mean() < 0.65


def test_pairs_of_one_teacher_are_no_more_proof_than_one():
    tables = [table[table["pair"] == "p"] for table in measured(4, 3.0, arms=5)]
    copies = [pd.concat([table.assign(pair=str(n)) for n in range(6)]) for table in tables]
    alone, six = (score_correlations(*both, draws=2999)["p"].item() for both in (tables, copies))
    assert six == pytest.approx(alone, abs=0.02)


@pytest.mark.parametrize(("more", "arms"), [(0, 4), (1, 5)], ids=["the same points", "other points"])
def test_arms_of_the_same_accuracy_count_once_if_they_took_the_same_points(more, arms):
    frame, scores = measured(2, 1.0, arms=4)
    twin = frame[frame["arm"] == "random-0"].assign(arm="last")
    its = scores[scores["arm"] == "random-0"].assign(arm="last", value=lambda table: table["value"] + more)
    found = score_correlations(pd.concat([frame, twin]), pd.concat([scores, its]), draws=9)
    assert found["arms"].item() == arms


def test_too_few_arms_give_nothing():
    assert score_correlations(*measured(3, 1.0, arms=2)).empty


def test_scores_of_a_pair_without_these_methods_change_nothing():
    frame, scores = measured(2, 1.0)
    one = frame[frame["pair"] == "p"]
    assert score_correlations(one, scores, draws=9).equals(
        score_correlations(one, scores[scores["pair"] == "p"], draws=9)
    )
