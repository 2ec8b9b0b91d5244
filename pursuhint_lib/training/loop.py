"""The training loop: every objective takes its step on each batch, after one teacher pass for all of them."""

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
from .objective import FrozenTeacher, TeacherOutput
from .trainee import Trainee, autocast

# So many batches may be under way at once when trainees run at the same time.
BATCHES_UNDER_WAY = 2


@contextlib.contextmanager
def cores(trainees: int, accelerator: Accelerator) -> Iterator[ThreadPoolExecutor | None]:
    """A pool of threads that work on different trainees at the same time, with the cores shared out; nothing
    where trainees go in turn.

    Small networks gain little from many threads on one operation, so every trainee has one core for itself;
    what comes of it does not depend on how many there are. On a GPU the operations queue up anyway, and
    processes that talk to each other must all do it in the same order.
    """
    workers = min(trainees, torch.get_num_threads())
    if workers < 2 or accelerator.device.type != "cpu" or accelerator.num_processes > 1:
        yield None
        return
    # The number of threads is a property of the thread that sets it.
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool


def _overlapped(
    pool: ThreadPoolExecutor,
    batches: Iterable[Batch],
    ask: Callable,
    step: Callable,
    trainees: Sequence[Trainee],
) -> None:
    """``step(trainee, batch, ask(batch))`` for every batch and trainee: in order for one trainee, at the same
    time for different ones.

    No trainee waits for the others to finish a batch, so that no core is idle where the trainees cannot be
    shared out evenly. A task waits for earlier ones only, and the pool starts tasks in order, so that some
    task can always go on.
    """

    def ask_after(earlier: Future | None, batch: Batch) -> TeacherOutput | None:
        if earlier:
            earlier.result()
        return ask(batch)

    def step_after(earlier: Future | None, trainee: Trainee, batch: Batch, asked: Future) -> None:
        if earlier:
            earlier.result()
        step(trainee, batch, asked.result())

    def asked_ahead() -> Iterator[tuple[Batch, Future]]:
        """Batches with the teacher's answers, which was asked for the next one meanwhile, so that no trainee
        waits for it.
        """
        earlier = None
        for batch in batches:
            asked = pool.submit(ask_after, earlier and earlier[1], batch)
            if earlier:
                yield earlier
            earlier = batch, asked
        if earlier:
            yield earlier

    latest, under_way = dict.fromkeys(trainee.name for trainee in trainees), deque()
    for batch, asked in asked_ahead():
        for trainee in trainees:
            latest[trainee.name] = pool.submit(step_after, latest[trainee.name], trainee, batch, asked)
        under_way.append(list(latest.values()))
        if len(under_way) == BATCHES_UNDER_WAY:
            for future in under_way.popleft():
                # Raises what a step has raised.
                future.result()
    for future in latest.values():
        future.result()


@dataclass
class Stretch:
    """A part of an epoch: batches ``first`` up to ``last`` of it, of ``batches`` in all; their images (of all
    processes), the seconds it took, and those of waiting for images.
    """

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


def run_epoch(
    trainees: Sequence[Trainee],
    images: Images,
    schedule: Schedule,
    epoch: int,
    *,
    teacher: FrozenTeacher | None,
    seed: int,
    precision: str,
    accelerator: Accelerator,
    watch: Callable[[float], None],
    pool: ThreadPoolExecutor | None,
    first: int = 0,
    pause: Callable[[int], bool] = lambda batch: False,
) -> Stretch:
    """A pass over the training images, from batch ``first`` on until ``pause`` says to stop before one: the
    teacher once a batch, then every trainee. ``watch`` is told the share of the epoch that is done.
    """
    for trainee in trainees:
        trainee.prepare(epoch, schedule)
    done, world = Stretch(first, first, -(-len(images) // schedule.batch_size)), accelerator.num_processes
    begun = time.perf_counter()
    # What is drawn on one source of chance must be drawn in order, and not be recorded.
    chance = any(trainee.objective.drops for trainee in trainees)
    recordable = world == 1 and not chance and not any(trainee.objective.draws_on_cpu for trainee in trainees)

    def ask(batch: Batch) -> TeacherOutput | None:
        with autocast(accelerator.device, precision):
            return teacher(batch.images) if teacher else None

    def step(trainee: Trainee, batch: Batch, output: TeacherOutput | None, share: float = 1.0) -> None:
        trainee.step(batch, output, accelerator, precision, share)

    def watched() -> Iterator[Batch]:
        batches = images.train_batches(
            schedule.batch_size, seed, epoch, accelerator.process_index, world, first
        )
        while not done.to_the_end and not (done.last > first and pause(done.last)):
            asked = time.perf_counter()
            batch = next(batches)
            done.waited += time.perf_counter() - asked
            done.last += 1
            watch(done.last / done.batches)
            yield batch

    if pool and not chance:
        _overlapped(pool, watched(), ask, step, trainees)
    elif accelerator.device.type == "cuda" and recordable:
        graphed = GraphedSteps(ask if teacher else None, [partial(step, trainee) for trainee in trainees])
        for batch in watched():
            graphed(batch)
    else:
        for batch in watched():
            output = ask(batch)
            # The last batch may not be shared out evenly.
            whole = min(schedule.batch_size, len(images) - (done.last - 1) * schedule.batch_size)
            for trainee in trainees:
                if chance:
                    # A function of seed, epoch and batch, so that a resumed training draws the same, and the
                    # same for all arms.
                    torch.manual_seed(drawn_seed(seed, epoch, done.last, accelerator.process_index))
                step(trainee, batch, output, len(batch.labels) * world / whole)
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)
    done.images = min(done.last * schedule.batch_size, len(images)) - first * schedule.batch_size
    done.seconds = time.perf_counter() - begun
    return done
