"""Training: arms are paired and independent, the teacher is never touched, runs resume and fail cleanly."""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from pursuhint_lib import records, teachers, training
from pursuhint_lib.data import DATASETS, load_splits
from pursuhint_lib.files import write_json
from pursuhint_lib.models import build_model, save_weights
from pursuhint_lib.paths import StudyPaths, teacher_file
from pursuhint_lib.settings import Arm, Data, DistillSettings, Schedule, SettingsError, TeacherSettings
from pursuhint_lib.teachers import Teacher, manifest_entry, read_entry, write_entry

DATA = Data("digits", train_images=60, test_images=50)
SCHEDULE = Schedule(epochs=2, batch_size=32, learning_rate=0.05, milestones=(1,))
TEACHER = TeacherSettings("resnet14", DATA, SCHEDULE, profile="test")
ENDS = ("layer1.0", "layer2.0", "layer3.0")
ARMS = (
    Arm("none"),
    Arm("first", ("layer1.0", "layer1.1", "layer2.0")),
    Arm("ends", ("layer1.1", "layer2.1", "layer3.1")),
)
HINTED = ("fitnet", "at", "vid", "sp")


def settings(method="at", arms=ARMS, **changes) -> DistillSettings:
    base = DistillSettings(
        teacher=TEACHER,
        student="resnet8x0.25",
        method=method,
        arms=arms,
        student_points=ENDS,
        ce_weight=1.0,
        kd_weight=1.0,
        hint_weight=10.0,
        temperature=4.0,
        data=DATA,
        schedule=SCHEDULE,
        seed=3,
        profile="test",
    )
    return replace(base, **changes)


def weights(record: records.Record) -> dict[str, torch.Tensor]:
    return load_file(StudyPaths("test").weights(record.name))


def forget(found: Iterable[records.Record]) -> None:
    """Remove records, so that their runs are trained again."""
    for record in found:
        (StudyPaths("test").records / f"{record.name}.json").unlink()


@contextlib.contextmanager
def killed_before(epoch: int, batch: int):
    """Within this context a training dies before a batch at which it would go on from a state."""
    run_epoch = training.fitting.run_epoch

    def dying(given, *at, **keywords):
        if at == (epoch, batch):
            raise KeyboardInterrupt
        return run_epoch(given, *at, **keywords)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.fitting, "run_epoch", dying)
        yield


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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


def test_a_given_checkpoint_is_evaluated_and_not_trained(tmp_path, monkeypatch):
    file = tmp_path / "teacher.safetensors"
    model = training.seeded_model("resnet14", DATA, 7)
    save_weights(model, file)
    given = replace(TEACHER, checkpoint=str(file))
    monkeypatch.setattr(training.runs, "fit", lambda *a, **k: pytest.fail("trained"))
    record = training.train_teacher(given)
    assert same(weights(record), model.state_dict())
    assert record.metrics["accuracy"] == pytest.approx(
        training.evaluate(model.eval(), load_splits(DATA, torch.device("cpu")).test)["accuracy"], abs=1e-3
    )


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    file = tmp_path / "other.safetensors"
    save_weights(build_model("resnet20", 10, 1), file)
    with pytest.raises(SettingsError, match="another network"):
        training.train_teacher(replace(TEACHER, checkpoint=str(file)))


def test_a_lost_teacher_is_trained_again_only_when_a_student_needs_it():
    training.distill(settings())
    lost = StudyPaths("test").weights(records.record_name(TEACHER))
    lost.unlink()
    training.distill(settings())
    assert not lost.exists()
    training.distill(settings(seed=4))
    assert lost.exists()


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


def test_a_teacher_trained_here_gets_a_manifest_entry_that_guards_its_weights():
    record = training.train_teacher(TEACHER)
    path = StudyPaths("test").weights(record.name)
    entry = read_entry(path)
    assert (entry.network, entry.dataset, entry.classes, entry.accuracy) == (
        "resnet14",
        "digits",
        10,
        record.metrics["accuracy"],
    )
    save_weights(build_model("resnet14", 10, 1), path)
    with pytest.raises(SettingsError, match="has changed: sha256 is"):
        training.load_teacher(TEACHER)


def test_what_is_trained_again_for_its_weights_keeps_its_record():
    trained, paths = [training.train_teacher(TEACHER), *training.distill(settings("at"))], StudyPaths("test")
    written = {record.name: (paths.records / f"{record.name}.json").read_bytes() for record in trained}
    stored = {record.name: weights(record) for record in trained}
    for record in trained:
        paths.weights(record.name).unlink(missing_ok=True)
    again = (training.train_teacher(TEACHER, force=True), *training.distill(settings("at"), force=True))
    for record in again:
        assert (paths.records / f"{record.name}.json").read_bytes() == written[record.name]
        assert same(stored[record.name], weights(record))


def test_a_teacher_that_does_not_come_out_as_on_record_teaches_nobody():
    record = training.train_teacher(TEACHER)
    file, path = StudyPaths("test").records / f"{record.name}.json", StudyPaths("test").weights(record.name)
    stored = path.read_bytes()
    path.unlink()
    # Lost, and trained again to the same bits.
    training.load_teacher(TEACHER)
    assert path.read_bytes() == stored
    # Nothing learns from another one once a student has.
    training.distill(settings("at", seed=4))
    # As if the record were of a machine of the same name that rounds otherwise.
    elsewhere = {**record.history, "loss_ce": [loss + 1e-4 for loss in record.history["loss_ce"]]}
    records.save("test", replace(record, history=elsewhere))
    written, entry = file.read_bytes(), manifest_entry(path).read_bytes()
    path.unlink()
    with pytest.raises(
        SettingsError,
        match="teacher resnet14 is another one than on record, .* put the weights that it had at",
    ):
        training.distill(settings("at"))
    assert file.read_bytes() == written
    assert not path.exists()
    # Which weights are to be put back is still known.
    assert manifest_entry(path).read_bytes() == entry
    # Weights that another training has left are not taken either.
    records.save("test", record)
    training.train_teacher(TEACHER, force=True)
    records.save(
        "test", replace(record, metrics={**record.metrics, "accuracy": record.metrics["accuracy"] + 1})
    )
    with pytest.raises(SettingsError, match="teacher resnet14 is another one than on record, "):
        training.load_teacher(TEACHER)


