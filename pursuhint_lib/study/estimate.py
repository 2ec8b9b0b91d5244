"""How long the rest of a profile will take on this machine, from a few seconds of measuring."""

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..data import describe, example_input, image_counts
from ..models import parameter_count
from ..paths import results_root, work_root
from ..settings import Profile
from ..training import autocast, seeded_model
from .plan import Step
from .profile import network_points

# A kernel's start and the imports of a notebook, in seconds on one core (measured).
NOTEBOOK_SECONDS = 7.0
# Loss and bookkeeping of a hint method beside the student's own step, relative to it (measured: 1.2 to 1.9).
HINT_FACTOR = 1.5
# Comparing all layers, per image and squared number of their channels (measured: 0.65 s for 10 000 and 2016, and as much again for RBF CKA).
COMPARISON_SECONDS = 3e-11
# Pixels of a measured batch: 16 images of 32×32.
PIXELS = 16 * 32 * 32
# Seconds of measuring for all networks of a profile, if their single steps are not slower.
BUDGET = 2.0


@dataclass(frozen=True)
class Speed:
    """Seconds per image of one network on this machine: ``train`` for a step, ``infer`` for a forward pass."""

    train: float
    infer: float
    parameters: int


def measure(network: str, profile: Profile, seconds: float) -> Speed:
    """Time one network on blank images, on one CPU core or on the GPU, for about so many seconds."""
    data, precision = profile.data, profile.precision
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    entry = describe(data)
    batch = max(2, min(profile.student.batch_size, PIXELS // entry.image_size**2))
    images = example_input(data).expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last).to(device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    model = seeded_model(network, data, 0).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def step() -> None:
        with autocast(device, precision):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()

    def forward() -> None:
        with torch.no_grad(), autocast(device, precision):
            model(images)

    train, infer = (_seconds(work, device, seconds / 2) / batch for work in (step, forward))
    return Speed(train, infer, parameter_count(model))


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
    """Seconds of each step that is not done, how many can run at once, and bytes on disk."""

    steps: dict[str, float]
    lanes: int
    bytes: int

    def wall(self, names: Iterable[str]) -> float:
        """Seconds until these steps are over: distillations side by side, the others one after the other."""
        alone = {name: self.steps[name] for name in names if not name.startswith("03")}
        together = [self.steps[name] for name in names if name not in alone]
        return sum(alone.values()) + sum(together) / max(1, min(self.lanes, len(together)))

    @property
    def seconds(self) -> float:
        """Seconds until all steps are over."""
        return self.wall(self.steps)


def estimate(profile: Profile, steps: Sequence[Step], cores: int) -> Estimate:
    """Estimate the steps that are not done yet."""
    open_steps = [step for step in steps if not step.done]
    networks = {network for pair in profile.pairs for network in (pair.teacher, pair.student)} if any(s.trains for s in open_steps) else set()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    speeds = {network: measure(network, profile, BUDGET / len(networks)) for network in sorted(networks)}
    torch.set_num_threads(threads)
    seconds = {step.name: NOTEBOOK_SECONDS + _training_seconds(profile, step, speeds) for step in open_steps}
    # A run leaves its weights and a record; checkpoints of unfinished runs hold weights and momentum.
    students = [speeds[pair.student].parameters for pair in profile.pairs] if speeds else [0]
    missing = sum(_missing(profile, step) for step in open_steps)
    size = missing * (max(students) * 4 + 5_000) + 2 * cores * len(profile.arms) * max(students) * 8
    return Estimate(seconds, cores, size)


def _missing(profile: Profile, step: Step) -> int:
    found, wanted = step.runs
    return (len(profile.arms) * len(profile.seeds) if wanted is None else wanted) - found


def _training_seconds(profile: Profile, step: Step, speeds: dict[str, Speed]) -> float:
    train, test = image_counts(profile.data)
    missing = _missing(profile, step)
    if step.notebook in ("01_teacher_and_layers", "02_hint_points") and missing:
        speed, schedule = speeds[step.parameters["teacher"]], profile.teacher
        evaluations, images = schedule.epochs / schedule.evaluate_every, min(train, profile.profile_images)
        teacher = schedule.epochs * train * speed.train + (evaluations * test + images) * speed.infer
        if step.notebook == "01_teacher_and_layers":
            return teacher
        return (missing - 1) * teacher + profile.stability.draws * _comparison_seconds(profile, step.parameters["teacher"], images)
    if step.notebook != "03_distillation" or not missing:
        return 0.0
    pair, schedule = profile.pair(step.parameters["pair"]), profile.student
    student, teacher = speeds[pair.student], speeds[pair.teacher]
    factor = 1.0 if step.parameters["method"] in ("ce", "kd") else HINT_FACTOR
    own = schedule.epochs * train * student.train * factor + schedule.epochs / schedule.evaluate_every * test * student.infer
    shared = 0.0 if step.parameters["method"] == "ce" else schedule.epochs * train * teacher.infer
    arms = max(1, (step.runs[1] or missing) // len(profile.seeds))
    return missing * own + missing / arms * shared


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
