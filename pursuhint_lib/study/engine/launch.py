"""Training in processes of its own, one per GPU: started from a notebook, followed through the metrics file,
ended with it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ...paths import StudyPaths, step_name
from ...processes import available_cores
from ...settings import Pair, Profile, SettingsError
from ...training import metrics_file
from ..grid.cells import grid_cells
from ..grid.hint_layers import layer_similarity
from ..grid.weights import has_arms

# Seconds between two looks at the metrics.
POLL = 0.5
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def process_count(profile: Profile) -> int:
    """Processes that train together on this machine: what the profile says, or one per GPU, or one.

    **Raises:** ``SettingsError`` when there are GPUs, but fewer than processes.
    """
    gpus, wanted = torch.cuda.device_count(), profile.launch.processes
    if wanted and 0 < gpus < wanted:
        raise SettingsError(
            f"launch.processes is {wanted}, but there are {gpus} GPUs; give at most {gpus}, or none for one "
            "per GPU"
        )
    return wanted or gpus or 1


def launch_command(worker: Sequence[str], processes: int) -> list[str]:
    """Command line that starts a Python module (with arguments) in so many processes of this machine.

    torchrun, which is what ``accelerate launch`` starts on GPUs; on CPUs that starts a single process
    whatever it is told.
    """
    # "standalone" finds a free port, so that two trainings on one machine do not meet.
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        *worker,
    ]


def environment(processes: int) -> dict[str, str]:
    """Environment of the processes: cores shared out, and no GPU looked for where there is none."""
    cores = int(os.environ.get("OMP_NUM_THREADS") or available_cores())
    # The workflow engine sets them all, and each counts for some library.
    shared = {**os.environ, **dict.fromkeys(THREADS, str(max(1, cores // processes)))}
    return shared if torch.cuda.is_available() else {**shared, "ACCELERATE_USE_CPU": "true"}


def train_in_processes(profile: Profile, source: str, pair: Pair, method: str) -> None:
    """Train what is missing of one (pair, method), and print a line for every epoch of every seed. Where
    nothing is missing no process is started.

    **Arguments:** ``source`` what the profile was loaded from: a name or a YAML file.

    **Raises:** ``RuntimeError`` when the training ends early, with its reason; its state is saved and the
    next call goes on from there.
    """
    processes = process_count(profile)
    if has_arms(method):
        layer_similarity(profile, pair.teacher)
    cells = grid_cells(profile, pair, method)
    if all(whole and all(there.values()) for there, whole in (cell.files() for cell in cells)):
        return
    files = [metrics_file(cell.settings) for cell in cells]
    log = StudyPaths(profile.name).step_log(step_name("processes", pair.name, method))
    log.parent.mkdir(parents=True, exist_ok=True)
    command = launch_command(["pursuhint_lib", "train", source, pair.name, method], processes)
    known = {file: _rows(file) for file in files}
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment(processes)
        ) as launched,
    ):
        try:
            over = False
            while not over:
                time.sleep(POLL)
                over = launched.poll() is not None
                for line in _news(known):
                    print(line, file=sys.stderr, flush=True)
        finally:
            # An interrupted notebook must not leave its processes behind; they save their state first.
            launched.terminate()
    if launched.returncode:
        raise RuntimeError(f"{_reason(log)}; whole log: {log}")


def _rows(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.is_file() else 0


def _news(known: dict[Path, int]) -> Iterator[str]:
    """Lines on epochs that were closed since the last look."""
    for file, before in known.items():
        rows = file.read_text().splitlines() if file.is_file() else []
        for row in map(json.loads, rows[before:]):
            accuracy = "" if row["accuracy"] is None else f", top-1 {row['accuracy']:.2f} %"
            speed = (
                f"{row['images_per_second']:.0f} images/s, {row['data_wait']:.0%} of the time waiting "
                "for images"
            )
            yield f"{row['trainee']}: epoch {row['epoch']}, loss {row['loss_total']}{accuracy}, {speed}"
        # A training that begins anew has emptied its file.
        known[file] = len(rows)


def _reason(log: Path) -> str:
    """Why the processes ended, from what they have printed."""
    lines = log.read_text(errors="replace").splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if said:
        return said[-1]
    raised = [
        line
        for line in lines
        if line.partition(":")[0].endswith(("Error", "Exception")) and "ChildFailedError" not in line
    ]
    why = f" ({raised[0].strip()})" if raised else ", killed from outside or for want of memory"
    return f"a process of the training died{why}; the same command goes on from the last saved state"
