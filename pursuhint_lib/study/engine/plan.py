"""The steps of a profile: each is one execution of one notebook, with what it needs and whether
it is done.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...files import write_json
from ...paths import NOTEBOOKS, StudyPaths, step_name
from ...settings import Profile, choose, resolved
from .. import experiments
from ..experiments import Experiment
from ..grid.cells import Cell, methods_of
from ..grid.notebook import declared
from ..grid.notes import read_notes
from ..grid.weights import hint_weight

# A new pair, method or contrast must not set off what is about another.
GRID = ("pairs", "methods", "contrasts")


@dataclass(frozen=True)
class Step:
    """One execution of one notebook.

    **Arguments:**

    - ``name``: unique; also the name of the executed copy. ``experiment``: what it is an execution of.
    - ``parameters``: for papermill. ``needs``: names of the steps before it.
    - ``key``: hash of notebook, parameters and settings; a step is done when a stamp with its key exists.
    - ``stamp``: the stamp file.
    - ``runs``: records (and comparisons of layers, and measurements) that exist, and that there will be;
      unknown (``None``) before the hint layers are.
    - ``work``: what it trains or computes, each with the files that it leaves, and whether that is all.
    """

    name: str
    experiment: Experiment
    parameters: dict
    key: str
    stamp: str
    needs: tuple[str, ...] = ()
    runs: tuple[int, int | None] = (0, 0)
    done: bool = False
    work: tuple[tuple[Any, dict, bool], ...] = field(default=(), repr=False)

    @property
    def notebook(self) -> str:
        """Stem of the notebook's file."""
        return self.experiment.notebook

    @property
    def trains(self) -> bool:
        """Whether it may train."""
        return self.experiment.cells is not None

    @property
    def cells(self) -> list[Cell]:
        """The students among its work."""
        return [item for item, *_ in self.work if isinstance(item, Cell)]


def make_plan(profile: Profile, source: str) -> list[Step]:
    """All steps in order, with their present state. Stamps whose outputs or records are gone are removed.

    **Arguments:** ``source`` what the notebooks get as their parameter ``profile``: a name or a YAML file.
    """
    steps: list[Step] = []
    for name, (experiment, parameters) in chosen_executions(profile).items():
        steps.append(_step(profile, source, name, experiment, parameters, steps))
    return steps


def chosen_executions(profile: Profile) -> dict[str, tuple[Experiment, dict]]:
    """Name of each step → its experiment and parameters: all, or those that the profile names.

    **Raises:** ``SettingsError`` for a name that is none of a notebook or a step of the profile.
    """
    found = {}
    for experiment in experiments.EXPERIMENTS:
        for parameters in experiment.executions(profile):
            # A switch tells no two executions apart.
            parts = (value for value in parameters.values() if value is not True)
            found[step_name(experiment.notebook, *parts)] = experiment, parameters
    known = dict.fromkeys([*(experiment.notebook for experiment, _ in found.values()), *found])
    names = {choose("entry of notebooks", name, known) for name in profile.notebooks} or {*known}
    return {name: step for name, step in found.items() if {name, step[0].notebook} & names}


def _step(
    profile: Profile,
    source: str,
    name: str,
    experiment: Experiment,
    parameters: dict,
    before: Sequence[Step],
) -> Step:
    given = {"profile": source, **parameters}
    check_parameters(NOTEBOOKS / f"{experiment.notebook}.ipynb", given)
    items = experiment.cells(profile, **parameters) if experiment.cells else []
    work = [(item, *item.files()) for item in items]
    needs = [
        step.name
        for notebook, wanted in experiment.needs(profile, **parameters)
        for step in before
        if step.notebook == notebook and wanted.items() <= step.parameters.items()
    ]
    # A note is shown by the notebook that it is about.
    about = [*(item.about for item, _, _ in work), read_notes(profile.name).get(name)]
    key = _key(profile, experiment, parameters, about)
    stamp, runs = StudyPaths(profile.name).stamp(name, key), _runs(work)
    done = _done(name, stamp, runs)
    return Step(name, experiment, given, key, str(stamp), tuple(needs), runs, done, tuple(work))


