"""The search for a weight: its rule against an independent one, what it trains and reads, and its file."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from searches import TUNING, explored, files, on_record, planned, small_search

from pursuhint_lib import plots, records, training
from pursuhint_lib.data import DATASETS, NotDownloaded, load_splits
from pursuhint_lib.paths import CONFIG, StudyPaths
from pursuhint_lib.settings import Arm, Data, Profile, SettingsError, Tuning, Weights, build
from pursuhint_lib.study.engine import estimate
from pursuhint_lib.study.engine.plan import make_plan
from pursuhint_lib.study.engine.validate import weigh
from pursuhint_lib.study.experiments import tuning
from pursuhint_lib.study.experiments.tuning import (
    best_weight,
    mean_scores,
    tune,
    write_weights,
)
from pursuhint_lib.study.grid import cells
from pursuhint_lib.study.grid.cells import cell_settings, grid_cells
from pursuhint_lib.study.grid.hint_layers import layer_similarity
from pursuhint_lib.study.grid.profiles import checked, load_profile, network_points
from pursuhint_lib.study.grid.weights import hint_weight
from pursuhint_lib.training.runs import RECORDS_ONLY


@pytest.fixture
def profile() -> Profile:
    return small_search()


@pytest.fixture
def trained(profile) -> Profile:
    training.train_teacher(profile.teacher_settings("resnet14"))
    layer_similarity(profile, "resnet14")
    return profile


@pytest.fixture
def one(trained) -> Profile:
    """A search that is over soon: one method, one seed."""
    return checked(replace(trained, tuning=replace(TUNING, methods={"at": (10.0, 100.0)}, seeds=(100,))))


@pytest.mark.parametrize(
    ("grid", "scores", "tried", "best"),
    [
        # Inside: the two half-decades beside it, one of which is better.
        ([1, 10, 100], {1: 40, 10: 45, 100: 41, 3.162: 44, 31.62: 46}, [1, 3.162, 10, 31.62, 100], 31.62),
        # At the upper edge: a decade further, which fails.
        (
            [0.1, 1, 10],
            {0.1: 40, 1: 41, 10: 42, 100: 0, 3.162: 41.5, 31.62: 41},
            [0.1, 1, 3.162, 10, 31.62, 100],
            10,
        ),
        # At the lower edge, twice.
        (
            [1, 10],
            {1: 42, 10: 40, 0.1: 43, 0.01: 42.5, 0.03162: 44, 0.3162: 41},
            [0.01, 0.03162, 0.1, 0.3162, 1, 10],
            0.03162,
        ),
        # All alike: no weight is followed, and the lightest is taken.
        ([1, 10], {1: 40, 10: 40, 0.3162: 40, 3.162: 40}, [0.3162, 1, 3.162, 10], 0.3162),
        # A single weight is lowest and highest at once.
        ([5], {5: 40, 0.5: 39, 50: 39, 1.581: 38, 15.81: 41}, [0.5, 1.581, 5, 15.81, 50], 15.81),
        # The order in which the grid is given does not count.
        ([100, 1, 10], {1: 40, 10: 45, 100: 41, 3.162: 44, 31.62: 43}, [1, 3.162, 10, 31.62, 100], 10),
    ],
)
def test_the_rule_tries_and_takes_what_a_table_made_by_hand_says(grid, scores, tried, best):
    assert explored(grid, scores.get) == tried
    assert best_weight({weight: scores[weight] for weight in tried}) == best


@pytest.mark.parametrize("seed", range(30))
def test_the_rule_is_that_of_an_independent_search_on_half_decades(seed):
    """Weights are numbers of half-decades here, and the search walks over an array."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=81) - np.abs(
        np.arange(81) - generator.integers(20, 60)
    ) * generator.choice([0.0, 0.3])
    low = int(generator.integers(15, 30)) * 2
    high = low + 2 * int(generator.integers(1, 4))
    seen = set(range(low, high + 1, 2))
    while (top := max(seen, key=scores.__getitem__)) in (min(seen), max(seen)):
        seen.add(top - 2 if top == min(seen) else top + 2)
    seen |= {top - 1, top + 1}

    def weight(position: int) -> float:
        return float(f"{10 ** ((position - 40) / 2):.4g}")

    table = {weight(position): score for position, score in enumerate(scores)}
    tried = explored([weight(position) for position in range(low, high + 1, 2)], table.__getitem__)
    assert tried == sorted(map(weight, seen))
    assert best_weight({w: table[w] for w in tried}) == weight(max(seen, key=scores.__getitem__))


