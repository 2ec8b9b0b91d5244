"""ShuffleNet V2 for small images, Ma et al., "ShuffleNet V2: Practical Guidelines" (2018), at full width.

``ShuffleV2`` is the network of that name in the usual CIFAR-100 benchmark: the paper's, but with a 1×1 stem
without pooling. Parameter names are those of its public checkpoints. Weights start as PyTorch draws them,
uniform within ±1/√(fan-in).
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEM = 24


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)


def _join(left: Tensor, right: Tensor) -> Tensor:
    """Concatenate two halves and interleave their channels."""
    return F.channel_shuffle(torch.cat((left, right), 1), 2)


class SplitBlock(nn.Module):
    """The first half of the channels passes as it is, the second through 1×1, depthwise 3×3 and 1×1; the
    output is shuffled.
    """

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = _depthwise(half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        passed, right = x.chunk(2, 1)
        right = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(right)))))
        return _join(passed, F.relu(self.bn3(self.conv3(right))))


class DownBlock(nn.Module):
    """Both branches read all channels and halve the size: depthwise and 1×1; 1×1, depthwise and 1×1. The
    output is shuffled.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        half = channels // 2
        self.conv1 = _depthwise(in_channels, 2)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = _depthwise(half, 2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return _join(left, F.relu(self.bn5(self.conv5(right))))


class CifarShuffleNetV2(nn.Module):
    """``widths`` of the three stages and of the last convolution; numbers of ``blocks`` of the stages."""

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        blocks: tuple[int, int, int],
        num_classes: int,
        in_channels: int,
    ):
        super().__init__()
        *stages, last = widths
        self.conv1 = nn.Conv2d(in_channels, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        for number, ((before, channels), count) in enumerate(
            zip(pairwise((_STEM, *stages)), blocks, strict=True), start=1
        ):
            rest = (SplitBlock(channels) for _ in range(count - 1))
            self.add_module(f"layer{number}", nn.Sequential(DownBlock(before, channels), *rest))
        self.conv2 = nn.Conv2d(stages[-1], last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.linear = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


SHUFFLENETS_V2: dict[str, Callable[[int, int], nn.Module]] = {
    "ShuffleV2": partial(CifarShuffleNetV2, (116, 232, 464, 1024), (4, 8, 4))
}
