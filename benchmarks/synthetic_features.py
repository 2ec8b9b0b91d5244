"""Features as a deep network may have them: a residual stream of non-negative channels, x ← ReLU(x + random
map of x + noise), which a wider random map takes over at the border of a stage.

The sizes of both were chosen so that the paper's k-means cycles for some seeds (with both at 0.3 it settles
for all of 40).
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

# (layers, channels) of each stage.
Stages = Sequence[tuple[int, int]]

# Size of the random map of a residual block, as a share of the stream, and of the noise, for a stream that
# starts with size 1.
CHANGE = 0.5
NOISE = 1.0
# Rows that are written to disk at once.
ROWS = 5000


def random_maps(stages: Stages, generator: torch.Generator) -> list[Tensor]:
    """Map [C_in, C_out] of each layer; square ones are small, for they only change the stream."""
    widths = [stages[0][1], *(width for count, width in stages for _ in range(count))]
    maps = [torch.randn(shape, generator=generator) / shape[0] ** 0.5 for shape in itertools.pairwise(widths)]
    return [CHANGE * matrix if matrix.shape[0] == matrix.shape[1] else matrix for matrix in maps]


def residual_stream(maps: Sequence[Tensor], images: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Features float32 [images, C_out] after each layer."""
    x = torch.randn(images, len(maps[0]), generator=generator).relu()
    for matrix in maps:
        change = (x @ matrix).add_(torch.randn(images, matrix.shape[1], generator=generator), alpha=NOISE)
        x = (change + x if change.shape == x.shape else change).relu_()
        yield x


def make_features(stages: Stages, images: int, seed: int) -> dict[str, Tensor]:
    """Layer name → features float32 [images, C]."""
    generator = torch.Generator().manual_seed(seed)
    return {
        str(i): x
        for i, x in enumerate(residual_stream(random_maps(stages, generator), images, generator), start=1)
    }


def write_features(folder: Path, stages: Stages, images: int) -> None:
    """One raw float32 file per layer, named by its number."""
    generator = torch.Generator().manual_seed(0)
    maps = random_maps(stages, generator)
    for start in range(0, images, ROWS):
        for number, x in enumerate(residual_stream(maps, min(ROWS, images - start), generator)):
            with (folder / str(number)).open("ab") as file:
                file.write(x.numpy().tobytes())
