"""Gradients of networks in channels-last fp32 against contiguous fp64: ``strides.py NETWORK,… SIZE,…``.

A process of its own: which instructions a CPU may use is settled when torch is loaded, and a wrong kernel may
kill it. Prints for each network and size how far its gradients are off, relative to the norm of them all, and
how far those of contiguous fp32 are: what rounding alone does to so many layers.
"""

import sys

import torch
from torch.nn import functional

from pursuhint_lib.models import build_model
from pursuhint_lib.models.registry import _build


def gradients(model: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    loss = model.train()(images).square().mean()
    return torch.autograd.grad(loss, [images, *model.parameters()])


def differences(network: str, size: int) -> tuple[float, float]:
    """Of the network as the study builds it, and as its class is written, from the latter in fp64."""
    torch.manual_seed(0)
    model = build_model(network, 10).to(memory_format=torch.channels_last)
    plain = _build(network, 10, 3)
    plain.load_state_dict(model.state_dict())
    images = torch.randn(16, 3, size, size)
    own = gradients(model, images.to(memory_format=torch.channels_last).requires_grad_())
    single = gradients(plain, images.clone().requires_grad_())
    # BatchNorm's running statistics are no part of a step in training mode.
    double = gradients(plain.double(), images.double().requires_grad_())
    norm = sum(float(right.square().sum()) for right in double)
    off = [
        sum(float((found - right).square().sum()) for found, right in zip(those, double, strict=True))
        for those in (own, single)
    ]
    return (off[0] / norm) ** 0.5, (off[1] / norm) ** 0.5


if __name__ == "__main__":
    # Smooth ones in their place: near a kink or a tie, rounding would decide a gradient.
    functional.relu = lambda images, inplace=False: functional.gelu(images)
    functional.max_pool2d = functional.avg_pool2d
    torch.set_num_threads(int(sys.argv[3]))
    pairs = [(network, int(size)) for network in sys.argv[1].split(",") for size in sys.argv[2].split(",")]
    print({(network, size): differences(network, size) for network, size in pairs})
