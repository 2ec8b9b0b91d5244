"""The training loop: every learner takes its step on each batch, after one teacher pass for all of them."""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from ..data import Batch, Images, Splits
from ..files import replacing
from ..progress import Progress
from ..settings import PRECISIONS, Schedule, choose
from .graphs import GraphedSteps
from .learners import FrozenTeacher, Learner, TeacherOutput

# Seconds between two checkpoints of an unfinished training: what a kill can cost at most.
CHECKPOINT_SECONDS = 60.0


@dataclass
class Lane:
    """One learner with what its training needs beside it."""

    name: str
    learner: Learner
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    history: dict[str, list] = field(default_factory=lambda: {"epoch": [], "learning_rate": [], "accuracy": []})
    failed: bool = False
    sums: dict[str, Tensor] = field(default_factory=dict)

    def step(self, batch: Batch, teacher: TeacherOutput | None, accelerator: Accelerator, precision: str) -> None:
        """One optimiser step; losses are added up on the device, so that nothing waits for it."""
        with autocast(accelerator.device, precision):
            parts = self.wrapped(*batch, teacher)
        self.optimizer.zero_grad(set_to_none=True)
        accelerator.backward(parts["total"])
        self.optimizer.step()
        for name, loss in parts.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(loss)
            self.sums[name].add_(loss.detach() * len(batch.labels))

    def close_epoch(self, epoch: int, learning_rate: float, images: int, accuracy: float | None, accelerator: Accelerator) -> None:
        """Write the epoch into the history; a loss that is not finite ends the run as failed."""
        means = {name: float(accelerator.reduce(total)) / images for name, total in self.sums.items()}
        self.sums = {}
        self.failed = not math.isfinite(means["total"])
        losses = {f"loss_{name}": _rounded(mean) for name, mean in means.items()}
        row = {"epoch": epoch + 1, "learning_rate": _rounded(learning_rate), "accuracy": accuracy, **losses}
        for column in {**self.history, **row}:
            # A loss that only some epochs have is missing in the others.
            self.history.setdefault(column, [None] * epoch).append(row.get(column))


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def resolve_precision(precision: str) -> str:
    """What ``auto`` means on this machine: ``bf16`` where the hardware multiplies it, ``fp32`` elsewhere; another precision stays.

    Settled before a run has settings, so that its record says what it was trained in.
    """
    if choose("precision", precision, PRECISIONS) != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    abilities = torch.cpu.get_capabilities()
    return "bf16" if any(abilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which networks run: ``fp32`` as they are, ``bf16`` in mixed precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def accelerator_for_this_process() -> Accelerator:
    """Device and process group. Precision is a setting of the run, so accelerate is kept out of it."""
    # In some epochs of some methods a part of the student gets no gradient: its classifier in a stage of hints alone.
    return Accelerator(mixed_precision="no", kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])


def evaluate(model: nn.Module, images: Images, precision: str = "fp32") -> float:
    """Top-1 accuracy in %, model left in the mode it was in."""
    training = model.training
    model.eval()
    with torch.no_grad(), autocast(images.device, precision):
        correct = sum((model(batch).argmax(1) == labels).sum() for batch, labels in images.ordered_batches())
    model.train(training)
    return 100 * int(correct) / len(images)


# So many batches may be under way at once when lanes run at the same time.
BATCHES_UNDER_WAY = 2


@contextlib.contextmanager
def cores(lanes: int, accelerator: Accelerator) -> Iterator[ThreadPoolExecutor | None]:
    """A pool of threads that work on different lanes at the same time, with the cores shared out; nothing where lanes go in turn.

    Small networks gain little from many threads on one operation, so every lane has one core for itself; what comes of it does not depend on
    how many there are. On a GPU the operations queue up anyway, and processes that talk to each other must all do it in the same order.
    """
    workers = min(lanes, torch.get_num_threads())
    if workers < 2 or accelerator.device.type != "cpu" or accelerator.num_processes > 1:
        yield None
        return
    # The number of threads is a property of the thread that sets it.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool


def _overlapped(pool: ThreadPoolExecutor, batches: Iterable[Batch], ask: Callable, step: Callable, lanes: Sequence[Lane]) -> None:
    """``step(lane, batch, ask(batch))`` for every batch and lane: in order for one lane, at the same time for different ones.

    No lane waits for the others to finish a batch, so that no core is idle where the lanes cannot be shared out evenly. A task waits for
    earlier ones only, and the pool starts tasks in order, so that some task can always go on.
    """

    def ask_after(earlier: Future | None, batch: Batch) -> TeacherOutput | None:
        if earlier:
            earlier.result()
        return ask(batch)

    def step_after(earlier: Future | None, lane: Lane, batch: Batch, asked: Future) -> None:
        if earlier:
            earlier.result()
        step(lane, batch, asked.result())

    def asked_ahead() -> Iterator[tuple[Batch, Future]]:
        """Batches with the teacher's answers, which was asked for the next one meanwhile, so that no lane waits for it."""
        earlier = None
        for batch in batches:
            asked = pool.submit(ask_after, earlier and earlier[1], batch)
            if earlier:
                yield earlier
            earlier = batch, asked
        if earlier:
            yield earlier

    latest, under_way = dict.fromkeys(lane.name for lane in lanes), deque()
    for batch, asked in asked_ahead():
        for lane in lanes:
            latest[lane.name] = pool.submit(step_after, latest[lane.name], lane, batch, asked)
        under_way.append(list(latest.values()))
        if len(under_way) == BATCHES_UNDER_WAY:
            for future in under_way.popleft():
                # Raises what a step has raised.
                future.result()
    for future in latest.values():
        future.result()


