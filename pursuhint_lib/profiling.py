"""One pass over images, all sub-blocks at once: the features that layers are compared by."""

import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .data import Images
from .paths import work_root
from .settings import SettingsError
from .taps import LayerTap

BATCH = 64
# Features of all sub-blocks together that are kept in memory (50 000 images of ResNet-110: 403 MB); above it
# they go to a file.
MEMORY_BYTES = 1 << 30


def profile_layers(teacher: nn.Module, images: Images, points: Sequence[str]) -> dict[str, Tensor]:
    """Features of every sub-block on un-augmented images in their stored order, all from one forward pass per
    image.

    More than ``MEMORY_BYTES`` of them are memory-mapped from a file without a name, which goes when they go.

    **Arguments:** ``teacher`` on the device of ``images``; ``points`` module names.

    **Returns:** name → float32 [N, C], each map averaged over space; row i is image i in every layer.

    **Raises:** ``SettingsError`` for a sub-block whose output is not a map.
    """
    teacher.eval()
    collected: dict[str, Tensor] = {}
    done = 0
    with torch.inference_mode(), LayerTap(teacher, points) as tap:
        for batch, _ in images.ordered_batches(BATCH):
            teacher(batch)
            features = tap.features
            pooled = {name: _pooled(name, features[name]) for name in points}
            collected = collected or _room(pooled, len(images))
            for name, part in pooled.items():
                collected[name][done : done + len(part)] = part
            done += len(batch)
    return collected


def _pooled(name: str, maps: Tensor) -> Tensor:
    if maps.ndim != 4:
        raise SettingsError(
            f"sub-block {name} gives shape {tuple(maps.shape)}; only maps [N, C, H, W] can be profiled"
        )
    return maps.float().mean((2, 3))


def _room(first: dict[str, Tensor], images: int) -> dict[str, Tensor]:
    """Space for the features of all images: beside the first ones, or in a file if there are too many."""
    if 4 * images * sum(part.shape[1] for part in first.values()) <= MEMORY_BYTES:
        return {name: part.new_empty(images, part.shape[1]) for name, part in first.items()}
    work_root().mkdir(parents=True, exist_ok=True)
    mapped = {}
    for name, part in first.items():
        # The mapping keeps the file alive when it has lost its name.
        with tempfile.NamedTemporaryFile(dir=work_root()) as file:
            mapped[name] = torch.from_file(file.name, shared=True, size=images * part.shape[1]).view(
                images, part.shape[1]
            )
    return mapped
