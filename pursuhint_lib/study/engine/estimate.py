"""How long the rest of a profile will take on this machine, from a few seconds of measuring."""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...data import DataError, describe, image_counts, load_splits
from ...distillers import distiller
from ...models import parameter_count
from ...paths import results_root, work_root
from ...settings import Pair, Profile, Schedule
from ...training import Objective, autocast, build_objective, seeded_model
from ..experiments.deepest_layer import mixed_grid
from ..experiments.speed_check import compared_methods
from ..grid.cells import methods_of
from ..grid.profiles import network_points
from .dry_run import Trial, trial, trial_runs
from .plan import DISTILLING, EXCHANGE, SWEEP, Step

# The notebooks that train teachers.
TEACHING = ("01_teacher_and_layers", "02_hint_points")
# A kernel's start and the imports of a notebook, in seconds on one core (measured).
NOTEBOOK_SECONDS = 7.0
# Comparing all layers, per image and squared number of their channels (measured: 0.65 s for 10 000 and 2016,
# and as much again for RBF CKA).
COMPARISON_SECONDS = 3e-11
# Rows of pixels in a measured batch: 16 images of 32×32, 2 of 224×224.
ROWS = 16 * 32
# Images that are read to see how long it takes.
READ_IMAGES = 16
# Seconds of measuring for a profile, if single steps are not slower.
BUDGET = 2.0


@dataclass(frozen=True)
class Speeds:
    """Seconds per image on one core of this machine, or on its GPU.

    **Arguments:** ``train`` a teacher's training step and ``ask`` its forward pass, by network; ``step`` a
    student's training step with all that its method adds, by (student, method): the teacher matters little;
    ``evaluate`` a student's forward pass, by network; ``read`` decoding and augmenting of an image that is
    streamed, on a core.
    """

    train: dict[str, float]
    ask: dict[str, float]
    step: dict[tuple[str, str], float]
    evaluate: dict[str, float]
    read: float = 0.0


