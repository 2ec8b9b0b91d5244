"""Networks by name.

``MODELS`` holds the CIFAR networks; ``torchvision/<name>`` and ``timm/<name>`` take any classifier of these
packages, and an import path (``my_networks:my_network``) a function or class of the user's own.
"""

import warnings
from collections.abc import Callable

from torch import nn

from ..settings import SettingsError, choose
from ..settings.user_code import FORM, is_import_path, load, own_code
from .mobilenet import MOBILENETS
from .resnet import BOTTLENECK_RESNETS, RESNETS
from .rewriting import avoid_corruption
from .shufflenet import SHUFFLENETS
from .vgg import VGGS
from .wide_resnet import WIDE_RESNETS

# Name → function (num_classes, in_channels) → network. A new family is one file and one entry here.
MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    **RESNETS,
    **WIDE_RESNETS,
    **VGGS,
    **BOTTLENECK_RESNETS,
    **MOBILENETS,
    **SHUFFLENETS,
}

TORCHVISION = "torchvision/"
TIMM = "timm/"


def build_model(name: str, num_classes: int, in_channels: int = 3) -> nn.Module:
    """A network with fresh weights, drawn from torch's global generator.

    **Arguments:** ``name`` in ``MODELS``, or ``torchvision/<name>``, or ``timm/<name>``, or the import path
    of such a function as ``MODELS`` has.

    **Returns:** a module that maps images [B, in_channels, H, W] to logits [B, num_classes].

    **Raises:** ``SettingsError`` for an unknown name, torchvision with other than 3 channels, or timm where
    it is not installed, or code of the user's own that fails.
    """
    return avoid_corruption(_build(name, num_classes, in_channels))


def _build(name: str, num_classes: int, in_channels: int) -> nn.Module:
    if name in MODELS:
        return MODELS[name](num_classes, in_channels)
    if name.startswith(TIMM):
        return _timm(name.removeprefix(TIMM), num_classes, in_channels)
    if is_import_path(name):
        return _own(name, num_classes, in_channels)
    # Here, since it takes two seconds, and most networks do without it.
    from torchvision import models

    valid = models.list_models(module=models)
    if not name.startswith(TORCHVISION):
        if name in valid:
            raise SettingsError(f"unknown network {name!r}; torchvision's is written {TORCHVISION}{name}")
        choose("network", name, [*MODELS, f"{TORCHVISION}<name>", f"{TIMM}<name>", FORM])
    found = choose("torchvision network", name.removeprefix(TORCHVISION), valid)
    if in_channels != 3:
        raise SettingsError(
            f"{name} takes 3 channels and the data has {in_channels}; use one of {', '.join(MODELS)}"
        )
    with warnings.catch_warnings():
        # googlenet and inception announce a slow initialisation; it is what was asked for.
        warnings.simplefilter("ignore", FutureWarning)
        return models.get_model(found, weights=None, num_classes=num_classes)


def _own(name: str, num_classes: int, in_channels: int) -> nn.Module:
    make = load("network", name, callable, "a function or class that takes (num_classes, in_channels)")
    with own_code(name):
        network = make(num_classes, in_channels)
    if not isinstance(network, nn.Module):
        raise SettingsError(f"network {name} gives {type(network).__name__}; it must give a torch.nn.Module")
    return network


def _timm(name: str, num_classes: int, in_channels: int) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError:
        raise SettingsError(
            f"{TIMM}{name} needs the package timm, which is not installed; run: pip install timm"
        ) from None
    choose("timm network", name, timm.list_models())
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)


def parameter_count(model: nn.Module) -> int:
    """Number of trainable and frozen parameters, buffers not counted."""
    return sum(p.numel() for p in model.parameters())
