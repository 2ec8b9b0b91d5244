"""Where a network looks: attention maps of a few test images, kept as small arrays, so that pictures of them
can be drawn again without images or weights.
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .data import Images, StreamedImages, evenly_spaced
from .files import replacing
from .paths import StudyPaths
from .settings import SettingsError
from .taps import LayerTap, evaluating

# The first test image of each of so many classes, evenly spaced; of all classes where they are fewer.
CLASSES = 6


def attention_maps(network: nn.Module, points: Iterable[str], images: Tensor) -> dict[str, Tensor]:
    """What sub-blocks attend to: the squares of their outputs, averaged over channels (Zagoruyko & Komodakis
    2017).

    **Arguments:** ``network`` in any mode, in which it is left; ``points`` module names; ``images`` [N, C, H,
    W].

    **Returns:** name → uint8 [N, H, W], each map scaled to a maximum of 255.
    """
    with evaluating(network), LayerTap(network, dict.fromkeys(points)) as tap:
        network(images)
        maps = {name: features.float().square().mean(1) for name, features in tap.features.items()}
    peaks = {name: attention.amax((1, 2), keepdim=True) for name, attention in maps.items()}
    # A map of zeros stays one.
    return {
        name: (255 * attention / peaks[name].clamp(min=1e-30)).round().byte()
        for name, attention in maps.items()
    }


def keep_maps(
    profile: str, record: str, network: nn.Module, points: Iterable[str], test: Images | StreamedImages
) -> None:
    """Keep the attention maps of a run's network beside its record, and once per profile the images that they
    are of.

    What is there already is not made again. **Arguments:** ``test`` images, on the network's device.
    """
    paths = StudyPaths(profile)
    if paths.maps(record).is_file():
        return
    classes = test.labels.unique()
    chosen = classes[evenly_spaced(CLASSES, len(classes))]
    examples = test.at(torch.tensor([int((test.labels == label).nonzero()[0]) for label in chosen]))
    ((images, labels),) = examples.ordered_batches()
    if not paths.map_images.is_file():
        mean, std = (
            images.new_tensor(values).view(1, -1, 1, 1) for values in (test.entry.mean, test.entry.std)
        )
        _write(paths.map_images, {"images": (255 * (images * std + mean)).round().byte(), "labels": labels})
    _write(paths.maps(record), attention_maps(network, points, images))


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Arrays that ``keep_maps`` has written, by name; nothing where there is no file.

    ``StudyPaths.maps``: module name → uint8 [N, H, W]. ``StudyPaths.map_images``: ``images`` uint8 [N, C, H,
    W] and ``labels`` int64 [N].

    **Raises:** ``SettingsError`` for a damaged file.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path) as file:
            return dict(file)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise SettingsError(f"{path} is damaged ({error}); restore it, or delete it to do without") from None


def _write(path: Path, arrays: dict[str, Tensor]) -> None:
    with replacing(path) as draft, draft.open("wb") as file:
        np.savez_compressed(file, **{name: array.cpu().numpy() for name, array in arrays.items()})
