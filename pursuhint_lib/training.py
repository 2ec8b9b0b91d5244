"""Training teachers and students: one loop, on accelerate, for one process or many.

All arms of a (pair, method, seed) train side by side: each batch is augmented once, goes through the
teacher once, and then through every student. Arms see the same initial weights, batches and
augmentation, so they differ in the teacher's hint points only.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from . import records
from .data import Images, Splits, describe, example_input, load_splits
from .distillers import Signals, distiller
from .files import replacing
from .losses import kd
from .models import build_model, load_checkpoint, parameter_count, save_weights
from .paths import ROOT, StudyPaths
from .progress import Progress
from .records import Record
from .settings import Data, DistillSettings, Schedule, StudentSettings, TeacherSettings, resolved, settings_hash
from .taps import LayerTap, point_shapes

# Seconds between two checkpoints of an unfinished training: what a kill can cost at most.
CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class TeacherOutput:
    """What the teacher says of one batch: logits [B, classes] and the maps at the union of all arms' points."""

    logits: Tensor
    features: dict[str, Tensor]


class FrozenTeacher:
    """A teacher that is only asked: in eval mode, without gradients, never wrapped, never updated."""

    def __init__(self, model: nn.Module, points: Sequence[str]):
        self.model = model.eval().requires_grad_(False)
        self.tap = LayerTap(model, points)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> TeacherOutput:
        with self.tap:
            logits = self.model(images)
            return TeacherOutput(logits.float(), {name: maps.float() for name, maps in self.tap.features.items()})


class Learner(nn.Module):
    """A network in training and its loss; a student with hints also has the parts that its method trains.

    **Arguments:**

    - ``network``: maps images to logits.
    - ``run``: the student's settings; not given for a teacher, which learns from the labels alone.
    - ``method``: maps ``Signals`` to a scalar; not given for ``ce`` and ``kd``.
    """

    def __init__(self, network: nn.Module, run: StudentSettings | None = None, method: nn.Module | None = None):
        super().__init__()
        self.network, self.method, self.run = network, method, run
        self.tap = LayerTap(network, run.student_points if run else ())

    def forward(self, images: Tensor, labels: Tensor, teacher: TeacherOutput | None) -> dict[str, Tensor]:
        """Named losses of one batch: ``total`` and its unweighted parts, scalars."""
        # The tap is open during training steps only, so that evaluation pays nothing for it.
        with self.tap:
            logits = self.network(images).float()
            features = {name: maps.float() for name, maps in self.tap.features.items()}
        parts = {"ce": F.cross_entropy(logits, labels)}
        if self.run is None:
            return {"total": parts["ce"], **parts}
        weights = {"ce": self.run.ce_weight, "kd": self.run.kd_weight, "hint": self.run.hint_weight}
        # Losses stay in float32 whatever the networks run in: squares of small differences do not survive bfloat16.
        with torch.autocast(images.device.type, enabled=False):
            if self.run.kd_weight:
                parts["kd"] = kd(logits, teacher.logits, self.run.temperature)
            if self.method is not None:
                student_maps = [features[name] for name in self.run.student_points]
                teacher_maps = [teacher.features[name] for name in self.run.teacher_points]
                parts["hint"] = self.method(Signals(student_maps, teacher_maps, logits, teacher.logits, labels, self.run.temperature))
        return {"total": sum(weights[name] * loss for name, loss in parts.items()), **parts}


