"""The grid of a profile: settings of every run, training what is missing, and all results as one
data frame.
"""

import os
from dataclasses import replace

import pandas as pd

from ... import records
from ...distillers import Distiller, distiller
from ...models import parameter_count
from ...paths import ROOT, StudyPaths
from ...records import Record, differing
from ...settings import Arm, DistillSettings, Pair, Profile, SettingsError, StudentSettings, resolved
from ...settings.user_code import sources
from ...statistics import mean_with_interval
from ...training import distill, seeded_model, teacher_weights
from .arms import Choice, choose_points
from .hint_layers import hint_choices, naming_damage, read_json, stored_similarity
from .profiles import checked, network_points

# Rows of the results frame that stand for the student trained without a teacher.
ALONE = "alone"
# What a fork's name ends in. Git ignores the results of such names.
OWN_PAIR = "-own-pair"


class NotTuned(SettingsError):
    """A weight that will be chosen by training, and has not been yet."""


def has_arms(method: str) -> bool:
    """Whether a method uses hint points."""
    return distiller(method).hints


def methods_of(profile: Profile, pair: Pair) -> list[str]:
    """The methods that a pair is trained with: those without hints, which the others are compared with, and
    its own or all with hints.
    """
    return [
        method
        for method in profile.methods
        if not (pair.methods and has_arms(method)) or method in pair.methods
    ]


def cell_settings(
    profile: Profile, pair: Pair, method: str, seed: int, choices: dict[str, Choice]
) -> DistillSettings:
    """Settings of one (pair, method, seed) with all its arms.

    **Raises:** ``NotTuned`` before the weight of the method is chosen.
    """
    entry, weight = distiller(method), hint_weight(profile, pair, method)
    if weight is None:
        command = f"python -m pursuhint_lib.study.experiments.tuning {profile.name}"
        raise NotTuned(
            f"the weight of {method} is not tuned yet, which profile {profile.name} asks for; {command} does "
            "it"
        )
    arms, students = _arms(profile, pair, entry, choices)
    return DistillSettings(
        teacher=profile.teacher_settings(pair.teacher),
        student=pair.student,
        method=method,
        arms=arms,
        student_points=students,
        ce_weight=profile.weights.ce if entry.ce else 0.0,
        kd_weight=profile.weights.kd if entry.kd else 0.0,
        hint_weight=weight,
        plain=_plain(profile, pair, method, seed),
        part_weights=tuple(profile.weights.hint.get(part, weight) for part, weight in entry.parts.items()),
        temperature=profile.weights.temperature,
        data=profile.student_data,
        schedule=profile.student,
        seed=seed,
        precision=profile.precision,
        deterministic=profile.deterministic,
        profile=profile.name,
    )


def hint_weight(profile: Profile, pair: Pair, method: str) -> float | None:
    """The weight of a method's hint loss: as stated in the profile, or tuned, or the literature's.

    A tuned one is the pair's own, or that of the first pair that has one.

    **Returns:** nothing while the profile's own tuning has not chosen it.

    **Raises:** ``SettingsError`` where another profile's weights are asked for, and there is none.
    """
    if method in profile.weights.hint or not has_arms(method):
        return profile.weights.hint.get(method, distiller(method).weight)
    if profile.weights.tuned_by:
        return _weight_of(profile.weights.tuned_by, pair, method)
    tuned = [tuned for tuned, tuned_method in profile.tuned if tuned_method == method]
    if not tuned:
        return distiller(method).weight
    own = pair if pair in tuned else tuned[0]
    found = _tuned_weights(profile.name).get(own.name, {}).get(method)
    return (
        found["weight"]
        if found and not differing(found["settings"], tuning_conditions(profile, own, method))
        else None
    )


def _weight_of(profile: str, pair: Pair, method: str) -> float:
    """The weight that another profile has tuned."""
    by_pair = _tuned_weights(profile)
    found = [
        methods[method]
        for name, methods in sorted(by_pair.items(), key=lambda item: item[0] != pair.name)
        if method in methods
    ]
    if not found:
        path, there = (
            StudyPaths(profile).tuned_weights,
            sorted({name for methods in by_pair.values() for name in methods}),
        )
        what = f"has weights of {', '.join(there)} only" if there else "is not there"
        raise SettingsError(
            f"weights.tuned_by is {profile}, but {path} {what}; tune {method} there, or state its weight in "
            "weights.hint"
        )
    return found[0]["weight"]


