"""What does it take to draw notebooks of a profile again from its records: by a papermill process and a
kernel for each, and by forks of one process (pursuhint_lib/forks.py)? Both in turns.

    python benchmarks/redraw.py [--profile quick] [--notebooks 10] [--turns 5] [--json FILE]

Both ways run the same commands on the same notebooks, evenly spread over the profile's, one after the other.
Processor seconds are those of all processes, the one that is forked from and its start among them; other
programs disturb them less than they do the seconds that pass.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from tabulate import tabulate

from pursuhint_lib.data import DataError
from pursuhint_lib.files import write_json
from pursuhint_lib.paths import ROOT, StudyPaths
from pursuhint_lib.records import provenance
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.study.engine.execution import MARK, forking
from pursuhint_lib.study.engine.launch import THREADS
from pursuhint_lib.study.engine.plan import make_plan, write_plan
from pursuhint_lib.study.grid.profiles import load_profile

WAYS = ("papermill", "forks")
TARGET = 5.0


def commands(step: dict, profile: str) -> list[list[str]]:
    """What the workflow runs for a step, as modules with their arguments."""
    folder, given = str(Path(step["notebook"]).parent), json.dumps(step["parameters"])
    told = ["--kernel", "python3", "--cwd", folder, "--no-progress-bar", "--parameters_yaml", given]
    return [
        ["papermill", step["notebook"], step["draft"], *told],
        ["pursuhint_lib", "take-over", profile, step["name"], step["key"]],
    ]


def seconds(way: str, steps: Sequence[dict], profile: str) -> dict[str, float]:
    """Processor seconds of all processes, and the seconds that passed, for all these steps."""
    place = StudyPaths(profile).forks
    environment = {**os.environ, **dict.fromkeys(THREADS, "1"), MARK: f"redraw {os.getpid()}"}
    client = [sys.executable, "-I", "-S", str(ROOT / "workflow" / "forked.py"), str(place)]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with forking(profile, place, environment) if way == "forks" else nullcontext():
        for step in steps:
            told = {**environment, "PURSUHINT_PROGRESS": step["progress"]}
            for module in commands(step, profile):
                command = [*(client if way == "forks" else []), sys.executable, "-m", *module]
                subprocess.run(command, env=told, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"processor": spent, "wall": time.perf_counter() - begun}


def measure(name: str, count: int, turns: int) -> dict:
    """The steps of a profile in both ways, in a copy of its results.

    **Raises:** ``SettingsError`` where a run of it is not on record.
    """
    profile, results = load_profile(name), StudyPaths(name).results
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PURSUHINT_RESULTS"], os.environ["PURSUHINT_WORK"] = f"{folder}/results", f"{folder}/work"
        shutil.copytree(results, StudyPaths(name).results, dirs_exist_ok=True)
        steps = [step for step in make_plan(profile, name) if not step.experiment.alone]
        if any(step.runs[0] != step.runs[1] for step in steps):
            raise SettingsError(f"some run of {name} is not on record; run ./run_all.sh {name}")
        plan = json.loads(write_plan(profile, steps, 1, 0).read_text())["steps"]
        chosen = [plan[place * len(plan) // count] for place in range(min(count, len(plan)))]
        found = {way: [] for way in WAYS}
        for _ in range(turns):
            for way in WAYS:
                found[way].append(seconds(way, chosen, name))
    return {
        "profile": name,
        "notebooks": [step["name"] for step in chosen],
        "turns": turns,
        "target": TARGET,
        "load_average": os.getloadavg()[0],
        "cores": os.cpu_count(),
        **{kind: compared(found, kind) for kind in ("processor", "wall")},
        **provenance(torch.device("cpu"), ""),
    }


def compared(found: dict[str, list[dict]], kind: str) -> dict:
    """Seconds per turn of both ways, and how many times less the forks take."""
    ways = {way: [turn[kind] for turn in turns] for way, turns in found.items()}
    ratios = [plain / forked for plain, forked in zip(*ways.values(), strict=True)]
    return {name: spread(values) for name, values in (ways | {"ratio": ratios}).items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(result: dict) -> str:
    """The result as it is printed."""
    rows = []
    for kind, digits in (("processor", 1), ("wall", 1)):
        cells = [
            f"{part['median']:.{digits}f} ({part['min']:.{digits}f} to {part['max']:.{digits}f})"
            for part in (result[kind][name] for name in (*WAYS, "ratio"))
        ]
        rows.append([f"{kind} seconds", *cells])
    verdict = "met" if result["processor"]["ratio"]["median"] >= result["target"] else "MISSED"
    return "\n".join(
        [
            f"{result['device']}, {result['cores']} cores, load {result['load_average']:.1f}; "
            f"{len(result['notebooks'])} notebooks of {result['profile']}, {result['turns']} turns",
            tabulate(rows, headers=["", "a process each", "forks", "ratio"], tablefmt="github"),
            f"Target for processor seconds: {result['target']:g} times, {verdict}.",
        ]
    )


def main(arguments: Sequence[str]) -> int:
    """Measure and report; exit status 2 and one line for a setting that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick", help="whose runs are on record (default: %(default)s)")
    parser.add_argument("--notebooks", type=int, default=10, help="how many (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="of both ways (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file, too")
    options = parser.parse_args(arguments)
    try:
        if min(options.notebooks, options.turns) < 1:
            raise SettingsError("give numbers above 0 for --notebooks and --turns")
        result = measure(options.profile, options.notebooks, options.turns)
    except (SettingsError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(result))
    if options.json:
        write_json(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
