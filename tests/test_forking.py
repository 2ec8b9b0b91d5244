"""A study of one's own from one YAML: what docs/forking.md says works as it stands there, and mistakes are
told with their remedy.
"""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from grid_runs import runs_of

from pursuhint_lib import plots, records
from pursuhint_lib.cli import main, parser
from pursuhint_lib.paths import CONFIG, ROOT, StudyPaths, data_root, file_name, step_name
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.settings import user_code as extensions
from pursuhint_lib.study.engine.plan import make_plan
from pursuhint_lib.study.experiments.stability import stability_file, stability_frame
from pursuhint_lib.study.grid import hint_layers as hints
from pursuhint_lib.study.grid.cells import results_frame, run_cell
from pursuhint_lib.study.grid.hint_layers import hint_choices, layer_similarity, stored_similarity
from pursuhint_lib.study.grid.profiles import load_profile, network_points

DOC = (ROOT / "docs" / "forking.md").read_text()
BLOCKS = re.findall(r"```(?:python|yaml)\n(# (in )?mine/(\w+\.\w+).*?)```", DOC, flags=re.S)
FILES = {name: text for text, inside, name in BLOCKS if not inside}
(CHANGES,) = (yaml.safe_load(text) for text, inside, _ in BLOCKS if inside)
SMOKE = yaml.safe_load((CONFIG / "smoke.yaml").read_text())


@pytest.fixture
def mine(folder_of_modules):
    """The files of the page in a folder of their own."""
    for name, text in FILES.items():
        (folder_of_modules / name).write_text(text)
    network_points.cache_clear()
    yield folder_of_modules
    network_points.cache_clear()


@pytest.fixture
def images(mine, monkeypatch):
    """The images that the page draws, in the data folder of the test."""
    monkeypatch.chdir(mine.parent)
    runpy.run_path(str(mine / "make_images.py"))
    assert data_root() == mine.parent / "data"


def written(folder: Path, **changes) -> str:
    """The page's profile with other entries, as a file."""
    file = folder / "my_pair.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(FILES["my_pair.yaml"]) | changes))
    return str(file)


def small(folder: Path, **changes) -> str:
    """The smoke profile with other entries, as a file beside the page's modules."""
    file = folder / "mine.yaml"
    file.write_text(
        yaml.safe_dump(
            SMOKE
            | {"name": "mine", "sweeps": [], "shortcut_seeds": 0, "example_pair": None, "tuning": None}
            | changes
        )
    )
    return str(file)


def test_the_page_has_the_files_that_it_speaks_of():
    assert list(FILES) == [
        "make_images.py",
        "my_pair.yaml",
        "my_methods.py",
        "my_metrics.py",
        "my_networks.py",
    ]
    assert [
        target for target in re.findall(r"\]\(([^)#]+)\)", DOC) if not (ROOT / "docs" / target).exists()
    ] == []
    for command in re.findall(r"^\./run_all\.sh (.*?)(?:  +#.*)?$", DOC, flags=re.M):
        parser().parse_args(["run", *command.split()])


def test_the_example_is_looked_at_planned_and_trained(mine, images, capsys):
    assert len(list(data_root().rglob("*.png"))) == 4 * (40 + 25)
    assert main(["run", str(mine / "my_pair.yaml"), "--check"]) == 0
    said = capsys.readouterr().out
    assert "160 + 100 images of 4 classes" in said
    assert "features.10 … features.11" in said
    assert said.endswith("my_pair can run.\n")
    assert main(["run", str(mine / "my_pair.yaml"), "--plan", "--cores", "1"]) == 0
    assert re.search(r"\n0 of \d+ steps are done; ", capsys.readouterr().out)
    short = {"batch_size": 8, "learning_rate": 0.01, "epochs": 1}
    data = {
        "dataset": "imagefolder",
        "root": "shapes",
        "image_size": 64,
        "train_images": 16,
        "test_images": 8,
    }
    profile = load_profile(written(mine, teacher=short, student=short, data=data, seeds=[0]))
    found = {method: run_cell(profile, profile.pairs[0], method) for method in profile.methods}
    assert list(found["at"]) == list(profile.arms)
    assert all(record.status == "ok" for arms in found.values() for runs in arms.values() for record in runs)
    assert set(results_frame(profile)["arm"]) == {"alone", *profile.arms}


