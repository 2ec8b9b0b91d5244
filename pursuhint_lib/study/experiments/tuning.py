"""How much a hint must weigh: each method's weight, chosen by the accuracy on training images that are held
out.

Test images play no part in the choice. ``python -m pursuhint_lib.study.experiments.tuning PROFILE [PAIR
METHOD]`` trains and chooses without notebooks; what is on record is not repeated.
"""

import fcntl
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from ... import records
from ...distillers import distiller
from ...files import sealed, write_json
from ...paths import StudyPaths
from ...records import Record
from ...settings import Arm, DistillSettings, Pair, Profile, SettingsError, choose
from ...training import Stopped, distill
from ..grid.arms import choose_points
from ..grid.cells import hint_weight, tuning_cell, tuning_conditions
from ..grid.hint_layers import layer_similarity, read_json, stored_similarity
from ..grid.profiles import load_profile

# Steps over which ρ, the gradient of the weighted hint loss over that of CE + KD, is averaged.
RATIO_STEPS = 200


def weights_to_try(grid: Sequence[float], scores: Mapping[float, float]) -> tuple[float, ...]:
    """All weights that the search asks for, ascending, as far as the known scores say.

    First those of the grid. While the best is the lowest or the highest of all, one a decade further. Then
    the two half-decades beside the best. A best score that several weights share is none to follow further.

    **Arguments:** ``scores`` weight → mean accuracy, of the weights that have been tried.
    """
    tried, halved = sorted(grid), False
    while scores.keys() >= set(tried):
        best = best_weight({weight: scores[weight] for weight in tried})
        edges = [best / 10] * (best == tried[0]) + [best * 10] * (best == tried[-1])
        if edges and [scores[weight] for weight in tried].count(scores[best]) == 1:
            further = edges
        elif not halved:
            halved, further = True, [best * 10**-0.5, best * 10**0.5]
        else:
            break
        # Four digits, which a person can read.
        tried = sorted({*tried, *(float(f"{weight:.4g}") for weight in further)})
    return tuple(tried)


def best_weight(scores: Mapping[float, float]) -> float:
    """The weight of the highest score, the lightest of several."""
    return max(scores, key=lambda weight: (scores[weight], -weight))


def mean_scores(frame: pd.DataFrame) -> dict[float, float]:
    """Weight → mean accuracy over sets of layers and seeds, of the weights whose runs are all there; a failed
    run counts as 0.

    **Arguments:** columns weight, status (empty for a run that is not on record), accuracy.
    """
    whole = frame.groupby("weight").filter(lambda rows: rows["status"].notna().all())
    return whole.assign(score=whole["accuracy"].fillna(0.0)).groupby("weight")["score"].mean().to_dict()


def _explore(
    profile: Profile, pair: Pair, method: str, find: Callable[[DistillSettings], Sequence[Record | None]]
) -> pd.DataFrame:
    """All runs that the search asks for, as far as the records that are found tell."""
    layer_map, tuning = stored_similarity(profile, pair.teacher).layer_map, profile.tuning
    choices = {arm: choose_points(arm, layer_map, pair.k) for arm in tuning.arms}
    frame, tried = pd.DataFrame({"weight": [], "status": [], "accuracy": []}), ()
    while (weights := weights_to_try(tuning.methods[method], mean_scores(frame))) != tried:
        tried, rows = weights, []
        for seed in tuning.seeds:
            cell = tuning_cell(profile, pair, method, seed, choices)
            # Also those that have a record: all together name the state of an unfinished training.
            weighted = [replace(arm, hint_weight=weight) for weight in weights for arm in cell.arms]
            found = find(replace(cell, arms=tuple(weighted)))
            rows += [
                _row(pair, method, seed, arm, record) for arm, record in zip(weighted, found, strict=True)
            ]
        frame = pd.DataFrame(rows)
    return frame


def _row(pair: Pair, method: str, seed: int, arm: Arm, record: Record | None) -> dict:
    metrics = record.metrics if record else {}
    return {
        "pair": pair.name,
        "method": method,
        "weight": arm.hint_weight,
        "arm": arm.name,
        "layers": " ".join(arm.teacher_points),
        "seed": seed,
        "accuracy": metrics.get("accuracy", float("nan")),
        "gradient_ratio": metrics.get("gradient_ratio", float("nan")),
        "status": record and record.status,
        "record": record and record.name,
    }