def test_a_failed_run_counts_as_nothing():
    rows = [(1, "ok", 40.0), (1, "ok", 42.0), (10, "ok", 50.0), (10, "failed", float("nan"))]
    assert mean_scores(pd.DataFrame(rows, columns=["weight", "status", "accuracy"])) == {1: 41.0, 10: 25.0}


# ---- what is trained


def test_all_weights_and_sets_learn_the_students_images_side_by_side(trained, monkeypatch):
    distilled = []
    monkeypatch.setattr(
        cells,
        "distill",
        lambda cell, **given: distilled.append((cell, given)) or training.distill(cell, **given),
    )
    pair = trained.pairs[0]
    frame = tune(trained, pair, "at")
    for cell, given in distilled:
        assert given == {"measured_steps": tuning.RATIO_STEPS}
        assert cell.data == Data("digits", train_images=100, held_out=100)
        assert (cell.schedule, cell.teacher) == (trained.student, trained.teacher_settings("resnet14"))
        ends = network_points("resnet14", trained.data).ends
        assert {arm.teacher_points for arm in cell.arms if arm.name == "stage-ends"} == {ends}
        assert len(cell.arms) == 2 * len({arm.hint_weight for arm in cell.arms})
    # One cell a seed, first of the grid.
    assert [cell.seed for cell, _ in distilled[:2]] == [100, 101]
    assert {arm.hint_weight for arm in distilled[0][0].arms} == {10.0, 100.0}
    assert sorted(set(frame["weight"])) == explored([10.0, 100.0], mean_scores(frame).__getitem__)
    assert frame.groupby("weight").size().eq(4).all()
    assert frame["gradient_ratio"].gt(0).all()
    for row in frame.itertuples():
        stored = records.read(StudyPaths("smoke").records / f"{row.record}.json")
        # The weight of a hint layer times their number, over their number.
        assert stored.settings["hint_weight"] == pytest.approx(row.weight)
        assert stored.settings["seed"] == row.seed
        assert (stored.metrics["accuracy"], stored.metrics["gradient_ratio"]) == (
            row.accuracy,
            row.gradient_ratio,
        )
    pd.testing.assert_frame_equal(on_record(trained), frame)
    # ρ grows with the weight: at the same first steps it is proportional to it.
    means = frame.groupby("weight")["gradient_ratio"].mean()
    assert means.is_monotonic_increasing


def test_what_is_on_record_is_not_repeated_after_a_kill(one, monkeypatch):
    pair, calls = one.pairs[0], []

    def dies_the_second_time(cell, **given):
        if calls:
            raise KeyboardInterrupt
        calls.append(cell)
        return training.distill(cell, **given)

    monkeypatch.setattr(cells, "distill", dies_the_second_time)
    with pytest.raises(KeyboardInterrupt):
        tune(one, pair, "at")
    before = files()
    assert planned(one) == (4, None)
    assert not StudyPaths("smoke").tuned_weights.is_file()
    monkeypatch.setattr(cells, "distill", training.distill)
    frame = tune(one, pair, "at")
    assert before.items() <= files().items()
    assert planned(one) == (len(frame) + 1, len(frame) + 1)
    monkeypatch.setattr(training.runs, "fit", lambda *a, **k: pytest.fail("something was trained"))
    pd.testing.assert_frame_equal(tune(one, pair, "at"), frame)


def test_weights_are_chosen_again_from_the_records_alone(one, monkeypatch):
    pair = one.pairs[0]
    tune(one, pair, "at")
    path = StudyPaths("smoke").tuned_weights
    content = path.read_bytes()
    path.unlink()
    assert planned(one)[0] == planned(one)[1] - 1
    monkeypatch.setenv(RECORDS_ONLY, "1")
    monkeypatch.setitem(
        DATASETS, "digits", replace(DATASETS["digits"], load=lambda settings: pytest.fail("images were read"))
    )
    write_weights(one)
    assert path.read_bytes() == content


def test_no_test_image_or_label_is_read(one, monkeypatch):
    class Untouchable:
        def look(self, *_):
            raise AssertionError("a test image or label was looked at")

        __getattr__ = __getitem__ = __len__ = __iter__ = __array__ = look

    arrays = DATASETS["digits"].load(Data("digits"))
    poisoned = {**arrays, "test_images": Untouchable(), "test_labels": Untouchable()}
    monkeypatch.setitem(DATASETS, "digits", replace(DATASETS["digits"], load=lambda settings: poisoned))
    frame = tune(one, one.pairs[0], "at")
    assert frame["accuracy"].notna().all()
    with pytest.raises(AssertionError, match="looked at"):
        load_splits(one.student_data, torch.device("cpu"))


