"""Parts of the grid: the weight of the hint loss varied, a part of the images for students, pairs and methods
that take part in less.
"""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import yaml
from grid_runs import runs_of

from pursuhint_lib import plots, records, statistics
from pursuhint_lib.data import load_splits
from pursuhint_lib.paths import CONFIG, NOTEBOOKS, ROOT, StudyPaths
from pursuhint_lib.settings import Data, Pair, SettingsError, Sweep
from pursuhint_lib.study.engine.plan import make_plan
from pursuhint_lib.study.experiments.deepest_layer import INTERACTION, exchanges
from pursuhint_lib.study.experiments.tuning import by_weight, sweep_cells, sweep_frame
from pursuhint_lib.study.grid.cells import cell_settings, methods_of, results_frame, run_cell
from pursuhint_lib.study.grid.hint_layers import hint_choices, layer_similarity
from pursuhint_lib.study.grid.profiles import checked, load_profile, network_points
from pursuhint_lib.training import train_teacher

CELL = ["pair", "method", "weight"]
SWEEP = Sweep("at", (10.0, 100_000.0), ("stage-ends", "last"), 2)


@pytest.fixture
def profile():
    smoke = load_profile("smoke")
    return checked(
        replace(
            smoke,
            arms=("none", "stage-ends", "last"),
            metrics=("r2",),
            methods=("ce", "kd", "at"),
            sweeps=(SWEEP,),
            example_pair=None,
        )
    )


@pytest.fixture
def trained(profile):
    train_teacher(profile.teacher_settings("resnet14"))
    layer_similarity(profile, "resnet14")
    return profile


def planned(profile):
    """The step of the sweep."""
    return next(step for step in make_plan(profile, "smoke") if step.notebook == "09_hint_weight")


def test_a_sweep_differs_from_the_grid_in_the_weight_alone_and_shares_its_runs(trained):
    pair = trained.pairs[0]
    grid = {records.record_name(run): run for run in runs_of(trained, pair, "at").values()}
    cells = list(sweep_cells(trained, "at"))
    # Weight 0 stands there once for each of the two arms.
    assert [cell.labels["weight"] for cell in cells] == [0.0, 0.0, 10.0, 1000.0, 100_000.0] * 2
    # The grid's own weight and no hints are runs of the grid.
    shared = {
        records.record_name(run)
        for cell in cells
        if cell.labels["weight"] in (0.0, 1000.0)
        for _, run in cell.runs
    }
    assert shared == set(grid)
    [like] = [cell.settings for cell in cells if (cell.labels["weight"], cell.seed) == (1000.0, 1)]
    for cell in cells:
        if cell.seed == 1 and cell.labels["weight"]:
            assert cell.settings.hint_weight == cell.labels["weight"]
            assert replace(cell.settings, hint_weight=1000.0) == like
    assert planned(trained).runs == (0, 2 + 2 * 3 * 2)


def test_a_sweep_trains_what_is_missing_and_its_gains_are_paired(trained):
    run_cell(trained, trained.pairs[0], "at")
    before = {path.name for path in StudyPaths("smoke").records.iterdir()}
    frame = sweep_frame(trained, "at")
    assert planned(trained).runs == (14, 14)
    assert len({path.name for path in StudyPaths("smoke").records.iterdir()} - before) == 8
    assert frame.groupby(["weight", "arm"]).size().eq(2).all()
    assert set(frame["weight"]) == {0.0, 10.0, 1000.0, 100_000.0}
    # Weight 0 is the same run for both arms.
    assert frame[frame["weight"] == 0].groupby("seed")["record"].nunique().eq(1).all()
    gained = statistics.against(by_weight(frame), "none", CELL)
    assert set(gained["weight"]) == {10.0, 1000.0, 100_000.0}
    plain = frame[frame["weight"] == 0].drop_duplicates("seed")["accuracy"].mean()
    for row in gained.itertuples():
        mine = frame[(frame["weight"] == row.weight) & (frame["arm"] == row.arm)]["accuracy"].mean()
        assert row.mean == pytest.approx(mine - plain)
    grid = results_frame(trained).query("method == 'at'").set_index(["arm", "seed"])["accuracy"]
    for row in frame[frame["weight"] == 1000.0].itertuples():
        assert row.accuracy == grid[row.arm, row.seed]


def test_a_sweep_is_a_step_of_its_own_that_others_do_not_hang_by(profile):
    steps = {step.name: step for step in make_plan(profile, "smoke")}
    assert steps["09_hint_weight-at"].needs == ("05_results",)
    assert steps["09_hint_weight-at"].runs == (0, None)
    other = replace(profile, sweeps=(replace(SWEEP, weights=(3.0,)),))
    changed = {step.name for step in make_plan(other, "smoke") if steps[step.name].key != step.key}
    assert changed == {"09_hint_weight-at"}
    assert "09_hint_weight-at" not in {step.name for step in make_plan(replace(profile, sweeps=()), "smoke")}


