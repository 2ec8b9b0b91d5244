"""Notebook 15 on made-up results: it tests what the profile names, and nothing else."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot

from pursuhint_lib.paths import NOTEBOOKS, StudyPaths
from pursuhint_lib.study.engine.plan import make_plan
from pursuhint_lib.study.grid import cells
from pursuhint_lib.study.grid.profiles import load_profile

# What arms give over no hints with both methods, pp.
GAINS = {"none": 0.0, "segment-middles": 3.0, "pursuhint-cka-linear": 3.1, "pursuhint-r2": 6.0}


@pytest.fixture(scope="module")
def profile():
    return load_profile("cifar100-two")


@pytest.fixture
def frame(profile):
    generator, rows = np.random.default_rng(3), []
    for method in ("fitnet", "at"):
        for arm, gain in GAINS.items():
            for seed in profile.seeds:
                accuracy = 40.0 + gain + 0.2 * generator.normal()
                rows.append(("resnet56-resnet8", method, arm, seed, arm, accuracy, f"x_{len(rows)}"))
    return pd.DataFrame(rows, columns=["pair", "method", "arm", "seed", "points", "accuracy", "record"])


def test_the_step_is_there_where_something_is_named(profile):
    assert "15_named_before" in {step.name for step in make_plan(profile, "cifar100-two")}
    nothing = replace(profile, contrasts={}, notebooks=())
    assert "15_named_before" not in {step.name for step in make_plan(nothing, "cifar100-two")}


def test_notebook_15_tests_what_is_named_as_one_family(frame, tmp_path, monkeypatch, capsys):
    for folder in ("results", "work"):
        monkeypatch.setenv(f"PURSUHINT_{folder.upper()}", str(tmp_path / folder))
    monkeypatch.setattr(cells, "results_frame", lambda profile: frame)
    notebook = json.loads((NOTEBOOKS / "15_named_before.ipynb").read_text(encoding="utf-8"))
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            exec(source.replace('"cifar100-cpu"', '"cifar100-two"'), names)
    pyplot.close("all")
    assert "Methods: FitNet, AT." in capsys.readouterr().out
    paths = StudyPaths("cifar100-two")
    table = pd.read_csv(paths.tables / "15_named_before-family.csv")
    assert list(table["difference"].str.partition(" − ")[0]) == [
        "PURSUhInT, linear CKA",
        "PURSUhInT, linear CKA",
        "PURSUhInT, R²-CCA",
        "PURSUhInT, R²-CCA",
    ]
    assert list(table["word"]) == ["not known", "not known", "better", "better"]
    means = frame.groupby(["method", "arm"])["accuracy"].mean()
    by_hand = means["at", "pursuhint-r2"] - means["at", "segment-middles"]
    numbers = json.loads(paths.numbers("15_named_before").read_text())
    name = "resnet56-resnet8-at-pursuhint-r2-minus-segment-middles"
    assert numbers[name]["values"][0] == pytest.approx(by_hand, abs=1e-6)
    assert numbers[f"{name}-word"]["text"] == "better"
    assert numbers[f"{name}-p"]["text"] == "p < 0.001"
    assert "resnet56-resnet8-at-minus-fitnet-pursuhint-r2-minus-segment-middles" in numbers
    assert (paths.figures / "15_named_before-family.png").is_file()
