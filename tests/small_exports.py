"""A small study from which networks are exported."""

from dataclasses import replace
from pathlib import Path

import pytest

from pursuhint_lib.export import measure
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.settings import Profile
from pursuhint_lib.study.grid import profiles
from pursuhint_lib.study.grid.cells import run_cell
from pursuhint_lib.study.grid.profiles import load_profile


def small_study(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """A few methods and arms of the smoke profile, kept in the folder; trained if they are not there."""
    monkeypatch.setenv("PURSUHINT_RESULTS", str(folder / "results"))
    monkeypatch.setenv("PURSUHINT_WORK", str(folder / "work"))
    # What the clock says is tested elsewhere.
    monkeypatch.setattr(measure, "REPEATS", 3)
    smoke = load_profile("smoke")
    found = replace(
        smoke, methods=("ce", "kd", "at", "simkd"), arms=("none", "stage-ends", "random-1"), seeds=(0, 1, 2)
    )
    monkeypatch.setattr(
        profiles, "load_profile", lambda name: found if name == "smoke" else load_profile(name)
    )
    if not StudyPaths("smoke").records.is_dir():
        for method in found.methods:
            run_cell(found, found.pairs[0], method)
    return found