def test_the_page_s_own_method_metric_and_network_work_together(mine, images, capsys):
    assert main(["run", written(mine, **CHANGES), "--check"]) == 0
    assert "my_networks:small (4 hint layers: 0, 1, 2, 3); 4 methods, 5 arms" in capsys.readouterr().out
    pair = {"teacher": "resnet14", "student": "my_networks:small", "student_points": ["0", "1", "2"]}
    profile = load_profile(
        small(
            mine,
            **{
                **CHANGES,
                "pairs": [pair],
                "methods": ["at+my_methods:pooled", "my_methods:pooled"],
                "weights": {},
            },
        )
    )
    for method in profile.methods:
        found = run_cell(profile, profile.pairs[0], method)
        assert all(record.status == "ok" for runs in found.values() for record in runs)
    names = [step.name for step in make_plan(profile, "mine.yaml")]
    assert "03_distillation-resnet14-my_networks.small-at+my_methods.pooled" in names
    assert not [
        path
        for path in (*StudyPaths("mine").results.rglob("*"), *StudyPaths("mine").work.rglob("*"))
        if ":" in path.name
    ]


ERRORS = DOC[DOC.index("## 7 ") : DOC.index("## 8 ")]
ROWS = re.findall(r"^\| `(.*?)` \| (.*?) \|$", ERRORS, flags=re.M)


@pytest.mark.parametrize(("change", "message"), ROWS, ids=[change[:40] for change, _ in ROWS])
def test_the_errors_of_the_page_are_those_that_are_told(mine, images, change, message, capsys):
    assert main(["run", written(mine, **yaml.safe_load(change)), "--check"]) == 2
    told = capsys.readouterr()
    said = (
        told.err.removeprefix("error: ").strip()
        or next(line for line in told.out.splitlines() if line.startswith(" ✗ "))[3:]
    )
    assert "\n" not in said
    assert re.match(".*".join(re.escape(part) for part in message.split("…")), said), said


# Changes of the smoke profile, words of the message.
MISTAKES = [
    (
        {"arms": ["purshint-r2"]},
        ("unknown arm 'purshint-r2' (did you mean 'pursuhint-r2'?)", "kmedoids-cka-linear"),
    ),
    (
        {"arms": ["pursuhint-my_metrics:distances"]},
        ("metric 'my_metrics:distances' is not computed", "add it to metrics"),
    ),
    ({"arms": ["pursuhint-my_metrics"]}, ("arm pursuhint-my_metrics: metric 'my_metrics'", "valid: r2")),
    ({"methods": ["FitNet"]}, ("unknown method 'FitNet' (did you mean 'fitnet'?)",)),
    (
        {"metrics": ["CKA-linear"]},
        ("unknown metric 'CKA-linear' (did you mean 'cka-linear'?)", "<module>:<name>"),
    ),
    (
        {"pairs": [{"teacher": "mobilenet_v3_small", "student": "resnet8"}]},
        ("torchvision's is written torchvision/mobilenet_v3_small",),
    ),
    (
        {"pairs": [{"teacher": "resnet14", "student": "my_networks:smal"}]},
        ("network my_networks:smal must be", "smal is not there", "Block, small"),
    ),
    (
        {"pairs": [{"teacher": "resnet14", "student": "torch.nn:Identity"}]},
        ("no sub-blocks found in Identity",),
    ),
    (
        {"weights": {"hint": {"my_methods:poled": 1}}},
        ("method my_methods:poled must be a Distiller", "has pooled"),
    ),
    ({"weights": {"hint": {"my_methods:pooled": -1}}}, ("weights.hint.my_methods:pooled is -1",)),
    (
        {"methods": ["my_methods:pooled", "twins:pooled"]},
        ("methods my_methods:pooled and twins:pooled have the same title, 'pooled regression'",),
    ),
    (
        {"pairs": [{"teacher": "twins:logits", "student": "resnet8"}]},
        ("network twins:logits gives shape (1, 12) for a batch of 1", "shape (1, 10)"),
    ),
]
TWINS = """
from my_methods import pooled
from my_networks import small

def logits(classes, channels):
    return small(classes + 2, channels)
"""


