"""Is everything there that a profile needs? Looks at data, teachers, device, disk and folders; trains
nothing.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ... import records
from ...data import DATASETS, NotDownloaded, class_positions, describe, image_counts
from ...models import load_checkpoint
from ...paths import ROOT, results_root, work_root
from ...processes import available_cores
from ...settings import Profile, SettingsError, TeacherSettings, brief
from ...similarity import CANONICAL
from ...teachers import TOLERANCE, check_entry, find, locate
from ...training import check_shares, seeded_model, teacher_weights, trained_elsewhere
from ..grid.profiles import network_points
from ..grid.weights import has_arms
from .estimate import free_bytes
from .launch import process_count
from .plan import chosen_executions

OK, NOTE, WRONG = "ok", "note", "wrong"
# What a study of small images needs at the least, for checkpoints and figures.
NEEDED_BYTES = 500 << 20


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what, how it stands (``ok``, ``note``, ``wrong``), and the detail."""

    what: str
    state: str
    detail: str


def looked(what: str, look: Callable[..., Iterable[Finding] | None], *arguments) -> list[Finding]:
    """What a look finds, or whatever it stumbles over: code of others may raise anything."""
    try:
        return list(look(*arguments) or ())
    except (Exception, SystemExit) as error:
        said = str(error) if isinstance(error, SettingsError) else brief(error)
        return [Finding(what, NOTE if isinstance(error, NotDownloaded) else WRONG, said)]


def check(profile: Profile) -> list[Finding]:
    """All findings; the study can start when none is ``wrong``."""
    pairs = "; ".join(
        f"{pair.teacher} → {pair.student} ({pair.k} hint layers: {', '.join(pair.student_points)})"
        for pair in profile.pairs
    )
    grid = f"{len(profile.methods)} methods, {len(profile.arms)} arms, {len(profile.seeds)} seeds"
    teachers = dict.fromkeys(pair.teacher for pair in profile.pairs)
    found = [Finding("profile", OK, f"{profile.name}: {pairs}; {grid}"), *_device()]
    for what, look, *arguments in (
        ("data", images, profile),
        ("processes", _processes, profile),
        ("notebooks", _minima, profile, teachers),
        *(("metrics", _metrics, profile, teacher) for teacher in teachers),
        *((f"teacher {teacher}", _teacher, profile, teacher) for teacher in teachers),
        ("folder results", _folder, "results", results_root()),
        ("folder work", _folder, "work", work_root()),
        ("disk", _disk),
    ):
        said = {finding.detail for finding in found}
        found += [finding for finding in looked(what, look, *arguments) if finding.detail not in said]
    return found


def _device() -> Iterator[Finding]:
    """What trains here."""
    memory = psutil.virtual_memory().available / 2**30
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding("device", OK, f"{torch.cuda.device_count()} GPU: {names}")
    else:
        yield Finding("device", OK, f"CPU, {available_cores()} cores, {memory:.0f} GiB free memory; no GPU")


def _processes(profile: Profile) -> Iterator[Finding]:
    """Whether the processes that train together can share the batches; nothing for a profile without a
    launch.
    """
    if profile.launch:
        processes = process_count(profile)
        check_shares(image_counts(profile.data)[0], profile.student.batch_size, processes)
        each = f"{profile.student.batch_size // processes} images of every batch each"
        yield Finding("processes", OK, f"{processes} on this machine, {each}")


def images(profile: Profile) -> Iterator[Finding]:
    """Where the images are, and what a sample of them looks like."""
    where = DATASETS[profile.data.dataset].locate(profile.data)
    yield Finding("data", OK, f"{profile.data.dataset}: {where}")


