"""What the grid itself asks: the teachers and their layers, the students of every pair and method, and the
same for a pair of one's own.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import pandas as pd

from ...paths import NOTEBOOKS
from ...settings import Pair, Profile, SettingsError
from ...statistics import PURSUHINT, against
from ..grid.cells import Cell, Teaching, fork, grid_cells, methods_of
from ..grid.hint_layers import similarity_file
from ..grid.notebook import declared
from ..grid.stored import Stored
from ..grid.weights import has_arms

LAYERS, POINTS = "01_teacher_and_layers", "02_hint_points"
# The notebook that trains students in its own process, and the one that trains them in several.
DISTILLING = ("03_distillation", "04_imagenet")
RESULTS, OWN_PAIR, TUNING, PLAIN = "05_results", "06_your_own_pair", "11_tuning", "12_without_hints"


def teacher_cells(profile: Profile, teacher: str) -> Iterator[Teaching | Stored]:
    """A teacher, and the comparison of its layers."""
    yield Teaching(profile.teacher_settings(teacher))
    yield similarity_file(profile, teacher)


def teacher_executions(profile: Profile) -> list[dict]:
    """One for every teacher."""
    return [{"teacher": teacher} for teacher in dict.fromkeys(pair.teacher for pair in profile.pairs)]


def sample_executions(profile: Profile) -> list[dict]:
    """One for every student whose teachers are a sample, where the paper's layers are compared: with fewer
    than three there is none to speak of.
    """
    ours = any(arm.startswith(PURSUHINT) for arm in profile.arms) and any(map(has_arms, profile.methods))
    students = Counter(pair.student for pair in profile.pairs if ours)
    return [{"student": student} for student, teachers in students.items() if teachers >= 3]


def point_executions(profile: Profile) -> list[dict]:
    """One for every teacher and number of points."""
    wanted = dict.fromkeys((pair.teacher, pair.k) for pair in profile.pairs)
    return [{"teacher": teacher, "k": k} for teacher, k in wanted]


def plain_methods(profile: Profile, pair: Pair) -> list[str]:
    """Methods of a pair without hint layers."""
    return [method for method in methods_of(profile, pair) if not has_arms(method)]


def plain_executions(profile: Profile) -> list[dict]:
    """One for every pair, with all of its methods without hint layers; none where students train in several
    processes, which is one method's at a time.
    """
    pairs = () if profile.launch else profile.pairs
    return [{"pair": pair.name} for pair in pairs if plain_methods(profile, pair)]


def plain_cells(profile: Profile, pair: str) -> list[Cell]:
    """All seeds of a pair with its methods without hint layers."""
    found = profile.pair(pair)
    return [cell for method in plain_methods(profile, found) for cell in grid_cells(profile, found, method)]


def plain_effects(frame: pd.DataFrame) -> pd.DataFrame:
    """Every method without hint layers minus the student alone, in each pair that has both.

    **Arguments:** ``frame`` as ``cells.results_frame`` gives it, of all pairs.

    **Returns:** as ``statistics.against`` does; its column arm holds the method.
    """
    plain = frame[~frame["method"].map(has_arms)]
    return against(plain.assign(arm=plain["method"], points=plain["method"], method="any"), "ce")


def student_executions(profile: Profile) -> list[dict]:
    """One for every pair and method; those without hint layers have a notebook of their own, unless students
    train in several processes.
    """
    return [
        {"pair": pair.name, "method": method}
        for pair in profile.pairs
        for method in methods_of(profile, pair)
        if profile.launch or has_arms(method)
    ]


def student_cells(profile: Profile, pair: str, method: str) -> list[Cell]:
    """All seeds of a pair and method."""
    return grid_cells(profile, profile.pair(pair), method)


def before_students(profile: Profile, pair: str, method: str) -> Iterator[tuple[str, dict]]:
    """The hint layers, the weight of the method, and the methods without hints: they are the arm ``none`` of
    all methods with hints.
    """
    found = profile.pair(pair)
    yield POINTS, {"teacher": found.teacher, "k": found.k}
    yield TUNING, {"method": method}
    if has_arms(method):
        yield PLAIN, {"pair": pair}
        for other in plain_methods(profile, found):
            yield DISTILLING[1], {"pair": pair, "method": other}


def own_pair_cells(profile: Profile, example: bool) -> Iterable[Teaching | Stored | Cell]:
    """All of the profile's example pair, with the method, arms and seeds that the notebook declares.

    **Raises:** ``SettingsError`` where the profile cannot have them.
    """
    given = declared(NOTEBOOKS / f"{OWN_PAIR}.ipynb")
    grid = {"methods": ("ce", "kd", given["method"]), "seeds": tuple(given["seeds"])}
    grid["arms"] = ("none", *given["arms"])
    try:
        mine = fork(profile, profile.example_pair, apart=False, **grid)
    except SettingsError as error:
        raise SettingsError(f"example_pair, as {OWN_PAIR} trains it: {error}") from None
    pair = mine.pairs[0]
    yield from teacher_cells(mine, pair.teacher)
    for method in mine.methods:
        yield from grid_cells(mine, pair, method)
