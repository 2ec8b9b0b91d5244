"""The grid of a profile: settings of every run, training what is missing, and all results as one
data frame.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pandas as pd

from ... import records
from ...distillers import Distiller, distiller
from ...models import parameter_count
from ...paths import ROOT, StudyPaths
from ...records import Record
from ...settings import Arm, DistillSettings, Pair, Profile, StudentSettings, TeacherSettings, resolved
from ...statistics import mean_with_interval
from ...training import distill, seeded_model, teacher_weights
from .arms import Choice
from .hint_layers import layer_similarity, stored_choices
from .profiles import checked, network_points
from .weights import NotTuned, has_arms, hint_weight, weight_to_train

# Rows of the results frame that stand for the student trained without a teacher.
ALONE = "alone"
# The frame of results that was asked for last, and what it was read from: the forks of a process that has
# read it need not do so again.
_last: dict = {}
# What a fork's name ends in. Git ignores the results of such names.
OWN_PAIR = "-own-pair"


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
    rest = [part for part in entry.parts if entry.hints and not distiller(part).hints]
    # What is left of a sum without its hints.
    plain = _without_hints(profile, pair, "+".join(rest), seed).run(Arm("none")) if rest else None
    bare = _without_hints(profile, pair, method, seed)
    return replace(bare, arms=arms, student_points=students, plain=plain)


def _without_hints(profile: Profile, pair: Pair, method: str, seed: int) -> DistillSettings:
    entry = distiller(method)
    return DistillSettings(
        teacher=profile.teacher_settings(pair.teacher),
        student=pair.student,
        method=method,
        arms=(Arm("none"),),
        student_points=(),
        ce_weight=profile.weights.ce if entry.ce else 0.0,
        kd_weight=profile.weights.kd if entry.kd else 0.0,
        hint_weight=weight_to_train(profile, pair, method),
        part_weights=tuple(
            weight_to_train(profile, pair, part) if has_arms(part) else profile.weights.hint.get(part, weight)
            for part, weight in entry.parts.items()
        ),
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
    """Arms of a method and the student's hint layers: chosen, the last sub-block of each side, or none."""
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


@dataclass(frozen=True)
class Teaching:
    """A teacher that an experiment trains."""

    settings: TeacherSettings

    def files(self) -> tuple[dict, bool]:
        """The record that it leaves → whether that is there; that is all."""
        known = records.load(self.settings.profile, self.settings)
        return {records.record_name(self.settings): known is not None}, True

    @property
    def about(self) -> dict:
        """What decides it."""
        return resolved(self.settings)


@dataclass(frozen=True)
class Cell:
    """Students of one (pair, method, seed) that an experiment trains side by side.

    **Arguments:** ``arms`` their sets of layers; ``changes`` fields of ``DistillSettings`` that differ from
    the grid's; ``labels`` columns of its rows that the grid's do not have, or that differ there.
    """

    profile: Profile
    pair: Pair
    method: str
    seed: int
    arms: tuple[str, ...]
    changes: dict = field(default_factory=dict)
    labels: dict = field(default_factory=dict)

    @property
    def settings(self) -> DistillSettings | None:
        """Its settings; nothing while the teacher's layers are not compared, or the method's weight is not
        chosen, if it needs them.
        """
        choices: dict[str, Choice] | None = {}
        if has_arms(self.method):
            choices = stored_choices(self.profile, self.pair.teacher, self.pair.k, self.arms)
        with contextlib.suppress(NotTuned):
            return None if choices is None else self._with(choices)
        return None

    def _with(self, choices: dict[str, Choice]) -> DistillSettings:
        found = cell_settings(self.profile, self.pair, self.method, self.seed, choices)
        return replace(found, **self.changes)

    @property
    def runs(self) -> list[tuple[str, StudentSettings]] | None:
        """(arm, settings of its run); nothing while they are not known."""
        settings = self.settings
        return settings and [(arm.name, settings.run(arm)) for arm in settings.arms]

    @property
    def folder(self) -> str:
        """The profile among whose records its own are."""
        return self.changes.get("profile", self.profile.name)

    @property
    def about(self) -> list:
        """What decides it, besides what is the same for all of the profile."""
        changes = {name: resolved(value) for name, value in self.changes.items()}
        return [resolved(self.pair), self.method, self.seed, self.arms, changes]

    def files(self) -> tuple[dict, bool]:
        """Every record that it leaves → whether that is there, and whether that is all. While hint layers are
        not known, arms that choose the same ones count as many.
        """
        runs = self.runs
        if runs is None:
            unknown = json.dumps(self.about[:3] + self.about[4:])
            return {(unknown, arm): False for arm in self.arms}, False
        names = {
            (self.folder, records.record_name(run)): records.load(self.folder, run) is not None
            for _, run in runs
        }
        return names, True

    def train(self, measured_steps: int = 0) -> list[Record]:
        """The record of each of its runs, trained where there is none.

        **Arguments:** ``measured_steps`` as for ``training.distill``.

        **Raises:** ``NotTuned`` before the weight of its method is chosen.
        """
        choices: dict[str, Choice] = {}
        if has_arms(self.method):
            layer_similarity(self.profile, self.pair.teacher)
            choices = stored_choices(self.profile, self.pair.teacher, self.pair.k, self.arms)
        return distill(self._with(choices), measured_steps=measured_steps)

    def rows(self) -> list[dict]:
        """A row of the results frame for every run that has a record."""
        shared = {"pair": self.pair.name, "teacher": self.pair.teacher, "student": self.pair.student}
        rows = []
        for arm, run in self.runs or ():
            record = records.load(self.folder, run)
            if record is not None:
                row = shared | {"method": self.method, "arm": arm, "seed": self.seed}
                row["points"] = " ".join(run.teacher_points)
                row["accuracy"] = record.metrics.get("accuracy", float("nan"))
                row["optimistic"] = record.metrics.get("optimistic_accuracy", float("nan"))
                row["parameters"] = record.metrics["parameters"]
                rows.append(row | {"status": record.status, "record": record.name} | self.labels)
        return rows