def put_elsewhere(record, **changes) -> None:
    """Make a teacher's record one of another CPU, where it came out otherwise; its weights stayed there."""
    there = {**record.provenance, "device": "Another CPU"}
    history = {**record.history, "loss_ce": [loss + 1e-4 for loss in record.history["loss_ce"]]}
    records.save("test", replace(record, provenance=there, history=history))
    StudyPaths("test").weights(record.name).unlink()


@pytest.mark.parametrize("follower", ["a student", "a comparison of layers"])
def test_a_teacher_of_another_cpu_is_refused_before_it_is_trained_where_something_comes_from_it(
    follower, monkeypatch
):
    record = training.train_teacher(TEACHER)
    if follower == "a student":
        training.distill(settings("at"))
    else:
        write_json(StudyPaths("test").similarity("resnet14"), {"settings": {"teacher": record.settings}})
    put_elsewhere(record)
    written = (StudyPaths("test").records / f"{record.name}.json").read_bytes()
    monkeypatch.setattr(training.runs, "fit", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(
        SettingsError,
        match="resnet14 would be another one than on record, which was trained on Another CPU with torch",
    ) as caught:
        training.distill(settings("at", seed=4))
    assert "\n" not in str(caught.value)
    assert (StudyPaths("test").records / f"{record.name}.json").read_bytes() == written


def test_a_teacher_of_another_cpu_from_which_nothing_comes_is_trained_here_and_recorded_anew():
    record = training.train_teacher(TEACHER)
    # Of another seed.
    training.distill(replace(settings("at"), teacher=replace(TEACHER, seed=1)))
    put_elsewhere(record)
    students = training.distill(settings("at", seed=4))
    again = records.load("test", TEACHER)
    assert again.history == record.history
    assert again.provenance["device"] == record.provenance["device"]
    assert {student.status for student in students} == {"ok"}


def test_a_teacher_that_has_failed_is_trained_again_without_a_comparison():
    broken = replace(TEACHER, schedule=replace(TEACHER.schedule, learning_rate=1e12))
    record = training.train_teacher(broken)
    assert record.status == "failed"
    StudyPaths("test").weights(record.name).unlink()
    training.load_teacher(broken)
    assert StudyPaths("test").weights(record.name).is_file()


@pytest.mark.parametrize(("claimed", "passes"), [(0.0, True), (0.1, True), (0.2, False), (-0.2, False)])
def test_a_teacher_off_its_manifest_entry_stops_the_run_before_any_student(
    tmp_path, monkeypatch, claimed, passes
):
    data = replace(DATA, test_images=None)
    weights_file = tmp_path / "teacher.safetensors"
    save_weights(training.seeded_model("resnet14", data, 5), weights_file)
    measured = training.train_teacher(
        replace(TEACHER, data=data, checkpoint=str(weights_file), profile="other")
    ).metrics["accuracy"]
    images = DATASETS["digits"]
    write_entry(
        weights_file, Teacher("mine", "resnet14", "digits", 10, measured + claimed, images.mean, images.std)
    )
    given = replace(TEACHER, data=data, checkpoint=str(weights_file))
    if passes:
        assert training.train_teacher(given).metrics["accuracy"] == measured
        return
    monkeypatch.setattr(training.runs, "fit", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(
        SettingsError,
        match=f"teacher mine has an accuracy of {measured:.2f} % here, not {measured + claimed:.2f} %",
    ):
        training.distill(settings(teacher=given, data=data))
    assert not list(StudyPaths("test").records.glob("*"))


def test_a_public_teacher_is_pinned_once_it_has_passed(monkeypatch):
    public = Teacher(
        "resnet14",
        "resnet14",
        "digits",
        10,
        0.0,
        (0.3070,),
        (0.3764,),
        "",
        ("https://example.org/resnet14.pth",),
    )
    data = replace(DATA, test_images=None)
    path = teacher_file("resnet14")
    path.parent.mkdir(parents=True)
    torch.save({"model": training.seeded_model("resnet14", data, 5).state_dict()}, path)
    monkeypatch.setattr(teachers, "teacher_entry", lambda name: public)
    with pytest.raises(SettingsError, match="teacher resnet14 has an accuracy"):
        training.train_teacher(replace(TEACHER, data=data, checkpoint="resnet14"))
    assert read_entry(path) is None
    network = training.seeded_model("resnet14", data, 5)
    public = replace(
        public, accuracy=training.evaluate(network, load_splits(data, torch.device("cpu")).test)["accuracy"]
    )
    training.train_teacher(replace(TEACHER, data=data, checkpoint="resnet14"))
    torch.save({"model": training.seeded_model("resnet14", data, 6).state_dict()}, path)
    with pytest.raises(SettingsError, match="is not the checkpoint of resnet14: sha256 is"):
        training.train_teacher(replace(TEACHER, data=data, checkpoint="resnet14"), force=True)


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