def _tuned_weights(profile: str) -> dict[str, dict[str, dict]]:
    """Pair → method → what ``study.tuning`` has written of it."""
    path = StudyPaths(profile).tuned_weights
    content = read_json(path) or {}
    with naming_damage(path):
        if not all(
            {"weight", "settings"} <= {*entry} for methods in content.values() for entry in methods.values()
        ):
            raise ValueError("a weight lacks its settings")
    return content


def tuning_cell(
    profile: Profile, pair: Pair, method: str, seed: int, choices: dict[str, Choice]
) -> DistillSettings:
    """Settings of one (pair, method, seed) of the search for a weight, which the arms still have to get: on
    held-out images.
    """
    stated = replace(profile.weights, hint={**profile.weights.hint, method: distiller(method).weight})
    return replace(
        cell_settings(replace(profile, weights=stated), pair, method, seed, choices), data=profile.tuning_data
    )


def tuning_conditions(profile: Profile, pair: Pair, method: str) -> dict:
    """What the choice of a weight depends on, as plain values."""
    tuning, cell = profile.tuning, tuning_cell(profile, pair, method, profile.tuning.seeds[0], {})
    searched = {
        "weights": [*tuning.methods[method]],
        "arms": [*tuning.arms],
        "seeds": [*tuning.seeds],
        "k": pair.k,
    }
    own = {"profile_images": profile.profile_images, "sources": [*sources(method, pair.student)]}
    return {**resolved(cell), **searched, **own}


def _arms(
    profile: Profile, pair: Pair, entry: Distiller, choices: dict[str, Choice]
) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """Arms and student points of a method: those chosen, the last sub-block of each side, or none."""
    names = network_points(pair.teacher, profile.data).candidates
    if entry.reuses_classifier:
        return (Arm("none", names[-1:]),), network_points(pair.student, profile.data).candidates[-1:]
    if not entry.hints:
        return (Arm("none"),), ()
    arms = []
    for arm, choice in choices.items():
        students = tuple(pair.student_points[j] for _, j in choice.matched) if choice.students else ()
        arms.append(Arm(arm, tuple(names[i] for i in choice.indices), students))
    return tuple(arms), pair.student_points


def _plain(profile: Profile, pair: Pair, method: str, seed: int) -> StudentSettings | None:
    """The run of a sum without its hints, if anything of it is left then."""
    entry = distiller(method)
    rest = [part for part in entry.parts if not distiller(part).hints]
    return (
        cell_settings(profile, pair, "+".join(rest), seed, {}).run(Arm("none"))
        if entry.hints and rest
        else None
    )


def run_cell(profile: Profile, pair: Pair, method: str) -> dict[str, list[Record]]:
    """Train what is missing of one (pair, method): all arms side by side, seed after seed.

    Attention maps of the first seed's students are kept, of methods with hints and of ``kd``.

    **Returns:** arm → one record per seed.
    """
    choices = hint_choices(profile, pair.teacher, pair.k) if has_arms(method) else {}
    found: dict[str, list[Record]] = {}
    for seed in profile.seeds_of(pair, method):
        settings = cell_settings(profile, pair, method, seed, choices)
        # Pictures of what hints change need one student of each arm, and the one without hints.
        settings = replace(
            settings, keep_maps=seed == profile.seeds[0] and (has_arms(method) or method == "kd")
        )
        for arm, record in zip(settings.arms, distill(settings), strict=True):
            found.setdefault(arm.name, []).append(record)
    return found


def runs_of(profile: Profile, pair: Pair, method: str) -> dict[tuple[str, int], StudentSettings] | None:
    """(arm, seed) → settings of the run, or nothing while the teacher's hint layers or the method's weight
    are not known.
    """
    choices: dict[str, Choice] = {}
    if has_arms(method):
        report = stored_similarity(profile, pair.teacher)
        if report is None or hint_weight(profile, pair, method) is None:
            return None
        choices = {arm: choose_points(arm, report.layer_map, pair.k) for arm in profile.arms}
    cells = [cell_settings(profile, pair, method, seed, choices) for seed in profile.seeds_of(pair, method)]
    return {(arm.name, cell.seed): cell.run(arm) for cell in cells for arm in cell.arms}


