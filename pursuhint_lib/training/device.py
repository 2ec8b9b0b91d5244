"""What a training computes on: device, precision and threads, and how to get the same bits from it again."""

import contextlib
import os
from collections.abc import Iterator
from functools import cache

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from ..processes import threads
from ..settings import PRECISIONS, SettingsError, choose


def accelerator_for_this_process() -> Accelerator:
    """Device and process group. Precision is a setting of the run, so accelerate is kept out of it.

    **Raises:** ``SettingsError`` if this process was started as one of several and would train alone: each
    would write the same records.
    """
    # Buffers are brought together where they are needed: at every step only the first process's would count.
    accelerator = Accelerator(
        mixed_precision="no", kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)]
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise SettingsError(
            f"this is one of {started} processes, but accelerate trains in {accelerator.num_processes}; "
            "without GPUs set ACCELERATE_USE_CPU=true"
        )
    return accelerator


def resolve_precision(precision: str) -> str:
    """What ``auto`` means on this machine: ``bf16`` where the hardware multiplies it, ``fp32`` elsewhere;
    another precision stays.

    Settled before a run has settings, so that its record says what it was trained in.
    """
    if choose("precision", precision, PRECISIONS) != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    abilities = torch.cpu.get_capabilities()
    return "bf16" if any(abilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which networks run: ``fp32`` as they are, ``bf16`` in mixed precision."""
    if precision == "bf16" and device.type == "cpu":
        _convolve_in_fp32_where_bf16_is_slow()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@cache
def _convolve_in_fp32_where_bf16_is_slow() -> torch.library.Library | None:
    """Where oneDNN has no bf16 kernels for this CPU, have mixed precision round a convolution's operands and
    result to bf16 and compute in fp32 between, as those kernels do.

    torch's own bf16 kernel, which it takes there, is over ten times slower, and rounds the gradient of the
    weights after every image.

    **Returns:** what keeps the change in force as long as it is held.
    """
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    for overload in ("conv2d", "conv2d.padding"):
        library.impl(overload, _rounded_convolution)
    return library


def _rounded_convolution(
    images: Tensor, weight: Tensor, bias: Tensor | None = None, *others: object
) -> Tensor:
    operands = (images, weight, bias)
    rounded = [None if operand is None else operand.to(torch.bfloat16).float() for operand in operands]
    with torch.autocast("cpu", enabled=False):
        return torch.conv2d(*rounded, *others).to(torch.bfloat16)


@contextlib.contextmanager
def bitwise(wanted: bool) -> Iterator[None]:
    """Within this context operations add up in an order of their own, not in one that the machine is free to
    choose, so that training gives the same bits again.

    On a CPU: whatever the number of cores, processes of other work and workers that read images. On a GPU: on
    the same model with the same driver and versions, as far as every operation has a deterministic form; one
    that has none is named in a warning. Between devices, and between versions of the libraries, results agree
    in their statistics only.
    """
    if not wanted:
        yield
        return
    strict, chosen = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        # Sums over parts that depend on the number of threads round differently; students side by side have a
        # core each in any case.
        with threads(1):
            yield
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.backends.cudnn.benchmark = chosen
