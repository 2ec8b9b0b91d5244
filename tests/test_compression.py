"""Which networks leave the study, what is kept of them, and what happens where weights are gone."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small_exports import small_study

from pursuhint_lib import records
from pursuhint_lib.data import load_splits
from pursuhint_lib.export import measure
from pursuhint_lib.files import sealed, unsealed, write_json
from pursuhint_lib.models import build_model, load_checkpoint, save_weights
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.study.engine.plan import make_plan
from pursuhint_lib.study.experiments import exports as compression
from pursuhint_lib.study.experiments.exports import (
    chosen_networks,
    cost_frame,
    form_frame,
    latency_frame,
    measurement_file,
    measurements,
    times_file,
)
from pursuhint_lib.study.grid.cells import results_frame
from pursuhint_lib.study.grid.profiles import load_profile
from pursuhint_lib.study.publish.export import choose_student
from pursuhint_lib.training import evaluate
from pursuhint_lib.training.runs import RECORDS_ONLY

CPU = torch.device("cpu")
KINDS = {(runtime, batch) for runtime in ("PyTorch", "ONNX Runtime") for batch in (1, 64)}


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory):
    """Where all tests below keep the one study."""
    return tmp_path_factory.mktemp("study")


@pytest.fixture
def profile(study_folder, monkeypatch):
    return small_study(study_folder, monkeypatch)


@pytest.fixture
def own(profile, tmp_path, monkeypatch):
    """A copy of the study, to be spoilt."""
    shutil.copytree(StudyPaths("smoke").results, tmp_path / "results" / "smoke")
    shutil.copytree(StudyPaths("smoke").work, tmp_path / "work" / "smoke")
    monkeypatch.setenv("PURSUHINT_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PURSUHINT_WORK", str(tmp_path / "work"))
    return profile


def accuracies(profile) -> dict[tuple[str, str], dict[int, float]]:
    """(method, arm) → seed → accuracy, from the frame, without what the library makes of it."""
    found: dict = {}
    for row in results_frame(profile).itertuples():
        found.setdefault((row.method, row.arm), {})[row.seed] = row.accuracy
    return found


# ---- choosing


def test_the_best_student_and_the_median_seed_are_chosen(profile):
    teacher, alone, best = chosen_networks(profile, results_frame(profile))
    known = accuracies(profile)
    assert (teacher.row["role"], teacher.row["network"], teacher.run) == (
        "teacher",
        "resnet14",
        profile.teacher_settings("resnet14"),
    )
    distilled = {key: np.mean(list(runs.values())) for key, runs in known.items() if key[1] != "alone"}
    assert distilled[best.row["method"], best.row["arm"]] == max(distilled.values())
    for chosen in (alone, best):
        runs = known[chosen.row["method"], chosen.row["arm"]]
        assert runs[chosen.run.seed] == sorted(runs.values())[1]
        assert records.load("smoke", chosen.run).metrics["accuracy"] == runs[chosen.run.seed]
    assert alone.run.method == "ce"
    assert "this is the one of median accuracy" in best.why
    # kd, at in two arms (its third is kd), and simkd.
    assert "best of 4 by that mean, which flatters" in best.why


def test_of_two_seeds_the_worse_one_is_taken(profile):
    frame = results_frame(profile)
    known = accuracies(profile)["ce", "alone"]
    (alone,) = [
        one
        for one in chosen_networks(profile, frame[frame["seed"] < 2])
        if one.row["role"] == "student alone"
    ]
    assert known[alone.run.seed] == min(known[0], known[1])


def test_failed_runs_are_no_candidates(profile):
    frame = results_frame(profile)
    frame.loc[frame["method"] != "kd", "accuracy"] = float("nan")
    chosen = [one for one in chosen_networks(profile, frame) if one.row["role"] != "teacher"]
    assert [(one.row["method"], one.row["role"]) for one in chosen] == [("kd", "best student")]


# ---- measuring and storing


def test_measurements_are_those_of_the_weights_and_are_kept(profile, monkeypatch):
    found = measurements(profile)
    test = load_splits(profile.data, CPU).test
    for chosen, measured in found:
        model = build_model(chosen.row["network"], 10, 1)
        load_checkpoint(model, StudyPaths("smoke").weights(chosen.name))
        with torch.no_grad():
            logits = torch.cat([model.eval()(images) for images, _ in test.ordered_batches()])
        assert measured.accuracy == pytest.approx(
            100 * float((logits.argmax(1) == test.labels).double().mean())
        )
        assert measured.accuracy == pytest.approx(
            records.load("smoke", chosen.run).metrics["accuracy"], abs=1e-3
        )
        content = unsealed(json.loads(StudyPaths("smoke").measurement(chosen.name).read_text()))
        assert {"onnx", "onnxruntime", "torch"} <= content["provenance"]["versions"].keys()
        assert content["provenance"]["latency_threads"] == 1
        assert content["provenance"]["device_type"] == "cpu"
    written = {file.name: file.read_bytes() for file in StudyPaths("smoke").exports.iterdir()}
    assert len(written) == 4
    for name in ("export", "latencies"):
        monkeypatch.setattr(compression, name, lambda *_: pytest.fail("measured again"))
    assert [measured for _, measured in measurements(profile)] == [measured for _, measured in found]
    assert written == {file.name: file.read_bytes() for file in StudyPaths("smoke").exports.iterdir()}


def test_stored_measurements_need_no_weights_and_count_as_records(own, monkeypatch, tmp_path):
    before = cost_frame(measurements(own))
    shutil.rmtree(tmp_path / "work")
    monkeypatch.setenv(RECORDS_ONLY, "1")
    pd.testing.assert_frame_equal(cost_frame(measurements(own)), before)
    missing = sorted(StudyPaths("smoke").exports.iterdir())[0]
    missing.unlink()
    told = f"{missing.name} is missing, and nothing may be trained or measured in its place here"
    with pytest.raises(SettingsError, match=re.escape(told)):
        measurements(own)


def test_a_damaged_measurement_is_named(own):
    measurements(own)
    chosen = chosen_networks(own, results_frame(own))[2]
    path = StudyPaths("smoke").measurement(chosen.name)
    text = path.read_text()
    content = unsealed(json.loads(text))
    path.write_text(text.replace('"flops": ', '"flops": 1', 1))
    with pytest.raises(
        SettingsError, match=f"{re.escape(path.name)} is damaged .*delete it to make it again"
    ):
        measurement_file(own, chosen).found()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(SettingsError, match=f"{re.escape(path.name)} is damaged"):
        measurement_file(own, chosen).found()
    for key in ("metrics", "measured"):
        write_json(path, sealed({name: value for name, value in content.items() if name != key}))
        with pytest.raises(SettingsError, match=f"{re.escape(path.name)} is damaged .KeyError: '{key}'"):
            measurement_file(own, chosen).found()


def test_a_run_that_was_made_anew_is_measured_anew(own):
    measurements(own)
    chosen = chosen_networks(own, results_frame(own))[1]
    record = records.load("smoke", chosen.run)
    records.save(
        "smoke", replace(record, metrics={**record.metrics, "accuracy": record.metrics["accuracy"] + 1})
    )
    assert measurement_file(own, chosen).found() is None
    records.save("smoke", record)
    assert measurement_file(own, chosen).found() is not None


def test_times_are_measured_in_one_process_in_turns_whichever_network_is_new(own, monkeypatch):
    """Another best student: all networks are timed again, though the others were measured before."""
    measurements(own)
    turns = []
    monkeypatch.setattr(
        compression,
        "latencies",
        lambda runners, image: turns.append([*runners]) or measure.latencies(runners, image),
    )
    worse = [one for one in chosen_networks(own, results_frame(own)) if one.row["role"] != "best student"]
    _, times = times_file(own, worse).get()
    names = [chosen.name for chosen in worse]
    assert turns == [[f"{name} {runtime}" for name in names for runtime in ("PyTorch", "ONNX Runtime")]]
    assert list(times) == names
    assert all({(one.runtime, one.batch) for one in times[name]} == KINDS for name in names)
    # Other networks are no comparison with these.
    assert times_file(own, chosen_networks(own, results_frame(own))).found() is None


# ---- weights that are gone, or others


@pytest.fixture
def unwritten(monkeypatch):
    """Leave out the files of exports; what would have been exported, and how good it is."""
    subjects = []
    monkeypatch.setattr(
        compression,
        "export",
        lambda subject, test, folder: subjects.append((subject, evaluate(subject.network, test)["accuracy"])),
    )
    return subjects


def put_others(profile, chosen) -> None:
    """In place of a student's weights, others of quite another accuracy."""
    path, test = StudyPaths("smoke").weights(chosen.name), load_splits(profile.data, CPU).test
    network = build_model(chosen.row["network"], 10, 1)
    load_checkpoint(network, path)
    for seed in range(100):
        torch.manual_seed(seed)
        torch.nn.init.normal_(network.fc.weight)
        if (
            abs(evaluate(network, test)["accuracy"] - records.load("smoke", chosen.run).metrics["accuracy"])
            > 4
        ):
            break
    save_weights(network, path)


