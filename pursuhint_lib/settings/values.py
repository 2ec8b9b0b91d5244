"""Plain values ↔ frozen dataclasses: checking what a YAML file says, and naming settings by a hash."""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import json
import reprlib
import typing
from collections.abc import Iterable, Iterator
from textwrap import shorten

import pydantic
from pydantic import AfterValidator, Field, StrictFloat, StrictInt, StrictStr


class SettingsError(ValueError):
    """A setting that cannot be used; the message names it and what would be right."""


def brief(error: BaseException) -> str:
    """What an error is and says, in one line."""
    return shorten(f"{type(error).__name__}: {error}", 400, placeholder=" …")


def once(values: typing.Collection, what: str = "it") -> typing.Collection:
    """The values, if none is there more than once.

    **Raises:** ``SettingsError`` that says ``what`` names which of them again.
    """
    repeated = sorted({str(value) for value in values if list(values).count(value) > 1})
    if repeated:
        raise SettingsError(f"{what} names {', '.join(repeated)} more than once; leave it there once")
    return values


T = typing.TypeVar("T")
# What settings are made of. None of them takes a text for a number, or a truth value for an integer.
# The length is for its side effect: with one, a half character (a surrogate) is refused.
Text = typing.Annotated[StrictStr, Field(min_length=0)]
Count = typing.Annotated[StrictInt, Field(gt=0)]
# A seed is what every random generator takes.
Seed = typing.Annotated[StrictInt, Field(ge=0, lt=2**32)]
Positive = typing.Annotated[StrictFloat, Field(gt=0)]
NotNegative = typing.Annotated[StrictFloat, Field(ge=0)]
Once = typing.Annotated[tuple[T, ...], AfterValidator(once)]
AtLeastOne = typing.Annotated[tuple[T, ...], Field(min_length=1), AfterValidator(once)]


def choose(what: str, value: str, valid: Iterable[str]) -> str:
    """Return ``value`` if it is valid; otherwise say which values are.

    **Raises:** ``SettingsError`` that names the value, the nearest valid one and all valid ones; of more than
    a hundred those that are near.
    """
    valid = list(valid)
    if value in valid:
        return value
    # Capitals don't count, so that AT is near at; of names that differ in nothing else the first is meant.
    folded = {name.lower(): name for name in reversed(valid)}
    near = difflib.get_close_matches(str(value).lower(), folded, n=1)
    hint = f" (did you mean {folded[near[0]]!r}?)" if near else ""
    if len(valid) > 100:
        some = difflib.get_close_matches(str(value).lower(), folded, n=5, cutoff=0)
        raise SettingsError(
            f"unknown {what} {value!r}{hint}; of {len(valid)} names these are near: "
            f"{', '.join(folded[name] for name in some)}"
        )
    raise SettingsError(f"unknown {what} {value!r}{hint}; valid: {', '.join(valid)}")


def validated(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose values are checked against its annotations by pydantic: unknown
    names, types, ranges. A list is taken for a tuple, an integer for a float, a mapping for a dataclass.

    A field that is added later needs a default that means what was always done, after ``=`` and not inside
    ``Field``: ``settings_hash`` leaves out what stands at its default, so that every record keeps its name.
    One that is no part of what a run is has the metadata ``{"hashed": False}``.
    """
    config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    cls = pydantic.dataclasses.dataclass(cls, frozen=True, config=config)
    check = cls.__init__

    @functools.wraps(check)
    def __init__(self, *args, **kwargs):
        with _in_one_line(cls, cls.__name__):
            check(self, *args, **kwargs)

    cls.__init__ = __init__
    return cls


def build(cls: type[T], value: object, where: str) -> T:
    """Turn plain YAML values into the ``validated`` class ``cls``, naming whatever does not fit.

    **Arguments:** ``value`` a mapping; ``where`` how the message calls it.

    **Raises:** ``SettingsError``.
    """
    with _in_one_line(cls, where):
        return pydantic.TypeAdapter(cls).validate_python(value)


@contextlib.contextmanager
def _in_one_line(cls: type, where: str) -> Iterator[None]:
    """Say the first of pydantic's complaints in one line: place, value and what is valid."""
    try:
        yield
    except pydantic.ValidationError as error:
        raise SettingsError(_told(cls, where, error.errors())) from None


# What pydantic calls otherwise than YAML does.
_WORDS = {
    "dataclass_type": "a mapping of settings",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "string_unicode": "text without half a character (a surrogate), which no file can hold",
    "too_short": "a list or mapping of at least one",
}


def _told(cls: type, where: str, errors: list) -> str:
    slips = "unexpected_keyword_argument", "invalid_key"
    # A slip in a name is told, rather than that a name is lacking.
    errors.sort(key=lambda error: error["type"] not in slips)
    kind, path = errors[0]["type"], list(errors[0]["loc"])
    if kind not in slips and path and isinstance(path[0], int):  # the number of an argument
        path[0] = [f.name for f in dataclasses.fields(cls)][path[0]]

    def place(steps: list) -> str:
        return where + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)

    if kind in slips:
        for step in path[:-1]:
            if isinstance(step, str):
                hint = typing.get_type_hints(cls)[step]
                cls = next(one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one))
        choose(f"setting in {place(path[:-1])}", path[-1], [f.name for f in dataclasses.fields(cls)])
    if kind == "missing":
        beside = [e["loc"][-1] for e in errors if e["type"] == kind and e["loc"][:-1] == (*path[:-1],)]
        return f"{place(path[:-1])} lacks {', '.join(beside)}; add what is lacking"
    if kind == "value_error":
        return f"{place(path)}: {errors[0]['ctx']['error']}"
    # Its beginning, for with YAML's aliases a few lines can stand for more than a memory holds.
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxlist, shown.maxdict, shown.maxstring = 2, 4, 4, 40
    value = shown.repr(errors[0]["input"]).encode("ascii", "backslashreplace").decode()
    wanted = _WORDS.get(kind, errors[0]["msg"].removeprefix("Input should be "))
    return f"{place(path)} is {value}; it should be {wanted}"


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
