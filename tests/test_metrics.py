"""What a training says of its epochs while it runs."""

import json

import pytest
from trainings import ARMS, SCHEDULE, killed_before, settings

from pursuhint_lib import training
from pursuhint_lib.settings import DistillSettings
from pursuhint_lib.training import metrics_file


def rows(cell: DistillSettings) -> list[dict]:
    return [json.loads(line) for line in metrics_file(cell).read_text().splitlines()]


def test_every_epoch_of_every_student_is_a_line():
    cell = settings(arms=ARMS[:2])
    records = training.distill(cell)
    found = rows(cell)
    assert [(row["epoch"], row["trainee"]) for row in found] == [
        (epoch, record.name) for epoch in (1, 2) for record in records
    ]
    for record in records:
        mine = [row for row in found if row["trainee"] == record.name]
        assert [row["loss_total"] for row in mine] == record.history["loss_total"]
        assert record.provenance["images_per_second"] > 0
        assert 0 <= record.provenance["data_wait"] <= 1


def test_a_training_that_goes_on_adds_lines_and_one_that_begins_anew_removes_them(saved_between_batches):
    cell = settings(arms=ARMS[:1])
    training.train_teacher(cell.teacher)
    with killed_before(epoch=1, batch=0):
        training.distill(cell)
    assert [row["epoch"] for row in rows(cell)] == [1]
    training.distill(cell)
    assert [row["epoch"] for row in rows(cell)] == [1, 2]
    training.distill(cell, force=True)
    assert [row["epoch"] for row in rows(cell)] == list(range(1, SCHEDULE.epochs + 1))


def test_tensorboard_gets_the_same(monkeypatch):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("PURSUHINT_TENSORBOARD", "1")
    cell = settings(arms=ARMS[:1])
    (record,) = training.distill(cell)
    events = EventAccumulator(str(metrics_file(cell).with_suffix("")))
    events.Reload()
    told = [event.value for event in events.Scalars(f"loss_total/{record.name}")]
    assert told == pytest.approx(record.history["loss_total"])
