"""The claims that are judged, and their verdicts."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from .comparisons import PURSUHINT, RANDOM, arms_of, differences
from .effects import LEVEL, Effect, equivalence_p, holm, pooled_effect


@dataclass(frozen=True)
class Claim:
    """A statement of the form 'accuracy of these arms is higher than of the reference'."""

    text: str
    arms: str
    reference: str


# The first two must hold before the other three mean anything; the third is the paper's, the last two are its
# controls.
CLAIMS = (
    Claim("Hints at PURSUhInT's points beat the student alone", PURSUHINT, "alone"),
    Claim(
        "The hint loss helps: PURSUhInT's points beat no hints, with the same CE and KD", PURSUHINT, "none"
    ),
    Claim("PURSUhInT's points beat the usual stage ends", PURSUHINT, "stage-ends"),
    Claim("PURSUhInT's points beat random points", PURSUHINT, RANDOM),
    Claim(
        "The similarity metric adds something: PURSUhInT's points beat the middles of equal segments",
        PURSUHINT,
        "segment-middles",
    ),
)


def verdict(effect: Effect, p_adjusted: float, p_equivalent: float) -> str:
    """What the data says of the claim that a difference is positive.

    ``reproduced``: positive beyond chance. ``not reproduced``: negative beyond chance, or surely too small
    to matter. ``undecided``: neither.
    """
    if p_adjusted < LEVEL and effect.mean > 0:
        return "reproduced"
    if p_adjusted < LEVEL or p_equivalent < LEVEL:
        return "not reproduced"
    return "undecided"


def _from_random(seeds: Effect, sets: Effect) -> Effect:
    """A mean difference from the random arms as an estimate of that from *any* random set of layers, not just
    from those that were drawn.

    What is drawn at random is a sample too, and its variance counts: a test that takes the drawn sets for all
    there are finds differences too often (Clark 1973). The variances add up, with degrees of freedom after
    Satterthwaite (1946); that is on the safe side, as noise of the random arms' runs is in both (Cameron,
    Gelbach and Miller 2011, without the term that they subtract).

    **Arguments:** ``seeds``, ``sets`` the estimate with seeds and with random arms as the sample.
    """
    variances = np.array([seeds.error**2, sets.error**2])
    present = variances > 0
    if np.isinf(variances).any() or not present.any():
        return replace(seeds, error=float(np.sqrt(variances.sum())))
    freedoms = np.array([seeds.freedom, sets.freedom])
    freedom = variances.sum() ** 2 / np.sum(variances[present] ** 2 / freedoms[present])
    return replace(seeds, error=float(np.sqrt(variances.sum())), freedom=float(freedom))


def judge_claims(frame: pd.DataFrame, margin: float) -> pd.DataFrame:
    """A verdict on every claim whose arms are in the frame, pooled over pairs, methods and the arms of a
    family.

    Seeds are the sample; against random points the sets that were drawn are one, too, so that the claim is
    about random points and not about these. Failed runs have no accuracy and are left out of the means, which
    flatters the arms that fail; ``failed`` says how many.

    **Arguments:** ``margin`` in points: a difference that is too small to matter.

    **Returns:** one row per claim: claim, mean, low, high, n (seeds), cells (pair × method × arm), failed
    (runs of either side), p, p_holm, p_equivalent, verdict.
    """
    rows, judged = [], []
    for claim in CLAIMS:
        if not arms_of(frame, claim.arms) or not arms_of(frame, claim.reference):
            continue
        involved = frame[frame["arm"].isin(arms_of(frame, claim.arms) + arms_of(frame, claim.reference))]
        diffs = differences(involved, claim.reference)
        effect = pooled_effect(diffs)
        if claim.reference == RANDOM:
            effect = _from_random(effect, pooled_effect(differences(involved, PURSUHINT), "arm"))
        judged.append((effect, equivalence_p(effect, margin)))
        counts = {
            "cells": len(diffs.groupby(["pair", "method", "arm"])),
            "failed": int(involved["accuracy"].isna().sum()),
        }
        rows.append({"claim": claim.text} | effect.row() | counts | {"p_equivalent": judged[-1][1]})
    table = pd.DataFrame(
        rows, columns=["claim", "mean", "low", "high", "n", "p", "cells", "failed", "p_equivalent"]
    )
    table["p_holm"] = holm(table["p"])
    verdicts = [
        verdict(effect, adjusted, equivalent)
        for (effect, equivalent), adjusted in zip(judged, table["p_holm"], strict=True)
    ]
    return table.assign(verdict=verdicts)