def test_a_weight_at_which_students_fail_is_not_taken(trained):
    seldom = checked(replace(trained, tuning=replace(TUNING, seeds=(100,))))
    frame = tune(seldom, seldom.pairs[0], "sp")
    assert set(frame[frame["weight"] == 1e30]["status"]) == {"failed"}
    assert hint_weight(seldom, seldom.pairs[0], "sp") < 1e30
    hopeless = checked(replace(seldom, tuning=replace(seldom.tuning, methods={"sp": (1e30, 1e32)})))
    message = r"every student of sp on resnet14-resnet8x0.25 has failed, at weights .*1e\+30.*; give"
    with pytest.raises(SettingsError, match=message):
        tune(hopeless, hopeless.pairs[0], "sp")


# ---- the file, and who takes the weights


def test_the_file_holds_the_choice_and_the_search_behind_it(one):
    frame = tune(one, one.pairs[0], "at")
    content = json.loads(StudyPaths("smoke").tuned_weights.read_text())
    assert content.keys() == {"resnet14-resnet8x0.25", "sha256"}
    found = content["resnet14-resnet8x0.25"]["at"]
    scores = frame.groupby("weight")["accuracy"].mean()
    assert found["weight"] == min(scores[scores == scores.max()].index)
    assert found["literature"] == 1000
    assert [row["accuracy"] for row in found["curve"]] == frame["accuracy"].tolist()
    assert found["curve"][0].keys() == {"weight", "arm", "seed", "accuracy", "gradient_ratio", "status"}
    assert found["settings"]["data"]["held_out"] == 100
    assert found["settings"]["tuning"]["arms"] == ["stage-ends", "segment-middles"]


def test_the_search_is_a_step_before_the_students_that_need_it(trained):
    pair = trained.pairs[0]
    steps = {step.name: step for step in make_plan(trained, "smoke")}
    name = "11_tuning-resnet14-resnet8x0.25-at"
    assert steps[name].needs == ("01_teacher_and_layers-resnet14",)
    assert (steps[name].runs, steps[name].trains) == ((0, None), True)
    grid = "03_distillation-resnet14-resnet8x0.25-{}".format
    assert name in steps[grid("at")].needs
    others = (grid("fitnet"), "12_without_hints-resnet14-resnet8x0.25")
    assert not any("11_tuning" in need for other in others for need in steps[other].needs)
    assert steps[grid("at")].runs == (0, None)
    assert grid_cells(trained, pair, "at")[0].runs is None
    assert steps[grid("fitnet")].runs[1] is not None
    seconds = estimate.estimate(trained, list(steps.values()), cores=1).steps
    assert seconds[name] > estimate.NOTEBOOK_SECONDS
    tune(trained, pair, "at")
    after = {step.name: step for step in make_plan(trained, "smoke")}
    # Keys stay, so that what was done in one run is still done after it.
    assert {step.name: step.key for step in after.values()} == {
        step.name: step.key for step in steps.values()
    }
    assert after[grid("at")].runs[1] is not None
    assert after[name].runs[0] == after[name].runs[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seeds": [0, 100]},
            r"seeds of the tuning are \[0, 100\], but the comparison has 0 too; give others",
        ),
        (
            {"seeds": [-1]},
            r"tuning.seeds\[0\] is -1; it should be greater than or equal to 0",
        ),
        ({"seeds": []}, r"tuning.seeds is \[\]; it should be a list or mapping of at least one"),
        ({"seeds": [100, 100]}, "tuning.seeds: it names 100 more than once"),
        ({"methods": {}}, r"tuning.methods is {}; it should be a list or mapping of at least one"),
        (
            {"methods": {"at": []}},
            r"tuning.methods.at is \[\]; it should be a list or mapping of at least one",
        ),
        ({"methods": {"at": [0, 1]}}, r"tuning.methods.at\[0\] is 0; it should be greater than 0"),
        ({"methods": {"at": [1, 1]}}, "tuning.methods.at: it names 1.0 more than once"),
        ({"methods": {"kd": [1]}}, "unknown method with hints of this profile 'kd'; valid: at, fitnet"),
        ({"methods": {"sp": [1]}}, "unknown method with hints of this profile 'sp'"),
        ({"arms": ["none"]}, "the tuning has the arm none, to which no weight applies; leave it out"),
        ({"arms": ["stage-end"]}, "unknown arm 'stage-end'"),
        ({"arms": ["stage-ends", "stage-ends"]}, "tuning.arms: it names stage-ends more than once"),
        ({"held_out": 0}, "tuning.held_out is 0; it should be greater than 0"),
        (
            {"held_out": 901},
            "digits has 1000 training images, too few for 901 held out beside 100; give fewer",
        ),
        (
            {"pairs": {"resnet14-resnet8x0.25": ["at"]}},
            "unknown pair after the first, which is tuned anyway,",
        ),
        (
            {"pairs": {"resnet14-resnet8x0.5": ["sp"]}},
            "unknown method in pairs of the tuning 'sp'; valid: at",
        ),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_one_line(tmp_path, changes, message):
    content = yaml.safe_load((CONFIG / "smoke.yaml").read_text()) | {"name": "mine"}
    content["tuning"] = {
        "methods": {"at": [1]},
        "arms": ["stage-ends"],
        "seeds": [100],
        "held_out": 100,
    } | changes
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(SettingsError, match=message) as refused:
        load_profile(str(file))
    assert "\n" not in str(refused.value)


