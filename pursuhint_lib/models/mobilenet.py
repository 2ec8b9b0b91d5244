"""MobileNetV2 for small images, Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks"
(2018).

``MobileNetV2`` is the network of that name in the usual CIFAR-100 benchmark: half the width, strides for
32×32 images, ReLU for ReLU6, and three convolutions in the first block too. Parameter names are those of
its public checkpoints.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from .parts import draw_convolutions, stage

_STEM, _LAST = 32, 1280
# Expansion, channels at full width, blocks, and stride of the first block.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _unit(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU()]


class InvertedResidual(nn.Module):
    """Widen by 1×1, filter each channel by 3×3, narrow by 1×1 without activation; a shortcut where the shape
    stays.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int):
        super().__init__()
        hidden = in_channels * expansion
        widen, filter_ = _unit(in_channels, hidden, 1), _unit(hidden, hidden, 3, stride, groups=hidden)
        narrow = _unit(hidden, channels, 1)[:-1]
        self.conv = nn.Sequential(*widen, *filter_, *narrow)
        self.same = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.same else self.conv(x)


class CifarMobileNetV2(nn.Module):
    """Channels of the stem and of the seven stages times ``width``; the last convolution keeps its 1280."""

    def __init__(self, width: float, num_classes: int, in_channels: int):
        super().__init__()
        before = int(_STEM * width)
        self.conv1 = nn.Sequential(*_unit(in_channels, before, 3, stride=2))
        self.blocks = nn.Sequential()
        for expansion, full, count, stride in _STAGES:
            block, channels = partial(InvertedResidual, expansion=expansion), int(full * width)
            self.blocks.append(stage(block, before, channels, count, stride))
            before = channels
        self.conv2 = nn.Sequential(*_unit(before, _LAST, 1))
        self.classifier = nn.Sequential(nn.Linear(_LAST, num_classes))
        draw_convolutions(self)
        nn.init.normal_(self.classifier[0].weight, 0, 0.01)
        nn.init.zeros_(self.classifier[0].bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.blocks(self.conv1(x)))
        return self.classifier(x.mean((2, 3)))


MOBILENETS: dict[str, Callable[[int, int], nn.Module]] = {"MobileNetV2": partial(CifarMobileNetV2, 0.5)}