def of_method(profile, method: str):
    """The student of a method that is exported by default."""
    return choose_student(profile, None, method, None, None)


@pytest.mark.parametrize("method", ["ce", "at", "simkd"])
def test_weights_that_are_gone_are_trained_again_to_the_same_bits(own, method, tmp_path, unwritten, capsys):
    chosen, paths = of_method(own, method), StudyPaths("smoke")
    weights = paths.weights(chosen.name)
    before, written = weights.read_bytes(), {file.name: file.read_bytes() for file in paths.records.iterdir()}
    # Those of the teacher, too.
    shutil.rmtree(weights.parent)
    compression.export_network(own, chosen, tmp_path / "out")
    assert weights.read_bytes() == before
    assert {file.name: file.read_bytes() for file in paths.records.iterdir()} == written
    ((subject, accuracy),) = unwritten
    assert accuracy == pytest.approx(subject.record.metrics["accuracy"], abs=1e-3)
    assert "note:" not in capsys.readouterr().err


def test_weights_of_another_training_are_noticed_and_replaced(own, tmp_path, unwritten):
    chosen, weights = of_method(own, "at"), StudyPaths("smoke").weights(of_method(own, "at").name)
    before = weights.read_bytes()
    put_others(own, chosen)
    assert weights.read_bytes() != before
    compression.export_network(own, chosen, tmp_path / "out")
    assert weights.read_bytes() == before


