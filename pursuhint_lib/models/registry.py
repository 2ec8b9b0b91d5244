"""Networks by name, and their weights on disk.

``MODELS`` holds the CIFAR networks; ``torchvision/<name>`` and ``timm/<name>`` take any classifier of these
packages, and an import path (``my_networks:my_network``) a function or class of the user's own.
"""

import difflib
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
import torchvision
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ..files import replacing
from ..settings import SettingsError, choose
from ..settings.user_code import FORM, is_import_path, load, own_code
from .mobilenet import MOBILENETS
from .resnet import RESNETS
from .resnet50 import BOTTLENECK_RESNETS
from .shufflenet_v1 import SHUFFLENETS_V1
from .shufflenet_v2 import SHUFFLENETS_V2
from .vgg import VGGS
from .wide_resnet import WIDE_RESNETS

# Name → function (num_classes, in_channels) → network. A new family is one file and one entry here.
MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    **RESNETS,
    **WIDE_RESNETS,
    **VGGS,
    **BOTTLENECK_RESNETS,
    **MOBILENETS,
    **SHUFFLENETS_V1,
    **SHUFFLENETS_V2,
}

TORCHVISION = "torchvision/"
TIMM = "timm/"
# The attribute that makes a member of a zip archive a folder.
FOLDER = 0x10

# Prefixes that data-parallel and compiled wrappers leave in a state dict.
_WRAPPERS = ("module.", "_orig_mod.")

# The public teachers' files hold their optimiser, too, whose learning rate is a number of numpy (as numpy 1
# and numpy 2 name its maker).
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS = [_SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"), np.dtype, type(np.dtype("float64"))]


def build_model(name: str, num_classes: int, in_channels: int = 3) -> nn.Module:
    """A network with fresh weights, drawn from torch's global generator.

    **Arguments:** ``name`` in ``MODELS``, or ``torchvision/<name>``, or ``timm/<name>``, or the import path
    of such a function as ``MODELS`` has.

    **Returns:** a module that maps images [B, in_channels, H, W] to logits [B, num_classes].

    **Raises:** ``SettingsError`` for an unknown name, torchvision with other than 3 channels, or timm where
    it is not installed, or code of the user's own that fails.
    """
    if name.startswith(TORCHVISION):
        valid = torchvision.models.list_models(module=torchvision.models)
        choose("torchvision network", name.removeprefix(TORCHVISION), valid)
        if in_channels != 3:
            raise SettingsError(
                f"{name} takes 3 channels and the data has {in_channels}; use one of {', '.join(MODELS)}"
            )
        with warnings.catch_warnings():
            # googlenet and inception announce a slow initialisation; it is what was asked for.
            warnings.simplefilter("ignore", FutureWarning)
            return torchvision.models.get_model(
                name.removeprefix(TORCHVISION), weights=None, num_classes=num_classes
            )
    if name.startswith(TIMM):
        return _timm(name.removeprefix(TIMM), num_classes, in_channels)
    if is_import_path(name):
        return _own(name, num_classes, in_channels)
    if name not in MODELS and name in torchvision.models.list_models(module=torchvision.models):
        raise SettingsError(f"unknown network {name!r}; torchvision's is written {TORCHVISION}{name}")
    return MODELS[choose("network", name, [*MODELS, f"{TORCHVISION}<name>", f"{TIMM}<name>", FORM])](
        num_classes, in_channels
    )


def _own(name: str, num_classes: int, in_channels: int) -> nn.Module:
    make = load("network", name, callable, "a function or class that takes (num_classes, in_channels)")
    with own_code(name):
        network = make(num_classes, in_channels)
    if not isinstance(network, nn.Module):
        raise SettingsError(f"network {name} gives {type(network).__name__}; it must give a torch.nn.Module")
    return network


def _timm(name: str, num_classes: int, in_channels: int) -> nn.Module:
    try:
        # Here, so that all other networks do without it.
        import timm
    except ModuleNotFoundError:
        raise SettingsError(
            f"{TIMM}{name} needs the package timm, which is not installed; run: pip install timm"
        ) from None
    valid = timm.list_models()
    if name not in valid:
        near = ", ".join(difflib.get_close_matches(name, valid, n=5, cutoff=0))
        raise SettingsError(
            f"unknown timm network {name!r}; near it are {near}, and timm.list_models() has all {len(valid)}"
        )
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)


