"""Which images of a data set a run learns from, and on which it is evaluated."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..settings import Data
from .entry import DataError


def chosen(settings: Data, labels: Callable[[str], Tensor]) -> list[tuple[str, Tensor]]:
    """The images that are learnt and those that are evaluated, as (split, ascending indices).

    **Arguments:** ``labels`` of a split; those of the test images are not asked for where training images are
    held out.
    """
    seed, what = settings.subset_seed, f"{settings.dataset} {{}}".format
    train = labels("train")
    if settings.held_out is None:
        learnt = _stratified(train, settings.train_images, seed, what("train"))
        return [
            ("train", learnt),
            ("test", _stratified(labels("test"), settings.test_images, seed, what("test"))),
        ]
    if (settings.train_images or 0) + settings.held_out > len(train):
        asked = f"{settings.held_out} held out beside {settings.train_images or 'the others'}"
        raise DataError(
            f"{settings.dataset} has {len(train)} training images, too few for {asked}; give fewer"
        )
    # The images that are learnt are the same as where none are held out.
    learnt = _stratified(train, settings.train_images or len(train) - settings.held_out, seed, what("train"))
    others = torch.from_numpy(np.setdiff1d(np.arange(len(train)), learnt.numpy()))
    held_out = _stratified(train[others], settings.held_out, seed, what("rest of train"))
    return [("train", learnt), ("train", others[held_out])]


def _stratified(labels: Tensor, count: int | None, seed: int, what: str) -> Tensor:
    """Ascending indices of a subset in which every class keeps its share; all when no count is given."""
    everything = np.arange(len(labels))
    if count is None or count == len(labels):
        return torch.from_numpy(everything)
    classes = len(labels.unique())
    # The images left out must show every class too, or the shares could not be kept.
    if not classes <= count <= len(labels) - classes:
        limits = f"give {classes} to {len(labels) - classes}, or none for all"
        raise DataError(
            f"{what} has {len(labels)} images of {classes} classes; a subset of {count} cannot keep their "
            f"shares; {limits}"
        )
    # Here, as below: what only reads results does not wait for it.
    from sklearn.model_selection import train_test_split

    keep, _ = train_test_split(everything, train_size=count, stratify=labels.numpy(), random_state=seed)
    return torch.from_numpy(np.sort(keep))
