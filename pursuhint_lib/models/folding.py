"""A network for inference, with every BatchNorm that can be part of the convolution before it."""

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


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
