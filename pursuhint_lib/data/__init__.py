"""Data sets as uint8 arrays, and batches of them made on the device.

A data set is decoded once (``load_splits``) and lives on the device as uint8; cropping, flipping
and normalising happen there, in batches. ImageNet stays files, which are decoded while training.
Order and augmentation are a function of (seed, epoch) only.
"""

from .batches import Batch, Images, drawn_seed, evenly_spaced
from .datasets import (
    DATASETS,
    Splits,
    _Torchvision,
    class_positions,
    describe,
    example_input,
    image_counts,
    load_splits,
)
from .entry import DataError, Dataset, NotDownloaded
from .stream import StreamedImages
from .trees import list_images