def _minima(profile: Profile, teachers: Iterable[str]) -> Iterator[Finding]:
    """The notebooks that are named, and what some need the least of."""
    chosen_executions(profile)
    classes, hinted = describe(profile.data).classes, [m for m in profile.methods if has_arms(m)]
    profiled = min(profile.profile_images, image_counts(profile.data)[0])
    blocks = {name: network_points(name, profile.data).candidates for name in teachers}
    for what, count, least, why in (
        ("classes", classes, 2, "with one there is nothing to learn"),
        # Two classes with two images each.
        ("profiled images", profiled, classes + 2, "the quality of layers compares images of a class"),
        ("methods with hints", len(hinted), 1, "their results are what the study is about"),
        ("arms with hint layers", len({*profile.arms} - {"none"}), 1, "they are what the study compares"),
        *(
            (f"sub-blocks of {name}", len(points), 3, "numbers of hint layers are compared")
            for name, points in blocks.items()
        ),
    ):
        if count < least:
            yield Finding("notebooks", WRONG, f"{what}: {count}; give {least} or more, since {why}")


def _metrics(profile: Profile, teacher: str) -> Iterator[Finding]:
    """Teachers whose layers some metric would refuse, found out before they are trained."""
    metrics = ", ".join(metric for metric in profile.metrics if metric in CANONICAL)
    count = min(profile.profile_images, image_counts(profile.data)[0])
    widest = max(channels for channels, *_ in network_points(teacher, profile.data).shapes)
    if metrics and widest >= count:
        needed = f"need more images than a sub-block of {teacher} has channels ({widest})"
        remedy = "give more profile_images, or other metrics, such as cka-linear"
        yield Finding("metrics", WRONG, f"{metrics} {needed}, but {count} are profiled; {remedy}")


def _teacher(profile: Profile, network: str) -> list[Finding]:
    settings = profile.teacher_settings(network)
    what = f"teacher {network}"
    blocks = f"{len(network_points(network, profile.data).candidates)} sub-blocks"
    origin, record = _origin(settings), records.load(profile.name, settings)
    weights = teacher_weights(settings)
    why = "" if weights else trained_elsewhere(settings)
    if record is None:
        return [Finding(what, OK, f"{blocks}; {origin}")]
    blocks += f"; {record.metrics.get('accuracy', float('nan')):.2f} % on record, weights"
    if weights:
        return [Finding(what, OK, f"{blocks} here")]
    if why:
        return [Finding(what, NOTE, f"{blocks} not here, and no other student can learn from it: it {why}")]
    return [Finding(what, OK, f"{blocks} not here (trained again if a student needs them)")]


def _origin(settings: TeacherSettings) -> str:
    """Where the teacher will come from, in words.

    **Raises:** ``SettingsError`` for a checkpoint that cannot be it.
    """
    if settings.checkpoint is None:
        return "will be trained"
    path, known = locate(settings.checkpoint)
    if known:
        entry = describe(settings.data)
        check_entry(known, settings.network, settings.data.dataset, entry.mean, entry.std)
    claim = f", {known.accuracy:.2f} % by its manifest entry, ± {TOLERANCE} or the run stops" if known else ""
    if not path.is_file():
        return f"will be downloaded from {known.addresses[0]}{claim}"
    load_checkpoint(
        seeded_model(settings.network, settings.data, 0),
        find(settings.checkpoint)[0],
        class_positions(settings.data),
    )
    return f"from {settings.checkpoint}{claim}"


def _folder(name: str, folder: Path) -> Iterator[Finding]:
    """Whether a file can be made there, found out by making one."""
    braces = next((path for path in (folder, ROOT) if {"{", "}"} & {*str(path)}), None)
    if braces is not None:
        # The engine takes what stands in braces for wildcards.
        remedy = "rename it" if braces == ROOT else f"set PURSUHINT_{name.upper()} to another"
        raise SettingsError(
            f"{braces} has braces in its name, which the workflow engine cannot use; {remedy}"
        )
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        remedy = f"make it writable or set PURSUHINT_{name.upper()} to a folder that is"
        raise SettingsError(f"cannot write to {folder} ({error.strerror}); {remedy}") from None
    yield Finding(f"folder {name}", OK, str(folder))


def _disk() -> Iterator[Finding]:
    free = free_bytes()
    found = f"{free / 2**30:.1f} GiB free"
    if free <= NEEDED_BYTES:
        remedy = "make room, or move work and results to another disk (PURSUHINT_WORK, PURSUHINT_RESULTS)"
        raise SettingsError(f"{found}; at least {NEEDED_BYTES >> 20} MiB are needed: {remedy}")
    yield Finding("disk", OK, found)
