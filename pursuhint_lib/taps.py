"""Candidate hint layers of a network, and reading their features while it runs."""

import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from .settings import SettingsError, choose

# Class names of residual blocks, inverted residuals, dense layers, transformer blocks and branching units; a
# number may follow: GhostBottleneckV3, MetaBlock2d, Block35.
_BLOCK = re.compile(
    r"(Block|Basic|Bottle2?neck|Residual|MBConv|DepthwiseSeparableConv|Layer|Fire|Cell|Inception[A-E]?)"
    r"(V?\d+d?)?$"
)
# What a class that only holds other modules is derived from: torchvision's _DenseBlock is a stage of dense
# layers.
_COLLECTIONS = (nn.ModuleList, nn.ModuleDict)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish)
_NORMS = (nn.BatchNorm2d, nn.GroupNorm)
_REMEDY = (
    "choose another network, or state the names of its hint layers in an attribute hint_points of its class"
)


class LayerTap:
    """Keeps the outputs of named modules while a model runs.

    ``with LayerTap(model, names) as tap: model(x); tap.features`` gives name → output of the last run, as a
    map. Tokens become maps by the rule of ``as_map``, the network's ``num_prefix_tokens`` saying how many
    come before those of the patches, if it has any such attribute; a map [B, C, H, W] is handed over as it
    is. Channels-last maps cannot always be told from others by their shape, so that the module decides: they
    come from a module with a LayerNorm of its own and no convolution anywhere in it (a Swin block), from what
    is inside such a module, and from a bare Linear or LayerNorm. Everything else is taken for [B, C, H, W],
    unless its shape [B, H, H, C] tells otherwise, as maps are square. What the network writes over an output
    afterwards, as an activation in place does, is not in it.

    **Raises:** ``SettingsError`` for an unknown name, or an output that is no map; ``RuntimeError`` when a
    module is called twice in one run, is not called, or does not return one tensor.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]):
        self.names = tuple(names)
        known = dict(model.named_modules())
        for name in self.names:
            choose("sub-block", name, filter(None, known))
        self._modules = {name: known[name] for name in self.names}
        self._read = {name: _reader(model, known, name) for name in self.names}
        # Of each output: its map, how often that had been written to, and a copy where it may be again.
        self._found: dict[str, tuple[Tensor, float, Tensor | None]] = {}
        # Outputs that nothing has written to, by name and mode of their module.
        self._untouched: set[tuple[str, bool]] = set()
        self._hooks = contextlib.ExitStack()

    @property
    def features(self) -> dict[str, Tensor]:
        """Name → map [B, C, H, W] of the run since the tap was opened or last read; reading empties it."""
        missing = [name for name in self.names if name not in self._found]
        if missing:
            raise RuntimeError(
                f"sub-block {missing[0]} was not called in the forward pass; choose one that is"
            )
        found, self._found = self._found, {}
        return {name: self._unchanged(name, *kept) for name, kept in found.items()}

    def _unchanged(self, name: str, output: Tensor, writes: float, copy: Tensor | None) -> Tensor:
        """The output as the module has given it: itself, or a copy where it was written over."""
        # In inference mode, which does not count, an earlier run has shown that nothing writes to it.
        if _writes(output) == writes or (copy is None and output.is_inference()):
            self._untouched.add((name, self._modules[name].training))
            return output
        if copy is None:
            raise RuntimeError(
                f"sub-block {name} is written over in some forward passes only; choose another"
            )
        return copy

    def __enter__(self) -> "LayerTap":
        for name, module in self._modules.items():
            self._hooks.enter_context(module.register_forward_hook(partial(self._keep, name)))
        return self

    def __exit__(self, *_) -> None:
        self._hooks.close()
        self._found = {}

    def _keep(self, name: str, module: nn.Module, _inputs, output) -> None:
        if name in self._found:
            raise RuntimeError(
                f"sub-block {name} is called more than once in a forward pass; it has no single output to use"
            )
        if not isinstance(output, Tensor):
            raise RuntimeError(
                f"sub-block {name} returns {type(output).__name__}, not one tensor; choose another sub-block"
            )
        try:
            features = self._read[name](output)
        except SettingsError as error:
            raise SettingsError(f"sub-block {name}: {error}") from None
        # Copied until a run has shown that nothing writes to it, which takes neither time nor memory then.
        copy = None if (name, module.training) in self._untouched else features.clone()
        self._found[name] = features, _writes(features), copy


def as_map(features: Tensor, *, channels_last: bool = False, prefix: int = 1) -> Tensor:
    """What a sub-block gives, as a map [B, C, H, W] that shares its memory; the batch comes first in all of
    them.

    - [B, C, H, W] stays; with ``channels_last`` it is [B, H, W, C] and the channels come forward.
    - Tokens [B, T, D], T a square: [B, D, √T, √T], row by row.
    - T a square + ``prefix``: the first ones, a class token and registers, are dropped; then as above.
    - Any other T: [B, D, T, 1].
    - [B, D]: [B, D, 1, 1].

    **Raises:** ``SettingsError`` for another number of dimensions.
    """
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2) if channels_last else features
    if features.ndim == 2:
        return features[:, :, None, None]
    if features.ndim != 3:
        raise SettingsError(
            f"shape {tuple(features.shape)} is neither a map [B, C, H, W] nor tokens [B, T, D] nor [B, D]; "
            "choose another sub-block"
        )
    tokens = features.shape[1]
    first = prefix if _is_square(tokens - prefix) else 0
    side = math.isqrt(tokens - first)
    size = (side, side) if _is_square(tokens - first) else (tokens, 1)
    return features[:, first:].transpose(1, 2).unflatten(2, size)


def candidate_points(model: nn.Module, example_input: Tensor) -> tuple[str, ...]:
    """Sub-blocks that can give hints, in forward order.

    A network may state them itself, as an attribute or property ``hint_points`` with module names; any module
    that is called once in a forward pass and gives one tensor that ``as_map`` takes will do. In the others
    they are searched for: the outermost modules with weights whose class is named like a block
    (``ResidualBlock``, ``Bottleneck``, ``InvertedResidual``, ``MBConv``, ``EncoderBlock``, ``_DenseLayer``
    and the like) and is not a mere collection of modules. Where no class is named so, every convolution with
    the normalisation that follows it, up to and including the activation; one that sees its whole input at
    once is a fully connected layer, and none of them.

    The hint layer of a dense layer is that layer's own output, i.e. its new features (growth rate many
    channels): what it joins them with are the outputs of the layers before it, which are hint layers
    themselves.

    **Arguments:** ``example_input`` [1, C, H, W], any values.

    **Returns:** module names.

    **Raises:** ``SettingsError`` when the network does not take the input, when a stated point cannot be
    used, when no sub-block is found, or when those found have maps that grow again, being parallel branches
    and no chain.
    """
    return tuple(name for name, _ in _sub_blocks(model, example_input))


def stage_ends(model: nn.Module, example_input: Tensor) -> tuple[str, ...]:
    """Last of the candidate points in each stage; a stage is a run of them whose maps have the same spatial
    size.
    """
    blocks = _sub_blocks(model, example_input)
    followers = [*blocks[1:], ("", torch.Size())]
    return tuple(
        name for (name, shape), (_, after) in zip(blocks, followers, strict=True) if shape[2:] != after[2:]
    )


def point_shapes(model: nn.Module, example_input: Tensor, names: Iterable[str]) -> list[torch.Size]:
    """Shapes [C, H, W] of the maps that named modules give."""
    with LayerTap(model, names) as tap, evaluating(model):
        model(example_input)
        features = tap.features
    return [features[name].shape[1:] for name in tap.names]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within this context a model leaves no trace of what it is given: no gradient, no change of BatchNorm's
    statistics, and afterwards it is in the mode that it was in.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        # Module by module: a frozen BatchNorm inside a training network stays frozen.
        for module, training in modes.items():
            module.training = training


def _sub_blocks(model: nn.Module, example_input: Tensor) -> list[tuple[str, torch.Size]]:
    """(module name, shape of its map) of the candidates in forward order."""
    known = dict(model.named_modules())
    calls = _calls(model, example_input, known)
    times = Counter(name for name, _ in calls)
    # A module that gives no single map cannot be tapped.
    maps = {name: shape for name, shape in calls if shape and times[name] == 1}
    if hasattr(model, "hint_points"):
        return _stated(model, maps)
    named = [name for name, _ in calls if _is_block(known[name])]
    # Units within blocks that cannot be tapped are no substitute for them.
    candidates = [name for name in named if name in maps] if named else _unit_ends(calls, known, maps)
    outermost = [name for name in candidates if not any(name.startswith(f"{other}.") for other in candidates)]
    if not outermost:
        reason = (
            f"{named[0]} and the like give no single map"
            if named
            else "it has neither blocks nor convolutions"
        )
        raise SettingsError(f"no sub-blocks found in {type(model).__name__}: {reason}; {_REMEDY}")
    return _chain(model, [(name, maps[name]) for name in outermost])


def _calls(
    model: nn.Module, example_input: Tensor, known: dict[str, nn.Module]
) -> list[tuple[str, torch.Size]]:
    """(module name, shape of its map) of all calls within a forward pass; the shape is empty where the output
    is no map.
    """
    calls: list[tuple[str, torch.Size]] = []

    def record(name: str, read: Callable[[Tensor], Tensor], _module, _inputs, output) -> None:
        usable = isinstance(output, Tensor) and 2 <= output.ndim <= 4
        calls.append((name, read(output).shape if usable else torch.Size()))

    with contextlib.ExitStack() as hooks:
        for name, module in known.items():
            if module is not model:
                hook = partial(record, name, _reader(model, known, name))
                hooks.enter_context(module.register_forward_hook(hook))
        try:
            with evaluating(model):
                model(example_input)
        except Exception as error:
            # A network for one image size says so in its own way, by an assertion or by layers that do not
            # fit.
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise SettingsError(
                f"{type(model).__name__} cannot be run on images of shape {tuple(example_input.shape[1:])}: "
                f"{reason}"
            ) from error
    return calls


def _stated(model: nn.Module, maps: dict[str, torch.Size]) -> list[tuple[str, torch.Size]]:
    """The network's own hint layers, put in forward order."""
    for name in model.hint_points:
        if name not in maps:
            raise SettingsError(
                f"hint layer {name!r} of {type(model).__name__} must be a module that is called once and "
                "gives one map"
            )
    return [(name, shape) for name, shape in maps.items() if name in model.hint_points]


