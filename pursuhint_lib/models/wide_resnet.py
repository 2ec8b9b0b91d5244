"""Wide residual networks for small images, Zagoruyko & Komodakis, "Wide Residual Networks" (2016).

``wrn_d_k``: depth d = 6n + 4, that is three stages of n pre-activation blocks, k times as wide. Parameter
names are those of the public CIFAR-100 teacher checkpoints.

A block's output is a raw sum: it is the next block that normalises and activates it. The hint layer of a
block is therefore that activation, as in the paper's code: ReLU(norm) at the entrance of the next block, or
at the end of the network for the last one. Channels and size are those of the block itself, also where the
next one begins a stage.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .parts import draw_convolutions, stage


class PreactBlock(nn.Module):
    """Norm and ReLU before each of two 3×3 convolutions; the output is the raw sum with the shortcut.

    Where the width changes, the 1×1 shortcut reads the activated input; elsewhere the input itself is added.
    """

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        # A module, because the previous block's hint is read from it.
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        same = stride == 1 and in_channels == channels
        self.convShortcut = None if same else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


def _layer(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    # The checkpoints name a block block1.layer.0.
    return nn.Sequential(OrderedDict(layer=stage(PreactBlock, in_channels, channels, blocks, stride)))


class WideResNet(nn.Module):
    """``depth`` = 6n + 4 layers; stages of 16, 32 and 64 channels times ``width``."""

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int):
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.block1 = _layer(16, 16 * width, blocks, stride=1)
        self.block2 = _layer(16 * width, 32 * width, blocks, stride=2)
        self.block3 = _layer(32 * width, 64 * width, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(64 * width, num_classes)
        entrances = [
            f"{name}.relu1" for name, module in self.named_modules() if isinstance(module, PreactBlock)
        ]
        self.hint_points = (*entrances[1:], "relu")
        draw_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.relu(self.bn1(x)).mean((2, 3)))


WIDE_RESNETS: dict[str, Callable[[int, int], nn.Module]] = {
    f"wrn_{depth}_{width}": partial(WideResNet, depth, width)
    for depth, width in ((16, 1), (16, 2), (40, 1), (40, 2))
}
