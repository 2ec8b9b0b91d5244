"""One split on one device, and batches of it: cropped, mirrored and normalised there, all images of a batch
at once.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .entry import Dataset


def evenly_spaced(count: int, total: int) -> Tensor:
    """Ascending indices of ``count`` out of ``total`` rows; of all of them if there are no more."""
    count = min(count, total)
    return torch.arange(count) * total // count


def drawn_seed(*numbers: int) -> int:
    """One seed from several numbers, any of which changes it as if by chance."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def order_generator(seed: int, epoch: int) -> torch.Generator:
    """Source of the order of an epoch's images: a function of seed and epoch only."""
    return torch.Generator().manual_seed(drawn_seed(seed, epoch))


class Batch(NamedTuple):
    """Images float32 [B, C, H, W], their labels [B], and their indices [B] in the split."""

    images: Tensor
    labels: Tensor
    indices: Tensor


class Split:
    """Images of one split for one device, with ``labels`` int64 [N].

    What it gives is ``train_batches``, ``ordered_batches`` and ``at``, as ``Images`` says, and ``spread``.
    """

    def __init__(self, labels: Tensor, entry: Dataset, device: torch.device):
        self.labels, self.entry, self.device = labels, entry, device
        self._mean, self._std = (
            torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (entry.mean, entry.std)
        )

    def __len__(self) -> int:
        return len(self.labels)

    def spread(self, count: int) -> "Split":
        """``count`` images, evenly spaced in the stored order, which in an image tree is that of the classes;
        all if there are no more.
        """
        return self.at(evenly_spaced(count, len(self)))

    def _normalised(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] as float32 of mean 0 and deviation 1 per channel, in the memory layout that
        convolutions like.
        """
        return ((images.float() / 255 - self._mean) / self._std).contiguous(memory_format=torch.channels_last)


class Images(Split):
    """One split on one device.

    **Arguments:** ``images`` uint8 [N, C, H, W], ``labels`` int64 [N], ``entry`` of the data set, ``device``.
    """

    def __init__(self, images: Tensor, labels: Tensor, entry: Dataset, device: torch.device):
        super().__init__(labels.to(device), entry, device)
        self.images = images.to(device)

    def train_batches(
        self, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1, first: int = 0
    ) -> Iterator[Batch]:
        """Shuffled, augmented batches from number ``first`` on; the last one may be smaller.

        Each process takes every ``world``-th image of the global batch.
        """
        generator = order_generator(seed, epoch)
        order = torch.randperm(len(self), generator=generator)
        shifts = torch.randint(0, 2 * self.entry.padding + 1, (len(self), 2), generator=generator)
        mirrored = torch.rand(len(self), generator=generator) < (0.5 if self.entry.flip else 0.0)
        order, shifts, mirrored = (t.to(self.device) for t in (order, shifts, mirrored))
        for start in range(first * batch_size, len(self), batch_size):
            chosen = order[start : start + batch_size][rank::world]
            yield Batch(
                self._normalised(self._augmented(chosen, shifts[chosen], mirrored[chosen])),
                self.labels[chosen],
                chosen,
            )

    def ordered_batches(
        self, batch_size: int = 500, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Un-augmented batches in the stored order; each process takes every ``world``-th of them."""
        for start in range(rank * batch_size, len(self), world * batch_size):
            yield (
                self._normalised(self.images[start : start + batch_size]),
                self.labels[start : start + batch_size],
            )

    def at(self, rows: Tensor) -> "Images":
        """The images of these indices [n], in this order."""
        return Images(self.images[rows], self.labels[rows], self.entry, self.device)

    def _augmented(self, chosen: Tensor, shifts: Tensor, mirrored: Tensor) -> Tensor:
        """Crop each padded image at its own shift and mirror those marked: one gather for the whole batch."""
        side, pad = self.entry.image_size, self.entry.padding
        images = torch.nn.functional.pad(self.images[chosen], (pad, pad, pad, pad))
        rows = shifts[:, :1] + torch.arange(side, device=self.device)
        columns = torch.arange(side, device=self.device).expand(len(chosen), side)
        columns = shifts[:, 1:] + torch.where(mirrored[:, None], columns.flip(1), columns)
        index = torch.arange(len(chosen), device=self.device)[:, None, None]
        return images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
