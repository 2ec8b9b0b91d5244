"""From the first epoch to the last: train, evaluate, save the state now and then, and go on from it."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from accelerate import Accelerator

from ..data import Splits
from ..faults import Stopped
from ..progress import Progress
from ..settings import Schedule, SettingsError
from .checkpoints import Position, resume, save_state
from .determinism import bitwise
from .interruptions import Interruptions
from .loop import cores, run_epoch
from .metrics import Metrics
from .normalisation import average_statistics
from .objective import FrozenTeacher
from .trainee import Trainee, accuracies, answers


def fit(
    trainees: Sequence[Trainee],
    splits: Splits,
    schedule: Schedule,
    *,
    teacher: FrozenTeacher | None,
    seed: int,
    precision: str,
    accelerator: Accelerator,
    label: str,
    checkpoint: Path,
    metrics: Path,
    deterministic: bool = False,
) -> dict[str, float]:
    """Train all trainees side by side to the end of the schedule, from the checkpoint if there is one.

    **Arguments:** ``teacher`` is asked once a batch; ``seed`` decides order and augmentation; ``label`` names
    the work to whoever watches; ``checkpoint`` is written now and then and removed by the caller; ``metrics``
    gets a line per epoch and trainee; ``deterministic`` asks for the same bits again
    (``determinism.bitwise``).

    **Returns:** ``images_per_second`` and ``data_wait``, the share of the time spent waiting for images;
    empty if no epoch was left to train.

    **Raises:** ``Stopped`` when asked to end, with the state saved; ``SettingsError`` if the batches cannot
    be shared out among the processes.
    """
    check_shares(len(splits.train), schedule.batch_size, accelerator.num_processes)
    at = resume(trainees, checkpoint, splits.checksum, accelerator)
    told = Metrics(metrics, fresh=at == Position(), writes=accelerator.is_main_process)
    with (
        Progress(label, schedule.epochs, done=at.epoch) as progress,
        cores(len(trainees), accelerator) as pool,
        Interruptions(accelerator.device) as interruptions,
        bitwise(deterministic),
    ):
        while at.epoch < schedule.epochs:
            running = [trainee for trainee in trainees if not trainee.failed]
            stretch = run_epoch(
                running,
                splits.train,
                schedule,
                at.epoch,
                teacher=teacher,
                seed=seed,
                precision=precision,
                accelerator=accelerator,
                watch=progress.within,
                pool=pool,
                first=at.batch,
                pause=interruptions,
            )
            told.count(stretch)
            at = Position(at.epoch, stretch.last)
            if stretch.to_the_end:
                _close_epoch(running, splits, schedule, at.epoch, precision, pool)
                speed = told.close_epoch(at.epoch, running)
                progress.advance(_summary(running, speed))
                at = Position(at.epoch + 1)
            if at.epoch < schedule.epochs and interruptions.look():
                begun = time.monotonic()
                save_state(trainees, at, checkpoint, splits.checksum, accelerator)
                interruptions.saved(time.monotonic() - begun)
                if interruptions.reason:
                    where = (
                        f"in epoch {at.epoch + 1} of {schedule.epochs}, before batch {at.batch + 1} of "
                        f"{stretch.batches}"
                    )
                    raise Stopped(
                        f"{label}: stopped {interruptions.reason} {where}; the state is saved, and the same "
                        "command "
                        "goes on from there"
                    )
    return told.speed()


def check_shares(images: int, batch_size: int, processes: int) -> None:
    """Refuse batches that the processes cannot share.

    **Raises:** ``SettingsError`` naming the numbers that would do.
    """
    if batch_size % processes:
        numbers = ", ".join(str(n) for n in range(1, batch_size + 1) if batch_size % n == 0)
        raise SettingsError(
            f"a batch of {batch_size} images cannot be shared out evenly among {processes} processes; give "
            f"{numbers} processes"
        )
    last = images % batch_size
    if processes > 1 and 0 < last < 2 * processes:
        raise SettingsError(
            f"the last of {images} images in batches of {batch_size} are {last}, too few for {processes} "
            "processes, which need 2 each; "
            f"give another batch_size or fewer processes"
        )


def _close_epoch(
    trainees: Sequence[Trainee],
    splits: Splits,
    schedule: Schedule,
    epoch: int,
    precision: str,
    pool: ThreadPoolExecutor | None,
) -> None:
    """Evaluate the trainees, where it is time to, and write the epoch into their histories."""
    measured: Sequence[dict[str, float]] = [{} for _ in trainees]
    if (epoch + 1) % schedule.evaluate_every == 0 or epoch + 1 == schedule.epochs:
        average_statistics(trainee.objective for trainee in trainees)
        each = pool.map if pool else map
        found = list(
            each(lambda trainee: answers(trainee.objective.network, splits.test, precision), trainees)
        )
        for trainee, rows in zip(trainees, found, strict=True):
            trainee.right = rows[:, 0]
        measured = [accuracies(rows) for rows in found]
    for trainee, found in zip(trainees, measured, strict=True):
        rounded = {name: round(value, 3) for name, value in found.items()}
        trainee.close_epoch(epoch, schedule.learning_rate_at(epoch), len(splits.train), rounded)


def _summary(trainees: Sequence[Trainee], speed: dict[str, float]) -> str:
    accuracies = [
        trainee.history["accuracy"][-1] for trainee in trainees if trainee.history["accuracy"][-1] is not None
    ]
    measured = f"accuracy {min(accuracies):.1f} to {max(accuracies):.1f} %, " if accuracies else ""
    return f"{measured}{speed['images_per_second']:.0f} images/s"
