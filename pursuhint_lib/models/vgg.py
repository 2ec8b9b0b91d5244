"""VGG networks with batch normalisation for small images, Simonyan & Zisserman (2015).

Five blocks of conv-norm-ReLU units, halving the size after each of the first three. Parameter names are
those of the public CIFAR-100 teacher checkpoints.
"""

import math
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

_WIDTHS = (64, 128, 256, 512, 512)
# Convolutions in each of the five blocks.
_UNITS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


class CifarVGG(nn.Module):
    """``units`` convolutions per block, the standard widths times ``width``."""

    def __init__(self, units: tuple[int, ...], width: float, num_classes: int, in_channels: int):
        super().__init__()
        widths = [int(w * width) for w in _WIDTHS]
        for number, (channels, count) in enumerate(zip(widths, units, strict=True)):
            before = widths[number - 1] if number else in_channels
            self.add_module(f"block{number}", self._block(before, channels, count))
        self.classifier = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(
                    module.weight, 0, math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
                )
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    @staticmethod
    def _block(in_channels: int, channels: int, count: int) -> nn.Sequential:
        units = []
        for unit in range(count):
            units += [
                nn.Conv2d(channels if unit else in_channels, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
        return nn.Sequential(*units)

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.block0, self.block1, self.block2):
            x = F.max_pool2d(block(x), 2)
        return self.classifier(self.block4(self.block3(x)).mean((2, 3)))


# x0.125 is an eighth of the width: ours, for very small data.
VGGS: dict[str, Callable[[int, int], nn.Module]] = {
    **{name: partial(CifarVGG, units, 1.0) for name, units in _UNITS.items()},
    "vgg8x0.125": partial(CifarVGG, _UNITS["vgg8"], 0.125),
}
