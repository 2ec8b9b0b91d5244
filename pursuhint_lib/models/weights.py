"""Weights of networks on disk: our own, and the forms in which people publish theirs."""

import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ..files import replacing, stand_in
from ..settings import SettingsError

# Where checkpoints keep the state dict beside epoch, optimiser and the like.
KEYS = ("state_dict", "model_state_dict", "model", "net")
# What data-parallel and compiled wrappers, and trainers that hold the network, put before every name.
WRAPPERS = ("module.", "_orig_mod.", "model.")
# The attribute that makes a member of a zip archive a folder.
FOLDER = 0x10

# The public teachers' files hold their optimiser, too, whose learning rate is a number of numpy (as numpy 1
# and numpy 2 name its maker).
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS = [_SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"), np.dtype, type(np.dtype("float64"))]


def save_weights(model: nn.Module, path: Path, matrices: torch.dtype | None = None) -> None:
    """Write the state dict as safetensors.

    **Arguments:** ``matrices``: type that weights of more than one dimension are written in; by default, each
    has its own.
    """
    plain = torch.contiguous_format
    # Copies, as the format does not take two names of one tensor.
    state = {name: t.detach().cpu().clone(memory_format=plain) for name, t in model.state_dict().items()}
    if matrices:
        state = {name: tensor.to(matrices) if tensor.dim() > 1 else tensor for name, tensor in state.items()}
    with replacing(path) as draft:
        # In memory first: a full disk is then an error of the system, not one of the format.
        draft.write_bytes(save(state))


def load_checkpoint(model: nn.Module, path: Path, classes: Sequence[int] | None = None) -> None:
    """Load weights in place: safetensors or torch's files, a state dict alone or under one of ``KEYS``.

    Prefixes that wrappers leave (``WRAPPERS``) are dropped, and torch's own rules for files of older versions
    apply (without ``num_batches_tracked``, for one); otherwise every name and shape must agree.

    **Arguments:** ``classes``: the model's classes among those of the checkpoint, whose classifier may have
    more.

    **Raises:** ``SettingsError`` naming the file and what differs; no pickled code is ever run. The model may
    then have some of the weights.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"no checkpoint at {path}")
    expected = model.state_dict()
    state = _state_dict(_stored(path), path)
    for prefix in WRAPPERS * 2:
        if not any(name.startswith(prefix) for name in expected):
            consume_prefix_in_state_dict_if_present(state, prefix)
    if not hasattr(state, "_metadata") and state.keys() == expected.keys():
        # Nothing says of which versions of its layers the file is. It has all that today's have.
        state._metadata = expected._metadata
    if classes is not None:
        _keep_classes(state, expected, list(classes))
    try:
        model.load_state_dict(state)
    except Exception as error:  # a network of the user's own may have rules of its own
        # The first line of torch's only says which class it is.
        reason = shorten(" ".join(str(error).split("\n\t")[1:]) or str(error), 250, placeholder=" …")
        raise SettingsError(f"{path} is a checkpoint of another network: {reason}") from None


def _stored(path: Path) -> object:
    """What a checkpoint file holds."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            _check_members(path)
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged file the readers let through whatever they stumble over
        if other := stand_in(path):
            raise SettingsError(f"{path} cannot be read as a checkpoint: {other}") from None
        if isinstance(error, UnpicklingError):
            raise SettingsError(
                f"{path} is damaged or holds more than tensors, and pickled code is not run; save its "
                "state_dict alone"
            ) from None
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


def _state_dict(stored: object, path: Path) -> OrderedDict[str, Tensor]:
    """The state dict in what a file holds, with the versions of its layers where it has them.

    **Raises:** ``SettingsError`` if there is none.
    """
    found = stored
    if isinstance(stored, dict):
        found = next((stored[key] for key in KEYS if isinstance(stored.get(key), dict)), stored)
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise SettingsError(
            f"{path} is no state dict (names and tensors), alone or under one of the keys {', '.join(KEYS)}; "
            "save the network's state_dict()"
        )
    state = OrderedDict(found)
    if hasattr(found, "_metadata"):
        state._metadata = found._metadata
    return state


def _keep_classes(state: dict[str, Tensor], expected: dict[str, Tensor], classes: list[int]) -> None:
    """Keep only the rows of these classes where the model has one row per class and the state has more."""
    for name, tensor in state.items():
        if name not in expected or tensor.ndim == 0 or len(tensor) <= max(classes):
            continue
        if expected[name].shape == (len(classes), *tensor.shape[1:]):
            state[name] = tensor[classes]
