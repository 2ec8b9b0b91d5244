"""Runs from settings to record: teachers, and all arms of a student side by side. What has a record is
loaded.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from .. import records
from ..attention import keep_maps
from ..data import Splits, class_positions, describe, example_input, load_splits
from ..distillers import distiller
from ..files import sha256
from ..models import load_checkpoint, parameter_count, save_weights
from ..paths import StudyPaths, kept_by_all
from ..processes import agreed, threads
from ..records import Record
from ..settings import (
    DistillSettings,
    SettingsError,
    StudentSettings,
    TeacherSettings,
    resolved,
    settings_hash,
)
from ..taps import stage_ends
from ..teachers import TOLERANCE, Teacher, check_accuracy, check_entry, find, write_entry
from . import checkpoints
from .device import accelerator_for_this_process
from .fitting import fit
from .objective import FrozenTeacher, Objective, build_objective, seeded_model
from .trainee import Trainee, Training

# Bytes of memories of past images from which on they are announced.
WORTH_SAYING = 1 << 20
# Set where results are drawn again from their records alone: whatever would have to be trained or measured
# for them is an error then.
RECORDS_ONLY = "PURSUHINT_RECORDS_ONLY"


def train_teacher(settings: TeacherSettings, force: bool = False) -> Record:
    """Train a teacher, or evaluate the given checkpoint; a record that exists is loaded.

    **Arguments:** ``force``: train it for its weights, whether there is a record or not; one that is there
    stays as it is, unless this training comes out otherwise and nothing else on record comes from that
    teacher.

    **Returns:** the record; its weights are under ``StudyPaths.weights``, with a manifest entry beside them.

    **Raises:** ``SettingsError`` for a checkpoint that is not what its manifest entry says. Where something
    on record comes from the teacher, also before a training on another machine than the record's, and after
    one that does not come out as on record.
    """
    paths, name = StudyPaths(settings.profile), records.record_name(settings)
    record = None if force else records.load(settings.profile, settings)
    if record is None:
        _refuse_if_records_only(f"record {name}")
        record = _train_teacher(settings, paths, name)
    # Also what a kill between record and removal has left.
    checkpoints.remove(paths.checkpoint(name))
    return record


def _train_teacher(settings: TeacherSettings, paths: StudyPaths, name: str) -> Record:
    known = _comparable(settings)
    if why := trained_elsewhere(settings):
        raise _another(settings, f"would be another one than on record, which {why}")
    accelerator = accelerator_for_this_process()
    splits = load_splits(settings.data, accelerator.device)
    objective = Objective(seeded_model(settings.network, settings.data, settings.seed).to(accelerator.device))
    started = _clocks()
    trainee = Trainee("teacher", objective, settings, accelerator)
    training = Training(
        settings,
        [trainee],
        splits,
        accelerator,
        label=f"teacher {settings.network}",
        checkpoint=paths.checkpoint(name),
        metrics=paths.metrics(name),
    )
    speed = {}
    if settings.checkpoint is None:
        speed = fit(training)
    else:
        _measure_checkpoint(settings, trainee, splits)
    if known and trainee.history != known.history:
        checkpoints.remove(training.checkpoint)
        if _followed(settings):
            # Two kinds of CPU may have the same name.
            raise _another(settings, "is another one than on record")
        if accelerator.is_main_process:
            (paths.records / f"{name}.json").unlink()
    return _finish(training, trainee, settings, {**_since(started), **speed})


def trained_elsewhere(settings: TeacherSettings) -> str:
    """Why a teacher on record would be another one if it were trained again here, in words that follow
    "which".

    Empty where it would not as far as one can know, or where nothing else on record comes from it.
    """
    known = _comparable(settings)
    if known is None:
        return ""
    device = accelerator_for_this_process().device
    there, here = (records.machine(made) for made in (known.provenance, records.provenance(device, "")))
    otherwise = there != here and _followed(settings)
    return f"was trained on {there}, and {here} rounds otherwise" if otherwise else ""


def _comparable(settings: TeacherSettings) -> Record | None:
    """The record as which a training of the teacher must come out: a checkpoint is the same everywhere, and a
    failed one taught nobody.
    """
    known = records.load(settings.profile, settings)
    return known if known and known.status == "ok" and settings.checkpoint is None else None


def _followed(settings: TeacherSettings) -> bool:
    """Whether a student, or a comparison of layers, that is on record comes from this teacher."""
    paths, wanted = StudyPaths(settings.profile), resolved(settings)
    stored = [records.read(path).settings for path in paths.results.rglob("records/*_from_*.json")]
    similarity = paths.similarity(settings.network)
    if similarity.is_file():
        stored.append(json.loads(similarity.read_text(encoding="utf-8")).get("settings", {}))
    return any(not records.differing(each.get("teacher", {}), wanted) for each in stored)


def _measure_checkpoint(settings: TeacherSettings, trainee: Trainee, splits: Splits) -> None:
    """Load a teacher that was trained elsewhere into the trainee's network, and measure it; refused if its
    manifest says otherwise.
    """
    path, known = find(settings.checkpoint)
    images = describe(settings.data)
    if known:
        check_entry(known, settings.network, settings.data.dataset, images.mean, images.std)
    load_checkpoint(trainee.objective.network, path, class_positions(settings.data))
    measured = trainee.measure(splits.test)
    # On a part of the test images it may differ from that on all of them.
    if known and settings.data.as_published:
        check_accuracy(known, measured["accuracy"])
        if known.addresses:
            # The download was the right one, so from now on no other is.
            write_entry(path, known)
    trainee.history |= {name: [value] for name, value in measured.items()}


def teacher_weights(settings: TeacherSettings) -> Path | None:
    """File of a trained teacher's weights: where its training left them, or where they are kept among the
    results of its profile, or of another one; nothing if nowhere.
    """
    paths, name = StudyPaths(settings.profile), records.record_name(settings)
    # Weights without a record are of a training that could not be written to its end.
    if records.load(settings.profile, settings) is None:
        return None
    # The same name is the same settings, so profiles share a teacher that one of them keeps.
    places = (paths.weights(name), paths.kept_weights(name), *kept_by_all(name))
    return next((file for file in places if file.is_file()), None)


def load_teacher(settings: TeacherSettings) -> nn.Module:
    """The trained teacher, frozen, in eval mode, on this process's device; trained first if its weights or
    record are not here.

    **Raises:** ``SettingsError`` where the weights have changed since, or are those of another training than
    the record's.
    """
    _refuse_if_records_only(f"a file of the folder hints that is made with {records.record_name(settings)}")
    if teacher_weights(settings) is None:
        on_record = records.load(settings.profile, settings)
        # On another number of threads sums are rounded otherwise.
        with threads(on_record.provenance["threads"] if on_record else torch.get_num_threads()):
            train_teacher(settings, force=True)
    weights = teacher_weights(settings)
    _, entry = find(str(weights))
    known = records.load(settings.profile, settings)
    if entry and abs(entry.accuracy - known.metrics["accuracy"]) > TOLERANCE:
        raise _another(settings, "is another one than on record")
    model = seeded_model(settings.network, settings.data, settings.seed)
    load_checkpoint(model, weights)
    return model.to(accelerator_for_this_process().device).eval().requires_grad_(False)


def _another(settings: TeacherSettings, why: str) -> SettingsError:
    weights = StudyPaths(settings.profile).weights(records.record_name(settings))
    return SettingsError(
        f"teacher {settings.network} {why}, and its students would not compare; "
        f"put the weights that it had at {weights}, or train all anew with --force"
    )


def distill(settings: DistillSettings, force: bool = False, measured_steps: int = 0) -> list[Record]:
    """Train every arm that has no record yet, side by side on one teacher pass.

    Arms with the same hint layers are one run, and share its record.

    **Arguments:** ``force``: train all arms for their weights; records that are there stay as they are.
    ``measured_steps``: over so many first steps the ``gradient_ratio`` is measured, in one process, which
    changes nothing in the training.

    **Returns:** one record per arm, in the order of ``settings.arms``.
    """
    # Processes know of each other from here on.
    accelerator_for_this_process()
    runs = {records.record_name(settings.run(arm)): settings.run(arm) for arm in settings.arms}
    # One process looks for all, as another study may write a record meanwhile.
    found = agreed(
        {name: None if force else records.load(settings.profile, run) for name, run in runs.items()}
    )
    missing = {name: run for name, run in runs.items() if found[name] is None}
    # Named by all arms: a kill between two records must not part the others from their state.
    checkpoint = StudyPaths(settings.profile).checkpoint(settings_hash(sorted(runs)))
    if missing:
        _refuse_if_records_only(f"record {next(iter(missing))}")
        found |= _train_students(settings, missing, checkpoint, measured_steps)
    checkpoints.remove(checkpoint)
    return [found[records.record_name(settings.run(arm))] for arm in settings.arms]


def _train_students(
    settings: DistillSettings, runs: dict[str, StudentSettings], checkpoint: Path, measured_steps: int
) -> dict[str, Record]:
    accelerator = accelerator_for_this_process()
    splits = load_splits(settings.data, accelerator.device)
    started, teacher, teacher_checksum = _clocks(), None, {}
    if any(distiller(run.method).uses_teacher for run in runs.values()):
        points = dict.fromkeys(point for run in runs.values() for point in run.teacher_points)
        teacher = FrozenTeacher(load_teacher(settings.teacher), points)
        teacher_checksum = {"teacher_checksum": sha256(teacher_weights(settings.teacher))[:16]}
    to_measure = measured_steps if accelerator.num_processes == 1 else 0
    trainees = []
    for name, run in runs.items():
        objective = build_objective(run, teacher.model if teacher else None, splits.train.labels.cpu())
        objective = objective.to(accelerator.device)
        trainees.append(Trainee(name, objective, settings, accelerator, to_measure))
    _announce_memories([trainee.objective for trainee in trainees])
    training = Training(
        settings,
        trainees,
        splits,
        accelerator,
        label=f"{settings.student} from {settings.teacher.network}, {settings.method}, seed {settings.seed}, "
        f"{len(trainees)} students",
        checkpoint=checkpoint,
        metrics=metrics_file(settings),
        teacher=teacher,
    )
    speed = fit(training)
    # Students share the clock: a run's seconds are its share of the whole.
    took = {**_since(started, len(trainees)), **speed, **teacher_checksum}
    if settings.keep_maps and accelerator.is_main_process:
        # Before the records: what has one is complete.
        for trainee in training.running:
            network, example = trainee.objective.network, example_input(settings.data).to(accelerator.device)
            points = runs[trainee.name].student_points or settings.student_points
            keep_maps(
                settings.profile, trainee.name, network, points or stage_ends(network, example), splits.test
            )
    return {trainee.name: _finish(training, trainee, runs[trainee.name], took) for trainee in trainees}


def _clocks() -> tuple[float, float]:
    """Seconds on the wall's clock, and those that all cores together have worked for this process."""
    return time.monotonic(), time.process_time()