def measure(profile: Profile, cells: Sequence[tuple[Pair, str]], teachers: Sequence[str]) -> Speeds:
    """Time one step of every (pair, method) of ``cells`` and of the ``teachers`` on random images, for about
    ``BUDGET`` seconds in all.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speeds = Speeds({}, {}, {}, {})
    size = describe(profile.data).image_size
    # A GPU shows its speed on whole batches only.
    images = (
        profile.student.batch_size
        if device.type == "cuda"
        else max(2, min(profile.student.batch_size, ROWS // size))
    )
    budget = BUDGET / max(1, len(cells) + 4 * len(teachers))
    for pair in dict.fromkeys([pair for pair, _ in cells] or profile.pairs[:1]):
        tried = trial(profile, pair, images, device)
        for method in (
            method for other, method in cells if other == pair and (pair.student, method) not in speeds.step
        ):
            run = next(iter(trial_runs(profile, pair, method).values()))
            objective = build_objective(run, tried.teacher.model, tried.labels).to(device)
            speeds.step[pair.student, method] = _step_seconds(objective, tried, profile, budget) / images
        if pair.student not in speeds.evaluate:
            student = seeded_model(pair.student, profile.data, 0).to(device)
            speeds.evaluate[pair.student] = (
                _pass_seconds(student, tried.batch.images, profile, budget) / images
            )
        if pair.teacher not in speeds.ask:
            speeds.ask[pair.teacher] = (
                _pass_seconds(tried.teacher.model, tried.batch.images, profile, budget) / images
            )
    for network in teachers:
        objective = Objective(seeded_model(network, profile.data, 0)).to(device)
        speeds.train[network] = _step_seconds(objective, tried, profile, budget) / images
        speeds.ask.setdefault(
            network, _pass_seconds(objective.network, tried.batch.images, profile, budget) / images
        )
    return replace(speeds, read=_reading_seconds(profile))


def _reading_seconds(profile: Profile) -> float:
    """Seconds in which a core reads an image that is streamed; 0 where images are in memory, or are not there
    to be tried.
    """
    if not describe(profile.data).streamed:
        return 0.0
    try:
        images = load_splits(profile.data, torch.device("cpu")).train.spread(READ_IMAGES)
    except DataError:
        return 0.0
    begun = time.perf_counter()
    for _ in images.train_batches(READ_IMAGES, 0, 0):
        pass
    return (time.perf_counter() - begun) / len(images)


def _step_seconds(objective: Objective, tried: Trial, profile: Profile, budget: float) -> float:
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.0, momentum=0.9, fused=True)
    objective.train()
    # Past the first stage, in which some methods do less.
    objective.epoch, objective.epochs = profile.student.epochs - 1, profile.student.epochs

    def step() -> None:
        with autocast(tried.batch.images.device, profile.precision):
            loss = objective(*tried.batch, tried.output)["total"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return _seconds(step, tried.batch.images.device, budget)


def _pass_seconds(network: nn.Module, images: Tensor, profile: Profile, budget: float) -> float:
    network.eval()

    def forward() -> None:
        with torch.no_grad(), autocast(images.device, profile.precision):
            network(images)

    return _seconds(forward, images.device, budget)


def _seconds(work: Callable[[], None], device: torch.device, budget: float) -> float:
    """Seconds of one call: the fastest within the budget; a slow one is called once only."""
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < budget or best == float("inf"):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


@dataclass(frozen=True)
class Estimate:
    """Seconds of each step that is not done, how many can run at once, bytes on disk, and the seconds that
    single cores or GPUs will train.
    """

    steps: dict[str, float]
    trainees: int
    bytes: int
    trained: float

    def wall(self, names: Iterable[str]) -> float:
        """Seconds until these steps are over: distillations side by side, the others one after the other."""
        alone = {name: self.steps[name] for name in names if not name.startswith(DISTILLING[0])}
        together = [self.steps[name] for name in names if name not in alone]
        return sum(alone.values()) + sum(together) / max(1, min(self.trainees, len(together)))

    @property
    def seconds(self) -> float:
        """Seconds until all steps are over."""
        return self.wall(self.steps)


def estimate(profile: Profile, steps: Sequence[Step], cores: int) -> Estimate:
    """Estimate the steps that are not done yet."""
    open_steps = [step for step in steps if not step.done]
    missing = {step.name: _missing(profile, step) for step in open_steps}
    training = [step for step in open_steps if missing[step.name]]
    cells = list(dict.fromkeys(cell for step in training for cell in _trained(profile, step)))
    teachers = dict.fromkeys(step.parameters["teacher"] for step in training if step.notebook in TEACHING)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    speeds = measure(profile, cells, tuple(teachers)) if training else Speeds({}, {}, {}, {})
    torch.set_num_threads(threads)
    trained = {step.name: _training_seconds(profile, step, speeds, missing[step.name]) for step in open_steps}
    # Processes that train together share a step out among all cores or GPUs.
    shared = {step.name: cores if step.notebook == DISTILLING[1] else 1 for step in open_steps}
    reading = {step.name: _read_seconds(profile, step, speeds, missing[step.name]) for step in open_steps}
    seconds = {
        name: NOTEBOOK_SECONDS + max(own / shared[name], reading[name]) for name, own in trained.items()
    }
    # A run leaves its weights and a record; checkpoints of unfinished runs hold weights and momentum.
    largest = max(
        (parameter_count(seeded_model(pair.student, profile.data, 0)) for pair, _ in cells), default=0
    )
    size = sum(missing.values()) * (largest * 4 + 5_000) + 2 * cores * len(profile.arms) * largest * 8
    return Estimate(seconds, cores, size, sum(trained.values()))


def _read_seconds(profile: Profile, step: Step, speeds: Speeds, missing: int) -> float:
    """Seconds that the cores of this machine read images for a step; students of a seed share them."""
    train, test = image_counts(profile.data)
    if step.notebook in TEACHING:
        given = step.parameters["teacher"] in profile.checkpoints
        images = profile.profile_images + (test if given else profile.teacher.epochs * train)
    else:
        train = image_counts(profile.student_data)[0]
        images = math.ceil(missing / _together(profile, step)) * (
            profile.student.epochs * train + _evaluations(profile.student) * test
        )
    return bool(missing) * images * speeds.read / os.cpu_count()


def _missing(profile: Profile, step: Step) -> int:
    found, wanted = step.runs
    if wanted is not None:
        return wanted - found
    if step.notebook == SWEEP:
        sweep = profile.sweep(step.parameters["method"])
        added = set(sweep.arms) - set(profile.arms)
        return (len(sweep.arms) * len(sweep.weights) + len(added)) * sweep.seeds
    if step.notebook == EXCHANGE:
        added = set(mixed_grid(profile).arms) - set(profile.arms)
        return len(added) * sum(len(profile.seeds_of(*cell)) for cell in _trained(profile, step))
    # Of a distillation, or of the comparison of ways to train.
    pair, method = _trained(profile, step)[0]
    return len(profile.arms) * len(profile.seeds_of(pair, method))


def _training_seconds(profile: Profile, step: Step, speeds: Speeds, missing: int) -> float:
    if not missing or step.notebook not in (*TEACHING, *DISTILLING, "07_speed", SWEEP, EXCHANGE):
        return 0.0
    train, test = image_counts(profile.data)
    if step.notebook in TEACHING:
        network, schedule = step.parameters["teacher"], profile.teacher
        images = min(train, profile.profile_images)
        # A teacher that is given is evaluated once.
        given = step.notebook == "01_teacher_and_layers" and network in profile.checkpoints
        learning = 0.0 if given else schedule.epochs * train * speeds.train[network]
        teacher = learning + ((1 if given else _evaluations(schedule)) * test + images) * speeds.ask[network]
        if step.notebook == "01_teacher_and_layers":
            return teacher
        return (missing - 1) * teacher + profile.stability.draws * _comparison_seconds(
            profile, network, images
        )
    cells = _trained(profile, step)
    return sum(_student_seconds(profile, step, speeds, cell, missing / len(cells)) for cell in cells)


def _student_seconds(
    profile: Profile, step: Step, speeds: Speeds, cell: tuple[Pair, str], missing: float
) -> float:
    """Seconds of so many students of one (pair, method) of a step, with the passes of their teacher."""
    pair, method = cell
    (train, _), test = image_counts(profile.student_data), image_counts(profile.data)[1]
    schedule = profile.student
    own = (
        schedule.epochs * train * speeds.step[pair.student, method]
        + _evaluations(schedule) * test * speeds.evaluate[pair.student]
    )
    asked = schedule.epochs * train * speeds.ask[pair.teacher] if distiller(method).uses_teacher else 0.0
    # One pass of the teacher serves all arms of a seed.
    seeds = len(profile.seeds_of(pair, method))
    if step.notebook == SWEEP:
        sweep = profile.sweep(method)
        seeds = sweep.seeds * len(sweep.weights)
    arms = min(_together(profile, step), max(1, (step.runs[1] or missing) // seeds))
    return missing * own + missing / arms * asked


def _together(profile: Profile, step: Step) -> int:
    """How many students of a step train side by side at most, and share a pass of their teacher and the
    images that are read.
    """
    if step.notebook == SWEEP:
        return len(profile.sweep(step.parameters["method"]).arms)
    return {"07_speed": 1, EXCHANGE: 2}.get(step.notebook, len(profile.arms))


def _trained(profile: Profile, step: Step) -> list[tuple[Pair, str]]:
    """(pair, method) of the students that a step trains."""
    if step.notebook == "07_speed":
        return [(profile.pairs[0], method) for method in compared_methods(profile)]
    if step.notebook == SWEEP:
        return [(profile.pairs[0], step.parameters["method"])]
    if step.notebook == EXCHANGE:
        grid = mixed_grid(profile)
        return [(pair, method) for pair in grid.pairs for method in methods_of(grid, pair)]
    return (
        [(profile.pair(step.parameters["pair"]), step.parameters["method"])]
        if step.notebook in DISTILLING
        else []
    )


def _evaluations(schedule: Schedule) -> float:
    return schedule.epochs / schedule.evaluate_every


def _comparison_seconds(profile: Profile, teacher: str, images: int) -> float:
    """Seconds of one comparison of all layers under all metrics, without the pairwise ones at full size."""
    channels = sum(shape[0] for shape in network_points(teacher, profile.data).shapes)
    return COMPARISON_SECONDS * images * channels**2


def free_bytes() -> int:
    """Free space where checkpoints and results go (the smaller of the two)."""
    return min(shutil.disk_usage(_existing(root)).free for root in (work_root(), results_root()))


def _existing(path):
    """The nearest folder that exists."""
    return path if path.exists() else _existing(path.parent)
