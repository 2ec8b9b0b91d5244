"""The grid: profiles are checked, arms chosen, runs planned and found again."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from grid_runs import runs_of

from pursuhint_lib import records
from pursuhint_lib.clustering import choose_hint_points, segment_middles
from pursuhint_lib.files import sealed, unsealed, write_json
from pursuhint_lib.paths import CONFIG, ROOT, StudyPaths
from pursuhint_lib.settings import Pair, SettingsError
from pursuhint_lib.study.engine.estimate import estimate
from pursuhint_lib.study.engine.plan import make_plan
from pursuhint_lib.study.grid import hint_layers
from pursuhint_lib.study.grid.arms import LayerMap, check_arm, choose_points
from pursuhint_lib.study.grid.cells import fork, networks_frame, results_frame, run_cell
from pursuhint_lib.study.grid.hint_layers import (
    hint_choices,
    layer_similarity,
    stored_choices,
    stored_similarity,
)
from pursuhint_lib.study.grid.profiles import load_profile, network_points
from pursuhint_lib.training import load_teacher, train_teacher


@pytest.fixture
def profile():
    return replace(load_profile("smoke"), tuning=None)


def written(tmp_path, **changes) -> str:
    """A copy of the smoke profile with other settings, as a file."""
    content = yaml.safe_load((CONFIG / "smoke.yaml").read_text())
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**content, "name": "mine", **changes}))
    return str(file)


def trained(profile):
    """Everything of a profile but the notebooks."""
    for pair in profile.pairs:
        for method in profile.methods:
            run_cell(profile, pair, method)
    return profile


@pytest.mark.parametrize("file", sorted(CONFIG.glob("*.yaml")), ids=lambda f: f.stem)
def test_every_profile_is_valid_and_named_as_its_file(file):
    profile = load_profile(file.stem)
    assert profile.name == file.stem
    assert all(pair.k == len(pair.student_points) for pair in profile.pairs)


def test_quick_is_as_large_as_promised():
    quick = load_profile("quick")
    assert {pair.student for pair in quick.pairs} == {"resnet8x0.25", "vgg8x0.125"}
    assert {"kd", "fitnet", "at", "vid", "sp"} <= set(quick.methods)
    assert len(quick.arms) >= 8
    assert len(quick.seeds) >= 5


BAD_PROFILES = {
    "unknown method": (
        {"methods": ["kd", "atx"]},
        r"unknown method 'atx' \(did you mean 'at'\?\); valid: ce, kd",
    ),
    "unknown override": (
        {"weights": {"hint": {"fitnets": 1}}},
        "unknown method 'fitnets'.*did you mean 'fitnet'",
    ),
    "unknown metric": ({"metrics": ["cka"]}, "unknown metric 'cka'.*valid: r2, r2-raw, svcca"),
    "unknown teacher": (
        {"pairs": [{"teacher": "resnet21", "student": "resnet8"}]},
        "unknown network 'resnet21'.*did you mean",
    ),
    "unknown student": (
        {"pairs": [{"teacher": "resnet20", "student": "resnet9"}]},
        "unknown network 'resnet9'",
    ),
    "unknown arm": ({"arms": ["stage-end"]}, r"unknown arm 'stage-end' \(did you mean 'stage-ends'\?\)"),
    "arm without its metric": (
        {"arms": ["pursuhint-svcca"]},
        "arm pursuhint-svcca: metric.*valid: r2, cka-linear, cka-rbf",
    ),
    "random arm without number": ({"arms": ["random-x"]}, "unknown arm 'random-x'.*random-<1"),
    "random arm 0": ({"arms": ["random-0"]}, "unknown arm 'random-0'"),
    "unknown data set": ({"data": {"dataset": "cifar"}}, "unknown data set 'cifar'.*valid: digits"),
    "too many points": (
        {
            "pairs": [
                {
                    "teacher": "resnet8",
                    "student": "resnet8",
                    "k": 4,
                    "student_points": ["conv1", "layer1.0", "layer2.0", "layer3.0"],
                }
            ]
        },
        "resnet8 → resnet8: k is 4, but resnet8 has 3 sub-blocks",
    ),
    "points that don't match": (
        {"pairs": [{"teacher": "resnet14", "student": "resnet8", "k": 2}]},
        "2 hint layers for 3 of the student.*give k: 3",
    ),
    "unknown student point": (
        {
            "pairs": [
                {
                    "teacher": "resnet14",
                    "student": "resnet8",
                    "student_points": ["layer1.1", "layer2.0", "layer3.0"],
                }
            ]
        },
        r"unknown sub-block of resnet8 'layer1.1' \(did you mean 'layer1.0'\?\)",
    ),
    "stage ends that don't fit": (
        {"pairs": [{"teacher": "resnet14", "student": "vgg8"}], "data": {"dataset": "cifar10"}},
        "stage-ends has 3 hint layers.*but k is 4",
    ),
    "more random arms than sets": (
        {"arms": ["none", "random-21"]},
        "there are 20 different sets of 3 sub-blocks, so random-21 cannot",
    ),
    "checkpoint of no teacher": (
        {"checkpoints": {"resnet56": "x.pth"}},
        "unknown teacher in checkpoints 'resnet56'",
    ),
    "image folder without a root": ({"data": {"dataset": "imagefolder"}}, "needs root"),
    "unknown setting": ({"epochs": 3}, "unknown setting in mine.yaml 'epochs'"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_PROFILES.values(), ids=BAD_PROFILES)
def test_a_profile_that_cannot_be_run_is_refused_with_the_reason(changes, message, tmp_path):
    with pytest.raises(SettingsError, match=message) as caught:
        load_profile(written(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_an_unknown_profile_names_those_that_exist():
    with pytest.raises(
        SettingsError,
        match=r"unknown profile 'qick' \(did you mean 'quick'\?\); valid: .*cifar100.*<file>.yaml",
    ):
        load_profile("qick")
    with pytest.raises(SettingsError, match="no profile file nowhere.yaml"):
        load_profile("nowhere.yaml")


def test_arms_choose_what_they_say():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(50, 9))
    layer_map = LayerMap(9, (2, 5, 8), {"r2": np.abs(np.corrcoef(features.T))})
    expected = {
        "none": (),
        "stage-ends": (2, 5, 8),
        "segment-middles": segment_middles(9, 3),
        "first": (0, 1, 2),
        "last": (6, 7, 8),
        "pursuhint-r2": choose_hint_points(layer_map.similarity["r2"], 3).indices,
        "kmedoids-r2": choose_hint_points(layer_map.similarity["r2"], 3, "kmedoids").indices,
    }
    for arm, indices in expected.items():
        check_arm(arm, ["r2"])
        choice = choose_points(arm, layer_map, 3)
        assert choice.indices == indices, arm
        assert choice.reason.endswith(".")
    draws = [choose_points(f"random-{n}", layer_map, 3).indices for n in range(1, 6)]
    assert len(set(draws)) == 5
    assert all(list(draw) == sorted(set(draw)) for draw in draws)


def test_reasons_name_the_cluster_and_its_similarity():
    blocks = np.full((6, 6), 0.1)
    blocks[:2, :2], blocks[2:, 2:] = 0.9, 0.8
    np.fill_diagonal(blocks, 1)
    choice = choose_points("pursuhint-r2", LayerMap(6, (2, 5), {"r2": blocks}), 2)
    assert choice.indices == (0, 3)
    assert choice.reason == (
        "Sub-block 1 stands for 1–2: mean r2 inside 0.90, to the nearest other cluster (of 4) 0.10, margin "
        "0.80. "
        "Sub-block 4 stands for 3–6: mean r2 inside 0.80, to the nearest other cluster (of 1) 0.10, margin "
        "0.70."
    )


def test_similarity_and_points_are_stored_and_loaded_without_the_teacher(profile):
    teacher = profile.pairs[0].teacher
    assert stored_similarity(profile, teacher) is None
    report = layer_similarity(profile, teacher)
    assert set(report.layer_map.similarity) == set(profile.metrics)
    assert [block["name"] for block in report.sub_blocks] == list(
        network_points(teacher, profile.data).candidates
    )
    choices = hint_choices(profile, teacher, 3)
    for file in (StudyPaths(profile.name).work / "weights").iterdir():
        file.unlink()
    again = hint_choices(profile, teacher, 3)
    assert {arm: choice.indices for arm, choice in again.items()} == {
        arm: choice.indices for arm, choice in choices.items()
    }
    assert not list((StudyPaths(profile.name).work / "weights").iterdir())
    stored = json.loads(StudyPaths(profile.name).hint_points(teacher, 3).read_text())
    reasons = stored["pursuhint-cka-linear"]["reasons"]
    assert [reason["sub_block"] for reason in reasons] == stored["pursuhint-cka-linear"]["sub_blocks"]
    assert {"members", "inside", "nearest", "outside", "margin"} < set(reasons[0])
    assert stored["all"]["student_points"] == [1, 1, 2, 2, 3, 3]
    assert {arm: tuple(i - 1 for i in stored[arm]["sub_blocks"]) for arm in profile.arms} == {
        arm: c.indices for arm, c in choices.items()
    }


def test_hint_points_are_chosen_once_and_read_afterwards(profile, monkeypatch):
    assert stored_choices(profile, "resnet14", 3, profile.arms) is None
    chosen = hint_choices(profile, "resnet14", 3)
    monkeypatch.setattr(hint_layers, "choose_points", lambda arm, *_: pytest.fail(f"{arm} was chosen anew"))
    read = stored_choices(profile, "resnet14", 3, profile.arms)
    assert {arm: (choice.matched, choice.reason) for arm, choice in read.items()} == {
        arm: (choice.matched, choice.reason) for arm, choice in chosen.items()
    }
    # Points of other matrices don't count.
    path = StudyPaths(profile.name).hint_points("resnet14", 3)
    content = unsealed(json.loads(path.read_text()))
    write_json(path, sealed(content | {"similarity": "another"}))
    with pytest.raises(pytest.fail.Exception, match="none was chosen anew"):
        stored_choices(profile, "resnet14", 3, profile.arms)


def test_other_profiling_settings_make_new_matrices(profile):
    teacher = profile.pairs[0].teacher
    layer_similarity(profile, teacher)
    assert stored_similarity(replace(profile, profile_images=50), teacher) is None
    assert stored_similarity(replace(profile, metrics=("r2", "r2-raw")), teacher) is None
    assert stored_similarity(replace(profile, metrics=("r2",)), teacher) is not None


def test_damaged_hints_are_named(profile):
    teacher = profile.pairs[0].teacher
    layer_similarity(profile, teacher)
    file = StudyPaths(profile.name).similarity(teacher)
    file.write_text(file.read_text()[:100])
    with pytest.raises(SettingsError, match=f"{file.name} is damaged.*delete it"):
        layer_similarity(profile, teacher)


def test_the_frame_has_every_run_and_the_references_of_every_method(profile):
    frame = results_frame(trained(profile))
    pair = profile.pairs[0]
    hinted = frame[frame["method"] == "at"]
    assert set(hinted["arm"]) == {"alone", *profile.arms}
    assert len(hinted) == (len(profile.arms) + 1) * len(profile.seeds)
    alone, kd = (
        records.load(profile.name, runs_of(profile, pair, method)["none", 1]) for method in ("ce", "kd")
    )
    row = hinted.set_index(["arm", "seed"])["accuracy"]
    assert row["alone", 1] == alone.metrics["accuracy"]
    assert row["none", 1] == kd.metrics["accuracy"]
    networks = networks_frame(profile, frame)
    assert list(networks["role"]) == ["teacher", "student alone", "best student"]
    teacher = networks.iloc[0]
    assert teacher["parameters"] == sum(
        p.numel() for p in load_teacher(profile.teacher_settings(pair.teacher)).parameters()
    )
    assert networks.iloc[1]["compression"] == pytest.approx(
        teacher["parameters"] / networks.iloc[1]["parameters"]
    )


def test_the_plan_knows_what_is_done(profile):
    steps = {step.name: step for step in make_plan(profile, "smoke")}
    assert [step.notebook[:2] for step in steps.values()] == [
        "00",
        "01",
        "02",
        "12",
        "03",
        "03",
        "05",
        "06",
        "07",
        "08",
        "13",
    ]
    at = "03_distillation-resnet14-resnet8x0.25-at"
    assert steps[at].runs == (0, None)
    assert set(steps[at].needs) == {
        "02_hint_points-resnet14-3",
        "12_without_hints-resnet14-resnet8x0.25",
    }
    train_teacher(profile.teacher_settings("resnet14"))
    layer_similarity(profile, "resnet14")
    run_cell(profile, profile.pairs[0], "at")
    after = {step.name: step for step in make_plan(profile, "smoke")}
    found, wanted = after[at].runs
    assert found == wanted > 0
    assert not after[at].done, "its notebook has not run"
    assert after["01_teacher_and_layers-resnet14"].runs == (2, 2)


def test_a_stamp_counts_only_while_its_outputs_and_records_are_there(profile, tmp_path):
    trained(profile)
    name = "12_without_hints-resnet14-resnet8x0.25"

    def step():
        return next(s for s in make_plan(profile, "smoke") if s.name == name)

    figure = tmp_path / "figure.png"
    figure.write_text("x")
    stamp = StudyPaths(profile.name).stamp(name, step().key)
    stamp.parent.mkdir(parents=True)
    stamp.write_text(json.dumps({"step": name, "outputs": [str(figure)]}))
    assert step().done
    figure.unlink()
    assert not step().done
    assert not stamp.exists()
    figure.write_text("x")
    stamp.write_text(json.dumps({"step": name, "outputs": [str(figure)]}))
    assert step().done
    next(StudyPaths(profile.name).records.glob("*_kd_*")).unlink()
    assert not step().done


def test_a_new_method_or_pair_leaves_the_other_steps_alone(profile):
    keys = {step.name: step.key for step in make_plan(profile, "smoke")}
    wider = replace(profile, methods=(*profile.methods, "sp"))
    changed = {step.name for step in make_plan(wider, "smoke") if keys.get(step.name) != step.key}
    assert changed == {
        "00_start_here",
        "03_distillation-resnet14-resnet8x0.25-sp",
        "05_results",
        "07_speed",
        "08_export",
    }
    longer = replace(profile, student=replace(profile.student, epochs=3))
    changed = {step.name for step in make_plan(longer, "smoke") if keys.get(step.name) != step.key}
    assert "12_without_hints-resnet14-resnet8x0.25" in changed


def test_a_sum_keeps_its_part_on_the_logits_where_hints_are_taken_away(profile):
    layer_similarity(profile, "resnet14")
    weighted = replace(profile, weights=replace(profile.weights, hint={"at": 3.0}))
    runs = {
        method: runs_of(weighted, profile.pairs[0], method)
        for method in ("wsl+at", "at+kd", "at+sp", "wsl", "kd")
    }
    assert runs["wsl+at"]["none", 0] == runs["wsl"]["none", 0]
    assert runs["at+kd"]["none", 0] == runs["at+sp"]["none", 0] == runs["kd"]["none", 0]
    assert runs["wsl"]["none", 0].method == "wsl"
    hinted = runs["wsl+at"]["stage-ends", 0]
    assert (hinted.hint_weight, hinted.part_weights, hinted.kd_weight) == (1.0, (2.25, 3.0), 0.0)
    assert runs["at+sp"]["stage-ends", 0].kd_weight == 1.0


def test_a_fork_is_checked_and_keeps_the_data(profile):
    # The sets of layers of one teacher are none of another.
    changes = {"methods": ("kd",), "arms": ("none", "stage-ends")}
    forked = fork(profile, Pair("resnet20", "vgg8x0.125", ("block0.2", "block1.2", "block2.2")), **changes)
    assert forked.data == profile.data
    assert forked.pairs[0].k == 3
    with pytest.raises(SettingsError, match="unknown network"):
        fork(profile, Pair("resnet20", "vgg9"), **changes)


def test_the_estimate_grows_with_the_work(profile):
    steps = make_plan(profile, "smoke")
    short = estimate(profile, steps, 1)
    longer = replace(profile, student=replace(profile.student, epochs=2000))
    long = estimate(longer, make_plan(longer, "smoke"), 1)
    assert set(short.steps) == {step.name for step in steps}
    assert long.seconds > 5 * short.seconds
    assert estimate(profile, steps, 2).seconds < short.seconds


def test_an_example_that_the_profile_cannot_have_is_named_before_anything_is_trained(profile):
    other = replace(profile, arms=("none", "stage-ends"), metrics=("r2",))
    with pytest.raises(SettingsError, match="^example_pair, as .*: arm pursuhint-cka-linear: metric"):
        make_plan(other, "smoke")


def test_the_root_is_the_checkout():
    assert (ROOT / "run_all.sh").is_file()
