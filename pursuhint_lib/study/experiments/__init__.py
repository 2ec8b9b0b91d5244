"""The questions of the study: for each what it trains, and the frames that its notebook draws.

``EXPERIMENTS`` is their only list. The plan, its times, the keys of its steps and the rows of the report
follow from its entries: a new question is a notebook, a file here and an entry.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ...data import describe
from ...settings import Profile
from . import deepest_layer, distillation, exports, population, speed_check, stability, tuning


def after(*notebooks: str) -> Callable[..., list[tuple[str, dict]]]:
    """All executions of these notebooks come before."""
    return lambda profile, **parameters: [(notebook, {}) for notebook in notebooks]


AFTER_RESULTS = after(distillation.RESULTS)


@dataclass(frozen=True)
class Experiment:
    """One question of the study.

    **Arguments:**

    - ``notebook``: stem of its file in notebooks/, which also says where it stands among the others.
    - ``executions``: profile → parameters of each execution of the notebook; none leaves it out.
    - ``cells``: (profile, parameters) → what an execution trains or computes: ``Cell``, ``Teaching``,
      ``Stored``, or what else has ``files()`` and ``about`` as these do. Not given where it only draws.
    - ``needs``: (profile, parameters) → (notebook, parameters) of what comes before: all executions of that
      notebook with these parameters, as far as the profile has them.
    - ``own``: settings of the profile that are its alone, and set off no other.
    - ``alone``: whether an execution that trains wants all cores for itself.
    - ``spread``: whether it trains in several processes, with all GPUs.
    """

    notebook: str
    executions: Callable[[Profile], Iterable[dict]]
    cells: Callable[..., Iterable[Any]] | None = None
    needs: Callable[..., Iterable[tuple[str, dict]]] = AFTER_RESULTS
    own: tuple[str, ...] = ()
    alone: bool = False
    spread: bool = False


def _once(profile: Profile) -> list[dict]:
    return [{}]


def _students(spread: bool) -> Experiment:
    """The students of the grid, whose notebook is one where they train in processes of their own."""
    return Experiment(
        distillation.DISTILLING[spread],
        lambda profile: distillation.student_executions(profile) if bool(profile.launch) == spread else [],
        distillation.student_cells,
        distillation.before_students,
        alone=spread,
        spread=spread,
    )


def _export_executions(profile: Profile) -> list[dict]:
    # Measured is what has its test images in memory; without a teacher's students nothing can be compared.
    return [{}] if not describe(profile.data).streamed and set(profile.methods) != {"ce"} else []


EXPERIMENTS: list[Experiment] = [
    Experiment("00_start_here", _once, needs=after()),
    Experiment(
        distillation.LAYERS,
        distillation.teacher_executions,
        distillation.teacher_cells,
        needs=after(),
        alone=True,
    ),
    Experiment(
        distillation.POINTS,
        distillation.point_executions,
        stability.stability_cells,
        lambda profile, teacher, k: [(distillation.LAYERS, {"teacher": teacher})],
        own=("stability",),
        alone=True,
    ),
    Experiment(
        distillation.TUNING,
        tuning.tuning_executions,
        tuning.tuning_cells,
        lambda profile, pair, method: [(distillation.LAYERS, {"teacher": profile.pair(pair).teacher})],
        alone=True,
    ),
    Experiment(
        distillation.PLAIN,
        distillation.plain_executions,
        distillation.plain_cells,
        lambda profile, pair: [(distillation.LAYERS, {"teacher": profile.pair(pair).teacher})],
    ),
    _students(spread=False),
    _students(spread=True),
    Experiment(distillation.RESULTS, _once, needs=after(distillation.PLAIN, *distillation.DISTILLING)),
    Experiment(
        distillation.OWN_PAIR,
        lambda profile: [{"example": True}] if profile.example_pair else [],
        distillation.own_pair_cells,
        own=("example_pair",),
    ),
    Experiment(
        "07_speed",
        lambda profile: [{}] if profile.shortcut_seeds else [],
        speed_check.speed_cells,
        own=("shortcut_seeds",),
    ),
    Experiment("08_export", _export_executions, lambda profile: [exports.Measurements(profile)], alone=True),
    Experiment(
        "09_hint_weight",
        lambda profile: [{"method": sweep.method} for sweep in profile.sweeps],
        tuning.sweep_cells,
        own=("sweeps",),
        alone=True,
    ),
    Experiment(
        "10_deepest_point",
        lambda profile: [{}] if profile.exchange else [],
        deepest_layer.exchange_cells,
        own=("exchange",),
        alone=True,
    ),
    Experiment(population.POPULATION, population.population_executions),
    Experiment("14_teachers", distillation.sample_executions),
    Experiment("15_named_before", lambda profile: [{}] if profile.contrasts else []),
]
