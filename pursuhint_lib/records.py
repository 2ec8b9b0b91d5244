"""One JSON file per run: settings, metrics, history and provenance. A run that exists is loaded, not
repeated.
"""

import base64
import json
import platform
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch import version as torch_version

from .files import sealed, unsealed, write_json
from .paths import ROOT, StudyPaths
from .settings import SettingsError, StudentSettings, TeacherSettings, resolved, settings_hash

# Beyond so many characters the hint layers are counted in a record's name, not listed: file names have a
# limit.
MAX_POINTS_TEXT = 80
PACKAGES = ("torch", "torchvision", "accelerate", "scikit-learn", "numpy")


@dataclass(frozen=True)
class Record:
    """What one run was and what came of it.

    **Arguments:**

    - ``name``: file name without ending; readable, and unique through the hash at its end.
    - ``kind``: ``teacher`` or ``student``.
    - ``settings``: resolved settings, as plain values.
    - ``status``: ``ok``, or ``failed`` when the loss stopped being finite.
    - ``metrics``: ``accuracy`` (test, last epoch, %; the headline; of the held-out images where the settings
      hold some out), ``optimistic_accuracy`` (best test epoch), ``parameters``; accuracies are missing for a
      failed run, which has ``failed_in_step`` (from 1). ``gradient_ratio``, where it was measured: mean over
      the first steps of ‖gradient of the weighted hint loss‖ / ‖gradient of CE + KD‖.
    - ``history``: column → one value per epoch; ``accuracy`` is null where it was not measured.
    - ``provenance``: seconds and CPU seconds (of this process; students that train side by side share both),
      images per second (each through all students of the training) and share of the time spent waiting for
      them, processes, device, driver, versions, git commit, checksums of the data and of the teacher's
      weights, threads, peak memory of the process. Older records lack some of it.
    - ``answers``: which test images were answered rightly after the last epoch, as ``packed`` gives it; empty
      in older records and failed ones.
    """

    name: str
    kind: str
    settings: dict
    status: str
    metrics: dict
    history: dict
    provenance: dict
    answers: dict = field(default_factory=dict)


def packed(right: Tensor) -> dict:
    """Which images were answered rightly, bool [N], as JSON takes it: ``images`` N, and ``right``, their bits
    in base64.
    """
    return {"images": len(right), "right": base64.b64encode(np.packbits(right.cpu().numpy())).decode()}


def answered(record: Record) -> np.ndarray | None:
    """Which test images a run answered rightly, bool [N] in the order of the test images; ``None`` if the
    record lacks it.
    """
    if not record.answers:
        return None
    bits = np.frombuffer(base64.b64decode(record.answers["right"]), np.uint8)
    return np.unpackbits(bits, count=record.answers["images"]).astype(bool)


def record_name(settings: TeacherSettings | StudentSettings) -> str:
    """Readable name of a run, ending in the hash of its settings."""
    digest = settings_hash(settings)
    if isinstance(settings, TeacherSettings):
        parts = ["teacher", settings.network, f"seed{settings.seed}", digest]
    else:
        points = "+".join(settings.teacher_points) or "no-hints"
        points = points if len(points) <= MAX_POINTS_TEXT else f"{len(settings.teacher_points)}-points"
        parts = [
            settings.student,
            "from",
            settings.teacher.network,
            settings.method,
            points,
            f"seed{settings.seed}",
            digest,
        ]
    return "_".join(parts).replace("/", "-").replace(":", ".")


def load(profile: str, settings: TeacherSettings | StudentSettings) -> Record | None:
    """The record of these settings, or ``None`` if there is none.

    **Raises:** ``SettingsError`` for a file that is not a record of these settings (edited or damaged).
    """
    path = StudyPaths(profile).records / f"{record_name(settings)}.json"
    if not path.is_file():
        return None
    record = read(path)
    others = differing(record.settings, resolved(settings))
    if others:
        raise SettingsError(
            f"{path} was made with other settings ({', '.join(others)}) than its name says; delete it to run "
            "again"
        )
    return record


def differing(stored: dict, wanted: dict) -> list[str]:
    """Stored settings that are not the wanted ones; a setting younger than the record is not asked about."""
    names = []
    for key, value in stored.items():
        if isinstance(value, dict) and isinstance(wanted.get(key), dict):
            names += [f"{key}.{name}" for name in differing(value, wanted[key])]
        elif value != wanted.get(key):
            names.append(key)
    return names


def read(path: Path) -> Record:
    """Read one record file.

    **Raises:** ``SettingsError`` naming the file if it is not a record.
    """
    try:
        record = Record(**unsealed(json.loads(path.read_text(encoding="utf-8"))))
        wrong = [f.name for f in fields(Record) if not isinstance(getattr(record, f.name), f.type)]
        if wrong:
            raise TypeError(f"{wrong[0]} is of the wrong kind")
    except (ValueError, TypeError, RecursionError) as error:
        raise SettingsError(
            f"{path} is not a record ({' '.join(str(error).split())}); delete it to run again"
        ) from None
    return record


def save(profile: str, record: Record) -> None:
    """Write a record."""
    write_json(StudyPaths(profile).records / f"{record.name}.json", sealed(asdict(record)))


@cache
def _git() -> dict:
    """Commit of the checkout and whether tracked files differ from it; empty outside git."""

    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # Results are rewritten while the study runs, so only the code decides whether the tree is dirty.
        changed = ask("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        return {"git_commit": ask("rev-parse", "HEAD"), "git_dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"git_commit": None, "git_dirty": None}


def processor() -> str:
    """Name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


@cache
def _gpu_driver() -> str | None:
    """Version of the GPU's driver; nothing where its tool is missing."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def machine(made: dict) -> str:
    """What decides how sums are rounded, besides the threads, as far as a provenance has it, in words."""
    return f"{made['device']} with torch {made['versions']['torch']}"


def provenance(device: torch.device, data_checksum: str) -> dict:
    """Conditions of a run: device, versions, git commit, data checksum, threads, and the most memory the
    process has had, in MiB.

    On a GPU also the most of its memory, and the versions of driver and CUDA.
    """
    # The kernel counts in KiB, but in bytes on a Mac.
    unit = 1 if sys.platform == "darwin" else 1024
    measured = {"peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)}
    if device.type == "cuda":
        measured["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
        measured |= {"gpu_driver": _gpu_driver(), "cuda": torch_version.cuda}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "data_checksum": data_checksum,
        **measured,
        **_git(),
    }