def _chain(model: nn.Module, blocks: list[tuple[str, torch.Size]]) -> list[tuple[str, torch.Size]]:
    """The blocks as they are, if they follow one another; parallel branches show in maps that grow again."""
    for (before, shape), (name, after) in pairwise(blocks):
        if after[2] > shape[2] or after[3] > shape[3]:
            sizes = f"{before} gives {shape[2]}×{shape[3]} and then {name} {after[2]}×{after[3]}"
            raise SettingsError(f"the sub-blocks of {type(model).__name__} are no chain: {sizes}; {_REMEDY}")
    return blocks


def _unit_ends(
    calls: list[tuple[str, torch.Size]], known: dict[str, nn.Module], maps: dict[str, torch.Size]
) -> list[str]:
    """Last module of each conv-norm-activation unit in a plain stack; only one with a map of its own can be
    it.
    """
    ends: list[str] = []
    inside = False
    for name, _ in calls:
        module = known[name]
        if list(module.children()):
            continue
        if isinstance(module, nn.Conv2d) and name in maps and not _is_fully_connected(module, maps[name]):
            ends.append(name)
            inside = True
        elif inside and isinstance(module, (*_NORMS, *_ACTIVATIONS)) and name in maps:
            ends[-1] = name
            inside = isinstance(module, _NORMS)
        else:
            inside = False
    return ends


