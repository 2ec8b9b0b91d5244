"""Initial weights that families share, He et al., "Delving Deep into Rectifiers" (2015)."""

from torch import nn


def draw_convolutions(model: nn.Module) -> None:
    """Draw the weights of all convolutions from N(0, 2 / fan-out), in module order.

    The fan-out is output channels × kernel area, in grouped convolutions too, as the field's benchmark has
    it.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