def fit(lanes: Sequence[Lane], splits: Splits, schedule: Schedule, *, teacher: FrozenTeacher | None, seed: int, precision: str,
        accelerator: Accelerator, label: str, checkpoint: Path) -> None:  # fmt: skip
    """Train all lanes side by side to the end of the schedule, from the checkpoint if there is one.

    **Arguments:** ``teacher`` is asked once a batch; ``seed`` decides order and augmentation; ``label`` names
    the work to whoever watches; ``checkpoint`` is written now and then and removed by the caller.
    """
    start = _resume(lanes, checkpoint, accelerator)
    saved = time.monotonic()
    with Progress(label, schedule.epochs, done=start) as progress, cores(len(lanes), accelerator) as pool:
        for epoch in range(start, schedule.epochs):
            running = [lane for lane in lanes if not lane.failed]
            run_epoch(running, splits.train, schedule, epoch, teacher=teacher, seed=seed, precision=precision, accelerator=accelerator,
                       watch=progress.within, pool=pool)  # fmt: skip
            accuracies: Sequence[float | None] = [None] * len(running)
            if (epoch + 1) % schedule.evaluate_every == 0 or epoch + 1 == schedule.epochs:
                each = pool.map if pool else map
                accuracies = list(each(lambda lane: round(evaluate(lane.learner.network, splits.test, precision), 3), running))
            for lane, accuracy in zip(running, accuracies, strict=True):
                lane.close_epoch(epoch, schedule.learning_rate_at(epoch), len(splits.train), accuracy, accelerator)
            progress.advance(_summary(running))
            if time.monotonic() - saved > CHECKPOINT_SECONDS and epoch + 1 < schedule.epochs:
                _save_state(lanes, epoch + 1, checkpoint, accelerator)
                saved = time.monotonic()


def _summary(lanes: Sequence[Lane]) -> str:
    accuracies = [lane.history["accuracy"][-1] for lane in lanes if lane.history["accuracy"][-1] is not None]
    return f"test accuracy {min(accuracies):.1f} to {max(accuracies):.1f} %" if accuracies else ""


def run_epoch(lanes: Sequence[Lane], images: Images, schedule: Schedule, epoch: int, *, teacher: FrozenTeacher | None, seed: int,
               precision: str, accelerator: Accelerator, watch: Callable[[float], None], pool: ThreadPoolExecutor | None) -> None:  # fmt: skip
    """One pass over the training images: the teacher once a batch, then every lane. ``watch`` is told the share that is done."""
    for lane in lanes:
        lane.wrapped.train()
        lane.learner.epoch, lane.learner.epochs = epoch, schedule.epochs
        for group in lane.optimizer.param_groups:
            # On a GPU a tensor, which recorded steps read at its place.
            rate = schedule.learning_rate_at(epoch)
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate

    def ask(batch: Batch) -> TeacherOutput | None:
        with autocast(accelerator.device, precision):
            return teacher(batch.images) if teacher else None

    def step(lane: Lane, batch: Batch, output: TeacherOutput | None) -> None:
        lane.step(batch, output, accelerator, precision)

    def watched() -> Iterator[Batch]:
        batches = images.train_batches(schedule.batch_size, seed, epoch, accelerator.process_index, accelerator.num_processes)
        for number, batch in enumerate(batches):
            watch(number * schedule.batch_size / len(images))
            yield batch

    if pool:
        _overlapped(pool, watched(), ask, step, lanes)
    elif accelerator.device.type == "cuda" and accelerator.num_processes == 1 and not any(lane.learner.draws_on_cpu for lane in lanes):
        graphed = GraphedSteps(ask if teacher else None, [partial(step, lane) for lane in lanes])
        for batch in watched():
            graphed(batch)
    else:
        for batch in watched():
            output = ask(batch)
            for lane in lanes:
                step(lane, batch, output)


def open_lane(name: str, learner: Learner, schedule: Schedule, accelerator: Accelerator) -> Lane:
    """A learner with its optimiser, ready to be trained."""
    on_gpu = accelerator.device.type == "cuda"
    rate = torch.tensor(schedule.learning_rate, device=accelerator.device) if on_gpu else schedule.learning_rate
    optimizer = torch.optim.SGD(learner.parameters(), lr=rate, momentum=schedule.momentum, weight_decay=schedule.weight_decay, fused=True)
    wrapped, optimizer = accelerator.prepare(learner, optimizer)
    return Lane(name, learner, wrapped, optimizer)


def _save_state(lanes: Sequence[Lane], epochs_done: int, path: Path, accelerator: Accelerator) -> None:
    if not accelerator.is_main_process:
        return
    state = {"epochs_done": epochs_done, "lanes": {}}
    for lane in lanes:
        entry = {"learner": lane.learner.state_dict(), "optimizer": lane.optimizer.state_dict()}
        state["lanes"][lane.name] = {**entry, "history": lane.history, "failed": lane.failed}
    with replacing(path) as draft:
        torch.save(state, draft)


def _resume(lanes: Sequence[Lane], path: Path, accelerator: Accelerator) -> int:
    """Restore all lanes; returns the number of epochs that are done."""
    if not path.is_file():
        return 0
    state = torch.load(path, map_location=accelerator.device, weights_only=True)
    for lane in lanes:
        entry = state["lanes"][lane.name]
        lane.learner.load_state_dict(entry["learner"])
        lane.optimizer.load_state_dict(entry["optimizer"])
        lane.history, lane.failed = entry["history"], entry["failed"]
    return state["epochs_done"]
