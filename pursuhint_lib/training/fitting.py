"""From the first epoch to the last: train, evaluate, save the state now and then, and go on from it."""

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ..faults import Stopped
from ..progress import Progress
from ..settings import SettingsError
from .checkpoints import Position, resume, save_state
from .device import bitwise
from .interruptions import Interruptions
from .loop import Stretch, cores, run_epoch
from .trainee import Trainee, Training, average_statistics


def fit(training: Training) -> dict[str, float]:
    """Train all trainees side by side to the end of the schedule, from the checkpoint if there is one.

    **Returns:** ``images_per_second`` and ``data_wait``, the share of the time spent waiting for images;
    empty if no epoch was left to train.

    **Raises:** ``Stopped`` when asked to end, with the state saved; ``SettingsError`` if the batches cannot
    be shared out among the processes.
    """
    epochs, accelerator = training.settings.schedule.epochs, training.accelerator
    check_shares(len(training.splits.train), training.settings.schedule.batch_size, accelerator.num_processes)
    at, stretches = resume(training), []
    told = Metrics(training, fresh=at == Position())
    with (
        Progress(training.label, epochs, done=at.epoch) as progress,
        cores(len(training.trainees), accelerator) as pool,
        Interruptions(accelerator.device) as interruptions,
        bitwise(training.settings.deterministic),
    ):
        while at.epoch < epochs:
            running = training.running
            stretch = run_epoch(
                training, at.epoch, at.batch, pool=pool, watch=progress.within, pause=interruptions
            )
            stretches.append(stretch)
            at = Position(at.epoch, stretch.last)
            if at.batch == stretch.batches:
                _close_epoch(training, running, at.epoch, pool)
                speed = _speed([part for part in stretches if part.epoch == at.epoch])
                told.write(running, speed)
                progress.advance(_summary(running, speed))
                at = Position(at.epoch + 1)
            if at.epoch < epochs and interruptions.look():
                begun = time.monotonic()
                save_state(training, at)
                interruptions.saved(time.monotonic() - begun)
                if interruptions.reason:
                    raise _stopped(training, at, stretch.batches, interruptions.reason)
    return _speed(stretches) if stretches else {}


def _stopped(training: Training, at: Position, batches: int, reason: str) -> Stopped:
    where = f"in epoch {at.epoch + 1} of {training.settings.schedule.epochs}, before batch {at.batch + 1}"
    return Stopped(
        f"{training.label}: stopped {reason} {where} of {batches}; the state is saved, and the same command "
        "goes on from there"
    )


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
            "processes, which need 2 each; give another batch_size or fewer processes"
        )


def _close_epoch(
    training: Training, trainees: Sequence[Trainee], epoch: int, pool: ThreadPoolExecutor | None
) -> None:
    """Evaluate the trainees, where it is time to, and write the epoch into their histories."""
    schedule = training.settings.schedule
    measured: Sequence[dict[str, float]] = [{} for _ in trainees]
    if (epoch + 1) % schedule.evaluate_every == 0 or epoch + 1 == schedule.epochs:
        average_statistics(trainee.objective for trainee in trainees)
        each = pool.map if pool else map
        measured = list(each(lambda trainee: trainee.measure(training.splits.test), trainees))
    for trainee, figures in zip(trainees, measured, strict=True):
        trainee.close_epoch(epoch, len(training.splits.train), figures)


def _summary(trainees: Sequence[Trainee], speed: dict[str, float]) -> str:
    accuracies = [
        trainee.history["accuracy"][-1] for trainee in trainees if trainee.history["accuracy"][-1] is not None
    ]
    measured = f"accuracy {min(accuracies):.1f} to {max(accuracies):.1f} %, " if accuracies else ""
    return f"{measured}{speed['images_per_second']:.0f} images/s"


def _speed(stretches: Sequence[Stretch]) -> dict[str, float]:
    """Images per second, over all processes, that pass through every trainee, and the share of the time in
    which training waited for them.
    """
    seconds, images, waited = (
        sum(getattr(stretch, name) for stretch in stretches) for name in ("seconds", "images", "waited")
    )
    return {"images_per_second": float(f"{images / seconds:.4g}"), "data_wait": round(waited / seconds, 4)}


class Metrics:
    """Appends a line of JSON per epoch and trainee to a training's file while it runs, in its first process.

    With ``PURSUHINT_TENSORBOARD`` set in the environment the same goes to TensorBoard's files, in the folder
    of the file's name without ending.

    **Arguments:** ``training``; ``fresh``, whether it begins, so that lines of an earlier one are removed.
    """

    def __init__(self, training: Training, fresh: bool):
        self._file = training.metrics if training.accelerator.is_main_process else None
        self._board = None
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            self._file.write_text("")
        if os.environ.get("PURSUHINT_TENSORBOARD"):
            # Imported here, as the package need not be there.
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._file.with_suffix("")))

    def write(self, trainees: Sequence[Trainee], speed: dict[str, float]) -> None:
        """Write the last epoch of every trainee."""
        for trainee in trainees if self._file else ():
            row = {column: values[-1] for column, values in trainee.history.items()}
            row = {"trainee": trainee.name, **row, **speed, "time": round(time.time(), 1)}
            with self._file.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if self._board:
                for column, value in row.items():
                    if isinstance(value, float) and column != "time":
                        self._board.add_scalar(f"{column}/{trainee.name}", value, row["epoch"])
                self._board.flush()
