"""Every method, every network and every key of a profile as tables, made from the code. ``python -m
pursuhint_lib docs`` writes them.
"""

import re
import sys
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pandas as pd
import torch

from ...distillers import DISTILLERS, Task
from ...models import MODELS, build_model, parameter_count
from ...settings import Profile
from ...taps import candidate_points, stage_ends

# Two hint layers [C, H, W] of each side and two images to build a method for.
_STUDENT, _TEACHER = (
    [torch.Size((3, 8, 8)), torch.Size((6, 4, 4))],
    [torch.Size((4, 8, 8)), torch.Size((8, 4, 4))],
)
_TASK = Task(_STUDENT, _TEACHER, torch.arange(2))
# Names at the beginning of an argument's description, or of a sentence in it.
_NAMES = re.compile(r"(?:^|(?<=\. ))((?:``\w+``, )*``\w+``): ")


def methods_table() -> pd.DataFrame:
    """One row per entry of ``DISTILLERS``."""
    rows = []
    for name, entry in DISTILLERS.items():
        # SimKD's part, the projector, belongs to the student.
        trains = entry.reuses_classifier or (
            entry.build is not None and any(True for _ in entry.build(_TASK).parameters())
        )
        uses = (
            "hint layers"
            if entry.hints
            else "last sub-block"
            if entry.reuses_classifier
            else "logits"
            if entry.uses_teacher
            else "labels"
        )
        beside = (
            " + ".join(name for name, there in (("CE", entry.ce), ("KD", entry.kd)) if there) or "nothing"
        )
        beside = f"{beside}, in a later stage" if entry.stages else beside
        weight = f"{entry.weight:g}{', grows' if entry.warm_up else ''}" if entry.build else ""
        rows.append(
            {
                "method": f"`{name}`",
                "name": entry.title,
                "uses": uses,
                "compares": entry.compares,
                "beside": beside,
                "trains parts": "yes" if trains else "",
                "weight": weight,
                "source": entry.source,
            }
        )
    return pd.DataFrame(rows)


def networks_table() -> pd.DataFrame:
    """One row per entry of ``MODELS``, for 32×32 images and 100 classes; the source is what the family's file
    begins with.
    """
    rows, image = [], torch.zeros(1, 3, 32, 32)
    for name, builder in MODELS.items():
        model = build_model(name, 100)
        # A function, or one with some of its arguments given.
        function = getattr(builder, "func", builder)
        about = sys.modules[function.__module__].__doc__.partition("\n\n")[0]
        family = " ".join(about.split()).rstrip(".")
        points, ends = candidate_points(model, image), stage_ends(model, image)
        rows.append(
            {
                "network": f"`{name}`",
                "parameters": parameter_count(model),
                "sub-blocks": len(points),
                "stages": len(ends),
                "source": family,
            }
        )
    return pd.DataFrame(rows)


def catalogue() -> str:
    """Both tables as Markdown."""
    return f"""# Methods and networks

Made from the registries by `python -m pursuhint_lib docs`.
A test compares this page with them.

## Methods

The loss is CE + KD + weight · method. Losses of hint layers are summed over the layers. The originals
of SP, CC, RKD, PKT, FT and CRD look at the last layer only, and FitNet at one. What each trains, and where it
departs from its paper, stands at its class in
[pursuhint_lib/distillers](../pursuhint_lib/distillers/).
A method that uses logits takes the place of KD. Any sum is a method, too, of those without stages and with
the student's own classifier: `at+rkd`, `wsl+at`, `wsl+crd`, `at+kd`.
Weights are the literature's for 32×32 images. Some grow over the first twelfth of the epochs. A profile
overrides them under
`weights: {{hint: {{at: 62.5}}}}`. A stage before the task takes the first eighth of the epochs.

{methods_table().to_markdown(index=False)}

## Networks

Parameters at 100 classes; sub-blocks are the candidate hint layers on 32×32 images. Besides these:
`torchvision/<name>` and `timm/<name>`.

{networks_table().to_markdown(index=False, intfmt=",")}
"""


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
        _, *parts = _NAMES.split(" ".join(bullet.split()))
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
