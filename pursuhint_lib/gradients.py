"""Are the gradients of convolutions right on this machine? Native kernels have been found that give wrong
ones, or crash.

Convolutions are tried in a process of its own, ``python -m pursuhint_lib gradients``, which a wrong kernel
may kill.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import cycle

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Largest difference from double precision, relative to the norm, that is one of rounding.
ROUNDING = {"torch.float32": 1e-4, "torch.bfloat16": 2e-2}
# How often all are tried. A kernel that overwrites memory may do no harm that shows at once: with one thread
# 5 of 20 processes ended well after one round on a CPU with AVX2, and none of 30 after eight.
ROUNDS = 8
# Seconds after which a convolution hangs.
PATIENCE = 60
OPTIONS = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")


class Convolutions(TorchDispatchMode):
    """Within this context, ``found`` gets what every different convolution that runs is made of, in words and
    numbers.
    """

    def __init__(self):
        super().__init__()
        self.found: list[dict] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default and str(args[0].dtype) in ROUNDING:
            images, weight, bias, *options = args
            shapes = {
                "images": [*images.shape],
                "weight": [*weight.shape],
                "bias": bias is not None and [*bias.shape],
            }
            kind = {"dtype": str(images.dtype), "channels_last": images.ndim == 4 and images.stride(1) == 1}
            convolution = shapes | kind | dict(zip(OPTIONS, options, strict=True))
            if convolution not in self.found:
                self.found.append(convolution)
        return function(*args, **(kwargs or {}))


def wrong_convolution(convolutions: Sequence[dict]) -> str | None:
    """The first of these convolutions whose gradients are wrong here, with one thread or with all, and how,
    in words.
    """
    command = [sys.executable, "-m", "pursuhint_lib", "gradients"]
    tried = subprocess.run(command, input=json.dumps(convolutions), capture_output=True, text=True)
    differences = [float(line) for line in tried.stdout.splitlines()]
    for convolution, difference in zip(cycle(convolutions), differences, strict=False):
        # Asked this way round, so that NaN is wrong.
        if not difference < ROUNDING[convolution["dtype"]]:
            return (
                f"{_words(convolution)} differ from those in double precision by {difference:.3g} of "
                "their norm"
            )
    if tried.returncode:
        # Memory that was overwritten may show later only.
        last = convolutions[len(differences) % len(convolutions)]
        said = tried.stderr.splitlines() or [signal.Signals(-tried.returncode).name]
        return f"{_words(last)}, or of one tried before it, end the process ({said[-1]})"
    return None


def _words(convolution: dict) -> str:
    images, weight = ("×".join(map(str, convolution[name])) for name in ("images", "weight"))
    layout = "channels-last " if convolution["channels_last"] else ""
    return (
        f"gradients of a convolution with weights {weight}, stride {convolution['stride'][0]}, of "
        f"{layout}images {images}"
    )


def _difference(convolution: dict) -> float:
    """Largest relative difference of outputs and gradients from contiguous double precision; NaN where there
    is one.
    """
    layout = torch.channels_last if convolution["channels_last"] else torch.contiguous_format
    inputs = [torch.randn(convolution[name]).to(memory_format=layout) for name in ("images", "weight")]
    if convolution["bias"]:
        inputs.append(torch.randn(convolution["bias"]))
    inputs = [tensor.to(getattr(torch, convolution["dtype"].removeprefix("torch."))) for tensor in inputs]
    found, plain = (
        _gradients(convolution, given)
        for given in (inputs, [tensor.double().contiguous() for tensor in inputs])
    )
    return float(
        torch.stack([(a.double() - b).norm() / b.norm() for a, b in zip(found, plain, strict=True)]).max()
    )


def _gradients(convolution: dict, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The outputs, and the gradients of the sum of their squares."""
    images, weight, *bias = inputs = [tensor.requires_grad_() for tensor in inputs]
    outputs = torch.convolution(images, weight, *(bias or [None]), *(convolution[name] for name in OPTIONS))
    return outputs.detach(), *torch.autograd.grad(outputs.square().sum(), inputs)


def print_differences() -> None:
    """Print the difference of every convolution of the JSON list that is read, in several rounds with one
    thread and then with all.
    """
    torch.manual_seed(0)
    convolutions = json.load(sys.stdin)
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        for convolution in ROUNDS * convolutions:
            # The system itself ends the process when this goes off.
            signal.alarm(PATIENCE)
            print(_difference(convolution), flush=True)
