"""Networks that compute the same in another way: faster for inference, or around a fault of a kernel."""

import copy
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

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


def folded(model: nn.Module, kept: Iterable[str] = ()) -> nn.Module:
    """A copy of the network in eval mode that computes the same, up to rounding, with fewer passes over its
    features.

    In eval mode a BatchNorm is a scale and a shift per channel. Where it alone reads what a convolution
    gives, its numbers go into the weights and bias of the convolution, and an ``Identity`` takes its place.
    Where the graph of the network cannot be told, as its forward pass depends on values, the copy is
    unchanged.

    **Arguments:** ``kept`` names of modules whose outputs must stay what they are.
    """
    model = copy.deepcopy(model).eval()
    modules = dict(model.named_modules())
    for convolution, norm in _pairs(model, modules):
        if convolution not in set(kept):
            model.set_submodule(convolution, fuse_conv_bn_eval(modules[convolution], modules[norm]))
            model.set_submodule(norm, nn.Identity())
    return model


def _pairs(model: nn.Module, modules: dict[str, nn.Module]) -> list[tuple[str, str]]:
    """Names of (convolution, BatchNorm), each called once, where nothing else reads what the convolution
    gives.
    """
    try:
        nodes = torch.fx.Tracer().trace(model).nodes
    except Exception:
        # Tracing runs the network's own code on stand-ins, which fails in as many ways as there is code.
        return []
    calls = [node.target for node in nodes if node.op == "call_module"]
    pairs = []
    for node in nodes:
        if node.op != "call_module" or type(modules[node.target]) is not nn.BatchNorm2d:
            continue
        (source, *_) = node.args
        alone = (
            source.op == "call_module"
            and len(source.users) == 1
            and calls.count(source.target) == calls.count(node.target) == 1
        )
        if alone and type(modules[source.target]) is nn.Conv2d:
            pairs.append((source.target, node.target))
    return pairs
