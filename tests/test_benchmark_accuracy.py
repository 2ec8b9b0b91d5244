"""The comparison of accuracies with plain PyTorch at a tiny size: both sides measure the same, and it says
what it found.
"""

import json
from dataclasses import replace

import pytest
import torch
from benchmark import loaded

from pursuhint_lib import training
from pursuhint_lib.data import describe, load_splits
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.study.grid.cells import cell_settings
from pursuhint_lib.study.grid.profiles import load_profile


@pytest.fixture(scope="module")
def benchmark():
    with loaded("accuracy") as module:
        module.WORKERS = 0
        yield module


@pytest.fixture
def profile():
    profile = load_profile("smoke")
    for seed in profile.seeds:
        training.distill(cell_settings(profile, profile.pairs[0], "ce", seed, {}))
    return profile


def test_accuracy_is_what_the_study_measures(benchmark):
    data = load_profile("smoke").data
    test, network = (
        load_splits(data, torch.device("cpu")).test,
        training.seeded_model("resnet14", data, 3).eval(),
    )
    assert benchmark.accuracy(network, test.images, test.labels, describe(data)) == pytest.approx(
        training.evaluate(network, test)["accuracy"]
    )


def test_a_network_learns_plainly_and_each_seed_is_another(benchmark, profile):
    schedule = replace(profile.teacher, epochs=12, milestones=(8,))
    found = [benchmark.train_plainly("resnet14", profile.data, schedule, seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert min(found) > 25, "of ten digits, after a few steps"


def test_both_sides_are_printed_and_written(benchmark, profile, tmp_path, capsys):
    file, student = tmp_path / "result.json", profile.pairs[0].student
    assert benchmark.main(["smoke", student, "--seeds", "2", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    stored = [
        json.loads(path.read_text())["metrics"]["accuracy"]
        for path in sorted(StudyPaths("smoke").records.glob(f"{student}*_ce_*"))
    ]
    assert sorted(result["here"]) == sorted(stored)
    assert len(result["plain"]) == 2
    assert result["difference"] == pytest.approx(sum(stored) / len(stored) - sum(result["plain"]) / 2)
    assert result["low"] < result["difference"] < result["high"]
    assert result["provenance"]["versions"]["torch"]
    assert f"difference {result['difference']:+.2f} pp, 95 % interval" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "resnet8"], "nothing"),
        (["smoke", "resnet99"], "resnet99"),
        (["smoke", "resnet14", "--role", "teacher", "--seeds", "0"], "--seeds"),
        (
            ["smoke", "resnet14", "--role", "teacher"],
            "smoke has no record of resnet14 alone; run ./run_all.sh smoke first",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(benchmark, arguments, message, capsys):
    assert benchmark.main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
