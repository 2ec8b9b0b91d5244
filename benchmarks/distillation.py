"""How much faster is a sweep over hint layers here than the usual way? Both in turns, in one process, on the
same machine.

    python benchmarks/distillation.py [--pair TEACHER,STUDENT] [--arms 8] [--method at] [--batch 64]
        [--seconds 60] [--json FILE]

The usual way (benchmarks/textbook.py) trains one student after the other. Its figure is the images per second
of the student that is being trained; that of this project's loop is the images per second of all students
together, so both say how fast a sweep goes.

Images are CIFAR-100's, or random ones of its shape where it is not there; speed does not depend on what they
show. The networks are not trained. Other programs that run at the same time disturb the figures.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from resources import peak_memory
from tabulate import tabulate
from textbook import Textbook
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pursuhint_lib.clustering import random_points
from pursuhint_lib.data import DataError, Images, Splits, describe, load_splits
from pursuhint_lib.distillers import distiller
from pursuhint_lib.files import write_json
from pursuhint_lib.records import provenance
from pursuhint_lib.settings import Data, Schedule, SettingsError, StudentSettings, TeacherSettings
from pursuhint_lib.study.engine.dry_run import settled
from pursuhint_lib.study.grid.profiles import network_points
from pursuhint_lib.training import (
    FrozenTeacher,
    accelerator_for_this_process,
    build_objective,
    resolve_precision,
    seeded_model,
)
from pursuhint_lib.training.loop import cores, run_epoch
from pursuhint_lib.training.trainee import Trainee, Training

ALTERNATIONS = 5
# Images that are drawn from in an epoch of this project's loop.
POOL = 50_000
WORKERS = 2
# Side of the square matrices whose product shows what the machine can do at the most.
PEAK_SIDE = 2048
DATA = Data("cifar100")


@dataclass(frozen=True)
class Case:
    """What is measured: a pair, a method, ``arms`` sets of hint layers, ``batch`` images a step, in
    ``precision``.
    """

    teacher: str
    student: str
    method: str
    arms: int
    batch: int
    precision: str

    def runs(self) -> list[StudentSettings]:
        """A run per arm, with random hint layers, no two of them alike."""
        entry = distiller(self.method)
        schedule = Schedule(epochs=1, batch_size=self.batch, learning_rate=1e-4)
        teacher, student = (network_points(name, DATA) for name in (self.teacher, self.student))
        run = StudentSettings(
            teacher=TeacherSettings(self.teacher, DATA, schedule),
            student=self.student,
            method=self.method,
            teacher_points=(),
            student_points=(),
            ce_weight=1.0,
            kd_weight=1.0 if entry.kd else 0.0,
            hint_weight=entry.weight,
            temperature=4.0,
            data=DATA,
            schedule=schedule,
            seed=0,
            precision=self.precision,
        )
        if not entry.hints:
            return [replace(run, seed=seed) for seed in range(self.arms)]
        sets = random_points(len(teacher.candidates), len(student.ends), self.arms)
        return [
            replace(
                run, teacher_points=tuple(teacher.candidates[i] for i in points), student_points=student.ends
            )
            for points in sets
        ]


def load_images() -> tuple[Images, str]:
    """CIFAR-100's training images, or random ones, and which."""
    try:
        return load_splits(DATA, torch.device("cpu")).train, "CIFAR-100"
    except DataError:
        generator, entry = torch.Generator().manual_seed(0), describe(DATA)
        pixels = torch.randint(
            0,
            256,
            (POOL, entry.channels, entry.image_size, entry.image_size),
            generator=generator,
            dtype=torch.uint8,
        )
        return Images(pixels, torch.arange(POOL) % entry.classes, entry, torch.device("cpu")), "random images"


def a_teacher(network: str, images: Images) -> nn.Module:
    """A teacher with fresh weights, but BatchNorm statistics of images: the neutral ones lead to numbers that
    slow fp32 down by a third.
    """
    batch, _ = next(images.ordered_batches(256))
    return settled(seeded_model(network, DATA, 0), batch).eval()


