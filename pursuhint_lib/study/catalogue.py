"""Every method and every network as tables, made from the registries: ``python -m pursuhint_lib.study.catalogue`` prints docs/catalogue.md."""

import sys

import pandas as pd
import torch

from ..distillers import DISTILLERS
from ..models import MODELS, build_model, parameter_count
from ..taps import candidate_points, stage_ends

# A hint point to build a method on: [C, H, W].
_SHAPES = [torch.Size((4, 8, 8))]


def methods_table() -> pd.DataFrame:
    """One row per entry of ``DISTILLERS``."""
    rows = []
    for name, entry in DISTILLERS.items():
        trains = entry.build is not None and any(True for _ in entry.build(_SHAPES, _SHAPES).parameters())
        uses = "hint points" if entry.hints else "logits" if entry.uses_teacher else "labels"
        rows.append({"method": f"`{name}`", "name": entry.title, "uses": uses, "compares": entry.compares, "trains parts": "yes" if trains else "",
                     "weight": f"{entry.weight:g}" if entry.build else "", "source": entry.source})  # fmt: skip
    return pd.DataFrame(rows)


def networks_table() -> pd.DataFrame:
    """One row per entry of ``MODELS``, for 32×32 images and 100 classes; the source is the first line of the family's file."""
    rows, image = [], torch.zeros(1, 3, 32, 32)
    for name, builder in MODELS.items():
        model = build_model(name, 100)
        family = sys.modules[builder.func.__module__].__doc__.splitlines()[0].rstrip(".")
        points, ends = candidate_points(model, image), stage_ends(model, image)
        rows.append({"network": f"`{name}`", "parameters": parameter_count(model), "sub-blocks": len(points), "stages": len(ends), "source": family})
    return pd.DataFrame(rows)


def catalogue() -> str:
    """Both tables as Markdown."""
    return f"""# Methods and networks

Made from the registries by `python -m pursuhint_lib.study.catalogue`; a test compares this page with them.

## Methods

The loss is CE + KD + weight · method. Losses of hint points are summed over the points; the originals of SP, CC, RKD, PKT and CRD look at the last
layer only, and FitNet at one.
A method that uses logits takes the place of KD. Any sum is a method, too: `at+rkd`, `wsl+at`, `at+kd`.
Weights are the literature's for 32×32 images; a profile overrides them under `weights: {{hint: {{at: 62.5}}}}`.

{methods_table().to_markdown(index=False)}

## Networks

Parameters at 100 classes; sub-blocks are the candidate hint points on 32×32 images. Besides these: `torchvision/<name>`.

{networks_table().to_markdown(index=False, intfmt=",")}
"""


if __name__ == "__main__":
    print(catalogue(), end="")
