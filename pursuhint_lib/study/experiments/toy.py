"""The idea of the study on made-up layers whose groups are known."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ... import plots
from ...clustering import HintPoints, choose_hint_points, segment_middles
from ...similarity import similarity_matrix

# Images and channels of every toy layer.
IMAGES, CHANNELS = 300, 16


def toy_layers(groups: Sequence[int], change: float, seed: int = 0) -> list[Tensor]:
    """Features [300, 16] of layers in groups: inside a group a layer adds fresh noise, and between groups all
    channels are mixed.

    **Arguments:** ``groups`` number of layers in each group, in depth order; ``change`` standard deviation of
    the noise over that of the layer.
    """
    generator = torch.Generator().manual_seed(seed)
    layer, features = torch.randn(IMAGES, CHANNELS, generator=generator), []
    for size in groups:
        for _ in range(size):
            features.append(layer)
            layer = layer + change * layer.std() * torch.randn(IMAGES, CHANNELS, generator=generator)
        layer = torch.relu((layer - layer.mean(dim=0)) @ torch.randn(CHANNELS, CHANNELS, generator=generator))
    return features


@dataclass(frozen=True)
class Toy:
    """What the paper's way makes of a toy teacher: similarity [L, L], clusters and points; ``middles`` of
    equal segments, 0-based.
    """

    similarity: Tensor
    points: HintPoints
    middles: tuple[int, ...]

    def figure(self) -> Figure:
        """The similarity with clusters and hint layers drawn in."""
        matrices, points = {"cka-linear": self.similarity.numpy()}, {"cka-linear": self.points}
        return plots.similarity_heatmaps(matrices, points, "layer of the toy")

    def __str__(self) -> str:
        chosen, middles = (
            ", ".join(str(i + 1) for i in indices) for indices in (self.points.indices, self.middles)
        )
        sizes = ", ".join(str(self.points.labels.count(label)) for label in range(len(self.middles)))
        return (
            f"clusters of {sizes} layers; hint layers: layers {chosen}; middles of equal segments: "
            "layers "
            f"{middles}"
        )


def toy_study(groups: Sequence[int], change: float, k: int, seed: int = 0) -> Toy:
    """Compare the toy layers by linear CKA and choose k hint layers as the paper does.

    **Raises:** ``ValueError`` for a k that is larger than the number of layers.
    """
    similarity = similarity_matrix(toy_layers(groups, change, seed), "cka-linear")
    return Toy(similarity, choose_hint_points(similarity.numpy(), k), segment_middles(sum(groups), k))