def test_every_sweep_is_a_step_and_another_leaves_it_as_it_is(profile):
    both = checked(
        replace(profile, methods=(*profile.methods, "sp"), sweeps=(SWEEP, replace(SWEEP, method="sp")))
    )
    more = {step.name: step.key for step in make_plan(both, "smoke")}
    assert [name for name in more if name.startswith("09")] == ["09_hint_weight-at", "09_hint_weight-sp"]
    assert more["09_hint_weight-sp"] != more["09_hint_weight-at"]
    assert both.sweep("sp").method == "sp"
    # New methods change the grid of 05, which 09 belongs to; a new sweep of a method that was there changes
    # nothing.
    alone = checked(replace(both, sweeps=(SWEEP,)))
    assert {step.name: step.key for step in make_plan(alone, "smoke")} == {
        name: more[name] for name in more if name != "09_hint_weight-sp"
    }
    with pytest.raises(SettingsError, match="unknown method with a sweep 'kd'; valid: at"):
        profile.sweep("kd")


def test_notebook_09_draws_a_sweep_and_answers(trained, tmp_path):
    file, drawn = tmp_path / "mine.yaml", tmp_path / "drawn.ipynb"
    content = yaml.safe_load((CONFIG / "smoke.yaml").read_text()) | {
        "name": "mine",
        "arms": list(trained.arms),
        "metrics": ["r2"],
        "methods": list(trained.methods),
    }
    content["tuning"] = None
    sweep = replace(SWEEP, arms=("stage-ends", "pursuhint-r2", "deepened-r2", "shallowed-r2"))
    file.write_text(yaml.safe_dump(content | {"sweeps": [json.loads(json.dumps(asdict(sweep)))]}))
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(NOTEBOOKS / "09_hint_weight.ipynb"),
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
    tables = StudyPaths("mine").tables
    frame = sweep_frame(checked(replace(trained, sweeps=(sweep,))), "at")
    shares = exchanges(by_weight(frame), CELL)
    tabled = {
        "gains": statistics.against(by_weight(frame), "none", CELL),
        "exchanged": shares[shares["points"] != INTERACTION],
    }
    for name, effects in tabled.items():
        np.testing.assert_allclose(
            pd.read_csv(tables / f"09_hint_weight-at-{name}.csv")["mean"],
            effects["mean"],
            rtol=1e-5,
            atol=1e-9,
        )
        assert (StudyPaths("mine").figures / f"09_hint_weight-at-{name}.svg").is_file()
    assert set(pd.read_csv(tables / "09_hint_weight-at-layers.csv")["arm"]) == set(sweep.arms)
    told = "".join(
        text
        for cell in json.loads(drawn.read_text())["cells"]
        for output in cell.get("outputs", [])
        for text in output.get("text", [])
    )
    assert "At the weight of the grid (1000), by" in told


def test_a_sweep_takes_arms_that_the_grid_does_not_have(trained):
    mixed = checked(
        replace(
            trained,
            sweeps=(
                replace(
                    SWEEP, weights=(10.0,), arms=("stage-ends", "pursuhint-r2", "deepened-r2", "shallowed-r2")
                ),
            ),
        )
    )
    assert planned(mixed).runs[0] == 0
    frame = sweep_frame(mixed, "at")
    ends, paper, deepened, shallowed = (
        frame[(frame["arm"] == arm) & (frame["weight"] == 10)] for arm in mixed.sweeps[0].arms
    )
    names = network_points("resnet14", mixed.data)
    choice = hint_choices(replace(mixed, arms=("pursuhint-r2",)), "resnet14", 3)["pursuhint-r2"].indices
    paper_names = [names.candidates[i] for i in choice]
    assert set(paper["points"]) == {" ".join(paper_names)}
    assert set(deepened["points"]) == {" ".join([*paper_names[:-1], names.ends[-1]])}
    assert set(shallowed["points"]) == {" ".join([*names.ends[:-1], paper_names[-1]])}
    assert set(ends["points"]) == {" ".join(names.ends)}
    told = exchanges(by_weight(frame), CELL)
    assert set(told["weight"]) == {10.0, 1000.0}
    assert told["n"].eq(2).all()


def test_a_sweep_figure_has_a_line_per_arm_through_its_means_and_marks_the_usual_weight():
    rows = [
        (weight, arm, mean)
        for arm, gain in (("stage-ends", 0.5), ("random-1", 0.1))
        for weight, mean in ((1, 0.0), (10, gain), (1000, -gain))
    ]
    swept = pd.DataFrame(rows, columns=["weight", "arm", "mean"]).assign(
        low=lambda t: t["mean"] - 1, high=lambda t: t["mean"] + 1
    )
    axis = plots.weight_sweep(swept, 10).axes[0]
    lines = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"stage ends", "random 1"}
    assert lines["stage ends"].get_ydata().tolist() == [0.0, 0.5, -0.5]
    assert [round(float(np.log10(x))) for x in lines["stage ends"].get_xdata()] == [0, 1, 3]
    assert any(set(line.get_xdata()) == {10} for line in axis.lines)
    assert axis.get_xscale() == "log"
    assert axis.get_yticks().tolist() == [-1, 0, 1]
    assert axis.get_ylabel() == "pp over no hints"
    wide = plots.weight_sweep(swept.assign(low=lambda t: t["mean"] - 25), 10).axes[0]
    # Where the scale changes is shaded, and said.
    assert wide.get_ylabel() == "pp over no hints\n(grey: logarithmic)"
    (shaded,) = wide.patches
    assert shaded.get_y() + shaded.get_height() == -5
    assert wide.get_yticks().tolist()[:5] == [-20, -10, -5, -4, -3]