def test_tuning_and_the_weights_of_another_exclude_each_other(profile):
    with pytest.raises(SettingsError, match="tuning and weights.tuned_by are both given"):
        replace(profile, weights=Weights(tuned_by="other"))


def test_the_settings_of_a_search_are_read_from_yaml():
    given = {
        "methods": {"at": [1, 10]},
        "arms": ["last"],
        "seeds": [7],
        "held_out": 50,
        "pairs": {"a-b": ["at"]},
    }
    assert build(Tuning, given, "tuning") == Tuning(
        {"at": (1.0, 10.0)}, ("last",), (7,), 50, {"a-b": ("at",)}
    )


def test_the_check_tells_the_ratio_of_real_images_and_a_trained_teacher_only(profile, monkeypatch):
    stated = replace(profile, tuning=None, weights=Weights(hint={"at": 1.0, "fitnet": 1e6, "sp": 1.0}))
    assert list(weigh(stated)) == []
    training.train_teacher(stated.teacher_settings("resnet14"))
    (found,) = weigh(stated)
    assert found.what == "weights of resnet14 → resnet8x0.25"
    assert found.state == "note"
    assert "at weight 1e+06" in found.detail
    assert "outside 0.01 to 10 choose the weight by training: a section tuning in the profile" in found.detail
    assert re.search(r"AT [\d.e+-]+ at weight 1, FitNet [\d.e+]+ at weight 1e\+06, SP ", found.detail)
    heavy, light = (
        float(
            next(weigh(replace(stated, weights=Weights(hint={"at": w, "fitnet": 1.0, "sp": 1.0}))))
            .detail.split("AT ")[1]
            .split()[0]
        )
        for w in (100.0, 1.0)
    )
    assert heavy == pytest.approx(100 * light, rel=0.1)
    # An independent one: the hint's gradient and the task's, one after the other.
    teacher = training.FrozenTeacher(
        training.load_teacher(stated.teacher_settings("resnet14")), ("layer1.0", "layer2.0", "layer3.0")
    )
    cell = cell_settings(stated, stated.pairs[0], "at", 0, {})
    run = cell.run(Arm("middles", ("layer1.0", "layer2.0", "layer3.0")))
    images = load_splits(stated.student_data, torch.device("cpu")).train
    batch = next(images.train_batches(stated.student.batch_size, 0, 0))
    norms = []
    for names in (("hint",), ("ce", "kd")):
        objective = training.build_objective(run, teacher.model).train()
        parts = objective(*batch, teacher(batch.images))
        sum(parts[name] for name in names).backward()
        norms.append(
            np.sqrt(
                sum(float((p.grad**2).sum()) for p in objective.network.parameters() if p.grad is not None)
            )
        )
    assert light == pytest.approx(norms[0] / norms[1], rel=0.05)
    monkeypatch.setitem(DATASETS, "digits", replace(DATASETS["digits"], locate=_not_there))
    assert list(weigh(stated)) == []


def _not_there(settings):
    raise NotDownloaded("it is not there")


def test_the_figure_has_accuracy_and_ratio_of_every_set_and_marks_both_weights():
    rows = []
    for arm, seed, top in (("stage-ends", 0, 46), ("stage-ends", 1, 47), ("last", 0, 45), ("last", 1, 46)):
        rows += [(1, arm, seed, 40, 0.1), (10, arm, seed, top, 1.0), (100, arm, seed, 41, 9.0)]
    frame = pd.DataFrame(rows, columns=["weight", "arm", "seed", "accuracy", "gradient_ratio"])
    above, below = plots.tuning_curve(frame, 10, 1000).axes
    lines = {line.get_label(): line for line in above.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["stage ends", "last"]
    assert lines["stage ends"].get_ydata().tolist() == [40, 46.5, 41]
    assert {tuple(set(line.get_xdata())) for line in below.lines} >= {(10,), (1000,)}
    assert (above.get_xscale(), below.get_yscale()) == ("log", "log")
