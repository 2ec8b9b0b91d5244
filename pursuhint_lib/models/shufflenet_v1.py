"""ShuffleNet for small images, Zhang et al., "ShuffleNet" (2018), with three groups.

``ShuffleV1`` is the network of that name in the usual CIFAR-100 benchmark: a 1×1 stem without pooling, and
a ReLU after the depthwise convolution too, which the paper leaves out. Parameter names are those of its
public checkpoints. Weights start as PyTorch draws them, uniform within ±1/√(fan-in).
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .parts import stage

_STEM = 24


class ShuffleBottleneck(nn.Module):
    """Grouped 1×1, shuffle, depthwise 3×3, grouped 1×1; the output is after the last ReLU.

    With stride 1 the input is added; with stride 2 it is averaged over 3×3 and concatenated, so that
    ``channels`` counts both parts.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int):
        super().__init__()
        self.downsample = stride == 2
        grown = channels - in_channels if self.downsample else channels
        hidden = grown // 4
        # The stem is too narrow to be split.
        self.groups = 1 if in_channels == _STEM else groups
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, grown, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(grown)

    def forward(self, x: Tensor) -> Tensor:
        out = F.channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(torch.cat((out, F.avg_pool2d(x, 3, 2, 1)), 1) if self.downsample else out + x)


class CifarShuffleNetV1(nn.Module):
    """``widths`` and numbers of ``blocks`` of the three stages; the first block of each halves the size."""

    def __init__(
        self,
        widths: tuple[int, int, int],
        blocks: tuple[int, int, int],
        groups: int,
        num_classes: int,
        in_channels: int,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        block = partial(ShuffleBottleneck, groups=groups)
        for number, ((before, channels), count) in enumerate(
            zip(pairwise((_STEM, *widths)), blocks, strict=True), start=1
        ):
            self.add_module(f"layer{number}", stage(block, before, channels, count, stride=2))
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


SHUFFLENETS_V1: dict[str, Callable[[int, int], nn.Module]] = {
    "ShuffleV1": partial(CifarShuffleNetV1, (240, 480, 960), (4, 8, 4), 3)
}
