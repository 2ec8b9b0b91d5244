"""Plain values ↔ frozen dataclasses: checking what a YAML file says, and naming settings by a hash."""

import dataclasses
import difflib
import hashlib
import json
import math
import reprlib
import types
import typing


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it and what would be right."""


def _shown(value) -> str:
    """A value as a message shows it: its beginning, for with YAML's aliases a few lines can stand for more
    than a memory holds.
    """
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict, short.maxstring = 2, 4, 4, 40
    return short.repr(value)


def positive(settings, *names: str) -> None:
    """Refuse values of 0 or less; ``None`` stands for 'not given'."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:  # so that NaN is refused too
            raise SettingsError(f"{name} is {value}; give a number above 0")


def not_negative(settings, *names: str) -> None:
    """Refuse values below 0."""
    for name in names:
        if not getattr(settings, name) >= 0:
            raise SettingsError(f"{name} is {getattr(settings, name)}; give a number of 0 or more")


def once(what: str, values: typing.Sequence) -> None:
    """Refuse values that are given more than once."""
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise SettingsError(f"{what} names {', '.join(repeated)} more than once; leave it there once")


def choose(what: str, value: str, valid: typing.Iterable[str]) -> str:
    """Return ``value`` if it is valid; otherwise say which values are.

    **Raises:** ``SettingsError`` that names the value, the nearest valid one and all valid ones.
    """
    valid = list(valid)
    if value in valid:
        return value
    # Capitals don't count, so that AT is near at; of names that differ in nothing else the first is meant.
    folded = {name.lower(): name for name in reversed(valid)}
    near = difflib.get_close_matches(str(value).lower(), folded, n=1)
    hint = f" (did you mean {folded[near[0]]!r}?)" if near else ""
    raise SettingsError(f"unknown {what} {value!r}{hint}; valid: {', '.join(valid)}")


def build(cls, value, where: str):
    """Turn plain YAML values into the dataclass ``cls``, naming whatever does not fit.

    **Arguments:** ``value`` a mapping; ``where`` how the message calls it.

    **Raises:** ``SettingsError``.
    """
    if not isinstance(value, dict):
        raise SettingsError(f"{where} must be a mapping of settings, not {_shown(value)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in value:
        choose(f"setting in {where}", key, fields)
    required = [
        n
        for n, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in value]
    if missing:
        raise SettingsError(f"{where} lacks {', '.join(missing)}; add what is lacking")
    try:
        return cls(**{key: _convert(hints[key], entry, f"{where}.{key}") for key, entry in value.items()})
    except SettingsError as error:
        raise SettingsError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _convert(hint, value, where: str):
    """Check ``value`` against a type hint; lists become tuples, ints pass for floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return (
            None
            if value is None
            else _convert(next(a for a in arguments if a is not type(None)), value, where)
        )
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise SettingsError(f"{where} must be a list, not {_shown(value)}")
        return tuple(_convert(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise SettingsError(f"{where} must be a mapping, not {_shown(value)}")
        return {str(key): _convert(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        # What no float can hold is refused as infinity is.
        value = float(value) if abs(value) < 1 << 1000 else math.inf
    if not isinstance(value, hint) or isinstance(value, bool) != (hint is bool):
        raise SettingsError(f"{where} must be {hint.__name__}, not {_shown(value)}")
    if hint is float and not math.isfinite(value):
        raise SettingsError(f"{where} must be a finite number, not {value}")
    if hint is str and not value.isascii() and value != value.encode(errors="ignore").decode():
        raise SettingsError(
            f"{where} holds half a character (a surrogate), which no file can hold: {value!a}; write the "
            "character itself"
        )
    return value


def resolved(settings):
    """Settings as plain values for JSON: defaults written out, fields that do not count for the
    run left out.
    """
    return _plain(settings, defaults=True)


def _plain(value, defaults: bool):
    """Dataclasses as dicts of the hashed fields, with or without those that stand at their default."""
    if dataclasses.is_dataclass(value):
        kept = {}
        for f in dataclasses.fields(value):
            entry = getattr(value, f.name)
            default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            if f.metadata.get("hashed", True) and (
                defaults or default is dataclasses.MISSING or entry != default
            ):
                kept[f.name] = _plain(entry, defaults)
        # Not a field, since it cannot be given: what the user's own code says that the settings name.
        own = getattr(value, "sources", ())
        return kept | {"sources": [*own]} if own else kept
    if isinstance(value, (list, tuple)):
        return [_plain(entry, defaults) for entry in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 1 and 1.0 are the same setting
    return value


def settings_hash(settings) -> str:
    """Twelve hex digits that name the settings.

    Fields at their default are left out, so that a field added later, whose default means what was
    always done, keeps the hash of every record there is.
    """
    text = json.dumps(_plain(settings, defaults=False), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
