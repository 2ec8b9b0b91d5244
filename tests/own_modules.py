"""Modules of a user's own: methods, metrics and networks, and a cell that takes them."""

import importlib
import sys
from dataclasses import replace

import pytest

from pursuhint_lib.settings import (
    Arm,
    Data,
    DistillSettings,
    Schedule,
    SettingsError,
    TeacherSettings,
    user_code,
)

METHODS = """
from functools import partial
from torch import nn
from pursuhint_lib import losses
from pursuhint_lib.distillers import Distiller, PerPoint
from pursuhint_lib.distillers.maps import FitNet

def attention(student, teacher):
    return losses.attention_transfer([student], [teacher])

at = Distiller("own AT", "a test", "as AT", partial(PerPoint, attention), 1000.0)
fitnet = Distiller("own FitNet", "a test", "as FitNet", FitNet, 100.0)
number = 5
nothing = Distiller("nothing", "a test", "nothing")
heavy = Distiller("heavy", "a test", "all", partial(PerPoint, attention), "1000")

class Wrong(nn.Module):
    def __init__(self, task):
        super().__init__()

    def forward(self, signals):
        return signals.student_logits.nowhere

def no_module(task):
    return lambda signals: 0.0

def raises(task):
    raise KeyError("points")

wrong = Distiller("wrong", "a test", "all", Wrong, 1.0)
function = Distiller("function", "a test", "all", no_module, 1.0)
raising = Distiller("raising", "a test", "all", raises, 1.0)
vector = Distiller("vector", "a test", "all", partial(PerPoint, lambda s, t: s.flatten()), 1.0)
count = Distiller("count", "a test", "all", partial(PerPoint, lambda s, t: 3), 1.0)
"""
METRICS = """
import torch

def hsic(a, b):
    n = len(a)
    centre = torch.eye(n, dtype=a.dtype) - 1 / n
    return torch.trace(a @ a.T @ centre @ b @ b.T @ centre)

def cka(x, y):
    return hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()

def greedy(x, y):
    return 1.0 + x.zero_().sum() * y.zero_().sum()

def lopsided(x, y):
    return 1.0 if torch.equal(x, y) else x.abs().sum().item() / (x.abs().sum() + y.abs().sum()).item()

def far(x, y):
    return 1.0 if torch.equal(x, y) else -40.0

def half(x, y):
    return 0.5

def lost(x, y):
    return float("nan")

def many(x, y):
    return x.mean(0)

def words(x, y):
    return "alike"

def stumbles(x, y):
    return x @ y
"""
NETWORKS = """
from torch import nn
from pursuhint_lib.models.resnet import CifarResNet

def resnet14(classes, channels):
    return CifarResNet(14, (16, 16, 32, 64), classes, channels)

def words(classes, channels):
    return "network"

narrow = lambda classes: nn.Linear(classes, classes)
"""
DATA = Data("digits", train_images=60, test_images=50)
SCHEDULE = Schedule(epochs=2, batch_size=32, learning_rate=0.05, milestones=(1,))
TEACHER = TeacherSettings("resnet14", DATA, SCHEDULE, profile="test")
ENDS = ("layer1.0", "layer2.0", "layer3.0")
ARMS = (
    Arm("none"),
    Arm("first", ("layer1.0", "layer1.1", "layer2.0")),
    Arm("ends", ("layer1.1", "layer2.1", "layer3.1")),
)


def line_of(text: str, statement: str) -> str:
    """As messages say where a statement stands."""
    return f"in line {[line.strip() for line in text.splitlines()].index(statement) + 1} of"


def forget(name: str) -> None:
    """As in a new process."""
    sys.modules.pop(name, None)
    user_code._known.clear()
    importlib.invalidate_caches()


def refused(call, *words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        call()
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def cell(method: str, **changes) -> DistillSettings:
    base = DistillSettings(
        teacher=TEACHER,
        student="resnet8x0.25",
        method=method,
        arms=ARMS,
        student_points=ENDS,
        ce_weight=1.0,
        kd_weight=1.0,
        hint_weight=10.0,
        temperature=4.0,
        data=DATA,
        schedule=SCHEDULE,
        seed=3,
        profile="test",
    )
    return replace(base, **changes)
