"""Training: arms are paired and independent, the teacher is never touched, runs resume and fail cleanly."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from trainings import ARMS, DATA, ENDS, HINTED, SCHEDULE, TEACHER, forget, same, settings, weights

from pursuhint_lib import training
from pursuhint_lib.data import load_splits
from pursuhint_lib.models import build_model
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.settings import Arm, Schedule


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("method", HINTED)
def test_arms_trained_side_by_side_equal_arms_trained_alone_bit_for_bit(method, threads):
    """In turn on one core, or at the same time on several."""
    training.train_teacher(TEACHER)
    torch.set_num_threads(threads)
    together = [(record, weights(record)) for record in training.distill(settings(method))]
    forget(record for record, _ in together)
    for arm, (record, expected) in zip(reversed(ARMS), reversed(together), strict=True):
        torch.set_num_threads(1)
        (alone,) = training.distill(settings(method, arms=(arm,)))
        assert alone.history == record.history
        assert alone.metrics == record.metrics
        assert same(weights(alone), expected)


def test_arms_start_from_the_same_weights_and_differ_at_the_end():
    objectives = [
        training.build_objective(settings().run(arm), build_model("resnet14", 10, 1)) for arm in ARMS
    ]
    starts = [objective.network.state_dict() for objective in objectives]
    assert all(same(starts[0], start) for start in starts[1:])
    ends = [weights(record) for record in training.distill(settings())]
    assert not same(ends[0], ends[1])
    assert not same(ends[1], ends[2])


def test_adapters_of_arms_with_the_same_shapes_start_alike():
    teacher = build_model("resnet14", 10, 1)
    a, b = (
        training.build_objective(settings("fitnet").run(arm), teacher)
        for arm in (Arm("a", ("layer1.0", "layer2.0", "layer3.0")), ARMS[2])
    )
    assert same(a.method.state_dict(), b.method.state_dict())
    assert len(a.method.state_dict()) > 0


def outputs(network, names, images) -> list[torch.Tensor]:
    """What named modules give, in the order of the names."""
    found = {}
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: found.update({name: output})
        )
    network(images)
    return [found[name] for name in names]


@pytest.mark.parametrize("method", HINTED)
@pytest.mark.parametrize(
    "arm",
    [
        Arm("reversed", ("layer3.1", "layer2.1", "layer1.1")),
        Arm("all", ("layer1.0", "layer1.1", "layer3.1"), ("layer1.0", "layer1.0", "layer3.0")),
        Arm("turned", ("layer1.1", "layer3.1"), ("layer3.0", "layer1.0")),
    ],
    ids=lambda arm: arm.name,
)
def test_hints_are_matched_in_the_order_of_the_lists(arm, method):
    teacher = build_model("resnet14", 10, 1).eval()
    run = settings(method).run(arm)
    objective = training.build_objective(run, teacher)
    images, labels = next(load_splits(DATA, torch.device("cpu")).train.ordered_batches(20))
    found = objective(
        images, labels, torch.arange(20), training.FrozenTeacher(teacher, arm.teacher_points)(images)
    )
    students, teachers = (
        outputs(*part, images)
        for part in ((objective.network, run.student_points), (teacher, arm.teacher_points))
    )
    torch.testing.assert_close(
        found["hint"], objective.method(training.objective.Signals(students, teachers))
    )
    assert run.hint_weight == pytest.approx(10.0 * 3 / len(arm.teacher_points))


def test_the_teacher_is_not_changed_by_distillation():
    training.train_teacher(TEACHER)
    splits = load_splits(DATA, torch.device("cpu"))
    model = training.load_teacher(TEACHER)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    teacher = training.FrozenTeacher(model, ["layer1.0", "layer2.1"])
    images, _, _ = next(splits.train.train_batches(32, 0, 0))
    output = teacher(images)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert output.logits.requires_grad is False
    assert all(not maps.requires_grad for maps in output.features.values())
    assert same(before, dict(model.state_dict()))
    stored = weights(training.train_teacher(TEACHER))
    training.distill(settings("fitnet"))
    assert same(stored, weights(training.train_teacher(TEACHER)))


def test_the_teacher_answers_in_eval_mode_even_while_students_train():
    model = training.load_teacher(TEACHER)
    images, _, _ = next(load_splits(DATA, torch.device("cpu")).train.train_batches(32, 0, 0))
    teacher = training.FrozenTeacher(model.train(), ["layer1.0"])
    torch.testing.assert_close(teacher(images).logits, model.eval()(images), rtol=1e-4, atol=1e-4)
    assert torch.equal(teacher(images).logits, teacher(images).logits)


def test_a_run_on_record_is_loaded_and_not_repeated(monkeypatch):
    first = training.distill(settings())
    monkeypatch.setattr(training.runs, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert training.distill(settings()) == first
    assert training.train_teacher(TEACHER).kind == "teacher"


def test_only_missing_arms_are_trained(monkeypatch):
    training.distill(settings(arms=ARMS[:2]))
    trained, fit = [], training.runs.fit

    def watched(given):
        trained.extend(trainee.name for trainee in given.trainees)
        return fit(given)

    monkeypatch.setattr(training.runs, "fit", watched)
    found = training.distill(settings())
    assert trained == [found[2].name]


def test_arms_with_the_same_points_share_one_run():
    twin = Arm("twin", ARMS[1].teacher_points)
    found = training.distill(settings(arms=(ARMS[1], twin)))
    assert found[0] == found[1]
    assert len(list(StudyPaths("test").records.glob("resnet8*"))) == 1


def test_the_arm_without_hints_is_the_kd_run_of_every_method():
    names = {training.distill(settings(method, arms=ARMS[:1]))[0].name for method in (*HINTED, "kd")}
    assert len(names) == 1


def test_a_diverged_arm_is_recorded_as_failed_with_its_step_and_the_others_finish():
    # Only hints are scaled up, so the arm without them trains as ever.
    none, first, _ = training.distill(settings("fitnet", hint_weight=1e30))
    assert none.status == "ok"
    assert none.metrics["accuracy"] >= 0
    assert "failed_in_step" not in none.metrics
    assert first.status == "failed"
    assert "accuracy" not in first.metrics
    # The first step's gradient breaks the weights, the second one's loss shows it.
    assert first.metrics["failed_in_step"] == 2
    assert first.history["loss_total"][-1] is None
    json.dumps(first.history, allow_nan=False)


def test_a_gradient_that_breaks_in_the_last_step_is_noticed(monkeypatch):
    step, taken = training.trainee.Trainee.step, []

    def breaks_at_the_end(trainee, *arguments):
        step(trainee, *arguments)
        taken.append(trainee)
        if len(taken) == 4:
            next(trainee.objective.parameters()).data[0] = float("inf")

    monkeypatch.setattr(training.trainee.Trainee, "step", breaks_at_the_end)
    record = training.train_teacher(TEACHER)
    assert (record.status, record.metrics["failed_in_step"]) == ("failed", 4)


def test_the_learning_rate_follows_the_schedule():
    (record,) = training.distill(settings(arms=ARMS[:1]))
    assert record.history["learning_rate"] == [0.05, 0.005]


def test_accuracy_is_measured_when_asked_and_always_at_the_end():
    schedule = Schedule(epochs=5, batch_size=32, learning_rate=0.05, evaluate_every=2)
    (record,) = training.distill(settings(arms=ARMS[:1], schedule=schedule))
    measured = [accuracy is not None for accuracy in record.history["accuracy"]]
    assert measured == [False, True, False, True, True]
    assert record.metrics["accuracy"] == record.history["accuracy"][-1]
    assert record.metrics["optimistic_accuracy"] == max(
        a for a in record.history["accuracy"] if a is not None
    )


def test_evaluation_counts_every_image_once():
    images = load_splits(DATA, torch.device("cpu")).test

    class Oracle(torch.nn.Module):
        """Right on the first 37 images, whatever the batches."""

        seen = 0

        def forward(self, batch):
            labels = images.labels[self.seen : self.seen + len(batch)].clone()
            numbers = torch.arange(self.seen, self.seen + len(batch))
            self.seen += len(batch)
            return torch.nn.functional.one_hot(torch.where(numbers < 37, labels, (labels + 1) % 10), 10)

    assert training.evaluate(Oracle(), images)["accuracy"] == pytest.approx(100 * 37 / 50)


def test_bf16_runs_and_losses_stay_float32():
    teacher = training.FrozenTeacher(build_model("resnet14", 10, 1), ENDS)
    objective = training.build_objective(settings("vid").run(Arm("a", ENDS)), teacher.model)
    batch = next(load_splits(DATA, torch.device("cpu")).train.train_batches(32, 0, 0))
    with training.autocast(torch.device("cpu"), "bf16"):
        output = teacher(batch.images)
        losses = objective(*batch, output)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {maps.dtype for maps in output.features.values()} == {torch.float32}
    assert set(losses) == {"total", "ce", "kd", "hint"}
    assert losses["total"].item() == pytest.approx(
        (losses["ce"] + losses["kd"] + 10 * losses["hint"]).item(), rel=1e-6
    )


@pytest.mark.parametrize("padding", [1, "same"])
def test_a_convolution_in_bf16_is_rounded_once_on_every_cpu(padding):
    # torch's own kernel, where oneDNN has none, rounds the weights' gradient after every image.
    draws = torch.Generator().manual_seed(0)
    images, weight, gradient = (
        torch.randn(shape, generator=draws).bfloat16()
        for shape in ((64, 8, 16, 16), (8, 8, 3, 3), (64, 8, 16, 16))
    )

    def convolved(dtype, precision):
        operands = [operand.to(dtype).requires_grad_() for operand in (images, weight)]
        with training.autocast(torch.device("cpu"), precision):
            result = functional.conv2d(*operands, padding=padding)
        result.backward(gradient.to(result.dtype))
        return [result.detach(), *(operand.grad for operand in operands)]

    exact, rounded = convolved(torch.float64, "fp32"), convolved(torch.float32, "bf16")
    assert rounded[0].dtype == torch.bfloat16
    for expected, found in zip(exact, rounded, strict=True):
        # bf16 keeps 8 bits: the error of one rounding is at most 2**-9 of a value.
        assert (found.double() - expected).norm() < 2**-9 * expected.norm()


@pytest.mark.parametrize(
    ("gpu", "abilities", "expected"),
    [
        (None, {"amx_bf16": True}, "bf16"),
        (None, {"avx512_bf16": True}, "bf16"),
        (None, {"bf16": True, "architecture": "aarch64"}, "bf16"),
        (None, {"avx2": True, "amx_bf16": False}, "fp32"),
        (True, {}, "bf16"),
        (False, {"amx_bf16": True}, "fp32"),
    ],
)
def test_automatic_precision_is_bf16_where_the_hardware_has_it(monkeypatch, gpu, abilities, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    assert training.resolve_precision("auto") == expected
    assert training.resolve_precision("fp32") == "fp32"


def test_a_step_that_fails_on_one_core_ends_the_run_at_once(monkeypatch):
    training.train_teacher(TEACHER)
    torch.set_num_threads(2)
    steps = []

    def failing(trainee, *arguments):
        steps.append(trainee.name)
        raise ArithmeticError("no more")

    monkeypatch.setattr(training.trainee.Trainee, "step", failing)
    with pytest.raises(ArithmeticError, match="no more"):
        training.distill(
            settings(data=replace(DATA, train_images=900), schedule=replace(SCHEDULE, batch_size=4))
        )
    assert len(steps) <= 2 * len(ARMS)


def test_the_size_of_memories_is_said_before_the_start(capsys, monkeypatch):
    monkeypatch.setattr(training.runs, "WORTH_SAYING", 0)
    training.distill(settings("crd"))
    # Two students, three points, two sides, 60 images of 128 numbers: 0.35 MiB.
    assert "Memories of 2 students: 0 MiB" in capsys.readouterr().err
    monkeypatch.setattr(training.runs, "WORTH_SAYING", 1 << 20)
    training.distill(settings("crd", seed=4))
    assert "Memories" not in capsys.readouterr().out