@dataclass
class Lane:
    """One learner with what its training needs beside it."""

    name: str
    learner: Learner
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    history: dict[str, list] = field(default_factory=lambda: {"epoch": [], "learning_rate": [], "accuracy": []})
    failed: bool = False
    sums: dict[str, Tensor] = field(default_factory=dict)

    def step(self, images: Tensor, labels: Tensor, teacher: TeacherOutput | None, accelerator: Accelerator, precision: str) -> None:
        """One optimiser step; losses are added up on the device, so that nothing waits for it."""
        with autocast(accelerator.device, precision):
            parts = self.wrapped(images, labels, teacher)
        self.optimizer.zero_grad(set_to_none=True)
        accelerator.backward(parts["total"])
        self.optimizer.step()
        for name, loss in parts.items():
            self.sums[name] = self.sums.get(name, 0) + loss.detach() * len(labels)

    def close_epoch(self, epoch: int, learning_rate: float, images: int, accuracy: float | None, accelerator: Accelerator) -> None:
        """Write the epoch into the history; a loss that is not finite ends the run as failed."""
        means = {name: float(accelerator.reduce(total)) / images for name, total in self.sums.items()}
        self.sums = {}
        self.failed = not math.isfinite(means["total"])
        losses = {f"loss_{name}": _rounded(mean) for name, mean in means.items()}
        row = {"epoch": epoch + 1, "learning_rate": _rounded(learning_rate), "accuracy": accuracy, **losses}
        for column, value in row.items():
            self.history.setdefault(column, []).append(value)


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which networks run: ``fp32`` as they are, ``bf16`` in mixed precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def accelerator_for_this_process() -> Accelerator:
    """Device and process group. Precision is a setting of the run, so accelerate is kept out of it."""
    return Accelerator(mixed_precision="no")


def evaluate(model: nn.Module, images: Images, precision: str = "fp32") -> float:
    """Top-1 accuracy in %, model left in the mode it was in."""
    training = model.training
    model.eval()
    with torch.no_grad(), autocast(images.device, precision):
        correct = sum((model(batch).argmax(1) == labels).sum() for batch, labels in images.ordered_batches())
    model.train(training)
    return 100 * int(correct) / len(images)


def fit(lanes: Sequence[Lane], splits: Splits, schedule: Schedule, *, teacher: FrozenTeacher | None, seed: int, precision: str,
        accelerator: Accelerator, label: str, checkpoint: Path) -> None:  # fmt: skip
    """Train all lanes side by side to the end of the schedule, from the checkpoint if there is one.

    **Arguments:** ``teacher`` is asked once a batch; ``seed`` decides order and augmentation; ``label`` names
    the work to whoever watches; ``checkpoint`` is written now and then and removed by the caller.
    """
    start = _resume(lanes, checkpoint, accelerator)
    saved = time.monotonic()
    with Progress(label, schedule.epochs, done=start) as progress:
        for epoch in range(start, schedule.epochs):
            running = [lane for lane in lanes if not lane.failed]
            _run_epoch(running, splits.train, schedule, epoch, teacher=teacher, seed=seed, precision=precision, accelerator=accelerator,
                       progress=progress)  # fmt: skip
            measured = (epoch + 1) % schedule.evaluate_every == 0 or epoch + 1 == schedule.epochs
            for lane in running:
                accuracy = round(evaluate(lane.learner.network, splits.test, precision), 3) if measured else None
                lane.close_epoch(epoch, schedule.learning_rate_at(epoch), len(splits.train), accuracy, accelerator)
            progress.advance(_summary(running))
            if time.monotonic() - saved > CHECKPOINT_SECONDS and epoch + 1 < schedule.epochs:
                _save_state(lanes, epoch + 1, checkpoint, accelerator)
                saved = time.monotonic()


def _summary(lanes: Sequence[Lane]) -> str:
    accuracies = [lane.history["accuracy"][-1] for lane in lanes if lane.history["accuracy"][-1] is not None]
    return f"test accuracy {min(accuracies):.1f} to {max(accuracies):.1f} %" if accuracies else ""


def _run_epoch(lanes: Sequence[Lane], images: Images, schedule: Schedule, epoch: int, *, teacher: FrozenTeacher | None, seed: int,
               precision: str, accelerator: Accelerator, progress: Progress) -> None:  # fmt: skip
    """One pass over the training images: teacher once a batch, then every lane."""
    for lane in lanes:
        lane.wrapped.train()
        for group in lane.optimizer.param_groups:
            group["lr"] = schedule.learning_rate_at(epoch)
    batches = images.train_batches(schedule.batch_size, seed, epoch, accelerator.process_index, accelerator.num_processes)
    for number, (batch, labels) in enumerate(batches):
        progress.within(number * schedule.batch_size / len(images))
        with autocast(accelerator.device, precision):
            output = teacher(batch) if teacher else None
        for lane in lanes:
            lane.step(batch, labels, output, accelerator, precision)