class Sweep:
    """This project's loop: all arms side by side on one teacher pass."""

    def __init__(self, case: Case, images: Images):
        self.case, self.images, self.accelerator = case, images, accelerator_for_this_process()
        self.device, runs = self.accelerator.device, case.runs()
        teacher = a_teacher(case.teacher, images).to(self.device)
        self.teacher = FrozenTeacher(
            teacher, dict.fromkeys(point for run in runs for point in run.teacher_points)
        )
        self.trainees = [self._trainee(number, run) for number, run in enumerate(runs)]
        self.run, self.epoch, self.step_seconds = runs[0], 0, float("inf")

    def _trainee(self, number: int, run: StudentSettings) -> Trainee:
        objective = build_objective(run, self.teacher.model, self.images.labels.cpu()).to(self.device)
        return Trainee(str(number), objective, run, self.accelerator)

    def train(self, steps: int) -> None:
        """So many steps of every arm."""
        part, self.epoch = self.images.spread(steps * self.case.batch), self.epoch + 1
        splits, nowhere = Splits(part, part, ""), Path()
        training = Training(
            self.run, self.trainees, splits, self.accelerator, "", nowhere, nowhere, self.teacher
        )
        with cores(len(self.trainees), self.accelerator) as pool:
            run_epoch(training, self.epoch, 0, pool=pool, watch=lambda share: None)
        for trainee in self.trainees:
            # Waits for the device, as the end of an epoch does.
            float(trainee.sums["total"])

    def rate(self, seconds: float) -> float:
        """Images per second, of all students together, over about so many seconds, by what the call before
        took; over two steps at first.
        """
        steps = max(2, int(seconds / self.step_seconds))
        begun = time.perf_counter()
        self.train(steps)
        self.step_seconds = (time.perf_counter() - begun) / steps
        return self.case.batch * len(self.trainees) / self.step_seconds


def textbook_rate(textbook: Textbook, seconds: float) -> float:
    """Images per second of the one student, over about so many seconds, and two steps at the least."""
    steps, begun = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds or steps < 2:
        textbook.step()
        steps += 1
    return steps * textbook.run.schedule.batch_size / elapsed


