"""Training that gives the same bits again.

On a CPU: whatever the number of cores, processes of other work and workers that read images. On a GPU: on the
same model with the same driver and versions, as far as every operation has a deterministic form; one that has
none is named in a warning. Between devices, and between versions of the libraries, results agree in their
statistics only.
"""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def bitwise(wanted: bool) -> Iterator[None]:
    """Within this context operations add up in an order of their own, not in one that the machine is free to
    choose.
    """
    if not wanted:
        yield
        return
    threads, strict, chosen = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
    )
    # Sums over parts that depend on the number of threads round differently; students side by side have a
    # core each in any case.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.backends.cudnn.benchmark = chosen
