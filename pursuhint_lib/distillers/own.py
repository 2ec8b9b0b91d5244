"""Methods of the user's own, named by an import path."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from ..settings import SettingsError
from ..settings.user_code import load, own_code
from .entry import Distiller
from .signals import Signals, Task


class Own(nn.Module):
    """What a method of the user's own has built, held to what every method gives.

    **Raises:** ``SettingsError`` where its code fails, or gives something else.
    """

    def __init__(self, name: str, build: Callable[[Task], nn.Module], task: Task):
        super().__init__()
        with own_code(name):
            method = build(task)
        if not isinstance(method, nn.Module):
            raise SettingsError(
                f"build of method {name} gives {type(method).__name__}; it must give a torch.nn.Module"
            )
        self.name, self.method = name, method

    def forward(self, signals: Signals) -> Tensor:
        with own_code(self.name):
            loss = self.method(signals)
        if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
            found = (
                f"a tensor of shape {tuple(loss.shape)} and {loss.dtype}"
                if isinstance(loss, Tensor)
                else type(loss).__name__
            )
            raise SettingsError(
                f"the loss of method {self.name} is {found}; it must be a scalar tensor of floating point, "
                "such as a mean"
            )
        return loss


def own_entry(name: str) -> Distiller:
    """The entry that an import path names."""
    entry = load(
        "method", name, lambda found: isinstance(found, Distiller), "a Distiller of pursuhint_lib.distillers"
    )
    if not callable(entry.build):
        raise SettingsError(
            f"method {name} builds nothing; give its Distiller a build, a function of Task that gives a "
            "torch.nn.Module"
        )
    if not (isinstance(entry.weight, (int, float)) and 0 <= entry.weight < math.inf):
        raise SettingsError(
            f"the weight of method {name} is {entry.weight!r}; give its Distiller a number of 0 or more"
        )
    return replace(entry, build=partial(Own, name, entry.build))
