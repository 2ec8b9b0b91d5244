"""One training in several processes: who this one is, how many threads it takes, and what all have together.
One that is alone is all there is.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from joblib import cpu_count
from torch import Tensor

Value = TypeVar("Value")


def available_cores() -> int:
    """Cores that this process may use: those of its affinity (taskset), of its container, and of its SLURM
    job.
    """
    return min(cpu_count(), int(os.environ.get("SLURM_CPUS_ON_NODE", cpu_count())))


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Within this context torch computes on so many threads of a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def world() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if world() > 1 else 0


def total(values: Tensor) -> Tensor:
    """Sum of every entry over all processes."""
    if world() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def of_each(value: Value) -> list[Value]:
    """What each of the processes has, in their order. Tensors have to be on the CPU."""
    found = [value] * world()
    if world() > 1:
        dist.all_gather_object(found, value)
    return found


def gathered(rows: Tensor) -> Tensor:
    """Rows [n, …] of all processes, one process after the other; their numbers may differ."""
    return rows if world() == 1 else torch.cat(of_each(rows.cpu())).to(rows.device)


def agreed(value: Value) -> Value:
    """What the first process has, in all of them."""
    return of_each(value)[0]
