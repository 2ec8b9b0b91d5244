"""The 50-layer residual network for small images, He et al., "Deep Residual Learning" (2016), section 4.1.

``ResNet50`` is the teacher of that name in the usual CIFAR-100 benchmark: the ImageNet network with a 3×3
stem of stride 1 and no pooling after it; the 3×3 convolution of a block has the stride. Parameter names are
those of its public checkpoints.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from .parts import draw_convolutions, stage

_STEM = 64
# Four times those of the inner convolutions.
_WIDTHS = (256, 512, 1024, 2048)


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
        self.conv1 = nn.Conv2d(in_channels, _STEM, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        widths = zip(pairwise((_STEM, *_WIDTHS)), blocks, (1, 2, 2, 2), strict=True)
        for number, ((before, channels), count, stride) in enumerate(widths, start=1):
            self.add_module(f"layer{number}", stage(Bottleneck, before, channels, count, stride))
        self.linear = nn.Linear(_WIDTHS[-1], num_classes)
        draw_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))


BOTTLENECK_RESNETS: dict[str, Callable[[int, int], nn.Module]] = {
    "ResNet50": partial(BottleneckResNet, (3, 4, 6, 3))
}
