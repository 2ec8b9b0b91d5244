"""Data sets as uint8 arrays, and batches of them made on the device.

A data set is decoded once (``load_splits``) and lives on the device as uint8; cropping, flipping
and normalising happen there, in batches. ImageNet stays files, which are decoded while training.
Order and augmentation are a function of (seed, epoch) only.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..paths import data_root, sample_tree
from ..settings import Data, SettingsError, choose
from .arrays import cached, check_size
from .batches import Images, Split, evenly_spaced
from .entry import DataError, Dataset, NotDownloaded
from .sample import SAMPLE_CLASSES, SAMPLE_IMAGES, make_sample
from .stream import StreamedImages, of_classes, rows
from .subsets import chosen
from .tree import (
    WORDNET_ID,
    Listing,
    class_folders,
    digest,
    list_split,
    read_tree,
    split_folders,
    try_images,
)


def describe(settings: Data) -> Dataset:
    """The data set's entry; for an image folder, completed from the tree.

    **Raises:** ``SettingsError`` for an unknown name, ``DataError`` for a folder without classes.
    """
    entry = DATASETS[choose("data set", settings.dataset, DATASETS)]
    if entry.streamed:
        if settings.classes and not 2 <= settings.classes <= entry.classes:
            raise SettingsError(
                f"classes is {settings.classes}, but {settings.dataset} has {entry.classes}; give 2 to "
                f"{entry.classes}"
            )
        return replace(
            entry,
            classes=settings.classes or entry.classes,
            image_size=settings.image_size or entry.image_size,
        )
    if settings.classes:
        raise SettingsError(
            f"classes can be given for {', '.join(name for name, e in DATASETS.items() if e.streamed)}, not "
            f"for {settings.dataset}"
        )
    if settings.dataset != "imagefolder":
        return entry
    if not settings.root or not settings.image_size:
        raise SettingsError(
            "the data set imagefolder needs root (a folder under the data folder) and image_size (pixels)"
        )
    if not (data_root() / settings.root).is_dir() and (there := class_folders(data_root())):
        choose(f"root in {data_root()}", settings.root, there)
    classes = len(class_folders(split_folders(data_root() / settings.root)[0]))
    return replace(entry, classes=classes, image_size=settings.image_size, padding=settings.image_size // 8)


def example_input(settings: Data) -> Tensor:
    """A zero image [1, C, H, W] of the data set's shape, for dry runs."""
    entry = describe(settings)
    return torch.zeros(1, entry.channels, entry.image_size, entry.image_size)


def class_positions(settings: Data) -> list[int] | None:
    """Positions of the settings' classes among all of the data set; nothing when all are used."""
    return (
        None
        if settings.classes is None
        else evenly_spaced(settings.classes, DATASETS[settings.dataset].classes).tolist()
    )


def image_counts(settings: Data) -> tuple[int, int]:
    """Number of images that a run will learn from, and that it is evaluated on; for some of ImageNet's
    classes about their share of all.
    """
    train, test = describe(settings).counts
    if settings.classes:
        train, test = (
            count * settings.classes // DATASETS[settings.dataset].classes for count in (train, test)
        )
    if settings.dataset == "imagefolder":
        folders = split_folders(data_root() / settings.root)
        train, test = (len(list_split(folder, class_folders(folder))) for folder in folders)
    learnt = settings.train_images or train - (settings.held_out or 0)
    return learnt, settings.held_out or settings.test_images or test


@dataclass(frozen=True)
class Splits:
    """Training and test images of one run, and a checksum of both; the latter are training images where some
    are held out.
    """

    train: Split
    test: Split
    checksum: str


