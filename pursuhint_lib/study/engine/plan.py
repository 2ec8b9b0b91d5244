"""The steps of a profile: each is one execution of one notebook, with what it needs and whether
it is done.
"""

import ast
import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ... import records
from ...data import describe
from ...files import write_json
from ...paths import NOTEBOOKS, StudyPaths
from ...settings import Pair, Profile, SettingsError, choose, resolved
from ..experiments.deepest_layer import exchange_runs
from ..experiments.exports import export_runs
from ..experiments.hint_weight import sweep_runs
from ..experiments.speed_check import shortcut_runs
from ..experiments.stability import further_teachers, stored_stability
from ..grid.cells import has_arms, methods_of, runs_of
from ..grid.hint_layers import stored_similarity
from ..publish.page import step_name

# The notebook that trains students in its own process, and the one that trains them in several.
DISTILLING = ("03_distillation", "04_imagenet")
# The notebook that varies the weight of the hint loss.
SWEEP = "09_hint_weight"
# The notebook that exchanges the deepest hint point.
EXCHANGE = "10_deepest_point"
# Settings that are one notebook's own: no other is to be drawn again for them. Of the sweeps each execution
# gets its own.
_OWN = {"stability": "02_hint_points", "shortcut_seeds": "07_speed", "sweeps": None, "exchange": EXCHANGE}


@dataclass(frozen=True)
class Step:
    """One execution of one notebook.

    **Arguments:**

    - ``name``: unique; also the name of the executed copy. ``notebook``: stem of the file in notebooks/.
    - ``parameters``: for papermill. ``needs``: names of the steps before it.
    - ``key``: hash of notebook, parameters and settings; a step is done when a stamp with its key exists.
    - ``trains``: whether it may train. ``stamp``: the stamp file.
    - ``runs``: records (and comparisons of layers, and measurements) that exist, and that there will be;
      unknown (``None``) before the hint points are.
    """

    name: str
    notebook: str
    parameters: dict
    key: str
    stamp: str
    needs: tuple[str, ...] = ()
    trains: bool = False
    runs: tuple[int, int | None] = (0, 0)
    done: bool = field(default=False)


def make_plan(profile: Profile, source: str) -> list[Step]:
    """All steps in order, with their present state. Stamps whose outputs or records are gone are removed.

    **Arguments:** ``source`` what the notebooks get as their parameter ``profile``: a name or a YAML file.
    """
    draft = _Draft(profile, source)
    draft.add("00_start_here")
    for teacher in dict.fromkeys(pair.teacher for pair in profile.pairs):
        draft.add("01_teacher_and_layers", teacher=teacher)
    for teacher, k in dict.fromkeys((pair.teacher, pair.k) for pair in profile.pairs):
        draft.add("02_hint_points", step_name("01_teacher_and_layers", teacher), teacher=teacher, k=k)
    notebook = DISTILLING[profile.launch is not None]
    for pair in profile.pairs:
        methods = methods_of(profile, pair)
        for method in methods:
            # The plain runs come first: they are the arm "none" of every method with hints.
            plain = (
                [step_name(notebook, pair.name, m) for m in methods if not has_arms(m)]
                if has_arms(method)
                else []
            )
            points = step_name("02_hint_points", pair.teacher, pair.k)
            draft.add(notebook, points, *plain, pair=pair.name, method=method)
    draft.add("05_results", *(step.name for step in draft.steps if step.notebook in DISTILLING))
    if profile.example_pair:
        draft.add("06_your_own_pair", step_name("05_results"))
    if profile.shortcut_seeds:
        draft.add("07_speed", step_name("05_results"))
    # Measured is what has its test images in memory; without a teacher's students there is nothing to
    # compare.
    if not describe(profile.data).streamed and set(profile.methods) != {"ce"}:
        draft.add("08_export", step_name("05_results"))
    for sweep in profile.sweeps:
        draft.add(SWEEP, step_name("05_results"), method=sweep.method)
    if profile.exchange:
        draft.add(EXCHANGE, step_name("05_results"))
    return draft.steps