def test_a_training_that_does_not_repeat_itself_is_told_of_and_leaves_the_record(
    own, tmp_path, unwritten, monkeypatch, capsys
):
    chosen, paths = of_method(own, "at"), StudyPaths("smoke")
    record = paths.records / f"{chosen.name}.json"
    written, accuracy = record.read_bytes(), records.read(record).metrics["accuracy"]

    def elsewhere(settings, force):
        """As if on another machine, which rounds otherwise."""
        assert force
        put_others(own, chosen)

    monkeypatch.setattr(compression, "distill", elsewhere)
    put_others(own, chosen)
    compression.export_network(own, chosen, tmp_path / "out")
    assert record.read_bytes() == written
    ((_, now),) = unwritten
    told = capsys.readouterr().err
    assert f"note: {chosen.name} was trained again" in told
    assert f"has {now:.2f} % where its record has {accuracy:.2f} %" in told


def test_a_student_with_the_teachers_classifier_can_be_exported(own, tmp_path, monkeypatch):
    chosen = of_method(own, "simkd")
    measured, _ = compression.export_network(own, chosen, tmp_path / "out")
    assert measured.parameters == records.load("smoke", chosen.run).metrics["parameters"]
    text = (tmp_path / "out" / "README.md").read_text()
    assert "projector and the teacher's classifier" in text
    assert "build_model" not in text
    monkeypatch.chdir(tmp_path / "out")
    scope: dict = {}
    exec(text.split("```python\n")[1].split("```")[0], scope)
    assert scope["logits"].shape == (1, 10)


# ---- tables


def test_tables_hold_what_was_measured(profile):
    found = measurements(profile)
    costs, forms, latency = cost_frame(found), form_frame(found), latency_frame(found)
    assert list(costs["role"]) == ["teacher", "student alone", "best student"]
    assert (len(forms), len(latency)) == (9, 12)
    # Convolutions and the classifier of resnet14 and resnet8x0.25, counted by their shapes.
    for row in costs[costs["role"] != "best student"].itertuples():
        state = build_model(row.network, 10, 1).state_dict()
        assert row.parameters == sum(
            tensor.numel() for name, tensor in state.items() if name.endswith(("weight", "bias"))
        )
    _, alone = found[1]
    row = costs.iloc[1]
    assert row["bytes"] == alone.forms["safetensors"].bytes
    assert row["exported"] == min(form.accuracy for form in alone.forms.values())
    assert row["difference"] == max(form.difference for form in alone.forms.values())
    assert row["onnx_ms"] == next(
        one.median for one in alone.latency if one.runtime == "ONNX Runtime" and one.batch == 1
    )
    known = accuracies(profile)["ce", "alone"]
    assert row["accuracy"] == pytest.approx(np.mean(list(known.values())))
    assert (latency["device"] == records.provenance(CPU, "")["device"]).all()
    assert latency["per_second"].tolist() == [
        round(1000 * one.images / one.ms) for one in latency.itertuples()
    ]


# ---- the plan


def step(profile):
    return next((step for step in make_plan(profile, "smoke") if step.notebook == "08_export"), None)


def test_the_plan_knows_what_is_measured(own):
    measurements(own)
    assert step(own).needs == ("05_results",)
    assert step(own).runs == (4, 4)
    next(StudyPaths("smoke").exports.iterdir()).unlink()
    assert step(own).runs == (3, 4)
    next(StudyPaths("smoke").records.glob("*_kd_*")).unlink()
    assert step(own).runs == (0, 4), "what is chosen is open until all students are trained"


def test_networks_are_counted_before_they_are_chosen(profile):
    profile = replace(profile, seeds=(7, 8))
    assert step(profile).runs == (0, 4)
    assert step(replace(profile, methods=("kd", "at"))).runs == (0, 3)
    wider = replace(profile, pairs=(*profile.pairs, replace(profile.pairs[0], student="resnet8")))
    assert step(wider).runs == (0, 6)


def test_the_step_is_left_out_where_nothing_can_be_compared(profile):
    assert step(replace(profile, methods=("ce",))) is None
    assert "08_export" not in {
        step.notebook for step in make_plan(load_profile("imagenet-sample"), "imagenet-sample")
    }
