"""What a data set is, and what can be wrong with one."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..settings import Data, SettingsError


class DataError(SettingsError):
    """A data set that is not there or cannot be read; the message says where it was looked for."""


class NotDownloaded(DataError):
    """A data set that is not there yet, and that a run would download."""


@dataclass(frozen=True)
class Dataset:
    """An entry of ``DATASETS``.

    **Arguments:**

    - ``classes``, ``channels``, ``image_size``: number of classes, of channels, side in pixels.
    - ``mean``, ``std``: per channel, of pixel values in [0, 1].
    - ``padding``, ``flip``: augmentation: random crop after padding by so many zero pixels; mirror at random.
    - ``counts``: training and test images; 0 where the folder decides.
    - ``load``: function of ``Data`` → arrays ``{train,test}_{images,labels}``: uint8 [N, C, H, W], int64 [N].
    - ``streamed``: whether the images stay files that are read while training; ``load`` then gives listings
      of them.
    - ``top5``: whether top-5 accuracy is measured beside top-1.
    - ``locate``: function of ``Data`` → where the images are, in words, without reading them.
    """

    classes: int
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    flip: bool
    counts: tuple[int, int]
    load: Callable[[Data], dict[str, Tensor]]
    locate: Callable[[Data], str]
    streamed: bool = False
    top5: bool = False
