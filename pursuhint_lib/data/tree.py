"""Image trees <root>/{train, test or val}/<class>/<image>: one listing for all of them, and what is wrong
with one that cannot be used.

Labels are positions in the sorted class names, so only a tree whose folders are the WordNet ids of ImageNet
has the labels of a teacher that was pretrained on it.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .batches import evenly_spaced
from .decoding import look_at, without_remarks
from .entry import DataError, Dataset

# What systems and tools leave among images begins so: hidden files and folders (.ipynb_checkpoints, macOS's
# companion "._x.png" of x.png), thumbnails, and what was deleted or found.
LEFT_OUT = (".", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
# Endings of the files that torchvision's ImageFolder takes for images.
IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
WORDNET_ID = re.compile(r"n\d{8}")
LAYOUT = "see docs/reproducing.md#imagenet"
# Listing waits for the file system, on a network drive for milliseconds per file; so many folders wait at
# once.
LISTING_THREADS = 16
# Files that are always tried: a file that was cut short is among the smallest.
SMALLEST = 5


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of one split, sorted by class, then by file name.

    **Arguments:**

    - ``folder``: the split's folder.
    - ``names``: "<class>/<file>" of each image as bytes; an array, for a million Python strings would be
      copied into every worker.
    - ``labels``, ``sizes``: int64; position of its class in ``classes``, length of its file in bytes.
    - ``classes``: the class folders.
    """

    folder: Path
    names: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """File of an image."""
        return self.folder / os.fsdecode(self.names[index])


def read_tree(
    root: Path,
    evaluation: Sequence[str] = ("test", "val"),
    known: Dataset | None = None,
    class_names: re.Pattern | None = None,
) -> tuple[Listing, Listing]:
    """Training and evaluation images of a tree, checked by names and sizes alone.

    **Arguments:** ``evaluation``: what its folder may be called, the first one that has classes; ``known``:
    the data set that it must be the whole of; ``class_names``: what every class must be called.

    **Raises:** ``DataError`` for the first thing that is wrong.
    """
    folders = split_folders(root, evaluation)
    train, test = (set(class_folders(folder)) for folder in folders)
    if train != test:
        only = dict(zip(folders, (sorted(train - test), sorted(test - train)), strict=True))
        told = "; ".join(f"only {folder} has {_some(names)}" for folder, names in only.items() if names)
        raise DataError(f"{root} must have the same class folders in both splits, but {told}; {LAYOUT}")
    others = sorted(name for name in train if class_names and not class_names.fullmatch(name))
    if others:
        raise DataError(
            f"{root} has class folders that are not named by WordNet ids n########: {_some(others)}; their "
            f"sorted order gives other labels than the pretrained teacher's; {LAYOUT}"
        )
    listings = tuple(list_split(folder, sorted(train)) for folder in folders)
    if known:
        _check_counts(root, *listings, known)
    return listings


def split_folders(root: Path, evaluation: Sequence[str] = ("test", "val")) -> tuple[Path, Path]:
    """Folders of the training and of the evaluation images.

    **Raises:** ``DataError`` where one is missing or has no class folders.
    """
    found = []
    for names in (("train",), evaluation):
        folder = next((root / name for name in names if class_folders(root / name)), None)
        if folder is None:
            there = _some(sorted(os.listdir(root))) if root.is_dir() else "nothing"
            raise DataError(
                f"{root} has no {' or '.join(f'{name}/<class>/<image>' for name in names)}, only {there}; "
                f"{LAYOUT}"
            )
        found.append(folder)
    return tuple(found)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None


@_readable()
def class_folders(split: Path) -> list[str]:
    """Sorted class folders of a split; none where it is no folder itself."""
    if not split.is_dir():
        return []
    return sorted(entry.name for entry in _entries(split) if _is_folder(entry))