def _lane(name: str, learner: Learner, schedule: Schedule, accelerator: Accelerator) -> Lane:
    optimizer = torch.optim.SGD(
        learner.parameters(), lr=schedule.learning_rate, momentum=schedule.momentum, weight_decay=schedule.weight_decay, fused=True
    )
    wrapped, optimizer = accelerator.prepare(learner, optimizer)
    return Lane(name, learner, wrapped, optimizer)


def _save_state(lanes: Sequence[Lane], epochs_done: int, path: Path, accelerator: Accelerator) -> None:
    if not accelerator.is_main_process:
        return
    state = {"epochs_done": epochs_done, "lanes": {}}
    for lane in lanes:
        entry = {"learner": lane.learner.state_dict(), "optimizer": lane.optimizer.state_dict()}
        state["lanes"][lane.name] = {**entry, "history": lane.history, "failed": lane.failed}
    with replacing(path) as draft:
        torch.save(state, draft)


def _resume(lanes: Sequence[Lane], path: Path, accelerator: Accelerator) -> int:
    """Restore all lanes; returns the number of epochs that are done."""
    if not path.is_file():
        return 0
    state = torch.load(path, map_location=accelerator.device, weights_only=True)
    for lane in lanes:
        entry = state["lanes"][lane.name]
        lane.learner.load_state_dict(entry["learner"])
        lane.optimizer.load_state_dict(entry["optimizer"])
        lane.history, lane.failed = entry["history"], entry["failed"]
    return state["epochs_done"]