def load_splits(settings: Data, device: torch.device) -> Splits:
    """Load a data set, take the subsets that the settings ask for, and put them on the device.

    **Raises:** ``DataError`` if it is not there, not readable, or smaller than asked for.
    """
    entry = describe(settings)
    if entry.streamed:
        # The pixels are never read at once, so the checksum is of names and sizes.
        listings = _subsets(settings, entry.load(settings))
        return Splits(*(StreamedImages(listing, entry, device) for listing in listings), digest(*listings))
    arrays = entry.load(settings)
    parts, content = [], hashlib.sha256()
    for split, keep in chosen(settings, lambda split: arrays[f"{split}_labels"]):
        parts.append((arrays[f"{split}_images"][keep], arrays[f"{split}_labels"][keep]))
        for tensor in parts[-1]:
            content.update(tensor.numpy().tobytes())
    return Splits(*(Images(*part, entry, device) for part in parts), content.hexdigest()[:16])


def _subsets(settings: Data, tree: tuple[Listing, Listing]) -> list[Listing]:
    """Images of the classes and subsets that the settings ask for."""
    positions, found = class_positions(settings), dict(zip(("train", "test"), tree, strict=True))
    if positions is not None:
        found = {split: of_classes(listing, positions) for split, listing in found.items()}
    return [
        rows(found[split], keep.numpy())
        for split, keep in chosen(settings, lambda split: torch.from_numpy(found[split].labels))
    ]


def _located(settings: Data, tree: tuple[Listing, Listing]) -> str:
    """What there is of an image tree, in words, and what a sample of it looks like."""
    entry = describe(settings)
    seen = [try_images(part, entry.image_size, entry.channels) for part in _subsets(settings, tree)]
    if not entry.streamed:
        for listing in tree:
            check_size(listing, entry.image_size, entry.channels)
    train, test = tree
    return (
        f"image tree {train.folder.parent}, {len(train)} + {len(test)} images of {len(train.classes)} "
        f"classes, a sample of them decoded ({'; '.join(seen)})"
    )


def _digits(settings: Data) -> dict[str, Tensor]:
    """scikit-learn's 1 797 handwritten digits, 8×8, values 0 … 16. The first 1 000 are for training."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy((digits.images * 255 / 16).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return {
        "train_images": images[:1000],
        "train_labels": labels[:1000],
        "test_images": images[1000:],
        "test_labels": labels[1000:],
    }


@dataclass(frozen=True)
class _Torchvision:
    """A small torchvision set: from an image tree <data>/<name>/{train,test}/<class>/, from torchvision's own
    files in <data>/<folder>, or downloaded there by torchvision, which checks the published MD5.
    """

    name: str
    folder: str
    reader: str

    def _tree(self) -> tuple[Listing, Listing] | None:
        root = data_root() / self.name
        return read_tree(root, known=DATASETS[self.name]) if (root / "train").is_dir() else None

    def locate(self, settings: Data) -> str:
        if tree := self._tree():
            return _located(settings, tree)
        if (data_root() / self.folder).is_dir():
            return f"torchvision's files in {data_root() / self.folder}"
        raise NotDownloaded(
            f"{self.name} is not in {data_root()}: neither an image tree {self.name}/train/<class>/*.png nor "
            f"torchvision's {self.folder}/; "
            f"the run will try to download it, or set PURSUHINT_DATA to the folder that has it"
        )

    def load(self, settings: Data) -> dict[str, Tensor]:
        root, entry = data_root(), DATASETS[self.name]
        if tree := self._tree():
            return cached(self.name, tree, entry.image_size, entry.channels)
        from torchvision import datasets

        reader, download = getattr(datasets, self.reader), not (root / self.folder).is_dir()
        try:
            splits = {
                split: reader(root, train=split == "train", download=download) for split in ("train", "test")
            }
        except (RuntimeError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            tried = f"cannot be downloaded to {root}" if download else f"is damaged in {root / self.folder}"
            raise DataError(
                f"{self.name} {tried} ({reason}); remove what is there, or set PURSUHINT_DATA to a folder "
                "that has it"
            ) from None
        arrays = {}
        for split, content in splits.items():
            pixels = torch.as_tensor(np.asarray(content.data))
            arrays[f"{split}_images"] = (
                pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
            )
            arrays[f"{split}_labels"] = torch.as_tensor(content.targets, dtype=torch.int64)
        return arrays


def _imagefolder(settings: Data) -> dict[str, Tensor]:
    """Any tree <data>/<root>/{train, test or val}/<class>/<image>, resized and cropped to a square."""
    root = data_root() / settings.root
    return cached(f"{root.name}-{settings.image_size}", read_tree(root), settings.image_size, 3)


def _imagenet(settings: Data) -> tuple[Listing, Listing]:
    """The image tree <data>/imagenet/{train,val}/<class>/, or that in the data folder itself, if it is the
    whole of ImageNet.
    """
    inner = data_root() / "imagenet"
    root = inner if inner.is_dir() else data_root()
    return read_tree(root, ["val"], DATASETS["imagenet"], WORDNET_ID)


def _sample(settings: Data) -> tuple[Listing, Listing]:
    """An image tree of ImageNet's form, made from some of CIFAR-100 when it is not there."""
    if not sample_tree().is_dir():
        make_sample(DATASETS["cifar100"].load(Data("cifar100")), sample_tree())
    return read_tree(sample_tree(), ["val"])


