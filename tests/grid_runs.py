"""Runs of the grid by arm and seed. Not a test file."""

from pursuhint_lib.settings import Pair, Profile, StudentSettings
from pursuhint_lib.study.grid.cells import grid_cells


def runs_of(profile: Profile, pair: Pair, method: str) -> dict[tuple[str, int], StudentSettings]:
    """(arm, seed) → settings of the run."""
    cells = grid_cells(profile, pair, method)
    return {(arm, cell.seed): run for cell in cells for arm, run in cell.runs}