def tuning_frame(profile: Profile, pair: Pair, method: str) -> pd.DataFrame:
    """The search for a weight as far as it is on record; the teacher's layers must have been compared.

    **Returns:** columns pair, method, weight, arm, layers (names), seed, accuracy (% of the held-out images;
    missing for a failed run), gradient_ratio (ρ; missing where it was not measured), status and record (empty
    for a run still to be done).
    """

    def stored(cell: DistillSettings) -> list[Record | None]:
        return [records.load(profile.name, cell.run(arm)) for arm in cell.arms]

    return _explore(profile, pair, method, stored)


def tune(profile: Profile, pair: Pair, method: str) -> pd.DataFrame:
    """Train what the search for a weight lacks, all weights and sets of layers of a seed side by side, and
    choose.

    **Returns:** as ``tuning_frame``, complete; the choice is written to results/<profile>/weights.json.

    **Raises:** ``SettingsError`` for what the profile does not tune, and where every weight has failed.
    """
    choose(
        "method that is tuned on this pair",
        method,
        [tuned for other, tuned in profile.tuned if other == pair],
    )
    layer_similarity(profile, pair.teacher)
    frame = _explore(profile, pair, method, partial(distill, measured_steps=RATIO_STEPS))
    if not max(mean_scores(frame).values()):
        tried = ", ".join(f"{weight:g}" for weight in sorted(set(frame["weight"])))
        raise SettingsError(
            f"every student of {method} on {pair.name} has failed, at weights {tried}; give the tuning "
            "smaller ones"
        )
    write_weights(profile)
    return frame


def write_weights(profile: Profile) -> None:
    """Choose every weight whose search is complete, from the records alone, and write
    results/<profile>/weights.json.
    """
    paths = StudyPaths(profile.name)
    paths.tuning_lock.parent.mkdir(parents=True, exist_ok=True)
    with paths.tuning_lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        content = {}
        for pair, method in profile.tuned:
            frame = tuning_frame(profile, pair, method) if stored_similarity(profile, pair.teacher) else None
            if frame is not None and frame["status"].notna().all():
                content.setdefault(pair.name, {})[method] = _choice(profile, pair, method, frame)
        if read_json(paths.tuned_weights) != content:
            write_json(paths.tuned_weights, sealed(content))


def _choice(profile: Profile, pair: Pair, method: str, frame: pd.DataFrame) -> dict:
    """A chosen weight with the search behind it, as plain values."""
    curve = frame[["weight", "arm", "seed", "accuracy", "gradient_ratio", "status"]].astype(object)
    return {
        "weight": best_weight(mean_scores(frame)),
        "literature": distiller(method).weight,
        "curve": curve.where(curve.notna(), None).to_dict("records"),
        "settings": tuning_conditions(profile, pair, method),
    }


def tuning_runs(profile: Profile, pair: Pair, method: str) -> tuple[int, int | None]:
    """How many runs of the search (and the choice) are on record, and how many there are; the latter is
    unknown before its end.
    """
    if stored_similarity(profile, pair.teacher) is None:
        return 0, None
    frame = tuning_frame(profile, pair, method)
    found, chosen = frame["record"].nunique(), hint_weight(profile, pair, method) is not None
    return found + chosen, found + 1 if frame["status"].notna().all() else None


def main(source: str, pair: str | None = None, *methods: str) -> int:
    """Tune a profile's weights, of one pair or of all, by some methods or by all; what ends it is said in one
    line.
    """
    try:
        profile = load_profile(source)
        wanted = [
            (tuned, m)
            for tuned, m in profile.tuned
            if pair in (None, tuned.name) and (not methods or m in methods)
        ]
        if not wanted:
            there = ", ".join(f"{tuned.name} {method}" for tuned, method in profile.tuned)
            raise SettingsError(
                f"nothing to tune; profile {profile.name} tunes "
                f"{there or 'no weights: give it a section tuning'}"
            )
        for tuned, method in wanted:
            frame = tune(profile, tuned, method)
            print(f"{tuned.name}, {method}: weight {hint_weight(profile, tuned, method):g}")
            means = frame.groupby(["weight", "arm"])[["accuracy", "gradient_ratio"]].mean().unstack()
            print(f"{means.to_string(float_format='{:.3g}'.format)}\n", flush=True)
    except (SettingsError, Stopped) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
