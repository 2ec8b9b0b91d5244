"""What a sweep costs against the number of arms, the batch and the depth of the teacher: a figure and a JSON
each; and what the features of resnet110 cost.

    python benchmarks/curves.py FOLDER [--seconds 60]

It measures this project's loop as benchmarks/distillation.py does: resnet56 → resnet20 by AT with eight arms,
but for what a curve varies.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from distillation import DATA, Case, Sweep, a_teacher, load_images
from resources import peak_memory

from pursuhint_lib.data import Images
from pursuhint_lib.distillers import distiller
from pursuhint_lib.files import write_json
from pursuhint_lib.plots.style import new_figure, style
from pursuhint_lib.profiling import profile_layers
from pursuhint_lib.records import provenance
from pursuhint_lib.study.grid.profiles import network_points
from pursuhint_lib.training import resolve_precision

IMAGES_TO_PROFILE = 10_000
# What a curve varies → its values, and the case at a value.
CURVES: dict[str, tuple[Sequence[int], Callable[[Case, int], Case]]] = {
    "arms": ((1, 2, 3, 4, 6, 8, 12, 16), lambda case, arms: replace(case, arms=arms)),
    "batch": ((64, 128, 256, 512, 1024), lambda case, batch: replace(case, batch=batch, arms=4)),
    "depth": ((20, 32, 44, 56, 110), lambda case, depth: replace(case, teacher=f"resnet{depth}")),
}


def curve(name: str, case: Case, images: Images, seconds: float) -> dict:
    """Seconds per step of the whole sweep at each value, and for arms the straight line through them."""
    values, at = CURVES[name]
    times = []
    for value in values:
        here = at(case, value)
        sweep = Sweep(here, images)
        sweep.rate(0.0)
        times.append(
            statistics.median(
                here.batch * here.arms / sweep.rate(seconds / len(values) / 4) for _ in range(3)
            )
        )
    result = {
        "varied": name,
        "values": list(values),
        "seconds_per_step": times,
        "pair": [case.teacher, case.student],
        "method": case.method,
    }
    if name == "arms":
        # Relative errors count, so that the few arms have their say.
        design = np.stack([np.ones(len(values)), np.array(values)], axis=1) / np.array(times)[:, None]
        (teacher, student), *_ = np.linalg.lstsq(design, np.ones(len(values)), rcond=None)
        off = max(
            abs((teacher + student * value) / seen - 1) for value, seen in zip(values, times, strict=True)
        )
        result |= {"teacher_seconds": teacher, "student_seconds": student, "largest_deviation": off}
    return result


def draw(result: dict, note: str):
    """A curve as a figure."""
    figure, axes = new_figure(3.0, 5.0)
    with style():
        values, times = result["values"], result["seconds_per_step"]
        axes.plot(values, times, "o", color="#0072b2", label="measured")
        if "teacher_seconds" in result:
            line = [result["teacher_seconds"] + result["student_seconds"] * value for value in values]
            text = f"{result['teacher_seconds']:.3f} s + arms · {result['student_seconds']:.3f} s"
            axes.plot(
                values,
                line,
                color="#8c8c8c",
                zorder=0,
                label=f"{text}\n(at most {result['largest_deviation']:.0%} off)",
            )
            axes.legend()
        teacher, student = ("resnet", result["pair"][1]) if result["varied"] == "depth" else result["pair"]
        labels = {
            "arms": "arms",
            "batch": "images per batch (4 arms)",
            "depth": "depth of the teacher (8 arms)",
        }
        axes.set(
            xlabel=labels[result["varied"]],
            ylabel="seconds per step of all arms",
            ylim=(0, 1.08 * max(times)),
        )
        axes.set(title=f"{teacher} → {student}, {distiller(result['method']).title}")
        figure.supxlabel(note, fontsize=6, x=0.01, ha="left", color="#8f4a00")
    return figure


def measure_profile(images: Images) -> dict:
    """Features of every sub-block of resnet110 on 10 000 images in one pass: seconds and peak memory."""
    teacher = a_teacher("resnet110", images)
    some = images.spread(IMAGES_TO_PROFILE)
    with peak_memory() as most:
        begun = time.perf_counter()
        profile_layers(teacher, some, network_points("resnet110", DATA).candidates)
        seconds = time.perf_counter() - begun
    return {
        "network": "resnet110",
        "images": IMAGES_TO_PROFILE,
        "seconds": seconds,
        "peak_memory_gb": most[0],
    }


def measure(case: Case, seconds: float, folder: Path) -> None:
    """All curves and the profile step, as figures and JSON files in a folder."""
    images, what = load_images()
    conditions = provenance(torch.device("cpu"), what)
    note = (
        f"{conditions['device']}, {conditions['threads']} threads, torch "
        f"{conditions['versions']['torch']}, {case.precision}, {what}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    # First, as what a process has once had counts as its memory.
    profile = measure_profile(images)
    write_json(folder / "profile-step.json", profile | conditions)
    print(
        f"profile of {profile['network']} on {profile['images']} images: {profile['seconds']:.1f} s, "
        f"{profile['peak_memory_gb']:.2f} GB"
    )
    for name in CURVES:
        result = curve(name, case, images, seconds)
        write_json(folder / f"distillation-{name}.json", result | conditions)
        with style():
            draw(result, note).savefig(folder / f"distillation-{name}.svg")
            draw(result, note).savefig(folder / f"distillation-{name}.png", dpi=150)
        print(
            f"{name}: "
            + ", ".join(
                f"{v}: {t:.3f} s" for v, t in zip(result["values"], result["seconds_per_step"], strict=True)
            ),
            flush=True,
        )


def main(arguments: Sequence[str]) -> None:
    """Measure all curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where figures and JSON files go")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each curve (default: %(default)s)")
    options = parser.parse_args(arguments)
    case = Case("resnet56", "resnet20", "at", 8, 64, resolve_precision("auto"))
    measure(case, options.seconds, options.folder)


if __name__ == "__main__":
    main(sys.argv[1:])
