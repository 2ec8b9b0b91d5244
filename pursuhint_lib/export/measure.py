"""What a network costs, and whether two forms of it answer alike."""

import timeit
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Images, StreamedImages
from ..processes import threads
from .formats import Runner

# Whose latency is measured.
PYTORCH, ONNX = "PyTorch", "ONNX Runtime"
# Images at a time whose latency is measured, passes before the clock counts, and passes that it counts.
BATCHES = (1, 64)
WARM_UP, REPEATS = 5, 30
# Digits kept of a latency.
DIGITS = 4


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a pass on one thread: median and quartiles.

    **Arguments:** ``runtime`` who computed it; ``batch`` number of images.
    """

    runtime: str
    batch: int
    median: float
    low: float
    high: float


def flops(network: nn.Module, image: Tensor) -> int:
    """Floating-point operations of one pass in convolutions and matrix products, a multiplication and an
    addition counted as two.

    Normalisation, activations, pooling and additions are not counted, as is usual: together they are a few
    percent.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


def answers(runner: Runner, images: Images | StreamedImages) -> Tensor:
    """Logits [N, classes] of all images, in their order."""
    with torch.no_grad():
        # In the layout that every runtime takes.
        return torch.cat([runner(batch.contiguous()) for batch, _ in images.ordered_batches()])


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in %."""
    return 100 * float((logits.argmax(1) == labels).double().mean())


def latencies(
    runners: Mapping[str, Runner], image: Tensor, batches: Sequence[int] = BATCHES
) -> tuple[Latency, ...]:
    """Latency of every runner at every number of images; runners take turns, so that other work on the
    machine meets them alike.

    **Arguments:** ``runners`` name → network, ready for one thread; ``image`` [1, C, H, W], whose shape
    counts only.
    """
    found = []
    for batch in batches:
        images = torch.randn(batch, *image.shape[1:], generator=torch.Generator().manual_seed(0))
        with torch.inference_mode(), threads(1):
            passes = [partial(runner, images) for runner in runners.values()]
            seconds = [[timeit.timeit(one, number=1) for one in passes] for _ in range(WARM_UP + REPEATS)]
        quartiles = 1000 * np.quantile(seconds[WARM_UP:], [0.5, 0.25, 0.75], axis=0)
        for name, values in zip(runners, quartiles.T, strict=True):
            found.append(Latency(name, batch, *(float(f"{value:.{DIGITS}g}") for value in values)))
    return tuple(found)
