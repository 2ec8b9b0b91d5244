"""One split of an image tree that is too large for memory: files are read, decoded and augmented while
training, in worker processes.

Order, crops and mirrorings are a function of (seed, epoch, image) only, whatever the number of workers and
processes.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..processes import world as processes_here
from .batches import Batch, evenly_spaced, normalised, order_generator
from .decoding import test_pixels, train_pixels
from .entry import DataError, Dataset
from .preflight import Listing

# Batches that every worker has ready, and workers of one process at the most.
AHEAD = 4
MAX_WORKERS = 16


def worker_count(device: torch.device) -> int:
    """Worker processes that decode for one training process: the cores that are left to it beside a GPU; none
    on a CPU, whose cores train.
    """
    if device.type == "cpu":
        return 0
    return max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)) // processes_here() - 1))


def rows(listing: Listing, chosen: np.ndarray) -> Listing:
    """Some images of a listing, in the order of ``chosen``."""
    return replace(
        listing, names=listing.names[chosen], labels=listing.labels[chosen], sizes=listing.sizes[chosen]
    )


def of_classes(listing: Listing, positions: Sequence[int]) -> Listing:
    """The images of some classes, given by ascending positions; labels count these classes only."""
    chosen = rows(listing, np.flatnonzero(np.isin(listing.labels, positions)))
    return replace(
        chosen,
        labels=np.searchsorted(positions, chosen.labels),
        classes=tuple(listing.classes[position] for position in positions),
    )


class _Pixels:
    """What a worker is asked for: whole batches, as uint8 [B, 3, side, side] in channels_last, with the
    images' indices.

    **Arguments:** ``augmentation``: (seed, epoch), or nothing for the images as they are.
    """

    def __init__(self, listing: Listing, side: int, augmentation: tuple[int, int] | None):
        self.listing, self.side, self.augmentation = listing, side, augmentation

    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        pixels = np.empty((len(indices), self.side, self.side, 3), dtype=np.uint8)
        for row, index in enumerate(indices):
            path = self.listing.path(index)
            if self.augmentation is None:
                pixels[row] = test_pixels(path, self.side)
            else:
                pixels[row] = train_pixels(
                    path, self.side, np.random.default_rng((*self.augmentation, index))
                )
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(indices)


class StreamedImages:
    """One split whose images stay files; used as ``Images`` is.

    **Arguments:** ``listing`` of the files, ``entry`` of the data set, ``device`` of the batches.
    """

    def __init__(self, listing: Listing, entry: Dataset, device: torch.device):
        self.listing, self.entry, self.device = listing, entry, device
        self.labels = torch.from_numpy(listing.labels)
        self._mean, self._std = (
            torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (entry.mean, entry.std)
        )

    def __len__(self) -> int:
        return len(self.listing)

    def train_batches(
        self, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1, first: int = 0
    ) -> Iterator[Batch]:
        """Shuffled, augmented batches from number ``first`` on (random resized crop, mirrored at random); the
        last one may be smaller.

        Each process takes every ``world``-th image of the global batch.

        **Raises:** ``DataError`` naming a file that cannot be read.
        """
        order = torch.randperm(len(self), generator=order_generator(seed, epoch)).tolist()
        shares = [
            order[start : start + batch_size][rank::world]
            for start in range(first * batch_size, len(order), batch_size)
        ]
        for pixels, chosen in self._loaded(shares, (seed, epoch)):
            yield Batch(
                normalised(pixels, self._mean, self._std),
                self.labels[chosen].to(self.device, non_blocking=True),
                chosen.to(self.device),
            )

    def ordered_batches(
        self, batch_size: int = 256, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Un-augmented batches in the stored order; each process takes every ``world``-th of them.

        **Raises:** ``DataError`` naming a file that cannot be read.
        """
        shares = [
            list(range(start, min(start + batch_size, len(self))))
            for start in range(rank * batch_size, len(self), world * batch_size)
        ]
        for pixels, chosen in self._loaded(shares, None):
            yield (
                normalised(pixels, self._mean, self._std),
                self.labels[chosen].to(self.device, non_blocking=True),
            )

    def spread(self, count: int) -> "StreamedImages":
        """``count`` images, evenly spaced in the stored order, which is that of the classes; all if there are
        no more.
        """
        return StreamedImages(
            rows(self.listing, evenly_spaced(count, len(self)).numpy()), self.entry, self.device
        )

    def _loaded(
        self, shares: list[list[int]], augmentation: tuple[int, int] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of pixels on the device, with the indices on the CPU."""
        workers = worker_count(self.device)
        loader = DataLoader(
            _Pixels(self.listing, self.entry.image_size, augmentation),
            batch_size=None,  # a batch is one item
            sampler=shares,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            pin_memory=self.device.type == "cuda",
        )
        try:
            for pixels, chosen in loader:
                yield pixels.to(self.device, non_blocking=True), chosen
        except DataError as error:
            # What comes out of a worker has its whole traceback as its message.
            raise DataError(
                str(error)
                .strip()
                .splitlines()[-1]
                .removeprefix(f"{DataError.__module__}.{DataError.__name__}: ")
            ) from None
