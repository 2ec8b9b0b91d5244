"""The benchmark of a sweep at a tiny size: both ways do the same work, and it says what it measured."""

import json

import pytest
import torch
from benchmark import loaded

from pursuhint_lib.training import FrozenTeacher, build_objective, seeded_model


@pytest.fixture(scope="module")
def benchmark():
    with loaded("distillation") as module:
        module.WORKERS, module.POOL, module.PEAK_SIDE, module.ALTERNATIONS = 0, 256, 64, 2
        yield module


def case(benchmark, **changes):
    return benchmark.Case(
        **{
            "teacher": "resnet14",
            "student": "resnet8x0.25",
            "method": "at",
            "arms": 2,
            "batch": 8,
            "precision": "fp32",
            **changes,
        }
    )


def test_arms_have_hint_points_of_their_own_and_methods_on_logits_do_without(benchmark):
    runs = case(benchmark, arms=4).runs()
    assert len({run.teacher_points for run in runs}) == 4
    assert all(len(run.teacher_points) == len(run.student_points) == 3 for run in runs)
    assert {run.teacher_points for run in case(benchmark, method="dkd").runs()} == {()}


@pytest.mark.parametrize("method", ["at", "fitnet", "crd", "dkd", "kd"])
def test_the_usual_way_takes_the_same_step_as_ours(benchmark, method):
    images, what = benchmark.load_images()
    assert what == "random images"
    run = case(benchmark, method=method).runs()[0]
    model = seeded_model("resnet14", benchmark.DATA, 0)
    textbook = benchmark.Textbook(run, model, images.images, images.labels, 0)
    batch = next(textbook.batches)
    textbook.batches = iter([batch])
    textbook.step()
    teacher = FrozenTeacher(seeded_model("resnet14", benchmark.DATA, 0), run.teacher_points)
    objective = build_objective(run, teacher.model, images.labels).train()
    optimizer = torch.optim.SGD(
        objective.parameters(),
        run.schedule.learning_rate,
        momentum=0.9,
        weight_decay=run.schedule.weight_decay,
    )
    objective(*batch, teacher(batch[0]))["total"].backward()
    optimizer.step()
    for (name, ours), theirs in zip(
        objective.network.state_dict().items(), textbook.student.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_the_comparison_is_printed_and_written(benchmark, tmp_path, capsys):
    file = tmp_path / "result.json"
    arguments = [
        "--pair",
        "resnet14,resnet8x0.25",
        "--arms",
        "2",
        "--batch",
        "8",
        "--seconds",
        "1",
        "--precision",
        "fp32",
        "--json",
        str(file),
    ]
    assert benchmark.main(arguments) == 0
    result = json.loads(file.read_text())
    assert (result["pair"], result["arms"], result["method"]) == (["resnet14", "resnet8x0.25"], 2, "at")
    assert result["ratio"]["min"] <= result["ratio"]["median"] <= result["ratio"]["max"]
    assert sum(result["ours"]["shares"].values()) == pytest.approx(1)
    assert result["ours"]["flops"] > 0
    assert result["ours"]["peak_memory_gb"] > 0.1
    out = capsys.readouterr().out
    assert "| the usual way" in out
    assert "2 arms side by side" in out


def test_operations_are_counted_for_every_student_and_a_share_of_the_teacher(benchmark):
    images, _ = benchmark.load_images()
    one, two = (
        benchmark.arithmetic(benchmark.Sweep(case(benchmark, arms=arms), images), 1.0)["flops"]
        for arms in (1, 2)
    )
    # A 3×3 convolution of 16 channels on 32×32 has 2 · 9 · 16 · 16 · 1024 operations; resnet14 has 4 of them
    # in its first stage alone.
    teacher = 2 * (one - two)
    assert 4 * 2 * 9 * 16 * 16 * 1024 < teacher < 12 * 2 * 9 * 16 * 16 * 1024 + 2 * 9 * 3 * 16 * 1024


@pytest.mark.parametrize(
    "arguments",
    [["--pair", "resnet20"], ["--arms", "0"], ["--pair", "resnet20,resnet9"], ["--precision", "fp8"]],
)
def test_wrong_settings_are_refused_in_one_line(benchmark, arguments, capsys):
    assert benchmark.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_curves_are_drawn_with_the_line_through_the_arms(benchmark, tmp_path, monkeypatch):
    with loaded("curves") as curves:
        few = {name: (values[:2], at) for name, (values, at) in curves.CURVES.items()}
        monkeypatch.setattr(curves, "CURVES", few)
        monkeypatch.setattr(curves, "IMAGES_TO_PROFILE", 8)
        monkeypatch.setattr(curves, "load_images", benchmark.load_images)
        curves.measure(case(benchmark), 0.1, tmp_path / "curves")
    folder = tmp_path / "curves"
    arms = json.loads((folder / "distillation-arms.json").read_text())
    assert arms["values"] == [1, 2]
    # Two points are always on a line.
    assert arms["largest_deviation"] == pytest.approx(0, abs=1e-6)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".svg", ".png"}
    assert json.loads((folder / "profile-step.json").read_text())["peak_memory_gb"] > 0
