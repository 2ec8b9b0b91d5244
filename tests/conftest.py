"""Every test works in folders of its own."""

import sys
from pathlib import Path

import pytest
import torch

from pursuhint_lib import training
from pursuhint_lib.settings import user_code as extensions
from pursuhint_lib.study.engine import validate

# Files whose tests take longest. They begin first, so that no process is left alone with one when the others
# are done.
LONG = tuple(
    f"test_{name}.py"
    for name in ("smoke", "kills", "processes", "compression", "corruption", "sweep", "exchange", "forking")
)


def pytest_collection_modifyitems(items):
    """Long files first; the order is otherwise as collected."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Data, work and results of a test lie under its temporary folder."""
    for name in ("data", "work", "results"):
        monkeypatch.setenv(f"PURSUHINT_{name.upper()}", str(tmp_path / name))
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def trusted_convolutions(request, monkeypatch):
    """A check in the test's own process does not try convolutions, which takes another process four seconds
    each time; those of test_strides.py do, and all that are commands of their own.
    """
    if request.path.name != "test_strides.py":
        monkeypatch.setattr(validate, "wrong_convolution", lambda _: None)


@pytest.fixture
def saved_between_batches(monkeypatch):
    """A training saves a state to go on from between any two batches."""
    monkeypatch.setattr(training.interruptions, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(training.interruptions, "SAVING_SHARE", float("inf"))


@pytest.fixture
def folder_of_modules(tmp_path, monkeypatch):
    """An empty folder for code of the user's own, whose modules this process forgets after the test."""
    monkeypatch.setattr(extensions, "_folders", [])
    monkeypatch.setattr(extensions, "_known", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    folder = tmp_path / "mine"
    folder.mkdir()
    yield folder
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]
