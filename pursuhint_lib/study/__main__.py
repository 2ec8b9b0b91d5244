"""Command line behind run_all.sh: ``python -m pursuhint_lib.study [PROFILE] …``, and ``slot -- COMMAND`` to
wait for a GPU.
"""

import argparse
import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch

from .. import data
from ..paths import ROOT, VECTOR, StudyPaths
from ..settings import Profile, SettingsError
from .engine.check import NOTE, OK, WRONG, Finding, check
from .engine.estimate import Estimate, estimate, free_bytes
from .engine.execution import duration, elsewhere, execute, failed_steps, owned, run_in_slot
from .engine.plan import Step, make_plan, write_plan
from .engine.validate import points_table, validate, weigh
from .engine.worker import fault, full_disk
from .grid.profiles import load_profile, profile_path
from .publish.report import write_report
from .publish.verify import sums_file, write_sums

# A disk with less free space than this is full: a log, a figure or a checkpoint may not fit.
FULL_BYTES = 1 << 20


def main(arguments: Sequence[str]) -> int:
    """Run one command; a setting that cannot be used ends with one line and exit status 2."""
    try:
        if arguments[:2] == ["slot", "--"]:
            return run_in_slot(arguments[2:], torch.cuda.device_count())
        # By hand: argparse refuses what follows "--" where an option stands between the profile and it.
        cut = arguments.index("--") if "--" in arguments else len(arguments)
        return _run(_parser().parse_args(arguments[:cut], argparse.Namespace(engine=arguments[cut + 1 :])))
    except (SettingsError, OSError) as error:
        print(f"error: {fault(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped; the same command goes on from here.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    about = (
        "Run the study of one profile, or say what that would take. What follows -- is passed to "
        "snakemake unchanged."
    )
    parser = argparse.ArgumentParser(prog="./run_all.sh", description=about)
    parser.add_argument(
        "profile",
        nargs="?",
        default="quick",
        help="a name in config/ or a YAML file of your own (default: quick)",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print the steps, which are done, and the time and disk that the rest will take",
    )
    parser.add_argument(
        "--check", action="store_true", help="look at data, teachers, device and disk; train nothing"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="do everything again; the results that exist are set aside, not deleted",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="folder of the data sets, or an ImageNet tree (default: PURSUHINT_DATA, or data/)",
    )
    parser.add_argument(
        "--max-minutes",
        type=float,
        metavar="M",
        help="save what is in training after so long and end; the same command goes on",
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="write TensorBoard's files beside the metrics (needs the package tensorboard)",
    )
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="CPU cores to use (default: all)")
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.cores < 1:
        raise SettingsError(f"--cores {options.cores} is not possible; give 1 to {os.cpu_count()}")
    _tell_processes(options)
    # This process takes a few steps on a few images only, in which threads would mostly wait for each other.
    torch.set_num_threads(1)
    profile = load_profile(options.profile)
    if options.check:
        return _print_check(profile)
    # Notebooks run in their own folder, so a file is named by its full path.
    source = (
        str(profile_path(options.profile).resolve())
        if options.profile.endswith((".yaml", ".yml"))
        else options.profile
    )
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
        return _study(profile, source, run, options)


def _gpus(options: argparse.Namespace) -> int:
    """Jobs of a cluster get their GPU from its scheduler; only those that run here share the cards of this
    machine.
    """
    return 0 if elsewhere(options.engine) else torch.cuda.device_count()


def _study(profile: Profile, source: str, run: str, options: argparse.Namespace) -> int:
    """Do what is not done, while nobody else runs the profile."""
    if options.force:
        # Without images nothing could take the place of what is set aside.
        data.load_splits(profile.data, torch.device("cpu"))
        _set_aside(profile.name)
    steps = make_plan(profile, source)
    if any(step.trains and not step.done for step in steps):
        _refuse_wrong(validate(profile))
    gpus = _gpus(options)
    expected = estimate(profile, steps, gpus or options.cores)
    _print_plan(profile, steps, expected, options.cores, whole=False)
    begun = time.monotonic()
    results = StudyPaths(profile.name).results
    if not all(step.done for step in steps):
        # Until the run is over, what stands there is neither the old results nor the new.
        sums_file(results).unlink(missing_ok=True)
        if any(step.trains and not step.done and step.runs[0] != step.runs[1] for step in steps):
            # Decoded, or downloaded, once and before any job: a missing data set is found here.
            data.load_splits(profile.data, torch.device("cpu"))
        plan = write_plan(profile, steps, options.cores, gpus)
        status = execute(profile.name, run, plan, steps, expected, options.cores, gpus, options.engine)
        if status:
            return _print_failure(profile.name, steps, status)
        steps = make_plan(profile, source)
        if not all(step.done for step in steps):
            return _print_failure(profile.name, steps, 1)
    if not sums_file(results).is_file():
        write_sums(results)
    _print_results(profile, steps, time.monotonic() - begun)
    print(f"\nReport, one page with all of it: {_short(write_report(profile, steps))}")
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
        print(
            "Candidate hint points of "
            f"{network}:\n{points_table(network, profile.data).to_string(index=False)}\n"
        )
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
        f"about {duration(expected.seconds)} on {cores} cores, {expected.trained / 3600:.3g} "
        f"{device}-hours of training"
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
        print(f"Set aside what was there: {_short(aside)}")


def _print_failure(profile: str, steps: list[Step], status: int) -> int:
    paths = StudyPaths(profile)
    failed = failed_steps(profile, steps) if status != 130 else []
    for name, reason in failed:
        print(
            f"error: step {name} failed: {reason}\n       whole log: {_short(paths.step_log(name))}",
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
        f"{_short(paths.engine_log)}",
        file=sys.stderr,
    )
    return status


def _print_results(profile: Profile, steps: list[Step], seconds: float) -> None:
    paths = StudyPaths(profile.name)
    print(f"\nAll {len(steps)} steps are done ({duration(seconds)}).")
    for title, folder, ending in (
        ("Figures", paths.figures, VECTOR),
        ("Tables", paths.tables, ".csv"),
        ("Notebooks", paths.notebooks, ".ipynb"),
    ):
        files = sorted(folder.glob(f"*{ending}"))
        print(f"\n{title} ({len(files)}):")
        for file in files:
            print(f"  {_short(file)}")
    measured = {step.name: peak for step in steps if (peak := _peak_memory(paths.usage(step.name)))}
    if measured:
        most = max(measured, key=measured.get)
        print(
            f"\nPeak memory: {measured[most] / 1024:.2f} GiB, of step {most} (all steps: "
            f"{_short(paths.usage('').parent)})"
        )
    claims = paths.tables / "05_results-claims.csv"
    if claims.is_file():
        print(f"\nVerdicts{f' ({profile.note})' if profile.note else ''}:")
        try:
            for row in pd.read_csv(claims)[["verdict", "claim", "mean", "low", "high", "n"]].itertuples():
                print(
                    f"  {row.verdict:15s} {row.claim}: {row.mean:+.2f} points [{row.low:+.2f}, "
                    f"{row.high:+.2f}], {row.n} seeds"
                )
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"{_short(claims)} cannot be read ({error}); delete it, and the same command draws it again"
            ) from None


def _peak_memory(usage: Path) -> float:
    """MiB that a step took at most; 0 where another engine did it, or before it was measured, or where that
    cannot be read.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):
        return float(pd.to_numeric(pd.read_csv(usage, sep="\t")["max_rss"], errors="coerce").fillna(0).max())
    return 0.0


def _short(path) -> str:
    """A path as seen from the checkout, where it lies inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