def compare(case: Case, seconds: float) -> dict:
    """Both ways in turns; medians of ``ALTERNATIONS`` and everything that belongs to them."""
    begun = time.perf_counter()
    images, what = load_images()
    run = case.runs()[0]
    textbook = Textbook(
        replace(run, precision="fp32"), a_teacher(case.teacher, images), images.images, images.labels, WORKERS
    )
    sweep = Sweep(case, images)
    textbook_rate(textbook, 0.0)
    sweep.rate(0.0)
    # What is left of the time, but for a tenth in which the shares are measured.
    each = (0.9 * seconds - (time.perf_counter() - begun)) / ALTERNATIONS / 2
    rates = {"textbook": [], "ours": []}
    memory = {"textbook": 0.0, "ours": 0.0}
    for _ in range(ALTERNATIONS):
        for name, measure in (
            ("textbook", lambda: textbook_rate(textbook, each)),
            ("ours", lambda: sweep.rate(each)),
        ):
            with peak_memory() as most:
                rates[name].append(measure())
            memory[name] = max(memory[name], most[0])
    textbook.close()
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["textbook"], strict=True)]
    ours = statistics.median(rates["ours"])
    return {
        "pair": [case.teacher, case.student],
        "arms": case.arms,
        "method": case.method,
        "batch": case.batch,
        "precision": case.precision,
        "images": what,
        "textbook": {
            "images_per_second": _spread(rates["textbook"]),
            "steps_per_second": statistics.median(rates["textbook"]) / case.batch,
            "peak_memory_gb": memory["textbook"],
            "workers": WORKERS,
        },
        "ours": {
            "images_per_second": _spread(rates["ours"]),
            "steps_per_second": ours / case.batch / case.arms,
            "peak_memory_gb": memory["ours"],
            "shares": shares(sweep),
            **arithmetic(sweep, ours),
        },
        "ratio": _spread(ratios),
        "alternations": ALTERNATIONS,
        **provenance(sweep.device, what),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def shares(sweep: Sweep) -> dict[str, float]:
    """Share of a core's time in data, teacher, the student's own step, and what the method adds to it, each
    measured alone on one thread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batch = next(sweep.images.train_batches(sweep.case.batch, 0, 0))
    plain_run = replace(
        sweep.trainees[0].objective.run,
        method="ce",
        hint_weight=0.0,
        kd_weight=0.0,
        teacher_points=(),
        student_points=(),
    )
    plain = sweep._trainee(-1, plain_run)
    output = sweep.teacher(batch.images)

    def step(trainee: Trainee, answers) -> Callable[[], None]:
        return lambda: trainee.step(batch, answers)

    def ask() -> None:
        with torch.autocast(sweep.device.type, torch.bfloat16, enabled=sweep.case.precision == "bf16"):
            sweep.teacher(batch.images)

    some = sweep.images.spread(4 * sweep.case.batch)
    data = _seconds(lambda: list(some.train_batches(sweep.case.batch, 0, 0))) / 4
    student, hinted = _seconds(step(plain, None)), _seconds(step(sweep.trainees[0], output))
    parts = {
        "data": data,
        "teacher": _seconds(ask),
        "student": sweep.case.arms * student,
        "loss": sweep.case.arms * max(0.0, hinted - student),
    }
    torch.set_num_threads(threads)
    return {name: value / sum(parts.values()) for name, value in parts.items()}


def _seconds(work: Callable[[], object], calls: int = 3) -> float:
    """Median seconds of one call."""
    work()
    found = []
    for _ in range(calls):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def arithmetic(sweep: Sweep, rate: float) -> dict[str, float]:
    """Floating-point operations per second that ``rate`` images per second mean, and their share of the
    machine's matrix product.
    """
    image = sweep.images.spread(1)
    ((images, labels),) = image.ordered_batches(1)
    network = seeded_model(sweep.case.student, DATA, 0)
    with FlopCounterMode(display=False) as student, torch.enable_grad():
        torch.nn.functional.cross_entropy(network.eval()(images), labels).backward()
    with FlopCounterMode(display=False) as teacher:
        sweep.teacher(images)
    operations = rate * (student.get_total_flops() + teacher.get_total_flops() / sweep.case.arms)
    dtype = torch.bfloat16 if sweep.case.precision == "bf16" else torch.float32
    a, b = torch.randn(2, PEAK_SIDE, PEAK_SIDE).to(dtype)
    peak = 2 * PEAK_SIDE**3 / _seconds(lambda: a @ b)
    return {"flops": operations, "matmul_flops": peak, "share_of_peak": operations / peak}


def table(result: dict) -> str:
    """The comparison as text."""
    rows = []
    for name, label in (("textbook", "the usual way"), ("ours", f"{result['arms']} arms side by side")):
        part, spread = result[name], result[name]["images_per_second"]
        rows.append(
            [
                label,
                f"{spread['median']:.0f} ({spread['min']:.0f} to {spread['max']:.0f})",
                f"{part['steps_per_second']:.2f}",
                f"{part['peak_memory_gb']:.2f}",
            ]
        )
    ratio, ours = result["ratio"], result["ours"]
    parts = ", ".join(f"{name} {share:.0%}" for name, share in ours["shares"].items())
    return "\n".join(
        [
            f"{' → '.join(result['pair'])}, {result['method']}, batch {result['batch']}, "
            f"{result['precision']} against fp32, {result['images']}; "
            f"{result['device']}, {result['threads']} threads, torch {result['versions']['torch']}",
            tabulate(
                rows,
                headers=["", "images/s of students", "steps/s of each", "peak memory, GB"],
                tablefmt="github",
            ),
            f"Ratio {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) over "
            f"{result['alternations']} alternations.",
            f"Time of a core, in the sweep: {parts}.",
            f"{ours['flops'] / 1e9:.0f} GFLOP/s, {ours['share_of_peak']:.0%} of the "
            f"{ours['matmul_flops'] / 1e9:.0f} GFLOP/s of a product "
            f"of matrices of {PEAK_SIDE}².",
        ]
    )


def main(arguments: Sequence[str]) -> int:
    """Run one measurement; exit status 2 and one line for a setting that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--pair",
        default="resnet56,resnet20",
        help="teacher and student, with a comma between (default: %(default)s)",
    )
    parser.add_argument(
        "--arms", type=int, default=8, help="sets of hint layers trained side by side (default: %(default)s)"
    )
    parser.add_argument("--method", default="at", help="as in a profile (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images a step (default: %(default)s)")
    parser.add_argument(
        "--precision",
        default="auto",
        help="of this project's loop: auto, fp32 or bf16 (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="for the whole measurement (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the result to this file, too")
    options = parser.parse_args(arguments)
    try:
        teacher, separator, student = options.pair.partition(",")
        if not separator or min(options.arms, options.batch, options.seconds) <= 0:
            raise SettingsError(
                "give --pair TEACHER,STUDENT and numbers above 0 for --arms, --batch and --seconds"
            )
        case = Case(
            teacher,
            student,
            options.method,
            options.arms,
            options.batch,
            resolve_precision(options.precision),
        )
        result = compare(case, options.seconds)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(result))
    if options.json:
        write_json(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
