"""Is everything there that a profile needs? Looks at data, teachers, device, disk and folders; trains
nothing.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ... import records
from ...data import DATASETS, DataError, NotDownloaded, class_positions, describe, image_counts
from ...models import load_checkpoint
from ...paths import ROOT, results_root, work_root
from ...settings import Profile, SettingsError, TeacherSettings
from ...similarity import CANONICAL
from ...teachers import TOLERANCE, check_entry, find, locate
from ...training import check_shares, seeded_model, teacher_weights, trained_elsewhere
from ..grid.profiles import network_points
from .estimate import free_bytes
from .launch import process_count

OK, NOTE, WRONG = "ok", "note", "wrong"
# What a study of small images needs at the least, for checkpoints and figures.
NEEDED_BYTES = 500 << 20


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what, how it stands (``ok``, ``note``, ``wrong``), and the detail."""

    what: str
    state: str
    detail: str


def check(profile: Profile) -> list[Finding]:
    """All findings; the study can start when none is ``wrong``."""
    pairs = "; ".join(
        f"{pair.teacher} → {pair.student} ({pair.k} points: {', '.join(pair.student_points)})"
        for pair in profile.pairs
    )
    grid = f"{len(profile.methods)} methods, {len(profile.arms)} arms, {len(profile.seeds)} seeds"
    return [
        Finding("profile", OK, f"{profile.name}: {pairs}; {grid}"),
        _device(),
        *_processes(profile),
        _data(profile),
        *_metrics(profile),
        *[_teacher(profile, teacher) for teacher in dict.fromkeys(pair.teacher for pair in profile.pairs)],
        *[_folder(name, folder) for name, folder in (("results", results_root()), ("work", work_root()))],
        _disk(),
    ]


def _device() -> Finding:
    memory = psutil.virtual_memory().available / 2**30
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("device", OK, f"{torch.cuda.device_count()} GPU: {names}")
    return Finding("device", OK, f"CPU, {available_cores()} cores, {memory:.0f} GiB free memory; no GPU")


def _processes(profile: Profile) -> Iterator[Finding]:
    """Whether the processes that train together can share the batches; nothing for a profile without a
    launch.
    """
    if profile.launch is None:
        return
    try:
        processes = process_count(profile)
        check_shares(image_counts(profile.data)[0], profile.student.batch_size, processes)
    except DataError:
        # Images that are not there are a finding of their own.
        return
    except SettingsError as error:
        yield Finding("processes", WRONG, str(error))
    else:
        yield Finding(
            "processes",
            OK,
            f"{processes} on this machine, {profile.student.batch_size // processes} images of every batch "
            "each",
        )


def _data(profile: Profile) -> Finding:
    try:
        return Finding(
            "data", OK, f"{profile.data.dataset}: {DATASETS[profile.data.dataset].locate(profile.data)}"
        )
    except NotDownloaded as error:
        return Finding("data", NOTE, str(error))
    except DataError as error:
        return Finding("data", WRONG, str(error))


def _metrics(profile: Profile) -> Iterator[Finding]:
    """Teachers whose layers some metric would refuse, found out before they are trained."""
    metrics = ", ".join(metric for metric in profile.metrics if metric in CANONICAL)
    with contextlib.suppress(DataError):
        images = min(profile.profile_images, image_counts(profile.data)[0])
        for teacher in dict.fromkeys(pair.teacher for pair in profile.pairs):
            widest = max(channels for channels, *_ in network_points(teacher, profile.data).shapes)
            if metrics and widest >= images:
                needed = (
                    f"need more images than a sub-block of {teacher} has channels ({widest}), but "
                    f"{images} are profiled"
                )
                yield Finding(
                    "metrics",
                    WRONG,
                    f"{metrics} {needed}; give more profile_images, or other metrics, such as cka-linear",
                )


def _teacher(profile: Profile, network: str) -> Finding:
    settings = profile.teacher_settings(network)
    what = f"teacher {network}"
    blocks = f"{len(network_points(network, profile.data).candidates)} sub-blocks"
    try:
        origin = _origin(settings)
        record = records.load(profile.name, settings)
        weights = teacher_weights(settings)
        why = "" if weights else trained_elsewhere(settings)
    except SettingsError as error:
        return Finding(what, WRONG, str(error))
    if record is None:
        return Finding(what, OK, f"{blocks}; {origin}")
    blocks += f"; {record.metrics.get('accuracy', float('nan')):.2f} % on record, weights"
    if weights:
        return Finding(what, OK, f"{blocks} here")
    if why:
        return Finding(what, NOTE, f"{blocks} not here, and no other student can learn from it: it {why}")
    return Finding(what, OK, f"{blocks} not here (trained again if a student needs them)")


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


def _folder(name: str, folder: Path) -> Finding:
    """Whether a file can be made there, found out by making one."""
    braces = next((path for path in (folder, ROOT) if {"{", "}"} & {*str(path)}), None)
    if braces is not None:
        # The engine takes what stands in braces for wildcards.
        remedy = "rename it" if braces == ROOT else f"set PURSUHINT_{name.upper()} to another"
        return Finding(
            f"folder {name}",
            WRONG,
            f"{braces} has braces in its name, which the workflow engine cannot use; {remedy}",
        )
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        remedy = f"make it writable or set PURSUHINT_{name.upper()} to a folder that is"
        return Finding(f"folder {name}", WRONG, f"cannot write to {folder} ({error.strerror}); {remedy}")
    return Finding(f"folder {name}", OK, str(folder))


def _disk() -> Finding:
    free = free_bytes()
    found = f"{free / 2**30:.1f} GiB free"
    if free > NEEDED_BYTES:
        return Finding("disk", OK, found)
    remedy = "make room, or move work and results to another disk (PURSUHINT_WORK, PURSUHINT_RESULTS)"
    return Finding("disk", WRONG, f"{found}; at least {NEEDED_BYTES >> 20} MiB are needed: {remedy}")