def seeded_model(name: str, data: Data, seed: int) -> nn.Module:
    """A network whose initial weights depend on its name and the seed only, in the memory layout that convolutions like."""
    entry = describe(data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(name, entry.classes, entry.channels).to(memory_format=torch.channels_last)


def train_teacher(settings: TeacherSettings, force: bool = False) -> Record:
    """Train a teacher, or evaluate the given checkpoint; a record that exists is loaded.

    **Returns:** the record; its weights are under ``StudyPaths.weights``.
    """
    found = None if force else records.load(settings.profile, settings)
    if found is not None:
        return found
    accelerator = accelerator_for_this_process()
    splits = load_splits(settings.data, accelerator.device)
    learner = Learner(seeded_model(settings.network, settings.data, settings.seed).to(accelerator.device))
    started = time.monotonic()
    if settings.checkpoint is not None:
        load_checkpoint(learner.network, ROOT / settings.checkpoint)
    lane = _lane("teacher", learner, settings.schedule, accelerator)
    checkpoint = StudyPaths(settings.profile).checkpoint(records.record_name(settings))
    if settings.checkpoint is None:
        fit([lane], splits, settings.schedule, teacher=None, seed=settings.seed, precision=settings.precision, accelerator=accelerator,
            label=f"teacher {settings.network}", checkpoint=checkpoint)  # fmt: skip
    else:
        lane.history["accuracy"].append(round(evaluate(learner.network, splits.test, settings.precision), 3))
    record = _finish(settings.profile, "teacher", settings, lane, splits, time.monotonic() - started, accelerator)
    checkpoint.unlink(missing_ok=True)
    return record


def load_teacher(settings: TeacherSettings) -> nn.Module:
    """The trained teacher, frozen, in eval mode, on this process's device; trained first if its weights are not here."""
    weights = StudyPaths(settings.profile).weights(records.record_name(settings))
    if not weights.is_file():
        train_teacher(settings, force=True)
    model = seeded_model(settings.network, settings.data, settings.seed)
    load_checkpoint(model, weights)
    return model.to(accelerator_for_this_process().device).eval().requires_grad_(False)


def distill(settings: DistillSettings, force: bool = False) -> list[Record]:
    """Train every arm that has no record yet, side by side on one teacher pass.

    Arms with the same hint points are one run, and share its record.

    **Returns:** one record per arm, in the order of ``settings.arms``.
    """
    runs = {records.record_name(settings.run(arm)): settings.run(arm) for arm in settings.arms}
    found = {name: None if force else records.load(settings.profile, run) for name, run in runs.items()}
    missing = {name: run for name, run in runs.items() if found[name] is None}
    if missing:
        found |= _train_students(settings, missing)
    return [found[records.record_name(settings.run(arm))] for arm in settings.arms]


def _train_students(settings: DistillSettings, runs: dict[str, StudentSettings]) -> dict[str, Record]:
    accelerator = accelerator_for_this_process()
    splits = load_splits(settings.data, accelerator.device)
    started = time.monotonic()
    teacher = None
    if any(distiller(run.method).uses_teacher for run in runs.values()):
        points = dict.fromkeys(point for run in runs.values() for point in run.teacher_points)
        teacher = FrozenTeacher(load_teacher(settings.teacher), points)
    lanes = []
    for name, run in runs.items():
        learner = build_learner(run, teacher.model if teacher else None).to(accelerator.device)
        lanes.append(_lane(name, learner, settings.schedule, accelerator))
    checkpoint = StudyPaths(settings.profile).checkpoint(settings_hash(sorted(runs)))
    fit(lanes, splits, settings.schedule, teacher=teacher, seed=settings.seed, precision=settings.precision, accelerator=accelerator,
        label=f"{settings.student} from {settings.teacher.network}, {settings.method}, seed {settings.seed}, {len(lanes)} students",
        checkpoint=checkpoint)  # fmt: skip
    # Students share the clock: a run's seconds are its share of the whole.
    seconds = (time.monotonic() - started) / len(lanes)
    finished = {lane.name: _finish(settings.profile, "student", runs[lane.name], lane, splits, seconds, accelerator) for lane in lanes}
    checkpoint.unlink(missing_ok=True)
    return finished


def build_learner(run: StudentSettings, teacher: nn.Module | None) -> Learner:
    """A student with fresh seeded weights and the trainable parts of its method.

    **Arguments:** ``teacher`` gives the shapes at the hint points; not needed for runs without hints.
    """
    student = seeded_model(run.student, run.data, run.seed)
    entry = distiller(run.method, run.part_weights)
    if entry.build is None:
        return Learner(student, run)
    student_shapes, teacher_shapes = [], []
    if entry.hints:
        example = example_input(run.data)
        device = next(teacher.parameters()).device
        student_shapes = point_shapes(student, example, run.student_points)
        teacher_shapes = point_shapes(teacher, example.to(device), run.teacher_points)
    with torch.random.fork_rng(devices=[]):
        # Not the student's own seed, so that an adapter's weights do not repeat the student's.
        torch.manual_seed(run.seed + 1_000_003)
        method = entry.build(student_shapes, teacher_shapes)
    return Learner(student, run, method)


def _finish(profile: str, kind: str, settings: TeacherSettings | StudentSettings, lane: Lane, splits: Splits, seconds: float,
            accelerator: Accelerator) -> Record:  # fmt: skip
    """Save weights and record of a lane that has come to its end."""
    network = lane.learner.network
    metrics: dict = {"parameters": parameter_count(network)}
    if not lane.failed:
        measured = [accuracy for accuracy in lane.history["accuracy"] if accuracy is not None]
        metrics |= {"accuracy": measured[-1], "optimistic_accuracy": max(measured)}
    record = Record(
        name=records.record_name(settings),
        kind=kind,
        settings=resolved(settings),
        status="failed" if lane.failed else "ok",
        metrics=metrics,
        history=lane.history,
        provenance={"seconds": round(seconds, 2), **records.provenance(accelerator.device, splits.checksum)},
    )
    if accelerator.is_main_process:
        save_weights(network, StudyPaths(profile).weights(record.name))
        records.save(profile, record)
    # Whoever needs the weights next must find them.
    accelerator.wait_for_everyone()
    return record