def parameter_count(model: nn.Module) -> int:
    """Number of trainable and frozen parameters, buffers not counted."""
    return sum(p.numel() for p in model.parameters())


def save_weights(model: nn.Module, path: Path, matrices: torch.dtype | None = None) -> None:
    """Write the state dict as safetensors.

    **Arguments:** ``matrices``: type that weights of more than one dimension are written in; by default, each
    has its own.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if matrices:
        state = {name: tensor.to(matrices) if tensor.dim() > 1 else tensor for name, tensor in state.items()}
    with replacing(path) as draft:
        # In memory first: a full disk is then an error of the system, not one of the format.
        draft.write_bytes(save(state))


def load_checkpoint(model: nn.Module, path: Path, classes: Sequence[int] | None = None) -> None:
    """Load weights in place: safetensors, a plain state dict, or ``{"model": state_dict, …}`` as the public
    teachers have it.

    **Arguments:** ``classes``: the model's classes among those of the checkpoint, whose classifier may have
    more.

    Prefixes that wrappers leave (``module.``, ``_orig_mod.``) are dropped; otherwise every name and shape
    must agree.

    **Raises:** ``SettingsError`` naming the file and the first difference; no pickled code is ever run.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"no checkpoint at {path}")
    state = _stored(path)
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(t, Tensor) for name, t in state.items()
    ):
        raise SettingsError(
            f"{path} is no state dict (names and tensors), alone or under the key 'model'; save the "
            "network's state_dict()"
        )
    state = {_without_wrappers(name): tensor for name, tensor in state.items()}
    if classes is not None:
        state = _for_classes(state, model.state_dict(), list(classes))
    difference = _first_difference(model.state_dict(), state)
    if difference:
        raise SettingsError(f"{path} is a checkpoint of another network: {difference}")
    model.load_state_dict(state)


def _stored(path: Path) -> object:
    """What a checkpoint file holds."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            _check_members(path)
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise SettingsError(
            f"{path} is damaged or holds more than tensors, and pickled code is not run; save its state_dict "
            "alone"
        ) from None
    except Exception as error:  # of a damaged file the readers let through whatever they stumble over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SettingsError(f"{path} cannot be read as a checkpoint: {reason}") from None


def _check_members(path: Path) -> None:
    """Look at the checksums that torch writes of every tensor, and does not look at itself when it reads.

    **Raises:** ``ValueError`` naming a tensor that is not what was saved.
    """
    with zipfile.ZipFile(path) as members:
        # Of a member that is marked as a folder torch would read nothing, and take what is in memory.
        damaged = (
            next((info.filename for info in members.infolist() if info.external_attr & FOLDER), None)
            or members.testzip()
        )
    if damaged:
        raise ValueError(f"{damaged} in it is not what was saved")


def _for_classes(
    state: dict[str, Tensor], expected: dict[str, Tensor], classes: list[int]
) -> dict[str, Tensor]:
    """The state with only the rows of these classes where the model has one row per class and the state has
    more.
    """

    def is_classifier(name: str, tensor: Tensor) -> bool:
        wanted = expected.get(name)
        return (
            wanted is not None
            and wanted.shape[:1] == (len(classes),)
            and wanted.shape[1:] == tensor.shape[1:]
            and len(tensor) > max(classes)
        )

    return {
        name: tensor[classes] if tensor.ndim and is_classifier(name, tensor) else tensor
        for name, tensor in state.items()
    }


def _without_wrappers(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _first_difference(expected: dict, found: dict) -> str | None:
    for name, tensor in expected.items():
        if name not in found:
            return f"{name} is missing"
        if tensor.shape != found[name].shape:
            return f"{name} has shape {tuple(found[name].shape)}, not {tuple(tensor.shape)}"
    extra = next((name for name in found if name not in expected), None)
    return f"{extra} is not part of it" if extra else None
