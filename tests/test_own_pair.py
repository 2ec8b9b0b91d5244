"""Notebook 06 as a reader runs it: with any pair, on any machine, it leaves the results of the profile as
they are.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import papermill
import PIL.Image
import pytest
import yaml

from pursuhint_lib import records, training
from pursuhint_lib.cli import main
from pursuhint_lib.models import load_checkpoint, save_weights
from pursuhint_lib.paths import CONFIG, NOTEBOOKS, ROOT, StudyPaths
from pursuhint_lib.settings import Data, Pair, SettingsError
from pursuhint_lib.study.engine.check import NOTE, check
from pursuhint_lib.study.engine.plan import make_plan
from pursuhint_lib.study.experiments.distillation import own_pair_cells
from pursuhint_lib.study.grid.cells import OWN_PAIR, fork, results_frame, run_cell
from pursuhint_lib.study.grid.hint_layers import hint_choices
from pursuhint_lib.study.grid.profiles import load_profile

OTHER_CPU = "Another CPU"
NOTEBOOK = NOTEBOOKS / "06_your_own_pair.ipynb"


@pytest.fixture
def profile():
    """The smoke profile as its results come with a clone: records of another CPU, the teacher's weights kept,
    nothing else in work.
    """
    found = load_profile("smoke")
    settings = found.teacher_settings("resnet14")
    record = training.train_teacher(settings)
    hint_choices(found, "resnet14", 3)
    run_cell(found, found.pairs[0], "kd")
    assert main(["keep", "smoke"]) == 0
    StudyPaths("smoke").weights(record.name).unlink()
    history = {**record.history, "loss_ce": [loss + 1e-4 for loss in record.history["loss_ce"]]}
    records.save(
        "smoke", replace(record, provenance={**record.provenance, "device": OTHER_CPU}, history=history)
    )
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run_notebook(folder: Path, **parameters) -> None:
    """Execute notebook 06 on the smoke profile, as papermill or JupyterLab do."""
    given = {"profile": "smoke", **parameters}
    papermill.execute_notebook(
        str(NOTEBOOK), str(folder / "executed.ipynb"), given, cwd=str(NOTEBOOKS), progress_bar=False
    )


def begun(**parameters) -> dict:
    """What the notebook's variables are once it has looked at its parameters, before anything is trained."""
    found, cells = {}, json.loads(NOTEBOOK.read_text())["cells"]
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            exec(source, found)
            if "parameters" in cell["metadata"].get("tags", []):
                found |= {"profile": "smoke", **parameters}
            if "page = Page(" in source:
                return found
    raise AssertionError("the notebook makes no page")


def image_tree(folder: Path) -> str:
    """Four images each of two classes to learn from, and to test."""
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            image = PIL.Image.fromarray(np.full((9, 9, 3), 20 * number, dtype=np.uint8))
            image.save(folder / name / f"{number}.png")
    return str(folder)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"teacher": "resnt20", "student": "resnet8"}, "unknown network 'resnt20' (did you mean"),
        ({"student": "resnt8"}, "unknown network 'resnt8' (did you mean"),
        ({"checkpoint": "nowhere/weights.pth"}, "/nowhere/weights.pth; give a file that is there"),
        ({"checkpoint": "README.md"}, "README.md is damaged or holds more than tensors"),
        ({"data": "nowhere"}, "data/nowhere has no train/<class>/<image>"),
        ({"data": "nowhere", "image_size": 0}, "image_size is 0; it should be greater than 0"),
        ({"hint_weight": -1.0}, "hint.at is -1.0; it should be greater than or equal to 0"),
        ({"metrics": ["r2"]}, "metric 'cka-linear' is not computed; add it to metrics"),
        ({"method": "kd"}, "methods with hints: 0; give 1 or more"),
    ],
)
def test_a_wrong_parameter_is_told_in_one_line_before_anything_is_trained(parameters, said):
    with pytest.raises(SettingsError) as caught:
        begun(**parameters)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    own = StudyPaths(f"smoke{OWN_PAIR}")
    assert not own.results.exists()
    assert not own.work.exists()


def test_weights_images_and_hint_weight_may_be_one_s_own(tmp_path):
    images = Data("imagefolder", root=image_tree(tmp_path / "mine"), image_size=8)
    weights = str(tmp_path / "weights.safetensors")
    save_weights(training.seeded_model("resnet14", images, 3), Path(weights))
    given = {"data": images.root, "image_size": 8, "checkpoint": weights, "hint_weight": 2.5}
    with pytest.raises(SettingsError, match="r2 need more images than a sub-block of resnet14 has channels"):
        begun(**given)
    settings = begun(**given, metrics=["cka-linear"])["settings"]
    assert (settings.data, settings.student_data) == (images, images)
    assert settings.checkpoints == {"resnet14": weights}
    assert settings.weights.hint == {"at": 2.5}
    assert settings.note.startswith(f"Images of {images.root}")


