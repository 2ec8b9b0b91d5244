"""How much a hint must weigh: each method's weight, chosen by the accuracy on training images that are held
out; and how much the choice of layers changes with other weights, on the first pair.

Test images play no part in the choice. ``python -m pursuhint_lib tune`` trains and chooses without notebooks.
"""

import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from ... import records
from ...distillers import distiller
from ...files import read_json, sealed, write_json
from ...paths import StudyPaths
from ...settings import DistillSettings, Pair, Profile, SettingsError, choose
from ..grid.arms import Choice
from ..grid.cells import Cell, trained_frame
from ..grid.weights import hint_weight, tuning_conditions

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
    """Weight → mean accuracy over sets of layers and seeds; a failed run counts as 0.

    **Arguments:** columns weight, accuracy.
    """
    return frame.assign(score=frame["accuracy"].fillna(0.0)).groupby("weight")["score"].mean().to_dict()


@dataclass(frozen=True)
class Search(Cell):
    """The students of one seed of the search, which learn from the images that are not held out: every set of
    layers at every weight.

    **Arguments:** ``weights``: those that are asked for so far. ``over``: whether that is all of them.
    """

    weights: tuple[float, ...] = ()
    over: bool = False

    def _with(self, choices: dict[str, Choice]) -> DistillSettings:
        cell = super()._with(choices)
        # All together name the state of an unfinished training, so those that have a record are among them.
        arms = [replace(arm, hint_weight=weight) for weight in self.weights for arm in cell.arms]
        return replace(cell, arms=tuple(arms))

    def files(self) -> tuple[dict, bool]:
        names, whole = super().files()
        # The two half-decades are to come, at least.
        to_come = 0 if self.over else 2
        if not whole:
            names, to_come = {}, to_come + len(self.weights)
        search = (self.pair.name, self.method, self.seed)
        names |= {(*search, count, arm): False for count in range(to_come) for arm in self.arms}
        return names, whole and self.over

    def rows(self) -> list[dict]:
        """A row of the results frame for every run that has a record, with its weight and ρ."""
        settings = self.settings
        told = {}
        for arm in settings.arms if settings else ():
            run = settings.run(arm)
            record = records.load(self.folder, run)
            ratio = record.metrics.get("gradient_ratio", float("nan")) if record else float("nan")
            told[records.record_name(run)] = {"weight": arm.hint_weight, "gradient_ratio": ratio}
        return [row | told[row["record"]] for row in super().rows()]


@dataclass(frozen=True)
class Chosen:
    """The weight that a search ends with."""

    profile: Profile
    pair: Pair
    method: str

    def files(self) -> tuple[dict, bool]:
        """The entry in results/<profile>/weights.json → whether it is there."""
        known = hint_weight(self.profile, self.pair, self.method) is not None
        return {("weight", self.pair.name, self.method): known}, True

    @property
    def about(self) -> dict:
        """What decides it."""
        return tuning_conditions(self.profile, self.pair, self.method)


def _searches(
    profile: Profile, pair: Pair, method: str, weights: tuple[float, ...], over: bool = False
) -> list[Search]:
    stated = replace(profile.weights, hint={**profile.weights.hint, method: distiller(method).weight})
    apart, data = replace(profile, weights=stated), {"data": profile.tuning_data}
    return [
        Search(apart, pair, method, seed, profile.tuning.arms, data, {}, weights, over)
        for seed in profile.tuning.seeds
    ]


def _explore(
    profile: Profile, pair: Pair, method: str, train: Callable[[Search], object] | None = None
) -> list[Search]:
    """The search as far as the records tell, or to its end where it is told how to train."""
    weights: tuple[float, ...] = ()
    scores: dict[float, float] = {}
    while (asked := weights_to_try(profile.tuning.methods[method], scores)) != weights:
        weights = asked
        searches = _searches(profile, pair, method, weights)
        if train:
            for search in searches:
                train(search)
        if not all(there for search in searches for there in super(Search, search).files()[0].values()):
            return searches
        scores = mean_scores(_frame(searches))
    return _searches(profile, pair, method, weights, over=True)


