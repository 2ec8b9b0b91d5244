"""The state of an unfinished training, the same whatever number of processes wrote it or goes on from it.

The checkpoint before stays beside the last one, should that be damaged.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch

from ..files import read_checked, write_checked
from ..processes import agreed, total
from .trainee import Training, average_statistics

# What is kept of a trainee as it is, and what it counts on its device.
VALUES = ("history", "failed", "to_measure")
COUNTS = ("steps", "broke", "ratios")


@dataclass(frozen=True)
class Position:
    """Where a training is: before batch ``batch`` of epoch ``epoch``, both from 0."""

    epoch: int = 0
    batch: int = 0


def previous(path: Path) -> Path:
    """The checkpoint before the last one."""
    return path.with_name(f"{path.name}.previous")


def remove(path: Path) -> None:
    """Remove the checkpoints of a training that is over."""
    for file in (path, previous(path)):
        file.unlink(missing_ok=True)


def save_state(training: Training, position: Position) -> None:
    """Write the state of all trainees; every process calls it, and the first one writes."""
    average_statistics(trainee.objective for trainee in training.trainees)
    state = {
        "training": training.checkpoint.name,
        "data": training.splits.checksum,
        "epoch": position.epoch,
        "batch": position.batch,
        "trainees": {},
    }
    for trainee in training.trainees:
        state["trainees"][trainee.name] = {
            "objective": trainee.objective.state_dict(),
            "optimizer": trainee.optimizer.state_dict(),
            # Sums of the losses are of each process's own images.
            "sums": {name: total(summed) for name, summed in trainee.sums.items()},
            **{name: getattr(trainee, name) for name in (*COUNTS, *VALUES)},
        }
    if training.accelerator.is_main_process:
        _write(state, training.checkpoint)
    training.accelerator.wait_for_everyone()


def _write(state: dict, path: Path) -> None:
    content = io.BytesIO()
    torch.save(state, content)
    if path.is_file():
        path.replace(previous(path))
    write_checked(path, content.getbuffer())


def _read(path: Path) -> dict:
    """The state in a file.

    **Raises:** ``ValueError`` where the file is not what was written.
    """
    return torch.load(io.BytesIO(read_checked(path)), map_location="cpu", weights_only=True)


def _usable(training: Training) -> Path | None:
    """The newest checkpoint that is whole and of this training and its images; says which one is not."""
    path = training.checkpoint
    for file in filter(Path.is_file, (path, previous(path))):
        try:
            state = _read(file)
            # The trainee of a teacher has the same name whatever its settings. Trainees that have a record by
            # now may be left out; one of an older version may lack something.
            known = [state["trainees"].get(trainee.name, ()) for trainee in training.trainees]
            if state["training"] != path.name or not all({*VALUES, *COUNTS} <= {*entry} for entry in known):
                raise ValueError("it is of another training")
            if state["data"] != training.splits.checksum:
                raise ValueError("the images have changed since")
            return file
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, UnpicklingError) as error:
            before = file == path and previous(path).is_file()
            print(
                f"checkpoint {file} is not used: {str(error).splitlines()[0]}; "
                f"{'the one before is tried' if before else 'training begins anew'}",
                flush=True,
            )
    return None


def resume(training: Training) -> Position:
    """Restore all trainees from the last checkpoint that can be used, if there is one; returns where the
    training is.
    """
    accelerator = training.accelerator
    # All processes go on from the one that the first finds.
    file = agreed(_usable(training) if accelerator.is_main_process else None)
    if file is None:
        return Position()
    state = _read(file)
    for trainee in training.trainees:
        entry = state["trainees"][trainee.name]
        trainee.objective.load_state_dict(entry["objective"])
        trainee.optimizer.load_state_dict(entry["optimizer"])
        for name in VALUES:
            setattr(trainee, name, entry[name])
        for name in COUNTS:
            # In place, where recorded steps count.
            getattr(trainee, name).copy_(entry[name])
        # The sums are of all processes; the first one keeps them.
        own = 1.0 if accelerator.is_main_process else 0.0
        trainee.sums = {name: own * summed.to(accelerator.device) for name, summed in entry["sums"].items()}
    return Position(state["epoch"], state["batch"])