def results_frame(profile: Profile) -> pd.DataFrame:
    """Every finished run of the profile's grid, read from the records.

    Methods without hint points appear as one arm: ``ce`` as ``alone``, ``kd`` as ``none``. The row ``alone``
    is repeated under each method with hint points, as ``none`` is, because it is their reference too.

    **Returns:** columns pair, teacher, student, method, arm, seed, points, accuracy and optimistic (%;
    missing for failed runs), parameters, status, record.
    """
    rows = []
    for pair in profile.pairs:
        alone = _rows(profile, pair, "ce", rename=ALONE) if "ce" in profile.methods else []
        for method in methods_of(profile, pair):
            if method == "ce":
                rows += alone
                continue
            rows += [{**row, "method": method} for row in alone] if has_arms(method) else []
            rows += _rows(profile, pair, method)
    return pd.DataFrame(rows)


def _rows(profile: Profile, pair: Pair, method: str, rename: str | None = None) -> list[dict]:
    rows = []
    for (arm, seed), run in (runs_of(profile, pair, method) or {}).items():
        record = records.load(profile.name, run)
        if record is None:
            continue
        rows.append(
            {
                "pair": pair.name,
                "teacher": pair.teacher,
                "student": pair.student,
                "method": method,
                "arm": rename or arm,
                "seed": seed,
                "points": " ".join(run.teacher_points),
                "accuracy": record.metrics.get("accuracy", float("nan")),
                "optimistic": record.metrics.get("optimistic_accuracy", float("nan")),
                "parameters": record.metrics["parameters"],
                "status": record.status,
                "record": record.name,
            }
        )
    return rows


def networks_frame(profile: Profile, frame: pd.DataFrame) -> pd.DataFrame:
    """Teacher, student alone and best distilled student of every pair, with size and compression.

    The best student is the best (method, arm) by mean accuracy; chosen among many, its mean is a little
    flattered.

    **Returns:** columns pair, teacher, network, role, method, arm, accuracy (mean), low, high, n, parameters,
    compression.
    """
    rows = []
    for pair in profile.pairs:
        teacher = records.load(profile.name, profile.teacher_settings(pair.teacher))
        size = parameter_count(seeded_model(pair.teacher, profile.data, 0))
        accuracy = teacher.metrics["accuracy"] if teacher else float("nan")
        shared = {"pair": pair.name, "teacher": pair.teacher}
        unknown = {"low": -float("inf"), "high": float("inf"), "n": 1}
        rows.append(
            {
                **shared,
                **unknown,
                "network": pair.teacher,
                "role": "teacher",
                "accuracy": accuracy,
                "parameters": size,
                "compression": 1.0,
            }
        )
        mine = frame[frame["pair"] == pair.name]
        means = mean_with_interval(mine, ["method", "arm"]).rename(columns={"mean": "accuracy"})
        small = int(mine["parameters"].iloc[0])
        alone = means[means["arm"] == ALONE].head(1).assign(role="student alone", method="ce")
        best = means[means["arm"] != ALONE].nlargest(1, "accuracy").assign(role="best student")
        for row in pd.concat([alone, best]).to_dict("records"):
            rows.append(
                {**shared, "network": pair.student, **row, "parameters": small, "compression": size / small}
            )
    return pd.DataFrame(rows)


def fork(profile: Profile, pair: Pair, apart: bool = True, **changes) -> Profile:
    """The profile with one other pair, and other fields changed.

    **Arguments:** ``apart``: whether results land in a folder of their own, ``results/<profile>-own-pair``,
    where no record of the profile can disagree with them. A teacher of the profile whose weights are here is
    a checkpoint there.

    Tuned weights are those of the first pair that has some; before they are chosen, the literature's.

    **Raises:** ``SettingsError`` as for a profile file.
    """
    given = profile.checkpoints.get(pair.teacher)
    if apart:
        weights = teacher_weights(profile.teacher_settings(pair.teacher))
        given = given or (weights and os.path.relpath(weights, ROOT))
        changes["name"] = f"{profile.name}{OWN_PAIR}"
    tuned = {method: hint_weight(profile, pair, method) for _, method in profile.tuned}
    known = {method: weight for method, weight in tuned.items() if weight is not None}
    alone = {
        "pairs": (pair,),
        "checkpoints": {pair.teacher: given} if given else {},
        "weights": replace(profile.weights, hint={**known, **profile.weights.hint}),
        "example_pair": None,
        "fewer_seeds": {},
        "sweeps": (),
        "exchange": None,
        "tuning": None,
    }
    return checked(replace(profile, **alone, **changes))