def _frame(searches: Sequence[Search]) -> pd.DataFrame:
    return pd.DataFrame([row for search in searches for row in search.rows()])


def tuning_cells(profile: Profile, pair: str, method: str) -> list[Search | Chosen]:
    """The search of a pair and method as far as it is on record, and what it chooses."""
    found = profile.pair(pair)
    return [*_explore(profile, found, method), Chosen(profile, found, method)]


def tuning_executions(profile: Profile) -> list[dict]:
    """One for every pair and method that is tuned."""
    return [{"pair": pair.name, "method": method} for pair, method in profile.tuned]


def tune(profile: Profile, pair: Pair, method: str) -> pd.DataFrame:
    """Train what the search for a weight lacks, all weights and sets of layers of a seed side by side, and
    choose.

    **Returns:** as ``cells.results_frame`` does, with accuracy in % of the held-out images, and the columns
    weight and gradient_ratio (ρ; missing where it was not measured). The choice is written to
    results/<profile>/weights.json.

    **Raises:** ``SettingsError`` for what the profile does not tune, and where every weight has failed.
    """
    tuned = [method for other, method in profile.tuned if other == pair]
    choose("method that is tuned on this pair", method, tuned)
    frame = _frame(_explore(profile, pair, method, lambda search: search.train(RATIO_STEPS)))
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
            searches = _explore(profile, pair, method)
            if searches[0].over:
                choice = _choice(profile, pair, method, _frame(searches))
                content.setdefault(pair.name, {})[method] = choice
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


def tune_all(profile: Profile, pair: str | None, methods: Sequence[str]) -> None:
    """Tune a profile's weights, of one pair or of all, by some methods or by all, and print what was found.

    **Raises:** ``SettingsError`` where none of it is tuned.
    """
    wanted = [
        (tuned, method)
        for tuned, method in profile.tuned
        if pair in (None, tuned.name) and (not methods or method in methods)
    ]
    if not wanted:
        there = ", ".join(f"{tuned.name} {method}" for tuned, method in profile.tuned)
        raise SettingsError(
            f"nothing to tune; profile {profile.name} tunes {there or 'no weights: give it a section tuning'}"
        )
    for tuned, method in wanted:
        frame = tune(profile, tuned, method)
        print(f"{tuned.name}, {method}: weight {hint_weight(profile, tuned, method):g}")
        means = frame.groupby(["weight", "arm"])[["accuracy", "gradient_ratio"]].mean().unstack()
        print(f"{means.to_string(float_format='{:.3g}'.format)}\n", flush=True)


def sweep_cells(profile: Profile, method: str) -> Iterator[Cell]:
    """Cells of every weight and seed: 0, which is the arm ``none`` of the grid and stands there once for
    every arm, the grid's own weight, and the others.
    """
    sweep, pair = profile.sweep(method), profile.pairs[0]
    usual = hint_weight(profile, pair, method)
    for seed in profile.seeds[: sweep.seeds]:
        for arm in sweep.arms:
            yield Cell(profile, pair, method, seed, ("none",), labels={"weight": 0.0, "arm": arm})
        # Before it is tuned, the grid's own weight is not known.
        for weight in sorted({*sweep.weights, *([usual] if usual else [])}) + ([] if usual else [None]):
            changes = {} if weight == usual else {"hint_weight": weight}
            yield Cell(profile, pair, method, seed, sweep.arms, changes, {"weight": weight})


def sweep_frame(profile: Profile, method: str) -> pd.DataFrame:
    """Accuracy under every weight; what has no record is trained.

    **Returns:** as ``cells.results_frame`` does, with the column weight.
    """
    return trained_frame(sweep_cells(profile, method))


def by_weight(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the runs without hints, at weight 0, as the arm ``none`` of every other weight."""
    plain = frame[frame["weight"] == 0].drop_duplicates(["pair", "method", "seed"]).assign(arm="none")
    weights = [weight for weight in sorted(set(frame["weight"])) if weight]
    none = [plain.assign(weight=weight) for weight in weights]
    return pd.concat([frame[frame["weight"] > 0], *none], ignore_index=True)