def _key(profile: Profile, experiment: Experiment, parameters: dict, about: Sequence) -> str:
    """Hash of all that decides a step: its notebook, its parameters, what it trains, and the settings that
    are no other's alone. What is its own alone is said by what it trains.
    """
    others = {"notebooks", *(name for one in experiments.EXPERIMENTS for name in one.own)}
    others |= {*GRID} if parameters else set()
    settings = {name: value for name, value in resolved(profile).items() if name not in others}
    if profile.weights.tuned_by:
        grid = [(pair, method) for pair in profile.pairs for method in methods_of(profile, pair)]
        settings["tuned"] = [hint_weight(profile, pair, method) for pair, method in grid]
    text = json.dumps([parameters, settings, about], sort_keys=True).encode()
    notebook = (NOTEBOOKS / f"{experiment.notebook}.ipynb").read_bytes()
    return hashlib.sha256(text + notebook).hexdigest()[:12]


def _runs(work: Sequence[tuple[Any, dict, bool]]) -> tuple[int, int | None]:
    known = {name: there for _, files, _ in work for name, there in files.items()}
    return sum(known.values()), len(known) if all(whole for *_, whole in work) else None


def _done(name: str, stamp: Path, runs: tuple[int, int | None]) -> bool:
    """Whether the stamp stands and all that it promises is there; one that promises too much, or is damaged,
    is removed.
    """
    if not stamp.is_file():
        return False
    with contextlib.suppress(ValueError, KeyError, TypeError):
        content = json.loads(stamp.read_text(encoding="utf-8"))
        outputs = [Path(path).is_file() for path in content["outputs"]]
        if content["step"] == name and runs[0] == runs[1] and all(outputs):
            return True
    stamp.unlink()
    return False


def check_parameters(notebook: Path, given: dict) -> None:
    """Refuse a file that is not the notebook of its name, and parameters that it does not declare; papermill
    itself would only warn.

    **Raises:** ``SettingsError`` naming the file, or the parameter and those that exist.
    """
    names = declared(notebook)
    for name in given:
        choose(f"parameter of {notebook.name}", name, names)


def write_plan(profile: Profile, steps: list[Step], cores: int, gpus: int) -> Path:
    """Write the open steps for the workflow engine and return the file.

    Steps that are done are left out, so that a notebook which is drawn again does not set off those after it.
    A step with nothing to train takes one core, and so does one that trains its students one after the other.
    """
    paths, waiting = StudyPaths(profile.name), [step for step in steps if not step.done]
    names, sharing = {step.name for step in waiting}, Counter(map(_notebook_of_arms, waiting))
    entries = []
    for step in waiting:
        files = {
            "notebook": NOTEBOOKS / f"{step.notebook}.ipynb",
            "draft": paths.draft(step.name),
            "log": paths.step_log(step.name),
            "progress": paths.progress(step.name),
        }
        for file in files.values():
            file.parent.mkdir(parents=True, exist_ok=True)
        # Processes that train together take the whole machine, and all its GPUs; where times are measured,
        # nothing else should run. Where there are fewer steps than cores, the arms of a step share several.
        shared = max(1, cores // sharing[step.notebook]) if _notebook_of_arms(step) else 1
        threads = 1 if step.runs[0] == step.runs[1] else cores if step.experiment.alone else shared
        cards = gpus if step.experiment.spread else min(gpus, 1)
        told = {key: getattr(step, key) for key in ("name", "parameters", "key", "stamp", "trains")}
        told |= {key: str(file) for key, file in files.items()}
        told |= {"threads": threads, "gpus": cards if step.trains else 0}
        entries.append(told | {"needs": [name for name in step.needs if name in names]})
    told = {"profile": profile.name, "forks": str(paths.forks), "gpus": gpus, "steps": entries}
    write_json(paths.plan, told)
    return paths.plan


def _notebook_of_arms(step: Step) -> str | None:
    """The notebook of a step that has students to train, and trains them all side by side."""
    side_by_side = step.cells and all(len(cell.arms) > 1 for cell in step.cells)
    return step.notebook if side_by_side and step.runs[0] != step.runs[1] else None
