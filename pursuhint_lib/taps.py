"""Candidate hint points of a network, and reading their features while it runs."""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .settings import SettingsError

# Class names of residual blocks, inverted residuals, dense layers, transformer blocks and branching units.
_BLOCK = re.compile(r"(Block|Bottleneck|Residual|MBConv|Layer|Fire|Inception[A-E]?)(V\d)?$")
# What a class that only holds other modules is derived from: torchvision's _DenseBlock is a stage of dense layers.
_COLLECTIONS = (nn.ModuleList, nn.ModuleDict)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish)
_NORMS = (nn.BatchNorm2d, nn.GroupNorm)


class LayerTap:
    """Keeps the outputs of named modules while a model runs.

    ``with LayerTap(model, names) as tap: model(x); tap.features`` gives name → output of the last run, as a map.
    Tokens become maps by the rule of ``as_map``; a map [B, C, H, W] is handed over as it is. Channels-last maps cannot
    be told from others by their shape, so that the module decides: they come from a module with a LayerNorm of its own
    and no convolution anywhere in it (a Swin block), from what is inside such a module, and from a bare Linear or
    LayerNorm. Everything else is taken for [B, C, H, W].

    **Raises:** ``SettingsError`` for an unknown name, or an output that is no map; ``RuntimeError`` when a module is
    called twice in one run, is not called, or does not return one tensor.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]):
        self.names = tuple(names)
        known = dict(model.named_modules())
        for name in self.names:
            if not name or name not in known:
                near = " or ".join(map(repr, difflib.get_close_matches(name, filter(None, known), n=3, cutoff=0)))
                raise SettingsError(f"unknown sub-block {name!r} (did you mean {near}?); every name in model.named_modules() can be given")
        self._modules = {name: known[name] for name in self.names}
        self._last = {name: _is_channels_last(known, name) for name in self.names}
        self._found: dict[str, Tensor] = {}
        self._handles: list = []

    @property
    def features(self) -> dict[str, Tensor]:
        """Name → map [B, C, H, W] of the run since the tap was opened or last read; reading empties it."""
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
            try:
                self._found[name] = as_map(output, channels_last=self._last[name])
            except SettingsError as error:
                raise SettingsError(f"sub-block {name}: {error}") from None

        return hook


def as_map(features: Tensor, *, channels_last: bool = False) -> Tensor:
    """What a sub-block gives, as a map [B, C, H, W] that shares its memory; the batch comes first in all of them.

    - [B, C, H, W] stays; with ``channels_last`` it is [B, H, W, C] and the channels come forward.
    - Tokens [B, T, D], T a square: [B, D, √T, √T], row by row.
    - T a square + 1: the first one, the class token, is dropped; then as above.
    - Any other T: [B, D, T, 1].
    - [B, D]: [B, D, 1, 1].

    **Raises:** ``SettingsError`` for another number of dimensions.
    """
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2) if channels_last else features
    if features.ndim == 2:
        return features[:, :, None, None]
    if features.ndim != 3:
        raise SettingsError(f"shape {tuple(features.shape)} is neither a map [B, C, H, W] nor tokens [B, T, D] nor [B, D]; choose another sub-block")
    tokens = features.shape[1]
    first = 1 if _is_square(tokens - 1) and not _is_square(tokens) else 0
    side = math.isqrt(tokens - first)
    size = (side, side) if _is_square(tokens - first) else (tokens, 1)
    return features[:, first:].transpose(1, 2).unflatten(2, size)


def candidate_points(model: nn.Module, example_input: Tensor) -> tuple[str, ...]:
    """Sub-blocks that can give hints, in forward order.

    These are the outermost modules with weights whose class is named like a block (``ResidualBlock``, ``Bottleneck``,
    ``InvertedResidual``, ``MBConv``, ``EncoderBlock``, ``_DenseLayer`` and the like) and is not a mere collection of
    modules. Where there are none, every convolution with the normalisation that follows it, up to and including the
    activation. Each is called once in a forward pass and gives one tensor that ``as_map`` takes.

    The hint point of a dense layer is that layer's own output, i.e. its new features (growth rate many channels): what
    it joins them with are the outputs of the layers before it, which are hint points themselves.

    **Arguments:** ``example_input`` [1, C, H, W], any values.

    **Returns:** module names.
    """
    return tuple(name for name, _ in _sub_blocks(model, example_input))


def stage_ends(model: nn.Module, example_input: Tensor) -> tuple[str, ...]:
    """Last sub-block of each stage; a stage is a run of sub-blocks whose maps have the same spatial size."""
    blocks = _sub_blocks(model, example_input)
    followers = [*blocks[1:], ("", torch.Size())]
    return tuple(name for (name, shape), (_, after) in zip(blocks, followers, strict=True) if shape[2:] != after[2:])


def point_shapes(model: nn.Module, example_input: Tensor, names: Iterable[str]) -> list[torch.Size]:
    """Shapes [C, H, W] of the maps that named modules give."""
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
    """(module name, shape of its map) of the candidates in forward order."""
    known = dict(model.named_modules())
    names = {module: name for name, module in known.items()}
    calls: list[tuple[nn.Module, torch.Size]] = []

    def record(module, _inputs, output):
        usable = isinstance(output, Tensor) and 2 <= output.ndim <= 4
        shape = as_map(output, channels_last=_is_channels_last(known, names[module])).shape if usable else torch.Size()
        calls.append((module, shape))

    handles = [module.register_forward_hook(record) for module in names if module is not model]
    try:
        _dry_run(model, example_input)
    finally:
        for handle in handles:
            handle.remove()
    times = Counter(module for module, _ in calls)
    # A module that gives no single map cannot be tapped.
    single = {module for module, shape in calls if shape and times[module] == 1}
    blocks = [(names[m], shape) for m, shape in calls if m in single and _is_block(m)]
    outermost = [(n, s) for n, s in blocks if not any(n.startswith(f"{other}.") for other, _ in blocks)]
    leaves = [call for call in calls if not list(call[0].children())]
    return outermost or [(names[m], shape) for m, shape in _unit_ends(leaves, single)]


def _unit_ends(leaves: list[tuple[nn.Module, torch.Size]], single: set[nn.Module]) -> list[tuple[nn.Module, torch.Size]]:
    """Last module of each conv-norm-activation unit in a plain stack; only a ``single`` module can be it."""
    ends: list[tuple[nn.Module, torch.Size]] = []
    inside = False
    for module, shape in leaves:
        if isinstance(module, nn.Conv2d) and module in single:
            ends.append((module, shape))
            inside = True
        elif inside and isinstance(module, (*_NORMS, *_ACTIVATIONS)) and module in single:
            ends[-1] = (module, shape)
            inside = isinstance(module, _NORMS)
        else:
            inside = False
    return ends


def _is_block(module: nn.Module) -> bool:
    weights = any(parameter.ndim > 1 for parameter in module.parameters())
    return bool(_BLOCK.search(type(module).__name__)) and weights and not isinstance(module, _COLLECTIONS)


def _is_channels_last(known: dict[str, nn.Module], name: str) -> bool:
    """Whether a module gives channels-last maps if it gives any with four dimensions; the rule is stated at ``LayerTap``."""
    parts = name.split(".")
    around = [known[".".join(parts[:count])] for count in range(1, len(parts) + 1)]
    module = around[-1]
    while isinstance(module, nn.Sequential) and len(module):
        module = module[-1]
    return isinstance(module, nn.Linear) or _is_layer_norm(module) or any(map(_works_on_last, (*around, module)))


def _works_on_last(module: nn.Module) -> bool:
    """Normalises its last dimension and never convolves, which would need the channels in front."""
    return any(map(_is_layer_norm, module.children())) and not any(isinstance(part, nn.Conv2d) for part in module.modules())


def _is_layer_norm(module: nn.Module) -> bool:
    # LayerNorm2d, in torchvision and elsewhere, is derived from LayerNorm and takes channels-first maps.
    return isinstance(module, nn.LayerNorm) and "2d" not in type(module).__name__


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number
