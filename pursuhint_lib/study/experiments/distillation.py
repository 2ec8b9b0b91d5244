"""What the grid itself asks: the teachers and their layers, the students of every pair and method, and the
same for a pair of one's own.
"""

from collections.abc import Iterable, Iterator

from ...paths import NOTEBOOKS
from ...settings import Profile, SettingsError
from ..grid.cells import Cell, Teaching, fork, grid_cells, methods_of
from ..grid.hint_layers import similarity_file
from ..grid.notebook import declared
from ..grid.stored import Stored
from ..grid.weights import has_arms

LAYERS, POINTS = "01_teacher_and_layers", "02_hint_points"
# The notebook that trains students in its own process, and the one that trains them in several.
DISTILLING = ("03_distillation", "04_imagenet")
RESULTS, OWN_PAIR, TUNING = "05_results", "06_your_own_pair", "11_tuning"


def teacher_cells(profile: Profile, teacher: str) -> Iterator[Teaching | Stored]:
    """A teacher, and the comparison of its layers."""
    yield Teaching(profile.teacher_settings(teacher))
    yield similarity_file(profile, teacher)


def teacher_executions(profile: Profile) -> list[dict]:
    """One for every teacher."""
    return [{"teacher": teacher} for teacher in dict.fromkeys(pair.teacher for pair in profile.pairs)]


def point_executions(profile: Profile) -> list[dict]:
    """One for every teacher and number of points."""
    wanted = dict.fromkeys((pair.teacher, pair.k) for pair in profile.pairs)
    return [{"teacher": teacher, "k": k} for teacher, k in wanted]


def student_executions(profile: Profile) -> list[dict]:
    """One for every pair and method."""
    return [
        {"pair": pair.name, "method": method}
        for pair in profile.pairs
        for method in methods_of(profile, pair)
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
    for other in methods_of(profile, found):
        if has_arms(method) and not has_arms(other):
            yield from ((notebook, {"pair": pair, "method": other}) for notebook in DISTILLING)


def own_pair_cells(profile: Profile, example: bool) -> Iterable[Teaching | Stored | Cell]:
    """All of the profile's example pair, with the method, arms and seeds that the notebook declares.

    **Raises:** ``SettingsError`` where the profile cannot have them.
    """
    given = declared(NOTEBOOKS / f"{OWN_PAIR}.ipynb")
    grid = {"methods": ("ce", "kd", given["method"])} | {key: tuple(given[key]) for key in ("arms", "seeds")}
    try:
        mine = fork(profile, profile.example_pair, apart=False, **grid)
    except SettingsError as error:
        raise SettingsError(f"example_pair, as {OWN_PAIR} trains it: {error}") from None
    pair = mine.pairs[0]
    yield from teacher_cells(mine, pair.teacher)
    for method in mine.methods:
        yield from grid_cells(mine, pair, method)
