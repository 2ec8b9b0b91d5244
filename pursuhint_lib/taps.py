"""Candidate hint points of a network, and reading their features while it runs."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .settings import choose

# Class names of residual blocks, inverted residuals and transformer blocks in torchvision and here.
_BLOCK = re.compile(r"(Block|Bottleneck|InvertedResidual|MBConv)$")
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish)
_NORMS = (nn.BatchNorm2d, nn.GroupNorm)


class LayerTap:
    """Keeps the outputs of named modules while a model runs.

    ``with LayerTap(model, names) as tap: model(x); tap.features`` gives name → output of the last run.

    **Raises:** ``SettingsError`` for an unknown name; ``RuntimeError`` when a module is called twice in one run,
    is not called, or does not return one tensor.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]):
        self.names = tuple(names)
        known = dict(model.named_modules())
        self._modules = {name: known[choose("sub-block", name, (n for n in known if n))] for name in self.names}
        self._found: dict[str, Tensor] = {}
        self._handles: list = []

    @property
    def features(self) -> dict[str, Tensor]:
        """Name → output [B, C, H, W] of the run since the tap was opened or last read; reading empties it."""
        missing = [name for name in self.names if name not in self._found]
        if missing:
            raise RuntimeError(f"sub-block {missing[0]} was not called in the forward pass; choose one that is")
        found, self._found = self._found, {}
        return found

    def __enter__(self) -> "LayerTap":
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._keep(name)))
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._found = {}

    def _keep(self, name: str):
        def hook(_module, _inputs, output):
            if name in self._found:
                raise RuntimeError(f"sub-block {name} is called more than once in a forward pass; it has no single output to use")
            if not isinstance(output, Tensor):
                raise RuntimeError(f"sub-block {name} returns {type(output).__name__}, not one tensor; choose another sub-block")
            self._found[name] = output

        return hook


def candidate_points(model: nn.Module, example_input: Tensor) -> tuple[str, ...]:
    """Sub-blocks that can give hints, in forward order.

    These are the residual, inverted-residual and transformer blocks; where there are none, every convolution
    with the normalisation that follows it, up to and including the activation.

    **Arguments:** ``example_input`` [1, C, H, W], any values.

    **Returns:** module names.
    """
    return tuple(name for name, _ in _sub_blocks(model, example_input))


def stage_ends(model: nn.Module, example_input: Tensor) -> tuple[str, ...]:
    """Last sub-block of each stage; a stage is a run of sub-blocks with the same spatial size."""
    blocks = _sub_blocks(model, example_input)
    followers = [*blocks[1:], ("", torch.Size())]
    return tuple(name for (name, shape), (_, after) in zip(blocks, followers, strict=True) if shape[2:] != after[2:])


def point_shapes(model: nn.Module, example_input: Tensor, names: Iterable[str]) -> list[torch.Size]:
    """Shapes [C, H, W] of the outputs of named modules."""
    with LayerTap(model, names) as tap:
        _dry_run(model, example_input)
        features = tap.features
    return [features[name].shape[1:] for name in tap.names]


def _dry_run(model: nn.Module, example_input: Tensor) -> None:
    """One forward pass that leaves no trace: no gradient, no change of BatchNorm statistics or of the mode."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(example_input)
    finally:
        # Module by module: a frozen BatchNorm inside a training network stays frozen.
        for module, training in modes.items():
            module.training = training


def _sub_blocks(model: nn.Module, example_input: Tensor) -> list[tuple[str, torch.Size]]:
    """(module name, output shape) of the candidates in forward order."""
    names = {module: name for name, module in model.named_modules()}
    calls: list[tuple[nn.Module, torch.Size]] = []

    def record(module, _inputs, output):
        if isinstance(output, Tensor):
            calls.append((module, output.shape))

    handles = [module.register_forward_hook(record) for module in names if module is not model]
    try:
        _dry_run(model, example_input)
    finally:
        for handle in handles:
            handle.remove()
    blocks = [(names[m], shape) for m, shape in calls if _BLOCK.search(type(m).__name__)]
    outermost = [(n, s) for n, s in blocks if not any(n.startswith(f"{other}.") for other, _ in blocks)]
    return outermost or [(names[m], shape) for m, shape in _unit_ends([c for c in calls if not list(c[0].children())])]


def _unit_ends(leaves: list[tuple[nn.Module, torch.Size]]) -> list[tuple[nn.Module, torch.Size]]:
    """Last module of each conv-norm-activation unit in a plain stack."""
    ends: list[tuple[nn.Module, torch.Size]] = []
    inside = False
    for module, shape in leaves:
        if isinstance(module, nn.Conv2d):
            ends.append((module, shape))
            inside = True
        elif inside and isinstance(module, (*_NORMS, *_ACTIVATIONS)):
            ends[-1] = (module, shape)
            inside = isinstance(module, _NORMS)
        else:
            inside = False
    return ends
