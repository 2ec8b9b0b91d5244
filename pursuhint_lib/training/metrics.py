"""What a training says of every epoch while it runs: one line of JSON per student, and TensorBoard's files
where they are asked for.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from .loop import Stretch
from .trainee import Trainee


class Metrics:
    """Appends the rows of a training to a file, in its first process only.

    With ``PURSUHINT_TENSORBOARD`` set in the environment the same goes to TensorBoard's files, in the folder
    of the file's name without ending.

    **Arguments:** ``file``; ``fresh`` whether the training begins, so that lines of an earlier one are
    removed; ``writes`` whether this process does.
    """

    def __init__(self, file: Path, fresh: bool, writes: bool):
        self._file = file if writes else None
        self._board = None
        self._stretches: list[Stretch] = []
        self._all: list[Stretch] = []
        if not writes:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            file.write_text("")
        if os.environ.get("PURSUHINT_TENSORBOARD"):
            # Imported here, as the package need not be there.
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(file.with_suffix("")))

    def count(self, stretch: Stretch) -> None:
        """A part of the present epoch was trained."""
        self._stretches.append(stretch)

    def close_epoch(self, epoch: int, trainees: Sequence[Trainee]) -> dict[str, float]:
        """Write a row of every trainee; returns the speed of the epoch."""
        speed = _speed(self._stretches)
        self._all += self._stretches
        self._stretches = []
        for trainee in trainees if self._file else ():
            row = {column: values[-1] for column, values in trainee.history.items()}
            row = {"trainee": trainee.name, **row, **speed, "time": round(time.time(), 1)}
            with self._file.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if self._board:
                for column, value in row.items():
                    if isinstance(value, float) and column != "time":
                        self._board.add_scalar(f"{column}/{trainee.name}", value, epoch + 1)
                self._board.flush()
        return speed

    def speed(self) -> dict[str, float]:
        """Speed of all epochs that this process has closed; empty if it has closed none."""
        return _speed(self._all) if self._all else {}


def _speed(stretches: Sequence[Stretch]) -> dict[str, float]:
    """Images per second, over all processes, that pass through every trainee, and the share of the time in
    which training waited for them.
    """
    seconds, images, waited = (
        sum(getattr(stretch, name) for stretch in stretches) for name in ("seconds", "images", "waited")
    )
    return {"images_per_second": float(f"{images / seconds:.4g}"), "data_wait": round(waited / seconds, 4)}
