"""One run of a profile: what it is told, its checks, and what it prints until the last step is over."""

import argparse
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from ... import data
from ...faults import full_disk
from ...paths import StudyPaths, shown
from ...processes import available_cores
from ...settings import Profile, SettingsError
from ...settings.user_code import own_code
from ..grid.cells import methods_of
from ..grid.profiles import load_profile, whole_source
from ..grid.weights import weight_to_train
from .check import NOTE, OK, WRONG, Finding, check, images, looked
from .estimate import Estimate, estimate, free_bytes
from .execution import duration, elsewhere, engine_command, execute, failed_steps, owned
from .plan import Step, make_plan, write_plan
from .validate import points_table, validate, weigh

# A disk with less free space than this is full: a log, a figure or a checkpoint may not fit.
FULL_BYTES = 1 << 20


def run(options: argparse.Namespace, publish: Callable[[Profile, list[Step], float], None]) -> int:
    """Run a profile, or say what that would take.

    **Arguments:** ``options`` of the command line; ``publish`` is called with the steps and the seconds that
    they took, once all are done.

    **Returns:** the exit status.
    """
    options.cores = available_cores() if options.cores is None else options.cores
    if options.cores < 1:
        raise SettingsError(f"--cores {options.cores} is not possible; give 1 to {os.cpu_count()}")
    _tell_processes(options)
    # This process takes a few steps on a few images only, in which threads would mostly wait for each other.
    torch.set_num_threads(1)
    profile = load_profile(options.profile)
    if options.check:
        return _print_check(profile)
    source = whole_source(options.profile)
    if options.plan:
        steps = make_plan(profile, source)
        _print_plan(
            profile,
            steps,
            estimate(profile, steps, _gpus(options) or options.cores),
            options.cores,
            whole=True,
        )
        return 0
    _refuse_wrong([finding for finding in check(profile) if finding.what != "data"])
    with owned(profile.name) as run:
        return _study(profile, source, run, options, publish)


def _gpus(options: argparse.Namespace) -> int:
    """Jobs of a cluster get their GPU from its scheduler; only those that run here share the cards of this
    machine.
    """
    return 0 if elsewhere(options.rest) else torch.cuda.device_count()


def _study(
    profile: Profile,
    source: str,
    run: str,
    options: argparse.Namespace,
    publish: Callable[[Profile, list[Step], float], None],
) -> int:
    """Do what is not done, while nobody else runs the profile."""
    if options.force:
        # Without images nothing could take the place of what is set aside.
        data.load_splits(profile.data, torch.device("cpu"))
        _set_aside(profile.name)
    for pair in profile.pairs if profile.weights.tuned_by else ():
        # Nothing in this run would choose them.
        for method in methods_of(profile, pair):
            weight_to_train(profile, pair, method)
    steps = make_plan(profile, source)
    if any(step.trains and not step.done for step in steps):
        _refuse_wrong([*looked("data", images, profile), *validate(profile)])
    gpus = _gpus(options)
    expected = estimate(profile, steps, gpus or options.cores)
    _print_plan(profile, steps, expected, options.cores, whole=False)
    begun = time.monotonic()
    if not all(step.done for step in steps):
        # Until the run is over, what stands there is neither the old results nor the new.
        StudyPaths(profile.name).sums.unlink(missing_ok=True)
        if any(step.trains and not step.done and step.runs[0] != step.runs[1] for step in steps):
            # Decoded, or downloaded, once and before any job: a missing data set is found here.
            data.load_splits(profile.data, torch.device("cpu"))
        plan = write_plan(profile, steps, options.cores, gpus)
        command = engine_command(plan, options.cores, gpus, options.rest)
        status = execute(profile.name, run, steps, expected, command)
        if status:
            return _print_failure(profile.name, steps, status)
        steps = make_plan(profile, source)
        if left := [step.name for step in steps if not step.done]:
            print(
                f"error: what {', '.join(left)} is made from was changed while the run went on: a "
                "notebook, a note or a record; the same command makes it again",
                file=sys.stderr,
            )
            return 1
    publish(profile, steps, time.monotonic() - begun)
    return 0


def _tell_processes(options: argparse.Namespace) -> None:
    """Options that every process of the run has to know, here and on other machines, as environment
    variables.
    """
    if options.data is not None:
        if not Path(options.data).is_dir():
            raise SettingsError(f"--data {options.data} is no folder; give the one that holds the data sets")
        os.environ["PURSUHINT_DATA"] = str(Path(options.data).resolve())
    if options.max_minutes is not None:
        if not options.max_minutes > 0:
            raise SettingsError(f"--max-minutes {options.max_minutes} is not possible; give a number above 0")
        os.environ["PURSUHINT_DEADLINE"] = str(time.time() + 60 * options.max_minutes)
    if options.tensorboard:
        if find_spec("tensorboard") is None:
            raise SettingsError(
                "--tensorboard needs the package tensorboard, which is not installed: pip install tensorboard"
            )
        os.environ["PURSUHINT_TENSORBOARD"] = "1"


