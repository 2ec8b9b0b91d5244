"""Teachers as a sample: means over teachers against scipy, what is left out, and notebook 14."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from scipy import stats

from pursuhint_lib import statistics
from pursuhint_lib.paths import NOTEBOOKS, StudyPaths
from pursuhint_lib.statistics import over_teachers
from pursuhint_lib.study.experiments.distillation import sample_executions
from pursuhint_lib.study.grid import cells
from pursuhint_lib.study.grid.profiles import load_profile, network_points

# What PURSUhInT's layers give over the stage ends of each teacher, pp.
TRUTH = {"fitnet": -1.0, "at": 2.0}


@pytest.fixture(scope="module")
def profile():
    return load_profile("cifar100-teachers")


def results(profile, between: float = 0.5, noise: float = 0.3) -> pd.DataFrame:
    """Runs of a grid: an effect by method, that differs between teachers, and noise of training."""
    generator, rows = np.random.default_rng(7), []
    for pair in profile.pairs:
        points = network_points(pair.teacher, profile.data)
        taken = {"none": "", "stage-ends": " ".join(points.ends)}
        taken |= {arm: " ".join(points.candidates[:3]) for arm in profile.arms if arm not in taken}
        for method, truth in TRUTH.items():
            effect = truth + between * generator.normal()
            for arm, names in taken.items():
                mean = {"none": 40.0, "stage-ends": 45.0}.get(arm, 45.0 + effect)
                rows += [
                    (pair.name, method, arm, seed, names, mean + noise * generator.normal(), f"x_{len(rows)}")
                    for seed in profile.seeds
                ]
    frame = pd.DataFrame(rows, columns=["pair", "method", "arm", "seed", "points", "accuracy", "record"])
    # Arms with the same layers are the same runs.
    return frame.assign(
        accuracy=frame.groupby(["pair", "method", "seed", "points"])["accuracy"].transform("first")
    )


@pytest.fixture(scope="module")
def frame(profile):
    return results(profile)


def test_a_student_of_several_teachers_has_a_notebook(profile):
    assert sample_executions(profile) == [{"student": "resnet8"}]
    assert len(profile.pairs) == 8
    assert sample_executions(load_profile("cifar100-lite")) == []
    # Without the paper's layers, or without hints, there is nothing to compare.
    assert sample_executions(replace(profile, arms=("none", "stage-ends"))) == []
    assert sample_executions(replace(profile, methods=("ce", "kd"))) == []


def test_teachers_without_any_difference_are_refused(frame):
    plain = frame[~frame["arm"].str.startswith("pursuhint-")]
    with pytest.raises(ValueError, match="no teacher has a difference to learn from; compare other arms"):
        over_teachers(statistics.compared(plain))


def test_the_mean_over_teachers_is_a_t_test_of_their_differences(frame):
    effects = statistics.compared(frame)
    sample = over_teachers(effects).set_index(["minus", "method"])
    means = frame.groupby(["pair", "method", "arm"])["accuracy"].mean().unstack()
    for method in TRUTH:
        for minus, arm in (("the stage ends", "stage-ends"), ("no hints", "none")):
            differences = (means["pursuhint-cka-linear"] - means[arm]).xs(method, level="method")
            test = stats.ttest_1samp(differences, 0)
            row, interval = sample.loc[(minus, method)], test.confidence_interval(0.95)
            assert [row["mean"], row["low"], row["high"], row["p"]] == pytest.approx(
                [differences.mean(), *interval, test.pvalue]
            )
            positive = int((differences > 0).sum())
            assert (row["n"], row["positive"]) == (8, positive)
            assert row["p_sign"] == pytest.approx(
                min(1.0, 2 * stats.binom.cdf(min(positive, 8 - positive), 8, 0.5))
            )
    ends = sample.loc["the stage ends"]
    assert list(ends["p_holm"]) == pytest.approx(list(statistics.holm(ends["p"])))
    assert list(ends["word"]) == [statistics.WORSE, statistics.BETTER]
    # Where both take the same layers of every teacher there is nothing to tell.
    assert "the middles of equal segments" not in sample.index


def test_the_spread_between_teachers_is_without_the_noise_of_training(profile):
    found = [
        over_teachers(statistics.compared(results(profile, between, noise=1.0)))["spread"].max()
        for between in (0.0, 4.0)
    ]
    # Two seeds leave noise of 1 pp in a difference.
    assert found[0] < 1.0
    assert found[1] > 2.0


def test_a_teacher_of_which_both_take_the_same_layers_is_left_out(frame):
    points = frame[(frame["pair"] == "vgg8-resnet8") & (frame["arm"] == "stage-ends")]["points"].iloc[0]
    same = (frame["pair"] == "vgg8-resnet8") & frame["arm"].str.startswith("pursuhint-")
    sample = over_teachers(statistics.compared(frame.assign(points=frame["points"].mask(same, points))))
    assert list(sample.loc[sample["minus"] == "the stage ends", "n"]) == [7, 7]


def test_one_teacher_tells_nothing_of_others(frame):
    (row, _) = (
        over_teachers(statistics.compared(frame[frame["pair"] == "vgg8-resnet8"]))
        .query("minus == 'the stage ends'")
        .itertuples()
    )
    assert (row.low, row.high, row.word) == (-np.inf, np.inf, statistics.UNKNOWN)


def test_notebook_14_draws_and_answers(frame, tmp_path, monkeypatch, capsys):
    for folder in ("results", "work"):
        monkeypatch.setenv(f"PURSUHINT_{folder.upper()}", str(tmp_path / folder))
    monkeypatch.setattr(cells, "results_frame", lambda profile: frame)
    notebook = json.loads((NOTEBOOKS / "14_teachers.ipynb").read_text(encoding="utf-8"))
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    pyplot.close("all")
    told = capsys.readouterr().out
    assert "resnet8 learns from 8 teachers" in told
    assert told.count(": worse") == told.count(": better") - 2 == 1
    by_hand = [line for line in told.splitlines() if "by hand" in line]
    assert all(line.split(": ")[1].split(" by")[0] in line.split("above")[1] for line in by_hand)
    paths = StudyPaths("cifar100-teachers")
    assert {file.name for file in paths.figures.glob("*.png")} == {
        "14_teachers-resnet8-stage-ends.png",
        "14_teachers-resnet8-none.png",
    }
    numbers = json.loads(paths.numbers("14_teachers-resnet8").read_text())
    assert numbers["fitnet-stage-ends-word"]["text"] == "worse"
    assert numbers["at-stage-ends-sign"]["text"].startswith("8 of 8 teachers")