class _Draft:
    """Collects steps and works out their state."""

    def __init__(self, profile: Profile, source: str):
        self.profile, self.source, self.paths = profile, source, StudyPaths(profile.name)
        self.steps: list[Step] = []

    def add(self, notebook: str, *needs: str, **parameters) -> None:
        name = step_name(notebook, *parameters.values())
        file = NOTEBOOKS / f"{notebook}.ipynb"
        given = {"profile": self.source, **parameters}
        check_parameters(file, given)
        settings = resolved(self.profile)
        if notebook < "05" and notebook != "00_start_here":
            # A new pair or method must not set off the notebooks of the others.
            settings = {key: value for key, value in settings.items() if key not in ("pairs", "methods")}
        settings = {key: value for key, value in settings.items() if _OWN.get(key, notebook) == notebook}
        if notebook == SWEEP:
            settings["sweep"] = resolved(self.profile.sweep(parameters["method"]))
        if "pair" in parameters:
            settings["pair"] = resolved(self.profile.pair(parameters["pair"]))
        text = json.dumps([parameters, settings], sort_keys=True).encode() + file.read_bytes()
        key = hashlib.sha256(text).hexdigest()[:12]
        stamp = self.paths.stamp(name, key)
        runs = self._runs(notebook, parameters)
        step = Step(
            name,
            notebook,
            given,
            key,
            str(stamp),
            needs,
            notebook[:2] not in ("00", "05"),
            runs,
            self._done(name, stamp, runs),
        )
        self.steps.append(step)

    def _runs(self, notebook: str, parameters: dict) -> tuple[int, int | None]:
        if notebook == "01_teacher_and_layers":
            found = records.load(self.profile.name, self.profile.teacher_settings(parameters["teacher"]))
            return int(
                found is not None and stored_similarity(self.profile, parameters["teacher"]) is not None
            ), 1
        if notebook == "02_hint_points":
            teachers = further_teachers(self.profile, parameters["teacher"])
            found = sum(records.load(self.profile.name, settings) is not None for settings in teachers)
            return found + int(stored_stability(self.profile, **parameters) is not None), len(teachers) + 1
        if notebook == "07_speed":
            return shortcut_runs(self.profile)
        if notebook == SWEEP:
            return sweep_runs(self.profile, **parameters)
        if notebook == EXCHANGE:
            return exchange_runs(self.profile)
        if notebook == "08_export":
            return export_runs(
                self.profile,
                all(step.runs[0] == step.runs[1] for step in self.steps if step.notebook in DISTILLING),
            )
        if notebook not in DISTILLING:
            return 0, 0
        pair: Pair = self.profile.pair(parameters["pair"])
        runs = runs_of(self.profile, pair, parameters["method"])
        if runs is None:
            return 0, None
        wanted = {records.record_name(run): run for run in runs.values()}
        return sum(records.load(self.profile.name, run) is not None for run in wanted.values()), len(wanted)

    def _done(self, name: str, stamp: Path, runs: tuple[int, int | None]) -> bool:
        """Whether the stamp stands and all that it promises is there; one that promises too much, or is
        damaged, is removed.
        """
        if not stamp.is_file():
            return False
        with contextlib.suppress(ValueError, KeyError, TypeError):
            content = json.loads(stamp.read_text(encoding="utf-8"))
            if (
                content["step"] == name
                and runs[0] == runs[1]
                and all(Path(path).is_file() for path in content["outputs"])
            ):
                return True
        stamp.unlink()
        return False


def check_parameters(notebook: Path, given: dict) -> None:
    """Refuse a file that is not the notebook of its name, and parameters that it does not declare; papermill
    itself would only warn.

    **Raises:** ``SettingsError`` naming the file, or the parameter and those that exist.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        tagged = [
            "".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])
        ]
        declared = [
            node.target.id
            for source in tagged
            for node in ast.parse(source).body
            if isinstance(node, ast.AnnAssign)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        raise SettingsError(
            f"{notebook} is no whole notebook ({type(error).__name__}: {error}); restore it"
        ) from None
    if len(tagged) != 1:
        raise SettingsError(f"{notebook.name} has {len(tagged)} cells tagged 'parameters'; it needs one")
    if not any(notebook.stem in source for source in sources):
        raise SettingsError(
            f"{notebook} is another notebook: it publishes nothing as {notebook.stem!r}; restore it"
        )
    for name in given:
        choose(f"parameter of {notebook.name}", name, declared)


def write_plan(profile: Profile, steps: list[Step], cores: int, gpus: int) -> Path:
    """Write the open steps for the workflow engine and return the file.

    Steps that are done are left out, so that a notebook which is drawn again does not set off those after it.
    Teachers are trained and compared on all cores, since nothing else can run yet; students on one core a
    step, many steps at once. Where there are fewer steps than cores, the arms of a step share several. A step
    with nothing to train takes one core.
    """
    paths = StudyPaths(profile.name)
    content = {"profile": profile.name, "gpus": gpus, "steps": []}
    waiting = {step.name for step in steps if not step.done}
    hinted = {
        step.name
        for step in steps
        if step.runs[0] != step.runs[1] and has_arms(step.parameters.get("method", "ce"))
    }
    for step in (step for step in steps if not step.done):
        files = {
            "notebook": str(NOTEBOOKS / f"{step.notebook}.ipynb"),
            "draft": str(paths.draft(step.name)),
            "log": str(paths.step_log(step.name)),
            "progress": str(paths.progress(step.name)),
            "usage": str(paths.usage(step.name)),
        }
        for file in files.values():
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        needs = [name for name in step.needs if name in waiting]
        # Processes that train together take the whole machine, and all its GPUs; where times are measured,
        # nothing else should run.
        alone = step.notebook[:2] in ("01", "02", "04", "08", "09", "10")
        shared = max(1, cores // len(hinted)) if step.name in hinted else 1
        threads = 1 if step.runs[0] == step.runs[1] else cores if alone else shared
        cards = min(gpus, 1) if step.notebook != "04_imagenet" else gpus
        content["steps"].append(
            asdict(step) | files | {"needs": needs, "threads": threads, "gpus": cards if step.trains else 0}
        )
    write_json(paths.plan, content)
    return paths.plan
