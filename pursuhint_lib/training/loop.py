"""The training loop: every trainee takes its step on each batch, after one teacher pass for all of them."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise

import torch
from accelerate import Accelerator

from ..data import Batch, drawn_seed
from .graphs import GraphedSteps
from .objective import TeacherOutput
from .trainee import Trainee, Training

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


@dataclass
class Stretch:
    """A part of an epoch: batches ``first`` up to ``last`` of it, of ``batches`` in all; their images (of all
    processes), the seconds it took, and those of waiting for images.
    """

    epoch: int
    first: int
    last: int
    batches: int
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0


def run_epoch(
    training: Training,
    epoch: int,
    first: int,
    *,
    pool: ThreadPoolExecutor | None,
    watch: Callable[[float], None],
    pause: Callable[[int], bool] = lambda batch: False,
) -> Stretch:
    """A pass over the training images: the teacher once a batch, then every trainee that has not failed.

    **Arguments:** ``epoch``, and the ``first`` batch of it, from 0; ``pool`` as ``cores`` gives it; ``watch``
    is told the share of the epoch that is done; ``pause`` says whether to stop before a batch.
    """
    begun, trainees, schedule = time.perf_counter(), training.running, training.settings.schedule
    for trainee in trainees:
        trainee.prepare(epoch)
    images, device = len(training.splits.train), training.accelerator.device
    stretch = Stretch(epoch, first, first, -(-images // schedule.batch_size))
    batches = _counted(training, stretch, watch, pause)
    chance = training.draws
    # A graph would repeat what is drawn on the CPU, or measured for a while, and not wait for others.
    recordable = training.accelerator.num_processes == 1 and not any(
        trainee.objective.draws_on_cpu or trainee.to_measure for trainee in trainees
    )
    if pool and not chance:
        _overlapped(training, trainees, batches, pool)
    elif device.type == "cuda" and recordable and not chance:
        _graphed(training, trainees, batches)
    else:
        _in_turn(training, trainees, batches, stretch, chance)
    if device.type == "cuda":
        # Until the GPU has done what it was asked for.
        torch.cuda.synchronize(device)
    stretch.images = min(stretch.last * schedule.batch_size, images) - first * schedule.batch_size
    stretch.seconds = time.perf_counter() - begun
    return stretch


def _counted(
    training: Training, stretch: Stretch, watch: Callable[[float], None], pause: Callable[[int], bool]
) -> Iterator[Batch]:
    """The batches to the end of the epoch or to a pause; the stretch keeps count of them."""
    settings, accelerator = training.settings, training.accelerator
    batches = training.splits.train.train_batches(
        settings.schedule.batch_size,
        settings.seed,
        stretch.epoch,
        accelerator.process_index,
        accelerator.num_processes,
        stretch.first,
    )
    for number in range(stretch.first, stretch.batches):
        if number > stretch.first and pause(number):
            return
        asked = time.perf_counter()
        batch = next(batches)
        stretch.waited += time.perf_counter() - asked
        stretch.last = number + 1
        watch(stretch.last / stretch.batches)
        yield batch


def _overlapped(
    training: Training, trainees: Sequence[Trainee], batches: Iterable[Batch], pool: ThreadPoolExecutor
) -> None:
    """Different trainees at the same time, each in the order of the batches.

    No trainee waits for the others to finish a batch, so that no core is idle where the trainees cannot be
    shared out evenly. A task waits for earlier ones only, and the pool starts tasks in order, so that some
    task can always go on.
    """

    def ask_after(earlier: Future | None, batch: Batch) -> TeacherOutput | None:
        if earlier:
            earlier.result()
        return training.ask(batch)

    def step_after(earlier: Future | None, trainee: Trainee, batch: Batch, asked: Future) -> None:
        if earlier:
            earlier.result()
        trainee.step(batch, asked.result())

    def asked() -> Iterator[tuple[Batch, Future]]:
        latest = None
        for batch in batches:
            latest = pool.submit(ask_after, latest, batch)
            yield batch, latest

    latest, under_way = dict.fromkeys(trainee.name for trainee in trainees), deque()
    # The teacher is asked for the next batch before the steps on this one, so that no trainee waits for it.
    for (batch, output), _ in pairwise(chain(asked(), [None])):
        for trainee in trainees:
            latest[trainee.name] = pool.submit(step_after, latest[trainee.name], trainee, batch, output)
        under_way.append(list(latest.values()))
        if len(under_way) == BATCHES_UNDER_WAY:
            for future in under_way.popleft():
                # Raises what a step has raised.
                future.result()
    for future in latest.values():
        future.result()


def _graphed(training: Training, trainees: Sequence[Trainee], batches: Iterable[Batch]) -> None:
    """All trainees at once on a GPU, from graphs of their steps."""
    steps = [trainee.step for trainee in trainees]
    graphed = GraphedSteps(training.ask if training.teacher else None, steps)
    for batch in batches:
        graphed(batch)


def _in_turn(
    training: Training,
    trainees: Sequence[Trainee],
    batches: Iterable[Batch],
    stretch: Stretch,
    chance: bool,
) -> None:
    """One trainee after the other, as the same draws, and processes that wait for each other, ask for."""
    size, images = training.settings.schedule.batch_size, len(training.splits.train)
    rank, world = training.accelerator.process_index, training.accelerator.num_processes
    for number, batch in enumerate(batches, stretch.first):
        output = training.ask(batch)
        # The last batch may be shared out unevenly.
        share = len(batch.labels) * world / min(size, images - number * size)
        for trainee in trainees:
            if chance:
                # The same for all arms, and for a training that was resumed.
                torch.manual_seed(drawn_seed(training.settings.seed, stretch.epoch, number + 1, rank))
            trainee.step(batch, output, share)
