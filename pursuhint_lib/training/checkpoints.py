"""The state of an unfinished training, the same whatever number of processes wrote it or goes on from it.

A checkpoint is the SHA-256 of what follows, as a line of hex digits, and torch's file of the state. The one
before stays beside it until the next is known to be whole.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from accelerate import Accelerator

from ..files import replacing
from ..processes import agreed, total
from .normalisation import average_statistics
from .trainee import Trainee


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


def save_state(
    trainees: Sequence[Trainee], position: Position, path: Path, data: str, accelerator: Accelerator
) -> None:
    """Write the state of all trainees, which learn images of checksum ``data``; every process calls it, and
    the first one writes.
    """
    average_statistics(trainee.objective for trainee in trainees)
    # Sums of the losses are of each process's own images.
    sums = {
        trainee.name: {name: total(summed) for name, summed in trainee.sums.items()} for trainee in trainees
    }
    if accelerator.is_main_process:
        state = {
            "training": path.name,
            "data": data,
            "epoch": position.epoch,
            "batch": position.batch,
            "trainees": {},
        }
        for trainee in trainees:
            learned = {
                "objective": trainee.objective.state_dict(),
                "optimizer": trainee.optimizer.state_dict(),
            }
            told = {
                "sums": sums[trainee.name],
                "steps": trainee.steps,
                "broke": trainee.broke,
                "history": trainee.history,
                "failed": trainee.failed,
            }
            state["trainees"][trainee.name] = learned | told
        _write(state, path)
    accelerator.wait_for_everyone()


def _write(state: dict, path: Path) -> None:
    content = io.BytesIO()
    torch.save(state, content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    with replacing(path) as draft:
        with draft.open("wb") as file:
            file.write(f"{digest}\n".encode())
            file.write(content.getbuffer())
        _read(draft)
        if path.is_file():
            path.replace(previous(path))


def _read(path: Path) -> dict:
    """The state in a file.

    **Raises:** ``ValueError`` saying what is wrong with the file.
    """
    digest, newline, content = path.read_bytes().partition(b"\n")
    if not newline or hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("it is not what was written")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        raise ValueError(str(error).splitlines()[0]) from None


def _usable(trainees: Sequence[Trainee], path: Path, data: str) -> Path | None:
    """The newest checkpoint that is whole and of these trainees and images; says which one is not."""
    for file in (path, previous(path)):
        if not file.is_file():
            continue
        try:
            state = _read(file)
            # The trainee of a teacher has the same name whatever its settings. Trainees that have a record by
            # now may be left out.
            if state.get("training", path.name) != path.name or not {
                trainee.name for trainee in trainees
            } <= {*state["trainees"]}:
                raise ValueError("it is of another training")
            if state.get("data", data) != data:
                raise ValueError("the images have changed since")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            before = file == path and previous(path).is_file()
            print(
                f"checkpoint {file} is not used: {error}; "
                f"{'the one before is tried' if before else 'training begins anew'}",
                flush=True,
            )
        else:
            return file
    return None


def resume(trainees: Sequence[Trainee], path: Path, data: str, accelerator: Accelerator) -> Position:
    """Restore all trainees from the last checkpoint that can be used, if there is one; returns where the
    training is.
    """
    # All processes go on from the one that the first finds.
    file = agreed(_usable(trainees, path, data) if accelerator.is_main_process else None)
    if file is None:
        return Position()
    state = _read(file)
    for trainee in trainees:
        entry = state["trainees"][trainee.name]
        trainee.objective.load_state_dict(entry["objective"])
        trainee.optimizer.load_state_dict(entry["optimizer"])
        trainee.history, trainee.failed = entry["history"], entry["failed"]
        trainee.steps.copy_(entry["steps"])
        trainee.broke.copy_(entry["broke"])
        # The sums are of all processes; the first one keeps them.
        own = 1.0 if accelerator.is_main_process else 0.0
        trainee.sums = {name: own * summed.to(accelerator.device) for name, summed in entry["sums"].items()}
    return Position(state["epoch"], state["batch"])