# ---- parts of the grid


def test_students_learn_a_part_of_the_images_with_as_many_of_each_class_and_teachers_all(profile):
    small = checked(replace(profile, student_images=60))
    assert small.teacher_settings("resnet14") == profile.teacher_settings("resnet14")
    cell = cell_settings(small, small.pairs[0], "kd", 0, {})
    assert cell.teacher.data.train_images == 100
    assert cell.data == Data("digits", train_images=60, test_images=100)
    assert load_splits(cell.data, "cpu").train.labels.bincount().tolist() == [6] * 10
    assert len(load_splits(cell.data, "cpu").test) == 100


def test_pairs_and_methods_can_take_part_in_less(profile):
    pairs = (*profile.pairs, Pair("resnet14", "resnet8x0.5", methods=("at",), seeds=2))
    seeds = (0, 1, 2)
    some = checked(
        replace(profile, methods=("ce", "kd", "at", "sp"), pairs=pairs, seeds=seeds, fewer_seeds={"sp": 2})
    )
    assert methods_of(some, some.pairs[0]) == ["ce", "kd", "at", "sp"]
    assert methods_of(some, some.pairs[1]) == ["ce", "kd", "at"]
    names = [step.name for step in make_plan(some, "smoke")]
    assert "03_distillation-resnet14-resnet8x0.25-sp" in names
    assert "03_distillation-resnet14-resnet8x0.5-at" in names
    assert "03_distillation-resnet14-resnet8x0.5-sp" not in names
    train_teacher(some.teacher_settings("resnet14"))
    layer_similarity(some, "resnet14")
    assert {seed for _, seed in runs_of(some, some.pairs[0], "sp")} == {0, 1}
    assert {seed for _, seed in runs_of(some, some.pairs[0], "at")} == {0, 1, 2}
    assert {seed for _, seed in runs_of(some, some.pairs[1], "at")} == {0, 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_images": 100}, "student_images is 100, but the teachers have 100; give fewer"),
        ({"student_images": 0}, "student_images"),
        ({"fewer_seeds": {"kd": 1}}, "unknown method with hints of this profile 'kd'; valid: at"),
        ({"fewer_seeds": {"at": 2}}, "fewer_seeds of at is 2, but the profile has 2; give 1 to 1"),
        ({"sweeps": (replace(SWEEP, seeds=3),)}, "seeds of the sweep of at is 3, but the profile has 2"),
        ({"sweeps": (SWEEP, replace(SWEEP, seeds=1))}, "sweeps names at more than once; leave it there once"),
        (
            {"sweeps": (replace(SWEEP, method="kd"),)},
            "unknown method with one weight of this profile 'kd'; valid: at",
        ),
        (
            {"sweeps": (replace(SWEEP, arms=("none",)),)},
            "the sweep of at has the arm none, to which no weight applies; leave it out",
        ),
        (
            {"sweeps": (replace(SWEEP, arms=("stage-end",)),)},
            "unknown arm 'stage-end' \\(did you mean 'stage-ends'\\?\\)",
        ),
        (
            {"sweeps": (replace(SWEEP, arms=("deepened-cka-rbf",)),)},
            "arm deepened-cka-rbf: metric 'cka-rbf' is not computed",
        ),
        (
            {"sweeps": (replace(SWEEP, arms=("random-21",)),)},
            "20 different sets of 3 sub-blocks, so random-21 cannot be drawn",
        ),
        (
            {"pairs": (Pair("resnet14", "resnet8", seeds=3),)},
            "seeds of pair resnet14-resnet8 is 3, but the profile has 2; give 1 to 2",
        ),
        (
            {"pairs": (Pair("resnet14", "resnet8", methods=("fitnet",)),)},
            "unknown method with hints of this profile 'fitnet'",
        ),
    ],
)
def test_a_part_of_what_the_profile_does_not_have_is_refused(profile, changes, message):
    with pytest.raises(SettingsError, match=message):
        checked(replace(profile, **changes))


@pytest.mark.parametrize("weights", [(), (0.0, 1.0), (-1.0,), (math.inf,), (math.nan,), (1.0, 1.0)])
def test_weights_of_a_sweep_are_different_numbers_above_zero(weights):
    with pytest.raises(SettingsError, match=r"Sweep\.weights"):
        replace(SWEEP, weights=weights)