@_readable()
def list_split(folder: Path, classes: Sequence[str]) -> Listing:
    """List the images of these classes, however deep in the class's folder, without opening them.

    **Raises:** ``DataError`` for a class without images, or a folder or link that cannot be read.
    """
    # A link that leads back to where it is, or above it, adds nothing.
    around = {_identity(place) for place in (folder, *folder.resolve().parents)}
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        parts = list(pool.map(lambda name: _list_class(folder, name, around), classes))
    counts = [len(sizes) for _, sizes in parts]
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise DataError(
            f"{folder} has no images ({', '.join(IMAGES)}) in {len(empty)} of {len(classes)} class "
            f"folders: {_some(empty)}; put some there, or remove the folders; {LAYOUT}"
        )
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    names, sizes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Listing(folder, names, labels, sizes, tuple(classes))


def _list_class(folder: Path, name: str, around: set[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Sorted "<class>/<file>" and sizes of a class's images; each folder is looked into once."""
    found, seen, waiting = [], set(around), [name]
    while waiting:
        inner = waiting.pop()
        identity = _identity(folder / inner)
        if identity in seen:
            continue
        seen.add(identity)
        for entry in _entries(folder / inner):
            if _is_folder(entry):
                waiting.append(f"{inner}/{entry.name}")
            elif entry.name.lower().endswith(IMAGES):
                found.append((f"{inner}/{entry.name}", entry.stat().st_size))
    found.sort()
    names = np.array([os.fsencode(file) for file, _ in found], dtype=np.bytes_)
    return names, np.array([size for _, size in found], dtype=np.int64)


def _entries(folder: Path) -> list[os.DirEntry]:
    """What is in a folder, but for what is never part of a data set."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(LEFT_OUT)]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _some(names: Sequence[str]) -> str:
    """The first three names, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "nothing") + more


def _check_counts(root: Path, train: Listing, test: Listing, known: Dataset) -> None:
    """The tree has all images of a data set, whose classes have equal shares of those for evaluation."""
    share = known.counts[1] // known.classes
    uneven = np.bincount(test.labels) != share
    if (len(train.classes), len(train), len(test)) == (known.classes, *known.counts) and not uneven.any():
        return
    part, label = (test, uneven.argmax()) if uneven.any() else (train, np.bincount(train.labels).argmin())
    raise DataError(
        f"{root} has {len(train.classes)} classes and {len(train)} + {len(test)} images, not {known.classes} "
        f"classes and {known.counts[0]} + {known.counts[1]} images, {share} of each class in the latter; "
        f"{part.folder / part.classes[label]} has {np.count_nonzero(part.labels == label)}; unpack all of "
        f"it; {LAYOUT}"
    )


def try_images(listing: Listing, side: int, channels: int = 3, sample: int = 200) -> str:
    """Decode an evenly spread sample of the images, and the smallest files.

    **Returns:** what was seen: modes of the files (Pillow's names), and the range of the pixels.

    **Raises:** ``DataError`` which names the first that cannot be read, or when all are the same.
    """
    chosen = np.union1d(evenly_spaced(sample, len(listing)), np.argsort(listing.sizes)[:SMALLEST])
    with without_remarks(), ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda index: look_at(listing.path(index), side, channels), chosen))
    pixels = np.stack([image for image, _ in found])
    if len(pixels) > 1 and (pixels == pixels[0]).all():
        raise DataError(
            f"{listing.folder}: all {len(pixels)} images that were tried look the same, with pixels from "
            f"{pixels.min()} to {pixels.max()}; see docs/reproducing.md#image-folders"
        )
    modes = ", ".join(f"{count} {mode}" for mode, count in Counter(mode for _, mode in found).most_common())
    return f"{modes}, pixels {pixels.min()} to {pixels.max()}"


def digest(train: Listing, test: Listing) -> str:
    """16 hex digits that name the content of a tree: names, labels and sizes, but neither place, time nor
    pixels.
    """
    content = hashlib.sha256()
    for listing in (train, test):
        content.update(f"{len(listing)}\n".encode())
        # Joined, since the bytes of an array depend on the longest name; no name has a zero byte.
        content.update(b"\0".join(listing.names.tolist()))
        for numbers in (listing.labels, listing.sizes):
            content.update(numbers.astype("<i8").tobytes())
    return content.hexdigest()[:16]