def grid_cells(profile: Profile, pair: Pair, method: str) -> list[Cell]:
    """The grid's cells of one (pair, method), one a seed.

    Attention maps of the first seed's students are kept, of methods with hints and of ``kd``: pictures of
    what hints change need one student of each arm, and the one without hints.
    """
    arms = profile.arms if has_arms(method) else ("none",)
    drawn = has_arms(method) or method == "kd"
    return [
        Cell(profile, pair, method, seed, arms, {"keep_maps": drawn and seed == profile.seeds[0]})
        for seed in profile.seeds_of(pair, method)
    ]


def run_cell(profile: Profile, pair: Pair, method: str) -> dict[str, list[Record]]:
    """Train what is missing of one (pair, method): all arms side by side, seed after seed.

    **Returns:** arm → one record per seed.
    """
    found: dict[str, list[Record]] = {}
    for cell in grid_cells(profile, pair, method):
        trained = cell.train()
        for (arm, _), record in zip(cell.runs, trained, strict=True):
            found.setdefault(arm, []).append(record)
    return found


def trained_frame(cells: Iterable[Cell]) -> pd.DataFrame:
    """Rows of all cells, as ``results_frame`` has them; what has no record is trained."""
    return pd.DataFrame([row for cell in cells if cell.train() for row in cell.rows()])


def results_frame(profile: Profile) -> pd.DataFrame:
    """Every finished run of the profile's grid, read from the records.

    Methods without hint layers appear as one arm: ``ce`` as ``alone``, ``kd`` as ``none``. The row ``alone``
    is repeated under each method with hint layers, as ``none`` is, because it is their reference too.

    **Returns:** columns pair, teacher, student, method, arm, seed, points, accuracy and optimistic (%;
    missing for failed runs), parameters, status, record.
    """
    paths = StudyPaths(profile.name)
    files = [paths.tuned_weights, *paths.hints.glob("*"), *paths.records.glob("*")]
    state = [resolved(profile), {file: file.stat().st_mtime_ns for file in files if file.is_file()}]
    if _last.get("state") != state:
        _last.update(state=state, frame=_read_results(profile))
    return _last["frame"].copy()


def _read_results(profile: Profile) -> pd.DataFrame:
    rows = []
    for pair in profile.pairs:
        methods = methods_of(profile, pair)
        alone = grid_cells(profile, pair, "ce") if "ce" in methods else []
        for method in methods:
            if method == "ce" or has_arms(method):
                shown = {"method": method, "arm": ALONE}
                rows += [row for cell in alone for row in replace(cell, labels=shown).rows()]
            if method != "ce":
                rows += [row for cell in grid_cells(profile, pair, method) for row in cell.rows()]
    return pd.DataFrame(rows)


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
        means = mean_with_interval(mine).rename(columns={"mean": "accuracy"})
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
        "contrasts": {},
        "tuning": None,
    }
    return checked(replace(profile, **alone, **changes))
