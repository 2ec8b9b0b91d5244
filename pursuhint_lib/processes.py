"""One training in several processes: who this one is, how many threads it takes, and what all have together.
One that is alone is all there is.
"""

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


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
    if world() == 1:
        return values
    summed = values.clone()
    dist.all_reduce(summed)
    return summed


def gathered(rows: Tensor) -> Tensor:
    """Rows [n, …] of all processes, one process after the other; their numbers may differ."""
    if world() == 1:
        return rows
    counts = torch.zeros(world(), dtype=torch.int64, device=rows.device)
    counts[rank()] = len(rows)
    dist.all_reduce(counts)
    # All must send the same number, so that the short ones are filled up.
    padded = rows.new_zeros(int(counts.max()), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])


def agreed(value: Value) -> Value:
    """What the first process has, in all of them."""
    if world() == 1:
        return value
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]