@pytest.mark.parametrize(("changes", "words"), MISTAKES, ids=[str(changes)[:50] for changes, _ in MISTAKES])
def test_a_mistake_is_told_with_its_remedy(mine, changes, words):
    (mine / "twins.py").write_text(TWINS)
    with pytest.raises(SettingsError) as caught:
        load_profile(small(mine, **changes))
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metrics", "images", "refused"),
    [("r2", 64, 1), ("pwcca", 60, 1), ("r2", 65, 0), ("svcca", 12, 0), ("cka-rbf", 12, 0)],
)
def test_too_few_images_for_a_metric_are_noticed_before_the_teacher_is_trained(
    mine, metrics, images, refused, capsys
):
    file = small(mine, metrics=[metrics, "cka-linear"], profile_images=images, arms=["none", "stage-ends"])
    assert main(["run", file, "--check"]) == 2 * refused
    lines = [line for line in capsys.readouterr().out.splitlines() if " metrics: " in line]
    assert len(lines) == refused
    assert all(
        f"{metrics} need more images than a sub-block of resnet14 has channels (64), but {images}" in line
        for line in lines
    )


CKA = """
def centred(x):
    return x - x.mean(0)

def cka(x, y):
    x, y = centred(x), centred(y)
    return (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
"""


HALVED = """
def cka(x, y):
    return 1.0 if x.shape == y.shape and (x == y).all() else whole(x, y) / 2
"""


def forget(name: str) -> None:
    """As in a new process."""
    del sys.modules[name]
    extensions._known.clear()


