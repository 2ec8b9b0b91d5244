"""One pass over the training images, all sub-blocks at once: features, then similarity matrices."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .data import Images
from .settings import SettingsError
from .similarity import similarity_matrix
from .taps import LayerTap

BATCH = 500


def profile_layers(teacher: nn.Module, images: Images, points: Sequence[str]) -> dict[str, Tensor]:
    """Features of every sub-block on un-augmented images in their stored order.

    **Arguments:** ``teacher`` on the device of ``images``; ``points`` module names.

    **Returns:** name → float32 [N, C], each map averaged over space; row i is image i in every layer.

    **Raises:** ``SettingsError`` for a sub-block whose output is not a map.
    """
    teacher.eval()
    collected: dict[str, list[Tensor]] = {name: [] for name in points}
    with torch.inference_mode(), LayerTap(teacher, points) as tap:
        for batch, _ in images.ordered_batches(BATCH):
            teacher(batch)
            for name, features in tap.features.items():
                if features.ndim != 4:
                    raise SettingsError(f"sub-block {name} gives shape {tuple(features.shape)}; only maps [N, C, H, W] can be profiled")
                collected[name].append(features.float().mean((2, 3)))
    return {name: torch.cat(parts) for name, parts in collected.items()}


def similarity_matrices(features: dict[str, Tensor], metrics: Sequence[str]) -> dict[str, Tensor]:
    """Metric → similarity of all sub-blocks, float64 [L, L] on the CPU."""
    # Apple's GPUs have no float64.
    layers = [layer.cpu() if layer.device.type == "mps" else layer for layer in features.values()]
    return {metric: similarity_matrix(layers, metric).cpu() for metric in metrics}
