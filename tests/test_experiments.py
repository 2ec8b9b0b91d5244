"""A question is one notebook, one file and one entry: everything else follows from the entry."""

from dataclasses import replace

import nbformat
import pytest

from pursuhint_lib.paths import NOTEBOOKS, ROOT
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.study import experiments
from pursuhint_lib.study.engine import plan
from pursuhint_lib.study.engine.check import check
from pursuhint_lib.study.engine.estimate import NOTEBOOK_SECONDS, estimate
from pursuhint_lib.study.engine.execution import engine_command, execute, owned
from pursuhint_lib.study.experiments import Experiment, after
from pursuhint_lib.study.grid.profiles import load_profile
from pursuhint_lib.study.publish import report

QUESTION = '''
from pursuhint_lib.study.grid.cells import Cell

def warmth_cells(profile, temperature):
    """KD at another temperature."""
    changes = {"temperature": temperature}
    return [Cell(profile, profile.pairs[0], "kd", seed, ("none",), changes) for seed in profile.seeds]
'''
PARAMETERS = """
profile: str = "smoke"
temperature: float = 2.0
"""
ANSWER = """
from warmth import warmth_cells
from pursuhint_lib.study.grid.cells import trained_frame
from pursuhint_lib.study.grid.profiles import load_profile
from pursuhint_lib.study.publish.page import Page

settings = load_profile(profile)
frame = trained_frame(warmth_cells(settings, temperature))
page, table = Page(settings, "11_warmth", temperature), frame[["method", "arm", "accuracy"]]
page.table(table, "accuracy", "By seed.", runs=frame["record"])
"""


@pytest.fixture
def warmth(folder_of_modules, monkeypatch):
    """The smoke profile, in a study with one question more."""
    (folder_of_modules / "warmth.py").write_text(QUESTION)
    for file in NOTEBOOKS.glob("*.ipynb"):
        (folder_of_modules / file.name).symlink_to(file)
    new = nbformat.v4
    cells = [
        new.new_markdown_cell("# Warmth\n\n**Question.** Is a softer teacher better?"),
        new.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new.new_code_cell(ANSWER),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new.new_notebook(cells=cells, metadata=kernel), folder_of_modules / "11_warmth.ipynb")
    monkeypatch.syspath_prepend(folder_of_modules)
    from warmth import warmth_cells

    entry = Experiment(
        "11_warmth",
        lambda profile: [{"temperature": temperature} for temperature in (2.0, 8.0)],
        warmth_cells,
        needs=after("01_teacher_and_layers"),
    )
    monkeypatch.setattr(experiments, "EXPERIMENTS", [*experiments.EXPERIMENTS, entry])
    for module in (plan, report):
        monkeypatch.setattr(module, "NOTEBOOKS", folder_of_modules)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return load_profile("smoke")


def test_a_new_question_is_planned_priced_executed_counted_and_reported(warmth):
    steps = plan.make_plan(warmth, "smoke")
    added = steps[-2:]
    assert [step.name for step in added] == ["11_warmth-2.0", "11_warmth-8.0"]
    assert {step.needs for step in added} == {("01_teacher_and_layers-resnet14",)}
    assert [(step.runs, step.trains, step.done) for step in added] == [((0, 2), True, False)] * 2
    assert added[0].key != added[1].key
    expected = estimate(warmth, added, 1)
    assert min(expected.steps.values()) > NOTEBOOK_SECONDS
    with owned("smoke") as run:
        file = plan.write_plan(warmth, added[:1], 1, 0)
        assert execute("smoke", run, added[:1], expected, engine_command(file, 1, 0, [])) == 0
    steps = plan.make_plan(warmth, "smoke")
    assert [(step.runs, step.done) for step in steps[-2:]] == [((2, 2), True), ((0, 2), False)]
    page = report.write_report(warmth, steps).read_text()
    assert "Is a softer teacher better?" in page
    ours = {row["record"] for cell in steps[-2].cells for row in cell.rows()}
    assert len(ours) == 2
    assert all(f"data-runs='{name.rpartition('_')[2]}'" in page and name in page for name in ours)


def test_the_steps_of_the_others_stay_as_they_are(warmth, monkeypatch):
    more = {step.name: step.key for step in plan.make_plan(warmth, "smoke")}
    monkeypatch.setattr(experiments, "EXPERIMENTS", experiments.EXPERIMENTS[:-1])
    assert {step.name: step.key for step in plan.make_plan(warmth, "smoke")}.items() < more.items()


def test_a_profile_names_the_notebooks_that_are_executed():
    smoke = load_profile("smoke")
    whole = {step.name: step for step in plan.make_plan(smoke, "smoke")}
    named = ("05_results", "03_distillation-resnet14-resnet8x0.25-at", "02_hint_points")
    some = plan.make_plan(replace(smoke, notebooks=named), "smoke")
    assert [step.name for step in some] == [
        name for name in whole if name in named or name.startswith(named[2])
    ]
    assert all(step.key == whole[step.name].key for step in some)
    assert not {need for step in some for need in step.needs} - {step.name for step in some}
    wrong = replace(smoke, notebooks=("03_distilation",))
    with pytest.raises(
        SettingsError, match="unknown entry of notebooks '03_distilation' .*'03_distillation'"
    ):
        plan.make_plan(wrong, "smoke")
    assert any(finding.what == "notebooks" and "03_distilation" in finding.detail for finding in check(wrong))


def test_every_notebook_has_one_entry():
    listed = [experiment.notebook for experiment in experiments.EXPERIMENTS]
    assert sorted(listed) == sorted(file.stem for file in NOTEBOOKS.glob("*.ipynb"))


def test_no_notebook_is_named_in_the_engine_or_the_grid():
    stems = [experiment.notebook for experiment in experiments.EXPERIMENTS]
    for room in ("engine", "grid"):
        for file in (ROOT / "pursuhint_lib" / "study" / room).glob("*.py"):
            assert not [stem for stem in stems if stem in file.read_text()], file
