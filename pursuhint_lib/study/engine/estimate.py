"""How long the rest of a profile will take on this machine, from a few seconds of measuring."""

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...data import DataError, describe, image_counts, load_splits
from ...distillers import distiller
from ...models import parameter_count
from ...paths import results_root, work_root
from ...processes import available_cores, threads
from ...settings import Pair, Profile
from ...training import Objective, autocast, build_objective, seeded_model
from ..grid.cells import Cell, Teaching
from ..grid.profiles import network_points
from ..grid.stored import Stored
from .dry_run import Trial, training_step, trial, trial_runs
from .plan import Step

# A notebook that only draws, in seconds on one core (measured: 4 where it is forked, 13 as processes of its
# own).
NOTEBOOK_SECONDS = 4.5
# Comparing all layers, per image and squared number of their channels (measured: 0.65 s for 10 000 and 2016,
# and as much again for RBF CKA).
COMPARISON_SECONDS = 3e-11
# Rows of pixels in a measured batch: 16 images of 32×32, 2 of 224×224.
ROWS = 16 * 32
# Images that are read to see how long it takes.
READ_IMAGES = 16
# Seconds in which a step is measured, if it is not slower.
BUDGET = 0.05


class Speeds:
    """Seconds per image on one core of this machine, or on its GPU, each measured on random images when it
    is first asked for.
    """

    def __init__(self, profile: Profile):
        self._profile = profile
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        whole = profile.student.batch_size
        few = max(2, min(whole, ROWS // describe(profile.data).image_size))
        # A GPU shows its speed on whole batches only.
        self._images = whole if self._device.type == "cuda" else few
        self._known: dict[tuple, Any] = {}
        self.read = _reading_seconds(profile)

    def step(self, pair: Pair, method: str) -> float:
        """A student's training step with all that its method adds. The teacher matters little."""

        def prepared() -> Callable[[], Any]:
            run = next(iter(trial_runs(self._profile, pair, method).values()))
            tried = self._tried(pair)
            return self._training(build_objective(run, tried.teacher.model, tried.labels), tried)

        return self._timed(("step", pair.student, method), prepared)

    def train(self, network: str) -> float:
        """A teacher's training step."""
        return self._timed(
            ("train", network), lambda: self._training(Objective(self._fresh(network)), self._any)
        )

    def ask(self, network: str) -> float:
        """A network's forward pass."""

        def prepared() -> Callable[[], Any]:
            return partial(self._forward, self._fresh(network).eval(), self._any.batch.images)

        return self._timed(("ask", network), prepared)

    @property
    def _any(self) -> Trial:
        return self._tried(self._profile.pairs[0])

    def _forward(self, model: nn.Module, images: Tensor) -> None:
        with torch.no_grad(), autocast(self._device, self._profile.precision):
            model(images)

    def _fresh(self, network: str) -> nn.Module:
        return seeded_model(network, self._profile.data, 0).to(self._device)

    def _tried(self, pair: Pair) -> Trial:
        if ("trial", pair) not in self._known:
            self._known["trial", pair] = trial(self._profile, pair, self._images, self._device)
        return self._known["trial", pair]

    def _training(self, objective: Objective, tried: Trial) -> Callable[[], Tensor]:
        return training_step(self._profile, objective.to(self._device), tried.batch, tried.output)

    def _timed(self, key: tuple, prepared: Callable[[], Callable[[], Any]]) -> float:
        """Seconds per image of one call: the fastest within the budget; a slow one is called once only."""
        if key not in self._known:
            work, best, begun = prepared(), float("inf"), time.perf_counter()
            while time.perf_counter() - begun < BUDGET or best == float("inf"):
                start = time.perf_counter()
                work()
                if self._device.type == "cuda":
                    torch.cuda.synchronize()
                best = min(best, time.perf_counter() - start)
            self._known[key] = best / self._images
        return self._known[key]


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
    seconds, trained = {}, 0.0
    with threads(1):
        speeds = Speeds(profile)
        for step in steps:
            if not step.done:
                costs = [cost(profile, item, count, speeds) for item, count in missing[step.name]]
                computed, images = (sum(parts) for parts in zip((0.0, 0.0), *costs, strict=True))
                # Processes that train together share a step out among all cores or GPUs.
                shared = cores if step.experiment.spread else 1
                reading = images * speeds.read / available_cores()
                seconds[step.name] = NOTEBOOK_SECONDS + max(computed / shared, reading)
                trained += computed
    # A run leaves its weights and a record; checkpoints of unfinished runs hold weights and momentum.
    work = [item for found in missing.values() for item, _ in found]
    students = {item.pair.student for item in work if isinstance(item, Cell)}
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
        for item, files, _ in step.work if not step.done else ():
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
        own = learned * speeds.step(item.pair, method) + evaluated * speeds.ask(item.pair.student)
        # One pass of the teacher, and of the images, serves all arms.
        asked = learned * speeds.ask(item.pair.teacher) if distiller(method).uses_teacher else 0.0
        return count * own + asked, learned + evaluated
    train, schedule = image_counts(profile.data)[0], profile.teacher
    if isinstance(item, Teaching):
        network = item.settings.network
        # A teacher that is given is evaluated once.
        given = item.settings.checkpoint is not None
        learned = 0 if given else schedule.epochs * train
        evaluated = test if given else schedule.epochs / schedule.evaluate_every * test
        return learned * speeds.train(network) + evaluated * speeds.ask(network), learned + evaluated
    if isinstance(item, Stored) and item.teacher:
        images = min(train, profile.profile_images)
        channels = sum(shape[0] for shape in network_points(item.teacher, profile.data).shapes)
        # Under all metrics, without the pairwise ones at full size.
        compared = item.comparisons * COMPARISON_SECONDS * images * channels**2
        return images * speeds.ask(item.teacher) + compared, images
    return 0.0, 0.0


def free_bytes() -> int:
    """Free space where checkpoints and results go (the smaller of the two)."""
    return min(shutil.disk_usage(_existing(root)).free for root in (work_root(), results_root()))


def _existing(path):
    """The nearest folder that exists."""
    return path if path.exists() else _existing(path.parent)