def _refuse_wrong(findings: Sequence[Finding]) -> None:
    wrong = [finding for finding in findings if finding.state == WRONG]
    if wrong:
        raise SettingsError(f"{wrong[0].what}: {wrong[0].detail}")


def _print_check(profile: Profile) -> int:
    marks = {OK: "✓", NOTE: "!", WRONG: "✗"}
    for network in dict.fromkeys(
        network for pair in profile.pairs for network in (pair.teacher, pair.student)
    ):
        with own_code(network):
            table = points_table(network, profile.data).to_string(index=False)
        print(f"Candidate hint layers of {network}:\n{table}\n")
    findings = [*check(profile), *validate(profile)]
    if not any(finding.state == WRONG for finding in findings):
        findings += weigh(profile)
    for finding in findings:
        print(f" {marks[finding.state]} {finding.what}: {finding.detail}")
    wrong = sum(finding.state == WRONG for finding in findings)
    print(
        f"{profile.name} can run." if not wrong else f"{profile.name} cannot run: {wrong} thing(s) to mend."
    )
    return 2 if wrong else 0


def _print_plan(profile: Profile, steps: list[Step], expected: Estimate, cores: int, whole: bool) -> None:
    print(f"Profile {profile.name}: {profile.title}")
    for step in steps if whole else []:
        found, wanted = step.runs
        runs = f"  {found} of {'?' if wanted is None else wanted} runs on record" if wanted != 0 else ""
        state = "done" if step.done else f"about {duration(expected.steps[step.name])}"
        print(f"  {step.name:62s} {state:14s}{runs}")
    left = sum(not step.done for step in steps)
    trainings = sum(step.runs[1] - step.runs[0] for step in steps if step.runs[1] is not None)
    unknown = any(step.runs[1] is None for step in steps)
    if not left:
        print(
            f"Nothing to do: all {len(steps)} steps are done and every run is on record; nothing is trained."
        )
        return
    counted = f"{trainings} trainings to do" if trainings else "every run is on record, nothing is trained"
    what = "trainings are still to be counted" if unknown else counted
    device = "GPU" if torch.cuda.is_available() else "core"
    time_left = (
        f"about {duration(expected.seconds)} on {cores} core{'s' * (cores > 1)}, "
        f"{expected.trained / 3600:.3g} {device}-hours of training"
    )
    size = f"{expected.bytes / 2**20:.0f} MiB of disk ({free_bytes() / 2**30:.0f} GiB free)"
    print(f"{len(steps) - left} of {len(steps)} steps are done; {what}; {time_left}, {size}.", flush=True)


def _set_aside(profile: str) -> None:
    """Move all results out of the way, and what stands for them in work/, so that everything is done again
    and nothing is of another training.
    """
    paths = StudyPaths(profile)
    aside = paths.work / f"set-aside-{time.strftime('%Y%m%d-%H%M%S')}"
    folders = (paths.results, *(paths.work / name for name in ("steps", "weights", "checkpoints")))
    moved = [folder for folder in folders if folder.exists()]
    for folder in moved:
        aside.mkdir(parents=True, exist_ok=True)
        shutil.move(folder, aside / ("results" if folder == paths.results else folder.name))
    if moved:
        print(f"Set aside what was there: {shown(aside)}")


def _print_failure(profile: str, steps: list[Step], status: int) -> int:
    paths = StudyPaths(profile)
    failed = failed_steps(profile, steps) if status != 130 else []
    for name, reason in failed:
        print(
            f"error: step {name} failed: {reason}\n       whole log: {shown(paths.step_log(name))}",
            file=sys.stderr,
        )
    # What fails for want of space may not even find the space to say so.
    if failed and (
        free_bytes() < FULL_BYTES or any(os.strerror(errno.ENOSPC) in reason for _, reason in failed)
    ):
        print(f"error: {full_disk()}", file=sys.stderr)
    if not failed and status != 130:
        said = [line for line in paths.engine_log.read_text(errors="replace").splitlines() if line.strip()]
        print(
            f"error: the engine ended before any step: {said[-1].strip() if said else 'it said nothing'}",
            file=sys.stderr,
        )
    print(
        "Not finished; what is done is kept, and the same command goes on from there. Engine's log: "
        f"{shown(paths.engine_log)}",
        file=sys.stderr,
    )
    return status
