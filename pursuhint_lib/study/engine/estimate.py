"""How long the rest of a profile will take on this machine, from a few seconds of measuring."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...data import DataError, describe, image_counts, load_splits
from ...distillers import distiller
from ...models import parameter_count
from ...paths import results_root, work_root
from ...settings import Pair, Profile
from ...training import Objective, autocast, build_objective, seeded_model
from ..grid.cells import Cell, Teaching
from ..grid.profiles import network_points
from ..grid.stored import Stored
from .dry_run import Trial, trial, trial_runs
from .plan import Step

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
    single cores or GPUs will train. ``beside``: the notebook of each step whose executions run side by side.
    """

    steps: dict[str, float]
    trainees: int
    bytes: int
    trained: float
    beside: dict[str, str] = field(default_factory=dict)

    def wall(self, names: Iterable[str]) -> float:
        """Seconds until these steps are over: those of a notebook side by side, or one after the other."""
        groups: dict[str, list[float]] = {}
        for name in names:
            groups.setdefault(self.beside.get(name, name), []).append(self.steps[name])
        return sum(sum(group) / max(1, min(self.trainees, len(group))) for group in groups.values())

    @property
    def seconds(self) -> float:
        """Seconds until all steps are over."""
        return self.wall(self.steps)


def estimate(profile: Profile, steps: Sequence[Step], cores: int) -> Estimate:
    """Estimate the steps that are not done yet."""
    missing = missing_work(steps)
    work = [item for found in missing.values() for item, _ in found]
    cells = [item for item in work if isinstance(item, Cell)]
    pairs = {(cell.pair.name, cell.method): (cell.pair, cell.method) for cell in cells}
    teachers = [item.settings.network for item in work if isinstance(item, Teaching)]
    teachers += [item.teacher for item in work if isinstance(item, Stored) and item.teacher]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    speeds = measure(profile, list(pairs.values()), list(dict.fromkeys(teachers))) if work else None
    torch.set_num_threads(threads)
    seconds, trained = {}, 0.0
    for step in steps:
        if not step.done:
            costs = [cost(profile, item, count, speeds) for item, count in missing[step.name]]
            computed, images = (sum(parts) for parts in zip((0.0, 0.0), *costs, strict=True))
            # Processes that train together share a step out among all cores or GPUs.
            shared = cores if step.experiment.spread else 1
            reading = images * speeds.read / os.cpu_count() if speeds else 0.0
            seconds[step.name] = NOTEBOOK_SECONDS + max(computed / shared, reading)
            trained += computed
    # A run leaves its weights and a record; checkpoints of unfinished runs hold weights and momentum.
    students = {cell.pair.student for cell in cells}
    largest = max((parameter_count(seeded_model(name, profile.data, 0)) for name in students), default=0)
    count = sum(count for found in missing.values() for _, count in found)
    size = count * (largest * 4 + 5_000) + 2 * cores * len(profile.arms) * largest * 8
    beside = {step.name: step.notebook for step in steps if not step.experiment.alone}
    return Estimate(seconds, cores, size, trained, beside)


def missing_work(steps: Sequence[Step]) -> dict[str, list[tuple[Any, int]]]:
    """Open step → what it has to do, and how many runs (or files) each of it has to make; what several steps
    share is the first one's.
    """
    seen, found = set(), {}
    for step in steps:
        found[step.name] = []
        for item, files in step.work if not step.done else ():
            if files is None:
                # While the points are not known, arms that choose the same ones count as many.
                files = {
                    (json.dumps([item.pair.name, item.method, item.seed, item.changes]), arm): False
                    for arm in item.arms
                }
            mine = {name for name, there in files.items() if not there} - seen
            seen |= mine
            if mine:
                found[step.name].append((item, len(mine)))
    return found


def cost(profile: Profile, item: Any, count: int, speeds: Speeds) -> tuple[float, float]:
    """Seconds of computing on one core or GPU, and images to be read, for so many runs of a piece of work."""
    test = image_counts(profile.data)[1]
    if isinstance(item, Cell):
        train, schedule, method = image_counts(profile.student_data)[0], profile.student, item.method
        learned, evaluated = schedule.epochs * train, schedule.epochs / schedule.evaluate_every * test
        own = (
            learned * speeds.step[item.pair.student, method] + evaluated * speeds.evaluate[item.pair.student]
        )
        # One pass of the teacher, and of the images, serves all arms.
        asked = learned * speeds.ask[item.pair.teacher] if distiller(method).uses_teacher else 0.0
        return count * own + asked, learned + evaluated
    train, schedule = image_counts(profile.data)[0], profile.teacher
    if isinstance(item, Teaching):
        network = item.settings.network
        # A teacher that is given is evaluated once.
        given = item.settings.checkpoint is not None
        learned = 0 if given else schedule.epochs * train
        evaluated = test if given else schedule.epochs / schedule.evaluate_every * test
        return learned * speeds.train[network] + evaluated * speeds.ask[network], learned + evaluated
    if isinstance(item, Stored) and item.teacher:
        images = min(train, profile.profile_images)
        compared = item.comparisons * _comparison_seconds(profile, item.teacher, images)
        return images * speeds.ask[item.teacher] + compared, images
    return 0.0, 0.0


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
