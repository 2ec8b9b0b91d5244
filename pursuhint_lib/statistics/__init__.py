"""Paired comparisons of arms: intervals, equivalence tests, verdicts, and whether the choice of points
matters at all.

A *frame* has one row per (pair, method, arm, seed) with the column ``accuracy`` in %. Arms of one (pair,
method, seed) share initial weights and batches, so everything is computed on differences within a seed. Seeds
are the unit of replication. ``effects`` holds means with their uncertainty, ``comparisons`` what is compared,
``claims`` the verdicts, ``choices`` questions to all arms together.
"""

from .choices import rank_among_random, score_correlations, spread_of_arms
from .claims import CLAIMS, Claim, judge_claims, verdict
from .comparisons import (
    PURSUHINT,
    RANDOM,
    arms_of,
    deviations,
    differences,
    effects,
    mean_with_interval,
    text_table,
)
from .contrasts import combination, contrasts, heterogeneity, margins, weightings
from .effects import LEVEL, Effect, bootstrap_interval, equivalence_p, holm, paired_effect, pooled_effect
from .images import PairedAnswers, mcnemar
from .noise import run_noise