def _locate_sample(settings: Data) -> str:
    if sample_tree().is_dir():
        return _located(settings, _sample(settings))
    return f"will be made in {sample_tree()} from CIFAR-100: {DATASETS['cifar100'].locate(Data('cifar100'))}"


_fashion = _Torchvision("fashion-mnist", "FashionMNIST", "FashionMNIST")
_cifar10 = _Torchvision("cifar10", "cifar-10-batches-py", "CIFAR10")
_cifar100 = _Torchvision("cifar100", "cifar-100-python", "CIFAR100")
_IMAGENET = {
    "channels": 3,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "padding": 0,
    "flip": True,
    "streamed": True,
    "top5": True,
}
_CIFAR = {"channels": 3, "image_size": 32, "padding": 4, "flip": True, "counts": (50_000, 10_000)}

# A new data set is one entry. Mean and standard deviation are those of the training images.
DATASETS: dict[str, Dataset] = {
    "digits": Dataset(
        classes=10,
        channels=1,
        image_size=8,
        mean=(0.3070,),
        std=(0.3764,),
        padding=1,
        flip=False,
        counts=(1000, 797),
        load=_digits,
        locate=lambda settings: "ships with scikit-learn",
    ),
    "fashion-mnist": Dataset(
        classes=10,
        channels=1,
        image_size=28,
        mean=(0.2860,),
        std=(0.3530,),
        padding=2,
        flip=True,
        counts=(60_000, 10_000),
        load=_fashion.load,
        locate=_fashion.locate,
    ),
    "cifar10": Dataset(
        classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        **_CIFAR,
        load=_cifar10.load,
        locate=_cifar10.locate,
    ),
    "cifar100": Dataset(
        classes=100,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        **_CIFAR,
        load=_cifar100.load,
        locate=_cifar100.locate,
    ),
    "imagenet": Dataset(
        classes=1000,
        image_size=224,
        counts=(1_281_167, 50_000),
        **_IMAGENET,
        load=_imagenet,
        locate=lambda settings: _located(settings, _imagenet(settings)),
    ),
    # What the code for ImageNet is tried with where there is no ImageNet.
    "imagenet-sample": Dataset(
        classes=SAMPLE_CLASSES,
        image_size=64,
        counts=(SAMPLE_CLASSES * SAMPLE_IMAGES[0], SAMPLE_CLASSES * SAMPLE_IMAGES[1]),
        **_IMAGENET,
        load=_sample,
        locate=_locate_sample,
    ),
    # Statistics of ImageNet, which its pretrained networks expect; classes, size and padding come from the
    # folder.
    "imagefolder": Dataset(
        classes=0,
        channels=3,
        image_size=0,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        padding=0,
        flip=True,
        counts=(0, 0),
        load=_imagefolder,
        locate=lambda settings: _located(settings, read_tree(data_root() / settings.root)),
    ),
}
