"""A training that was interrupted ends as if it had not been, and what draws by chance or learns in stages
does so too.
"""

import hashlib
from dataclasses import replace

import pytest
import torch
from trainings import ARMS, SCHEDULE, forget, killed_before, same, settings, weights

from pursuhint_lib import training
from pursuhint_lib.distillers import DISTILLERS, Distiller
from pursuhint_lib.models import MODELS
from pursuhint_lib.paths import StudyPaths, manifest_entry
from pursuhint_lib.processes import threads
from pursuhint_lib.records import load, record_name
from pursuhint_lib.settings import Arm, settings_hash


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def of_another(path):
    torch.save({"epoch": 0, "batch": 0, "trainees": {"someone": {}}}, path.with_name("other"))
    content = path.with_name("other").read_bytes()
    path.with_name("other").unlink()
    path.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


@pytest.mark.parametrize(
    ("method", "damage"),
    [("at", None), ("crd", None), *(("at", damage) for damage in (cut, zeroed, flipped, of_another))],
)
def test_a_resumed_training_equals_an_uninterrupted_one(
    monkeypatch, saved_between_batches, capsys, method, damage
):
    long = replace(SCHEDULE, epochs=4, milestones=(2,))
    whole = training.distill(settings(method, schedule=long))
    expected = [weights(record) for record in whole]
    forget(whole)
    with killed_before(epoch=2, batch=1):
        training.distill(settings(method, schedule=long))
    newest, before = sorted((StudyPaths("test").work / "checkpoints").iterdir())
    assert before.name == f"{newest.name}.previous"
    if damage:
        damage(newest)

    begun, run_epoch = [], training.fitting.run_epoch
    monkeypatch.setattr(
        training.fitting,
        "run_epoch",
        lambda *a, **k: (begun.append(a[1:]), run_epoch(*a, **k))[1],
    )
    resumed = training.distill(settings(method, schedule=long))
    assert begun == [*([(2, 0)] if damage else []), (2, 1), (3, 0), (3, 1)]
    assert ("is not used" in capsys.readouterr().out) == bool(damage)
    for record, before, end in zip(resumed, whole, expected, strict=True):
        assert record.history == before.history
        assert same(weights(record), end)
    assert not list((StudyPaths("test").work / "checkpoints").iterdir())


@pytest.mark.parametrize("method", ["ab", "fitnet-stages", "fsp", "ft"])
def test_methods_in_stages_train_to_the_end(method):
    # Parameters that rest in the first epoch have their first gradient when others have had several.
    (record,) = training.distill(
        settings(method, arms=ARMS[1:2], schedule=replace(SCHEDULE, epochs=3), hint_weight=0.1)
    )
    assert record.status == "ok"
    assert None not in record.history["loss_total"]
    first, *later = record.history["loss_hint"]
    assert first is not None
    assert all((hint is None) == (method != "ft") for hint in later)


class Dropping(torch.nn.Module):
    """A network that draws by chance in every step."""

    def __init__(self, classes: int, channels: int):
        super().__init__()
        self.first = torch.nn.Sequential(
            torch.nn.Conv2d(channels, 8, 3), torch.nn.ReLU(), torch.nn.Dropout(0.5)
        )
        self.last = torch.nn.Linear(8, classes)

    def forward(self, images):
        return self.last(self.first(images).mean((2, 3)))


def test_dropout_is_the_same_for_all_arms_after_a_pause_and_beside_others(monkeypatch, saved_between_batches):
    monkeypatch.setitem(MODELS, "dropping", Dropping)
    cell = settings(
        student="dropping", student_points=("first",), arms=(Arm("a", ("layer1.0",)), Arm("b", ("layer3.1",)))
    )
    together = training.distill(cell)
    expected = [weights(record) for record in together]
    assert not same(*expected)
    forget(together)
    for arm, before in zip(cell.arms, expected, strict=True):
        torch.manual_seed(123)
        (alone,) = training.distill(replace(cell, arms=(arm,)))
        assert same(weights(alone), before)


class Functional(Dropping):
    def forward(self, images):
        return torch.nn.functional.dropout(self.last(self.first[:2](images).mean((2, 3))), 0.5, self.training)


class Skipping(Dropping):
    def forward(self, images):
        features = self.first[:2](images)
        return self.last((features if torch.rand(()) < 0.5 else 0.5 * features).mean((2, 3)))


class Masked(torch.nn.Module):
    """A method that compares what a random mask leaves."""

    def forward(self, signals):
        (student, teacher), *_ = signals.points
        student = torch.nn.functional.adaptive_avg_pool2d(student, 1).mean(1)
        return (torch.rand_like(student) * (student - teacher.mean((1, 2, 3))[:, None, None])).square().mean()


# Network, method, and whether a step draws by chance.
CHANCE = {
    "a module": (Dropping, "at", True),
    "a function": (Functional, "at", True),
    "a branch": (Skipping, "at", True),
    "a method": (None, "masked", True),
    "a module that drops nothing": (lambda *given: _without_dropout(Dropping(*given)), "at", False),
    "nothing": (None, "at", False),
}


def _without_dropout(network: torch.nn.Module) -> torch.nn.Module:
    network.first[2].p = 0.0
    return network


@pytest.mark.parametrize(("network", "method", "drawn"), CHANCE.values(), ids=CHANCE)
def test_chance_is_found_where_it_is_and_every_run_of_a_seed_is_the_same(monkeypatch, network, method, drawn):
    monkeypatch.setitem(DISTILLERS, "masked", Distiller("masked", "a test", "any", lambda _: Masked(), 1.0))
    found, fit = [], training.fitting.fit
    monkeypatch.setattr(training.runs, "fit", lambda given: (found.append(given.draws), fit(given))[1])
    own = {"student": "dropping", "student_points": ("first.1",)} if network else {}
    if network:
        monkeypatch.setitem(MODELS, "dropping", network)
    arms = (Arm("a", ("layer1.0",)), Arm("b", ("layer3.1",)))
    cell = settings(method, arms=arms, **({"student_points": ("layer2.0",)} | own))
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with threads(2):
            records = training.distill(cell)
        runs.append([weights(record) for record in records])
        forget(records)
    assert found[-1] is drawn
    for one, other in zip(*runs, strict=True):
        assert same(one, other)


def test_a_state_that_a_kill_left_behind_is_removed_once_every_run_has_a_record():
    training.distill(settings("at"))
    checkpoint = StudyPaths("test").checkpoint(
        settings_hash(sorted(record.name for record in training.distill(settings("at"))))
    )
    teacher = StudyPaths("test").checkpoint(record_name(settings("at").teacher))
    checkpoint.parent.mkdir(exist_ok=True)
    for path in (checkpoint, teacher):
        path.write_text("left behind")
        training.checkpoints.previous(path).write_text("left behind")
    training.distill(settings("at"))
    training.train_teacher(settings("at").teacher)
    assert not list(checkpoint.parent.iterdir())


def test_a_kill_before_the_record_of_a_teacher_leaves_nothing_that_goes_for_one(monkeypatch):
    teacher = replace(settings("at").teacher, seed=9)
    whole = training.train_teacher(teacher)
    weights_file = StudyPaths("test").weights(whole.name)
    forget([whole])
    manifest_entry(weights_file).unlink()

    def killed(_profile, _record):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.runs.records, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            training.train_teacher(teacher)
    # What has a record has a manifest entry too.
    assert manifest_entry(weights_file).is_file()
    assert load(teacher.profile, teacher) is None
    training.load_teacher(teacher)
    assert load(teacher.profile, teacher).metrics == whole.metrics
