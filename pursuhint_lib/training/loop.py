"""The training loop: every learner takes its step on each batch, after one teacher pass for all of them."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator

from ..data import Batch, Images, drawn_seed
from ..settings import Schedule
from .graphs import GraphedSteps
from .lanes import Lane, autocast
from .learners import FrozenTeacher, TeacherOutput

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


@dataclass
class Stretch:
    """A part of an epoch: batches ``first`` up to ``last`` of it, of ``batches`` in all; their images (of all processes), the seconds it took,
    and those of waiting for images."""

    first: int
    last: int
    batches: int
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @property
    def to_the_end(self) -> bool:
        """Whether the epoch is over."""
        return self.last == self.batches


def run_epoch(lanes: Sequence[Lane], images: Images, schedule: Schedule, epoch: int, *, teacher: FrozenTeacher | None, seed: int,
              precision: str, accelerator: Accelerator, watch: Callable[[float], None], pool: ThreadPoolExecutor | None,
              first: int = 0, pause: Callable[[int], bool] = lambda batch: False) -> Stretch:  # fmt: skip
    """A pass over the training images, from batch ``first`` on until ``pause`` says to stop before one: the teacher once a batch, then
    every lane. ``watch`` is told the share of the epoch that is done."""
    for lane in lanes:
        lane.prepare(epoch, schedule)
    done, world = Stretch(first, first, -(-len(images) // schedule.batch_size)), accelerator.num_processes
    begun = time.perf_counter()
    # What is drawn on one source of chance must be drawn in order, and not be recorded.
    chance = any(lane.learner.drops for lane in lanes)
    recordable = world == 1 and not chance and not any(lane.learner.draws_on_cpu for lane in lanes)

    def ask(batch: Batch) -> TeacherOutput | None:
        with autocast(accelerator.device, precision):
            return teacher(batch.images) if teacher else None

    def step(lane: Lane, batch: Batch, output: TeacherOutput | None, share: float = 1.0) -> None:
        lane.step(batch, output, accelerator, precision, share)

    def watched() -> Iterator[Batch]:
        batches = images.train_batches(schedule.batch_size, seed, epoch, accelerator.process_index, world, first)
        while not done.to_the_end and not (done.last > first and pause(done.last)):
            asked = time.perf_counter()
            batch = next(batches)
            done.waited += time.perf_counter() - asked
            done.last += 1
            watch(done.last / done.batches)
            yield batch

    if pool and not chance:
        _overlapped(pool, watched(), ask, step, lanes)
    elif accelerator.device.type == "cuda" and recordable and not any(lane.to_measure for lane in lanes):
        graphed = GraphedSteps(ask if teacher else None, [partial(step, lane) for lane in lanes])
        for batch in watched():
            graphed(batch)
    else:
        for batch in watched():
            output = ask(batch)
            # The last batch may not be shared out evenly.
            whole = min(schedule.batch_size, len(images) - (done.last - 1) * schedule.batch_size)
            for lane in lanes:
                if chance:
                    # A function of seed, epoch and batch, so that a resumed training draws the same, and the same for all arms.
                    torch.manual_seed(drawn_seed(seed, epoch, done.last, accelerator.process_index))
                step(lane, batch, output, len(batch.labels) * world / whole)
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)
    done.images = min(done.last * schedule.batch_size, len(images)) - first * schedule.batch_size
    done.seconds = time.perf_counter() - begun
    return done
