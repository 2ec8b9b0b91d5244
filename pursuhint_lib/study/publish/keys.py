"""The keys of a profile as tables: defaults from the settings' fields, meanings from their docstrings."""

import re
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pandas as pd

from ...settings import Profile

_TERMS = re.compile(r"(?:^|(?<=\. ))((?:``\w+``, )*``\w+``): ")


def keys() -> str:
    """A table of the profile's keys, and one of each group's inside it."""
    places: dict[type, list[str]] = {}
    for name, kind in get_type_hints(Profile).items():
        if group := _group(kind):
            places.setdefault(group, []).append(name)
    inside = (
        f"Inside {' and '.join(f'`{name}:`' for name in names)}:\n\n{_table(group)}"
        for group, names in places.items()
    )
    return "\n\n".join((_table(Profile), *inside))


def meanings(settings: type) -> dict[str, str]:
    """What a docstring says of each argument: name → text; names before one colon share theirs."""
    _, _, arguments = settings.__doc__.partition("**Arguments:**")
    found = {}
    for bullet in re.split(r"^\s*- ", arguments, flags=re.M)[1:]:
        _, *parts = _TERMS.split(" ".join(bullet.split()))
        for names, text in zip(parts[::2], parts[1::2], strict=True):
            found |= dict.fromkeys(re.findall(r"\w+", names), text.strip().rstrip(".").replace("``", "`"))
    return found


def _table(settings: type) -> str:
    said = meanings(settings)
    rows = [(f"`{field.name}`", _default(field), said[field.name]) for field in fields(settings)]
    return pd.DataFrame(rows, columns=["key", "default", "meaning"]).to_markdown(index=False)


def _group(kind: Any) -> type | None:
    """The settings class in a type such as ``tuple[Pair, ...]`` or ``Launch | None``."""
    if is_dataclass(kind):
        return kind
    return next((group for part in get_args(kind) if (group := _group(part))), None)


def _default(field: Field) -> str:
    if field.default is MISSING:
        return "must be given" if field.default_factory is MISSING else "none"
    if is_dataclass(field.default):
        return "see below"
    if field.default in (None, (), ""):
        return "none"
    text = str(list(field.default) if isinstance(field.default, tuple) else field.default)
    return f"`{text.lower() if isinstance(field.default, bool) else text}`".replace("'", "")
