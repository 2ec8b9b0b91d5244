"""A file of benchmarks/ as a module, for its tests."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from pursuhint_lib.paths import ROOT


@contextmanager
def loaded(name: str) -> Iterator[ModuleType]:
    """benchmarks/<name>.py, which finds its neighbours while the context lasts."""
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(folder))
        del sys.modules[spec.name]
