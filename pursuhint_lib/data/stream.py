"""One split of an image tree that is too large for memory: files are read, decoded and augmented while
training, in worker processes.

Order, crops and mirrorings are a function of (seed, epoch, image) only, whatever the number of workers and
processes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..processes import available_cores
from ..processes import world as processes_here
from .batches import Batch, Split, order_generator
from .decoding import jpeg_decoder, test_pixels, train_pixels
from .entry import DataError, Dataset
from .tree import Listing

# Batches that every worker has ready, and workers of one process at the most.
AHEAD = 4
MAX_WORKERS = 16


def worker_count(device: torch.device) -> int:
    """Worker processes that decode for one training process: the cores that are left to it beside a GPU; none
    on a CPU, whose cores train.
    """
    if device.type == "cpu":
        return 0
    return max(1, min(MAX_WORKERS, available_cores() // processes_here() - 1))


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


def _pixels(
    listing: Listing, side: int, augmentation: tuple[int, int] | None, indices: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """What a worker makes of a batch: uint8 [B, 3, side, side] in channels_last, and the images' indices.

    **Arguments:** ``augmentation``: (seed, epoch), or nothing for the images as they are.
    """
    pixels = np.empty((len(indices), side, side, 3), dtype=np.uint8)
    for row, index in enumerate(indices):
        if augmentation is None:
            pixels[row] = test_pixels(listing.path(index), side)
        else:
            draws = np.random.default_rng((*augmentation, index))
            pixels[row] = train_pixels(listing.path(index), side, draws)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(indices)


class StreamedImages(Split):
    """One split whose images stay files; used as ``Images`` is.

    **Arguments:** ``listing`` of the files, ``entry`` of the data set, ``device`` of the batches.
    """

    def __init__(self, listing: Listing, entry: Dataset, device: torch.device):
        super().__init__(torch.from_numpy(listing.labels), entry, device)
        self.listing = listing
        # Once here, and not in every worker.
        jpeg_decoder()

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
                self._normalised(pixels),
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
                self._normalised(pixels),
                self.labels[chosen].to(self.device, non_blocking=True),
            )

    def at(self, indices: Tensor) -> "StreamedImages":
        """The images of these indices [n], in this order."""
        return StreamedImages(rows(self.listing, indices.numpy()), self.entry, self.device)

    def _loaded(
        self, shares: list[list[int]], augmentation: tuple[int, int] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of pixels on the device, with the indices on the CPU."""
        workers = worker_count(self.device)
        loader = DataLoader(
            range(len(self)),
            batch_sampler=shares,
            collate_fn=partial(_pixels, self.listing, self.entry.image_size, augmentation),
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
