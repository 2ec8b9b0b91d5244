"""What families of networks share: stages of blocks, and initial weights."""

from collections.abc import Callable

from torch import nn


def stage(
    block: Callable[[int, int, int], nn.Module], in_channels: int, channels: int, count: int, stride: int
) -> nn.Sequential:
    """``count`` blocks, made from (channels before, channels, stride), of which the first alone changes
    channels and size.
    """
    first = block(in_channels, channels, stride)
    return nn.Sequential(first, *(block(channels, channels, 1) for _ in range(count - 1)))


def draw_convolutions(model: nn.Module) -> None:
    """Draw the weights of all convolutions from N(0, 2 / fan-out), in module order, as in He et al., "Delving
    Deep into Rectifiers" (2015).

    The fan-out is output channels × kernel area, in grouped convolutions too, as the usual benchmark has
    it.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
