"""Effects and p-values against scipy; pooled ones against matrix algebra, closed forms and simulation."""

import math

import numpy as np
import pytest
from paired import paired_effect
from scipy import stats

from pursuhint_lib.statistics import Effect, equivalence_p, holm


@pytest.mark.parametrize(("n", "shift"), [(2, 0.0), (5, 0.4), (30, -0.2)])
def test_an_effect_is_scipys_t_test(n, shift):
    values = np.random.default_rng(n).normal(shift, 1, n)
    expected = stats.ttest_1samp(values, 0)
    row = [values.mean(), *expected.confidence_interval(0.95), n, expected.pvalue]
    assert list(paired_effect(values).row().values()) == pytest.approx(row, rel=1e-10)


def test_an_unknown_error_leaves_everything_open():
    effect = Effect(1.5, math.inf, 0, 1)
    assert effect.row() == {"mean": 1.5, "low": -math.inf, "high": math.inf, "n": 1, "p": 1.0}
    assert equivalence_p(effect, 10.0) == 1.0


@pytest.mark.parametrize(
    ("value", "p", "equivalent"),
    [(0.0, 1, 0), (0.25, 0, 0), (-0.25, 0, 0), (0.5, 0, 1), (-0.5, 0, 1), (-0.75, 0, 1)],
)
def test_identical_differences_are_one_point_within_the_margin_or_not(value, p, equivalent):
    effect = paired_effect([value] * 4)
    assert effect.row() == {"mean": value, "low": value, "high": value, "n": 4, "p": p}
    assert equivalence_p(effect, 0.5) == equivalent


@pytest.mark.parametrize(
    ("n", "shift", "margin"), [(2, 0.0, 1.0), (6, 0.1, 0.5), (20, -0.3, 0.5), (20, 2.0, 0.5)]
)
def test_equivalence_p_is_the_larger_of_two_one_sided_t_tests(n, shift, margin):
    values = np.random.default_rng(n).normal(shift, 0.5, n)
    sides = ((-margin, "greater"), (margin, "less"))
    p = [stats.ttest_1samp(values, bound, alternative=side).pvalue for bound, side in sides]
    assert equivalence_p(paired_effect(values), margin) == pytest.approx(max(p), rel=1e-10)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.6, 0.9], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([0.01, 0.01, 0.5], [0.03, 0.03, 0.5]),
        ([0.04, 0.0], [0.04, 0.0]),
    ],
)
def test_holm_equals_the_hand_computed_example(p_values, adjusted):
    assert holm(p_values) == pytest.approx(adjusted)
