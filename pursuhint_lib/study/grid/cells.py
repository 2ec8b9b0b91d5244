"""The grid of a profile: settings of every run, training what is missing, and all results as one
data frame.
"""

from dataclasses import replace

import pandas as pd

from ... import records
from ...distillers import Distiller, distiller
from ...models import parameter_count
from ...records import Record
from ...settings import Arm, DistillSettings, Pair, Profile, StudentSettings
from ...statistics import mean_with_interval
from ...training import distill, seeded_model
from .arms import Choice, choose_points
from .hint_layers import hint_choices, stored_similarity
from .profiles import checked, network_points

# Rows of the results frame that stand for the student trained without a teacher.
ALONE = "alone"


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
    """Settings of one (pair, method, seed) with all its arms."""
    entry = distiller(method)
    arms, students = _arms(profile, pair, entry, choices)
    return DistillSettings(
        teacher=profile.teacher_settings(pair.teacher),
        student=pair.student,
        method=method,
        arms=arms,
        student_points=students,
        ce_weight=profile.weights.ce if entry.ce else 0.0,
        kd_weight=profile.weights.kd if entry.kd else 0.0,
        hint_weight=profile.weights.hint.get(method, entry.weight),
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

    **Returns:** arm → one record per seed.
    """
    choices = hint_choices(profile, pair.teacher, pair.k) if has_arms(method) else {}
    found: dict[str, list[Record]] = {}
    for seed in profile.seeds_of(pair, method):
        settings = cell_settings(profile, pair, method, seed, choices)
        for arm, record in zip(settings.arms, distill(settings), strict=True):
            found.setdefault(arm.name, []).append(record)
    return found


def runs_of(profile: Profile, pair: Pair, method: str) -> dict[tuple[str, int], StudentSettings] | None:
    """(arm, seed) → settings of the run, or nothing while the teacher's hint points are not known."""
    choices: dict[str, Choice] = {}
    if has_arms(method):
        report = stored_similarity(profile, pair.teacher)
        if report is None:
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


def fork(profile: Profile, pair: Pair, **changes) -> Profile:
    """The profile with another pair, and other fields changed; results land in the same folder.

    **Raises:** ``SettingsError`` as for a profile file.
    """
    return checked(
        replace(
            profile, pairs=(pair,), example_pair=None, fewer_seeds={}, sweeps=(), exchange=None, **changes
        )
    )
