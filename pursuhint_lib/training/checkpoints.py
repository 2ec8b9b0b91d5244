"""The state of an unfinished training, the same whatever number of processes wrote it or goes on from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from ..files import replacing
from ..processes import total
from .lanes import Lane
from .normalisation import average_statistics


@dataclass(frozen=True)
class Position:
    """Where a training is: before batch ``batch`` of epoch ``epoch``, both from 0."""

    epoch: int = 0
    batch: int = 0


def save_state(lanes: Sequence[Lane], position: Position, path: Path, accelerator: Accelerator) -> None:
    """Write the state of all lanes; every process calls it, and the first one writes."""
    average_statistics(lane.learner for lane in lanes)
    # Sums of the losses are of each process's own images.
    sums = {lane.name: {name: total(summed) for name, summed in lane.sums.items()} for lane in lanes}
    if accelerator.is_main_process:
        state = {"epoch": position.epoch, "batch": position.batch, "lanes": {}}
        for lane in lanes:
            entry = {"learner": lane.learner.state_dict(), "optimizer": lane.optimizer.state_dict(), "sums": sums[lane.name]}
            state["lanes"][lane.name] = {**entry, "history": lane.history, "failed": lane.failed}
        with replacing(path) as draft:
            torch.save(state, draft)
    accelerator.wait_for_everyone()


def resume(lanes: Sequence[Lane], path: Path, accelerator: Accelerator) -> Position:
    """Restore all lanes from the file, if there is one; returns where the training is."""
    if not path.is_file():
        return Position()
    state = torch.load(path, map_location="cpu", weights_only=True)
    for lane in lanes:
        entry = state["lanes"][lane.name]
        lane.learner.load_state_dict(entry["learner"])
        lane.optimizer.load_state_dict(entry["optimizer"])
        lane.history, lane.failed = entry["history"], entry["failed"]
        # The sums are of all processes; the first one keeps them.
        own = 1.0 if accelerator.is_main_process else 0.0
        lane.sums = {name: own * summed.to(accelerator.device) for name, summed in entry["sums"].items()}
    return Position(state["epoch"], state["batch"])
