"""Methods, metrics and networks of one's own: code that a profile names by an import path,
``package.module:name``.

The module is a file or a package beside the profile's YAML, or installed. Nothing else decides where it is
looked for, so that every process of a run, whatever its working folder, finds the same one. Its import is all
that is run.
"""

import contextlib
import hashlib
import importlib
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from .values import SettingsError, brief

# How messages write what can be given.
FORM = "<module>:<name>"
_PATH = re.compile(r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*):([A-Za-z_]\w*)", re.ASCII)


@dataclass(frozen=True)
class _Source:
    """Where a top-level module is (its file, or the folder of its package), the files of its source, and 16
    hex digits that name what they say.
    """

    root: Path
    files: tuple[Path, ...]
    checksum: str


# Folders of the profiles that this process has read, the latest first, and the modules that it has asked for.
_folders: list[Path] = []
_known: dict[str, _Source] = {}


def is_import_path(name: str) -> bool:
    """Whether a name is meant as an import path, well formed or not: no name in a table has a colon."""
    return ":" in name


def look_in(folder: Path, names: Iterable[str]) -> None:
    """Look for modules in a profile's folder first, from now on.

    **Arguments:** ``names`` in the profile, of any kind.

    **Raises:** ``SettingsError`` where one of their modules is not there, or is not what this process has
    loaded before: what runs would not be what the settings say.
    """
    _folders[:] = [folder, *(other for other in _folders if other != folder)]
    for name in _modules(names):
        before = _known.pop(name, None)
        if before not in (None, _source(name)) and name in sys.modules:
            _known[name] = before
            raise SettingsError(
                f"{_known[name].root} has changed since it was loaded, or {folder} has another {name}; "
                "restart the notebook's kernel"
            )


def sources(*names: str) -> tuple[str, ...]:
    """Module and checksum of its source for every import path among the names; a sum of methods has several.

    The source is the module's file, or all Python files of its package; what these import is not looked at.

    **Raises:** ``SettingsError`` for a name that is no import path, or whose module is not there.
    """
    return tuple(f"{name} {_source(name).checksum}" for name in _modules(names))


def load(what: str, name: str, fits: Callable[[object], bool], wanted: str) -> object:
    """What an import path names.

    **Arguments:** ``what`` it is and what is ``wanted``, for messages; ``fits`` whether an object is that.

    **Raises:** ``SettingsError`` that says which part of the path is wrong, and what the module has that
    fits.
    """
    module_name, attribute = _split(name)
    source = _source(module_name.partition(".")[0])
    if str(source.root.parent) not in sys.path:
        # At the end, so that no file beside a profile hides a module that something else needs.
        sys.path.append(str(source.root.parent))
    with own_code(name):
        module = _imported(module_name, source)
    found = vars(module).get(attribute)
    if fits(found):
        return found
    there = f"is of type {type(found).__name__}" if attribute in vars(module) else "is not there"
    held = [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and fits(value) and _is_own(value, module_name)
    ]
    raise SettingsError(
        f"{what} {name} must be {wanted}, but {attribute} {there}; {module.__file__} has "
        f"{', '.join(held) or 'none'}"
    )


@contextlib.contextmanager
def own_code(name: str) -> Iterator[None]:
    """Say of an error that the code of others lets through, a user's or a package's, what it is and where, in
    one line; the error itself stays its cause.
    """
    try:
        yield
    except SettingsError:
        raise
    except (Exception, SystemExit) as error:  # whatever it stumbles over
        raise SettingsError(f"{name} failed{_place(name, error)}: {brief(error)}") from error


def _place(name: str, error: BaseException) -> str:
    """The last line of the user's own source that an error came through."""
    if not is_import_path(name):
        return ""
    files = _source(_split(name)[0].partition(".")[0]).files
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((Path(error.filename), error.lineno))
    own = [f" in line {line} of {file.name}" for file, line in frames if file in files]
    return own[-1] if own else ""


def _split(name: str) -> tuple[str, str]:
    found = _PATH.fullmatch(name)
    if found is None:
        raise SettingsError(
            f"{name!r} is no import path; write {FORM} with names of Python, such as my_methods:my_method"
        )
    return found[1], found[2]


def _modules(names: Iterable[str]) -> list[str]:
    """Top-level modules of the import paths among the names."""
    parts = (part for name in names for part in name.split("+") if is_import_path(part))
    return sorted({_split(part)[0].partition(".")[0] for part in parts})


def _imported(module_name: str, source: _Source) -> object:
    """The module, if it is the one that the checksum is of."""
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        # Compiled files are told apart by second and size, so that one could outlive a quick edit of its
        # source.
        module = pkgutil.resolve_name(f"{module_name}:")
    finally:
        sys.dont_write_bytecode = writes
    file = sys.modules[module_name.partition(".")[0]].__file__
    if not (file and Path(file).resolve().is_relative_to(source.root.resolve())):
        raise SettingsError(f"{source.root} has the name of another module, {file}; rename yours")
    return module


def _is_own(value: object, module_name: str) -> bool:
    """Whether a module has made a value itself; functions and classes say where they are from."""
    return not hasattr(value, "__qualname__") or value.__module__ == module_name


def _source(name: str) -> _Source:
    """The source of a top-level module as this process has first seen it.

    **Raises:** ``SettingsError`` where there is none.
    """
    if name not in _known:
        root = _root(name)
        if root is None:
            folder = _folders[0] if _folders else Path.cwd()
            raise SettingsError(
                f"no module {name}: there is no {name}.py or {name}/__init__.py in {folder}, and none is "
                "installed; put it there"
            )
        digest, files = hashlib.sha256(), sorted(root.rglob("*.py")) if root.is_dir() else [root]
        for file in files:
            content = file.read_bytes()
            digest.update(f"{file.relative_to(root.parent)} {len(content)}\n".encode() + content)
        _known[name] = _Source(root, tuple(files), digest.hexdigest()[:16])
    return _known[name]


def _root(name: str) -> Path | None:
    """The file of a top-level module, or the folder of its package: beside a profile, or installed."""
    importlib.invalidate_caches()
    path = sys.path
    # The folder that Python was started in comes first there, and is another for every process.
    sys.path = path[1:] if path[0] in ("", str(Path.cwd())) else path
    try:
        spec = PathFinder.find_spec(name, [str(folder) for folder in _folders]) or find_spec(name)
    except ValueError:  # of a module that was not imported in the usual way
        return None
    finally:
        sys.path = path
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return None
    return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
