"""Paired comparisons of arms: intervals, equivalence tests, a word for each, and whether the choice of layers
matters at all.

A *frame* has one row per (pair, method, arm, seed) with the columns ``points`` (the layers) and ``accuracy``
in %. Arms of one (pair, method, seed) share initial weights and batches, so everything is a difference within
a seed. ``noise`` estimates the variance of a run, ``contrasts`` the differences with their words, ``choices``
asks all arms together, ``teachers`` takes teachers for a sample, ``images`` compares two students image by
image.
"""

from .choices import expected_range, rank_among_random, score_correlations, spread_of_arms
from .comparisons import PURSUHINT, RANDOM, STAGE_RANDOM, arms_of, mean_with_interval, text_table
from .contrasts import (
    BETTER,
    REFERENCES,
    UNKNOWN,
    UNTESTED,
    WORSE,
    against,
    combination,
    compared,
    contrasts,
    heterogeneity,
    margins,
    one_family,
    weightings,
)
from .effects import LEVEL, Effect, equivalence_p, holm
from .images import PairedAnswers, mcnemar
from .noise import paired_share, run_noise
from .teachers import over_teachers