def _is_fully_connected(convolution: nn.Conv2d, shape: torch.Size) -> bool:
    """Whether a convolution sees its whole input at once: in a classifier, or in squeeze and excitation."""
    return shape[2:] == (1, 1) and not any(convolution.padding)


def _is_block(module: nn.Module) -> bool:
    weights = any(parameter.ndim > 1 for parameter in module.parameters())
    return bool(_BLOCK.search(type(module).__name__)) and weights and not isinstance(module, _COLLECTIONS)


def _reader(model: nn.Module, known: dict[str, nn.Module], name: str) -> Callable[[Tensor], Tensor]:
    """Function from what a module gives to its map."""
    last, prefix = _is_channels_last(known, name), getattr(model, "num_prefix_tokens", 1)

    def read(output: Tensor) -> Tensor:
        square_last = output.ndim == 4 and output.shape[1] == output.shape[2] != output.shape[3]
        return as_map(output, channels_last=last or square_last, prefix=prefix)

    return read


def _is_channels_last(known: dict[str, nn.Module], name: str) -> bool:
    """Whether a module gives channels-last maps if it gives any with four dimensions; the rule is stated at
    ``LayerTap``.
    """
    parts = name.split(".")
    around = [known[".".join(parts[:count])] for count in range(1, len(parts) + 1)]
    module = around[-1]
    while isinstance(module, nn.Sequential) and len(module):
        module = module[-1]
    return (
        isinstance(module, nn.Linear) or _is_layer_norm(module) or any(map(_works_on_last, (*around, module)))
    )


def _works_on_last(module: nn.Module) -> bool:
    """Normalises its last dimension and never convolves, which would need the channels in front."""
    return any(map(_is_layer_norm, module.children())) and not any(
        isinstance(part, nn.Conv2d) for part in module.modules()
    )


def _is_layer_norm(module: nn.Module) -> bool:
    # LayerNorm2d, in torchvision and elsewhere, is derived from LayerNorm and takes channels-first maps.
    return isinstance(module, nn.LayerNorm) and "2d" not in type(module).__name__


def _writes(tensor: Tensor) -> float:
    """How often a tensor was written to in place; no number where torch does not count, in inference mode."""
    return math.nan if tensor.is_inference() else tensor._version


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number
