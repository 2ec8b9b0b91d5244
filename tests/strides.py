"""Gradients of networks in channels-last fp32 against contiguous fp64: ``strides.py NETWORK,… SIZE,…``.

A process of its own: which instructions a CPU may use is settled when torch is loaded, and a wrong kernel may
kill it. Prints the largest difference, relative to the norm of all gradients.
"""

import sys

import torch
from torch.nn import functional

from pursuhint_lib.models import build_model
from pursuhint_lib.models.registry import _build


def gradients(model: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    loss = model.train()(images).square().mean()
    return torch.autograd.grad(loss, [images, *model.parameters()])


def difference(network: str, size: int) -> float:
    """Of the network as the study builds it from the same network as its class is written."""
    torch.manual_seed(0)
    model = build_model(network, 10).to(memory_format=torch.channels_last)
    plain = _build(network, 10, 3).double()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(16, 3, size, size)
    there = gradients(plain, images.double().requires_grad_())
    here = gradients(model, images.to(memory_format=torch.channels_last).requires_grad_())
    off = sum(float((a - b).square().sum()) for a, b in zip(here, there, strict=True))
    return (off / sum(float(b.square().sum()) for b in there)) ** 0.5


if __name__ == "__main__":
    # Smooth ones in their place: near a kink or a tie, rounding would decide a gradient.
    functional.relu = lambda images, inplace=False: functional.gelu(images)
    functional.max_pool2d = functional.avg_pool2d
    torch.set_num_threads(int(sys.argv[3]))
    pairs = [(network, int(size)) for network in sys.argv[1].split(",") for size in sys.argv[2].split(",")]
    print(max((difference(network, size), network, size) for network, size in pairs))