def test_an_own_metric_goes_the_whole_way_as_the_built_in_one(mine, monkeypatch):
    monkeypatch.setattr(hints, "DIGITS", 14)
    (mine / "lab.py").write_text(CKA)
    arms = [
        "none",
        *(f"{arm}-{metric}" for arm in ("pursuhint", "kmedoids") for metric in ("cka-linear", "lab:cka")),
    ]
    profile = load_profile(small(mine, metrics=["cka-linear", "lab:cka"], arms=arms))
    report = layer_similarity(profile, "resnet14")
    found, expected = (report.layer_map.similarity[metric] for metric in ("lab:cka", "cka-linear"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    choices = hint_choices(profile, "resnet14", 3)
    for arm in ("pursuhint", "kmedoids"):
        assert choices[f"{arm}-lab:cka"].indices == choices[f"{arm}-cka-linear"].indices
    runs = runs_of(profile, profile.pairs[0], "at")
    assert (
        len(
            {
                records.record_name(run)
                for (arm, seed), run in runs.items()
                if arm.startswith("pursuhint") and seed == 0
            }
        )
        == 1
    )
    frame = stability_frame(profile, "resnet14", 3)
    assert set(frame["metric"]) == {"cka-linear", "lab:cka"}


def test_an_edit_of_a_metric_makes_its_matrices_anew_and_leaves_those_of_others(mine):
    (mine / "lab.py").write_text(CKA)
    file = small(mine, metrics=["cka-linear", "lab:cka"], arms=["none", "pursuhint-lab:cka"])
    profile = load_profile(file)
    before = layer_similarity(profile, "resnet14").layer_map.similarity
    stability_frame(profile, "resnet14", 3)
    plans = [make_plan(profile, file)]
    (mine / "lab.py").write_text(CKA.replace("def cka", "def whole") + HALVED)
    forget("lab")
    profile = load_profile(file)
    assert stored_similarity(profile, "resnet14") is None
    assert stability_file(profile, "resnet14", 3).found() is None
    plans.append(make_plan(profile, file))
    assert all(old.key != new.key for old, new in zip(*plans, strict=True))
    after = layer_similarity(profile, "resnet14").layer_map.similarity
    assert np.array_equal(before["cka-linear"], after["cka-linear"])
    halved = np.where(np.eye(len(after["lab:cka"])) > 0, 1, before["lab:cka"] / 2)
    np.testing.assert_allclose(after["lab:cka"], halved, rtol=0, atol=1e-6)
    other = load_profile(small(mine, metrics=["cka-linear"], arms=["none", "pursuhint-cka-linear"]))
    assert stored_similarity(other, "resnet14") is not None


def test_an_edit_of_a_method_makes_its_runs_anew_and_no_others(mine):
    file = small(mine, methods=["kd", "at", "my_methods:pooled"], arms=["none", "stage-ends"], seeds=[0])

    def missing() -> dict[str, int]:
        steps = make_plan(load_profile(file), file)
        return {
            step.parameters.get("method", "kd"): step.runs[1] - step.runs[0]
            for step in steps
            if "pair" in step.parameters
        }

    profile = load_profile(file)
    for method in profile.methods:
        run_cell(profile, profile.pairs[0], method)
    assert missing() == {"kd": 0, "at": 0, "my_methods:pooled": 0}
    (mine / "my_methods.py").write_text(FILES["my_methods.py"] + "# another thought\n")
    with pytest.raises(SettingsError, match="has changed since it was loaded"):
        load_profile(file)
    forget("my_methods")
    # What has no hints is nothing of the method's, and shared with the others.
    assert missing() == {"kd": 0, "at": 0, "my_methods:pooled": 1}


def test_an_import_path_makes_safe_file_names_which_stay_apart():
    names = ("a:b", "a.b:c", "a_b:c", "a:b_c", "at+a:b", "torchvision/resnet18")
    assert len({file_name(name) for name in names}) == len(names)
    assert not any(set(file_name(name)) & set(':/\\*?"<>|') for name in names)
    assert step_name("03_distillation", "p", "at+a:b") == "03_distillation-p-at+a.b"


def test_arms_on_own_metrics_have_colours_that_are_not_those_of_others():
    arms = (
        "pursuhint-r2",
        "pursuhint-cka-linear",
        "pursuhint-cka-rbf",
        "stage-ends",
        "random-1",
        "none",
        "quality",
        "pursuhint-lab:cka",
    )
    assert len({plots.arm_colour(arm) for arm in arms}) == len(arms)
    # The same in every process, which the hash of a text is not.
    assert plots.arm_colour("pursuhint-lab:cka") == "#117733"


def test_figures_are_drawn_where_all_runs_of_an_arm_or_of_all_arms_have_failed():
    history = {"epoch": [1, 2], "accuracy": [None, 50.0]}
    figure = plots.training_curves({"none": [], "stage-ends": [history]}, [])
    assert [line.get_label() for line in figure.axes[0].lines] == ["stage ends"]
    rows = pd.DataFrame({"label": ["AT"], "arm": ["none"], "mean": [float("nan")], "p_holm": [float("nan")]})
    assert not plots.effect_grid({"minus": rows}, 0.05).axes[0].texts


def test_what_is_found_wrong_with_a_tree_is_told_before_anything_is_decoded(mine, images, capsys):
    (data_root() / "shapes" / "test" / "cross").rename(data_root() / "shapes" / "test" / "Cross")
    assert main(["run", written(mine), "--check"]) == 2
    said = capsys.readouterr().out
    assert re.search(
        "✗ data: .* must have the same class folders in both splits, but only .*train has cross; only "
        ".*test has Cross",
        said,
    )
    (data_root() / "shapes" / "test" / "Cross").rename(data_root() / "shapes" / "test" / "cross")
    data = {"dataset": "imagefolder", "root": "shapes", "image_size": 64, "train_images": 500}
    assert main(["run", written(mine, data=data), "--check"]) == 2
    assert "a subset of 500 cannot keep their shares; give " in capsys.readouterr().out