def _since(started: tuple[float, float], students: int = 1) -> dict[str, float]:
    """A run's share of both clocks' seconds since then."""
    seconds, cpu_seconds = (
        round((now - then) / students, 2) for now, then in zip(_clocks(), started, strict=True)
    )
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}


def _refuse_if_records_only(missing: str) -> None:
    """Refuse to make what is missing where results are drawn from their records alone."""
    if os.environ.get(RECORDS_ONLY):
        raise SettingsError(f"{missing} is missing, and nothing may be trained or measured in its place here")


def metrics_file(settings: DistillSettings) -> Path:
    """Where the students of these settings say how their training goes."""
    return StudyPaths(settings.profile).metrics(
        f"{settings.student}_from_{settings.teacher.network}_{settings.method}_seed{settings.seed}"
    )


def _announce_memories(objectives: Sequence[Objective]) -> None:
    """Say how much the memories of methods like CRD take, before the start; as progress, since a notebook
    that loads records does not say it.
    """
    sizes = [
        sum(buffer.nbytes for buffer in objective.method.buffers())
        for objective in objectives
        if objective.method
    ]
    if sum(sizes) > WORTH_SAYING:
        print(f"Memories of {len(sizes)} students: {sum(sizes) / 2**20:.0f} MiB", file=sys.stderr, flush=True)