def test_the_example_is_what_the_plan_expects():
    settings = begun(example=True)["settings"]
    cells = [cell for cell in own_pair_cells(load_profile("smoke"), example=True) if hasattr(cell, "arms")]
    assert cells
    assert all((cell.profile, cell.pair) == (settings, settings.pairs[0]) for cell in cells)


@pytest.mark.parametrize(
    ("teacher", "student", "checkpoint"), [("", "", True), ("resnet20", "resnet8x0.5", False)]
)
def test_the_results_of_the_profile_stay_as_they_are(profile, tmp_path, teacher, student, checkpoint):
    before = content(StudyPaths("smoke").results)
    run_notebook(tmp_path, teacher=teacher, student=student)
    assert content(StudyPaths("smoke").results) == before
    own = StudyPaths(f"smoke{OWN_PAIR}")
    drawn = {"figures", "tables", "fragments", "numbers"}
    assert {path.name for path in own.results.iterdir()} == {"records", "hints", "maps", *drawn}
    # The profile's teacher is taken where it is kept; another is trained.
    (record,) = map(records.read, own.records.glob("teacher_*.json"))
    assert (record.settings["checkpoint"] is not None) == checkpoint
    assert len(record.history.get("loss_ce", [])) == (0 if checkpoint else profile.teacher.epochs)


def test_a_fork_s_students_learn_from_the_teacher_that_the_profile_keeps(profile):
    pair = Pair("resnet14", "resnet8x0.25")
    forked = fork(profile, pair, methods=("kd",), arms=("none",), seeds=(0,))
    run_cell(forked, forked.pairs[0], "kd")
    assert list(results_frame(forked)["status"]) == ["ok"]
    kept = StudyPaths("smoke").kept_weights(records.record_name(profile.teacher_settings("resnet14")))
    expected = training.seeded_model("resnet14", profile.data, 0)
    load_checkpoint(expected, kept)
    found = training.load_teacher(forked.teacher_settings("resnet14")).state_dict()
    assert all((tensor == found[name]).all() for name, tensor in expected.state_dict().items())


def test_a_checkpoint_of_the_profile_stays_one_and_those_of_other_teachers_are_left_out(profile):
    given = replace(profile, checkpoints={"resnet14": "mine.pth"}, arms=("none", "stage-ends"))
    for apart in (True, False):
        assert fork(given, Pair("resnet14", "resnet8x0.25"), apart=apart).checkpoints == {
            "resnet14": "mine.pth"
        }
        assert fork(given, Pair("resnet20", "resnet8x0.25"), apart=apart).checkpoints == {}


def test_the_study_itself_has_its_example_among_its_results(profile):
    (step,) = (step for step in make_plan(profile, "smoke") if step.notebook == "06_your_own_pair")
    assert (step.name, step.parameters) == ("06_your_own_pair", {"profile": "smoke", "example": True})
    forked = fork(profile, profile.example_pair, apart=False)
    assert (forked.name, forked.teacher_settings("resnet14")) == (
        "smoke",
        profile.teacher_settings("resnet14"),
    )


def test_git_ignores_what_a_fork_writes():
    assert f"/results/*{OWN_PAIR}/" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_teacher_of_the_example_is_kept_too(tmp_path, capsys):
    file, smoke = tmp_path / "mine.yaml", yaml.safe_load((CONFIG / "smoke.yaml").read_text())
    changes = {"name": "mine", "arms": ["none", "stage-ends"]}
    example = {"teacher": "resnet20", "student": "resnet8x0.25"}
    file.write_text(yaml.safe_dump(smoke | changes | {"example_pair": example}))
    mine = load_profile(str(file))
    for network in ("resnet14", "resnet20"):
        training.train_teacher(mine.teacher_settings(network))
    assert main(["keep", str(file)]) == 0
    assert sorted(
        path.name.split("_")[1] for path in StudyPaths("mine").results.glob("teachers/*.safetensors")
    ) == ["resnet14", "resnet20"]
    assert capsys.readouterr().out.count("on record") == 2


def test_a_check_says_which_teacher_cannot_be_trained_again_here(profile):
    (found,) = (finding for finding in check(profile) if finding.what == "teacher resnet14")
    assert found.detail.endswith("weights here")
    StudyPaths("smoke").kept_weights(records.record_name(profile.teacher_settings("resnet14"))).unlink()
    (found,) = (finding for finding in check(profile) if finding.what == "teacher resnet14")
    assert found.state == NOTE
    assert (
        f"weights not here, and no other student can learn from it: it was trained on {OTHER_CPU} with torch"
        in found.detail
    )
