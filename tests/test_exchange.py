"""The deepest hint layer exchanged: shares against a factorial design, what is trained for them, the step,
and notebook 10.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

from pursuhint_lib.paths import CONFIG, NOTEBOOKS, ROOT, StudyPaths
from pursuhint_lib.settings import Exchange, Pair, SettingsError
from pursuhint_lib.study.engine import estimate
from pursuhint_lib.study.engine.plan import make_plan
from pursuhint_lib.study.experiments.deepest_layer import (
    INTERACTION,
    SHARES,
    exchange_frame,
    exchanges,
)
from pursuhint_lib.study.grid.arms import exchange_arms
from pursuhint_lib.study.grid.cells import run_cell
from pursuhint_lib.study.grid.hint_layers import hint_choices, layer_similarity
from pursuhint_lib.study.grid.profiles import checked, load_profile, network_points
from pursuhint_lib.training import train_teacher

CHANGES = {
    "arms": ("none", "stage-ends", "pursuhint-r2"),
    "metrics": ("r2",),
    "methods": ("ce", "kd", "at", "fitnet"),
}


@pytest.fixture
def profile():
    changes = CHANGES | {"exchange": Exchange("r2", ("at",)), "example_pair": None, "tuning": None}
    return checked(replace(load_profile("smoke"), **changes))


@pytest.fixture
def trained(profile):
    train_teacher(profile.teacher_settings("resnet14"))
    layer_similarity(profile, "resnet14")
    return profile


def planned(profile):
    """The step of the exchange."""
    return next(step for step in make_plan(profile, "smoke") if step.name == "10_deepest_point")


@pytest.mark.parametrize("weighted", [True, False])
def test_shares_and_interaction_are_the_effects_of_a_factorial_design(weighted):
    generator, rows, truth = np.random.default_rng(0), [], []
    by = ["pair", "method", *(["weight"] if weighted else [])]
    for seed, (deep, others, both) in enumerate(generator.normal(size=(3, 3))):
        truth.append((2 * deep, 2 * others, 4 * both))
        signs = ((1, 1), (1, -1), (-1, 1), (-1, -1))
        for arm, (x, y) in zip(exchange_arms("r2"), signs, strict=True):
            found = {"pair": "p", "method": "at", "weight": 10.0, "seed": seed, "arm": arm, "points": arm}
            rows.append(found | {"accuracy": 40 + deep * x + others * y + both * x * y})
    frame = pd.DataFrame(rows)
    found = exchanges(frame, by).set_index("points")["mean"]
    expected = dict(zip((*SHARES, INTERACTION), np.mean(truth, axis=0), strict=True))
    assert found.to_dict() == pytest.approx(expected)
    means = frame.groupby("arm")["accuracy"].mean()
    assert found[list(SHARES)].sum() == pytest.approx(means["stage-ends"] - means["pursuhint-r2"])


def test_without_all_four_sets_there_are_no_shares():
    rows = [
        {"pair": "p", "method": "at", "seed": 0, "arm": arm, "points": arm, "accuracy": 40.0}
        for arm in ("stage-ends", "deepened-r2", "pursuhint-r2")
    ]
    assert exchanges(pd.DataFrame(rows)).empty
    assert exchanges(pd.DataFrame(rows[:1])).empty


def test_only_the_mixed_sets_are_trained_beyond_the_grid_and_its_files_stay(trained):
    run_cell(trained, trained.pairs[0], "at")
    hint_choices(trained, "resnet14", 3)
    paths = StudyPaths("smoke")
    hints = paths.hint_points("resnet14", 3).read_bytes()
    before = {path.name for path in paths.records.iterdir()}
    # Two arms and two seeds are missing.
    found, wanted = planned(trained).runs
    frame = exchange_frame(trained)
    assert planned(trained).runs == (wanted, wanted)
    assert len({path.name for path in paths.records.iterdir()} - before) == wanted - found <= 4
    assert paths.hint_points("resnet14", 3).read_bytes() == hints
    assert set(frame["method"]) == {"at"}
    assert frame.groupby("arm")["seed"].nunique().eq(2).all()
    assert frame["arm"].nunique() == 4
    # The deepest point is one set's, and the others are the other's.
    layers = {row.arm: row.points.split() for row in frame.itertuples()}
    assert layers["stage-ends"] == list(network_points("resnet14", trained.data).ends)
    assert layers["deepened-r2"] == [*layers["pursuhint-r2"][:-1], layers["stage-ends"][-1]]
    assert layers["shallowed-r2"] == [*layers["stage-ends"][:-1], layers["pursuhint-r2"][-1]]


def test_all_methods_with_hints_take_part_unless_some_are_named(trained):
    one, all_of_them = (
        planned(changed).runs[1] for changed in (trained, replace(trained, exchange=Exchange("r2")))
    )
    assert all_of_them == 2 * one


def test_an_exchange_is_a_step_of_its_own_that_others_do_not_hang_by(profile):
    steps = {step.name: step for step in make_plan(profile, "smoke")}
    assert steps["10_deepest_point"].needs == ("05_results",)
    assert (steps["10_deepest_point"].runs, steps["10_deepest_point"].trains) == ((0, None), True)
    other = replace(profile, exchange=Exchange("r2", ("fitnet",)))
    assert {step.name for step in make_plan(other, "smoke") if steps[step.name].key != step.key} == {
        "10_deepest_point"
    }
    without = {step.name: step.key for step in make_plan(replace(profile, exchange=None), "smoke")}
    assert without == {name: step.key for name, step in steps.items() if name != "10_deepest_point"}


def test_the_time_of_an_exchange_is_that_of_its_two_more_arms(profile):
    steps = make_plan(profile, "smoke")
    seconds = estimate.estimate(profile, steps, cores=1).steps
    grid = sum(value for name, value in seconds.items() if name.endswith("-at"))
    drawn = estimate.NOTEBOOK_SECONDS
    assert drawn < seconds["10_deepest_point"] <= grid + drawn


def test_reading_is_that_of_the_students_two_of_whom_share_it(profile, monkeypatch):
    monkeypatch.setattr(estimate, "available_cores", lambda: 1)
    monkeypatch.setattr(estimate, "_reading_seconds", lambda _: 1.0)
    steps = make_plan(profile, "smoke")
    seconds = estimate.estimate(profile, steps, cores=1).steps["10_deepest_point"]
    # 2 seeds × 2 epochs × 100 images, and the test images at the end.
    assert seconds - estimate.NOTEBOOK_SECONDS == 2 * (
        2 * 100 + profile.student.epochs / profile.student.evaluate_every * 100
    )
    for method in ("ce", "kd", "at"):
        run_cell(profile, profile.pairs[0], method)
    exchange_frame(profile)
    seconds = estimate.estimate(profile, make_plan(profile, "smoke"), cores=1).steps
    assert seconds["10_deepest_point"] == estimate.NOTEBOOK_SECONDS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exchange": Exchange("cka-rbf")}, "unknown metric of the exchange 'cka-rbf'; valid: r2"),
        (
            {"exchange": Exchange("r2", ("kd",))},
            "unknown method with hints of this profile 'kd'; valid: at, fitnet",
        ),
        ({"methods": ("ce", "kd")}, "there is an exchange of hint layers, but none of the methods has hints"),
        (
            {
                "arms": ("none", "last"),
                "pairs": (Pair("resnet14", "resnet8", ("conv1", "layer1", "layer2", "layer3"), 4),),
            },
            "the arm stage-ends has 3 hint layers .*but k is 4",
        ),
    ],
)
def test_an_exchange_of_what_the_profile_does_not_have_is_refused(profile, changes, message):
    with pytest.raises(SettingsError, match=message):
        checked(replace(profile, **changes))


def test_a_method_is_named_once():
    with pytest.raises(SettingsError, match="methods: it names at more than once"):
        Exchange("r2", ("at", "at"))


def test_notebook_10_trains_the_mixed_sets_and_answers(trained, tmp_path):
    file, drawn = tmp_path / "mine.yaml", tmp_path / "drawn.ipynb"
    content = yaml.safe_load((CONFIG / "smoke.yaml").read_text()) | {
        name: list(values) for name, values in CHANGES.items()
    }
    file.write_text(
        yaml.safe_dump(
            content | {"name": "mine", "tuning": None, "exchange": {"metric": "r2", "methods": ["at"]}}
        )
    )
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(NOTEBOOKS / "10_deepest_point.ipynb"),
        str(drawn),
        "-k",
        "python3",
        "--no-progress-bar",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "-p", "profile", str(file)], cwd=NOTEBOOKS, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tables, shares = StudyPaths("mine").tables, exchanges(exchange_frame(trained))
    mixed = shares["points"] == INTERACTION
    tabled = {"shares": shares[~mixed], "interaction": shares[mixed]}
    for name, rows in tabled.items():
        drawn_means = pd.read_csv(tables / f"10_deepest_point-{name}.csv")["mean"]
        np.testing.assert_allclose(drawn_means, rows["mean"], rtol=1e-5, atol=1e-9)
    assert set(pd.read_csv(tables / "10_deepest_point-layers.csv")["arm"]) == {
        "stage-ends",
        "deepened-r2",
        "shallowed-r2",
        "pursuhint-r2",
    }
    assert (StudyPaths("mine").figures / "10_deepest_point-shares.svg").is_file()
    told = "".join(
        text
        for cell in json.loads(drawn.read_text())["cells"]
        for output in cell.get("outputs", [])
        for text in output.get("text", [])
    )
    assert "Beyond chance: " in told
