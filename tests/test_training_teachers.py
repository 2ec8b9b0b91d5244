"""Teachers in training: given, lost, trained anew, and refused where they are not those on record."""

from dataclasses import replace

import pytest
import torch
from trainings import DATA, TEACHER, same, settings, weights

from pursuhint_lib import records, teachers, training
from pursuhint_lib.data import DATASETS, load_splits
from pursuhint_lib.files import write_json
from pursuhint_lib.models import build_model, save_weights
from pursuhint_lib.paths import StudyPaths, teacher_file
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.teachers import Teacher, manifest_entry, read_entry, write_entry


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
