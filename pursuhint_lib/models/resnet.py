"""Residual networks for small images, He et al., "Deep Residual Learning" (2016), sections 4.1 and 4.2.

Parameter names are those of the public CIFAR-100 teacher checkpoints.

- ``CifarResNet`` (section 4.2): three stages of n basic blocks, depth 6n + 2.
- ``BottleneckResNet`` (section 4.1): the ImageNet network with a 3×3 stem of stride 1 and no pooling after
  it; the 3×3 convolution of a block has the stride. ``ResNet50`` is the teacher of that name in the usual
  CIFAR-100 benchmark.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from .parts import draw_convolutions, stage


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; the output is after the last ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        same = stride == 1 and in_channels == channels
        self.downsample = (
            None
            if same
            else nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class CifarResNet(nn.Module):
    """``depth`` = 6n + 2 layers; ``widths`` of the stem and of the three stages."""

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int, in_channels: int):
        super().__init__()
        blocks = (depth - 2) // 6
        stem, *stages = widths
        self.conv1 = nn.Conv2d(in_channels, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = stage(BasicBlock, stem, stages[0], blocks, stride=1)
        self.layer2 = stage(BasicBlock, stages[0], stages[1], blocks, stride=2)
        self.layer3 = stage(BasicBlock, stages[1], stages[2], blocks, stride=2)
        self.fc = nn.Linear(stages[2], num_classes)
        draw_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


_PLAIN = (16, 16, 32, 64)

# x4 is the usual name for four times the stage width (and a stem of 32); x0.5 and x0.25 are ours, for very
# small data.
RESNETS: dict[str, Callable[[int, int], nn.Module]] = {
    **{f"resnet{depth}": partial(CifarResNet, depth, _PLAIN) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet8x4": partial(CifarResNet, 8, (32, 64, 128, 256)),
    "resnet32x4": partial(CifarResNet, 32, (32, 64, 128, 256)),
    "resnet8x0.5": partial(CifarResNet, 8, (8, 8, 16, 32)),
    "resnet8x0.25": partial(CifarResNet, 8, (4, 4, 8, 16)),
}

_BOTTLENECK_STEM = 64
# Four times those of the inner convolutions.
_BOTTLENECK_WIDTHS = (256, 512, 1024, 2048)


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions, the last four times as wide as the others, and a shortcut; the output is
    after the last ReLU.
    """

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        inner = channels // 4
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        same = stride == 1 and in_channels == channels
        self.shortcut = (
            None
            if same
            else nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(out)) + (x if self.shortcut is None else self.shortcut(x)))


class BottleneckResNet(nn.Module):
    """Four stages of ``blocks`` bottlenecks of 256, 512, 1024 and 2048 channels."""

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int, in_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _BOTTLENECK_STEM, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_BOTTLENECK_STEM)
        widths = zip(pairwise((_BOTTLENECK_STEM, *_BOTTLENECK_WIDTHS)), blocks, (1, 2, 2, 2), strict=True)
        for number, ((before, channels), count, stride) in enumerate(widths, start=1):
            self.add_module(f"layer{number}", stage(Bottleneck, before, channels, count, stride))
        self.linear = nn.Linear(_BOTTLENECK_WIDTHS[-1], num_classes)
        draw_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))


BOTTLENECK_RESNETS: dict[str, Callable[[int, int], nn.Module]] = {
    "ResNet50": partial(BottleneckResNet, (3, 4, 6, 3))
}
