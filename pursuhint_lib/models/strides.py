"""A way around a convolution that corrupts memory."""

from functools import partial

from torch import Tensor, nn

# Numbers in a vector of AVX-512; narrower vectors hold fewer.
FEW_CHANNELS = 16


def avoid_corruption(model: nn.Module) -> nn.Module:
    """Have every ungrouped 1×1 convolution with a stride and few input channels reach the same numbers in
    another way; in place.

    On CPUs the backward pass of such a convolution in channels-last writes past its memory where its input
    channels do not fill a vector: it crashes, hangs or gives wrong gradients, in torch 2.10 to 2.15 at least
    (https://github.com/uxlfoundation/oneDNN/issues/6035). Here a hook takes every so many-th row and column
    first, and the convolution has no stride. Weights, their names and what the module gives stay, on every
    device.

    **Returns:** the model.
    """
    for module in model.modules():
        # Derived classes whose forward pass is their own read these attributes, too.
        if isinstance(module, nn.Conv2d) and _is_affected(module):
            module.register_forward_pre_hook(partial(_thinned, module.stride))
            # The dilation of a single tap says nothing, but keeps batches of fewer than 16 images with
            # oneDNN, as a stride does: torch would give them to kernels of its own, whose last bits are
            # others.
            module.stride, module.dilation = (1, 1), (2, 2)
    return model


def _is_affected(convolution: nn.Conv2d) -> bool:
    pointwise = (
        convolution.kernel_size == (1, 1)
        and convolution.padding in ((0, 0), "valid")
        and convolution.groups == 1
    )
    return pointwise and max(convolution.stride) > 1 and convolution.in_channels < FEW_CHANNELS


def _thinned(stride: tuple[int, int], _convolution: nn.Conv2d, inputs: tuple[Tensor]) -> Tensor:
    down, across = stride
    return inputs[0][..., ::down, ::across]