def _finish(
    training: Training, trainee: Trainee, settings: TeacherSettings | StudentSettings, took: dict
) -> Record:
    """Save weights and record of a trainee that has come to its end."""
    network, accelerator = trainee.objective.network, training.accelerator
    metrics: dict = {"parameters": parameter_count(network)}
    if trainee.gradient_ratio is not None:
        metrics["gradient_ratio"] = trainee.gradient_ratio
    if trainee.failed:
        metrics["failed_in_step"] = int(trainee.broke)
    else:
        # Of the epochs in which it was measured.
        measured = [accuracy for accuracy in trainee.history["accuracy"] if accuracy is not None]
        metrics |= {"accuracy": measured[-1], "optimistic_accuracy": max(measured)}
        if "top5_accuracy" in trainee.history:
            metrics["top5_accuracy"] = trainee.history["top5_accuracy"][-1]
    record = Record(
        name=records.record_name(settings),
        kind="teacher" if isinstance(settings, TeacherSettings) else "student",
        settings=resolved(settings),
        status="failed" if trainee.failed else "ok",
        metrics=metrics,
        history=trainee.history,
        provenance={
            **took,
            "processes": accelerator.num_processes,
            **records.provenance(accelerator.device, training.splits.checksum),
        },
        answers={} if trainee.failed else records.packed(trainee.right),
    )
    profile = training.settings.profile
    weights = StudyPaths(profile).weights(record.name)
    if accelerator.is_main_process:
        save_weights(network, weights)
        if record.kind == "teacher" and record.status == "ok":
            write_manifest_entry(weights, settings, record.metrics["accuracy"])
        # Last: what has a record is complete. One that is there stays: it was trained again for its weights.
        if records.load(profile, settings) is None:
            records.save(profile, record)
    # Whoever needs the weights next must find them.
    accelerator.wait_for_everyone()
    return record


def write_manifest_entry(weights: Path, settings: TeacherSettings, accuracy: float) -> None:
    """Say beside the weights of a teacher what it learnt, and how well (test top-1 in %)."""
    entry, name = describe(settings.data), records.record_name(settings)
    write_entry(
        weights,
        Teacher(
            name, settings.network, settings.data.dataset, entry.classes, accuracy, entry.mean, entry.std
        ),
    )
