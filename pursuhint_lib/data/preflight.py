"""Before training on a large image tree: its listing, and what exactly is wrong with one that cannot be used.

A tree is <root>/{train,val}/<class>/<image>. Labels are positions in the sorted class names, so only a tree
whose folders are the WordNet ids of ImageNet has the labels of a teacher that was pretrained on it.
"""

import hashlib
import io
import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS

from .entry import DataError

SPLITS = ("train", "val")
WORDNET_ID = re.compile(r"n\d{8}")
ARCHIVE = re.compile(r"(ilsvrc|imagenet|n\d{8}).*\.(tar|tar\.gz|tgz|zip)", re.IGNORECASE)
# Where Kaggle's download keeps train/ and val/, from wherever one may point into it.
KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
VALPREP = "valprep.sh (of soumith/imagenetloader.torch)"
UNPACK = (
    "unpack ILSVRC2012_img_train.tar into train/ and each n########.tar in it into a folder of its name, "
    f"unpack ILSVRC2012_img_val.tar into val/ and run {VALPREP} there"
)

# Listing waits for the file system, on a network drive for milliseconds per file; so many folders wait at
# once.
LISTING_THREADS = 16
# Files that are always decoded: a file that was cut short is among the smallest.
SMALLEST = 5


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of one split, sorted by class, then by file name.

    **Arguments:**

    - ``folder``: the split's folder.
    - ``names``: "<class>/<file>" of each image as bytes; an array, for a million Python strings would be
      copied into every worker.
    - ``labels``, ``sizes``: int64; position of its class in ``classes``, length of its file in bytes.
    - ``classes``: the class folders; one without images is among them.
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


def list_split(folder: Path, classes: Sequence[str] | None = None) -> Listing:
    """List the images <class>/<file> of a split without opening them; hidden files and folders inside a class
    are left out.

    **Arguments:** ``classes``: only these, labelled by their position here; all class folders in sorted order
    when not given.

    **Raises:** ``DataError`` when there are no class folders, or one cannot be read.
    """
    if classes is None:
        classes, _ = _content(folder)
        if not classes:
            raise DataError(f"{folder} has no class folders; expected {folder}/<class>/<image>")
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        parts = list(pool.map(lambda name: _list_class(folder, name), classes))
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(names) for names, _ in parts])
    names, sizes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Listing(Path(folder), names, labels, sizes, tuple(classes))


def _list_class(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Names and sizes of a class's images."""
    try:
        with os.scandir(folder / name) as entries:
            found = sorted(
                (e.name, e.stat().st_size) for e in entries if _is_image(e.name) and not e.is_dir()
            )
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
    names = np.array([os.fsencode(f"{name}/{file}") for file, _ in found], dtype=np.bytes_)
    return names, np.array([size for _, size in found], dtype=np.int64)


def _is_image(name: str) -> bool:
    # macOS leaves a hidden companion "._x.JPEG" beside x.JPEG on foreign drives; it is no image.
    return name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")


def _content(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, sorted, without hidden ones."""
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from None
    return sorted(folders), sorted(files)


def _some(names: Sequence[str]) -> str:
    """The first three names, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def find_tree(root: Path) -> Path:
    """The folder that has train/ and val/: <root>/imagenet, or the root itself.

    **Raises:** ``DataError`` which says what is in both instead.
    """
    places = (root / "imagenet", root)
    for place in places:
        if all((place / split).is_dir() for split in SPLITS):
            return place
    found = "; ".join(f"{place} {_what_is_in(place)}" for place in places)
    raise DataError(f"no folder with train/ and val/ was found: {found}")


def _what_is_in(place: Path) -> str:
    """What a folder without train/ and val/ has, and what to do about it."""
    if not place.is_dir():
        return "is not a folder" if place.exists() else "does not exist"
    folders, files = _content(place)
    if not folders and not files:
        return "is empty"
    for inner in KAGGLE:
        if (place / inner / "train").is_dir():
            return (
                f"has Kaggle's layout: point at {place / inner}, and sort its flat val/ into class "
                f"folders with {VALPREP}"
            )
    packed = [name for name in files if ARCHIVE.fullmatch(name)]
    classes = [name for name in folders if WORDNET_ID.fullmatch(name)]
    if packed:
        have = next((f" (beside {split}/)" for split in SPLITS if split in folders), "")
        return f"is not unpacked yet, it has {_some(packed)}{have}: {UNPACK}"
    if "train" in folders and "test" in folders:
        return (
            "has train/ and test/ but no val/: rename test/ if it has class folders (ImageNet's own test "
            "images have no labels)"
        )
    if "train" in folders or "val" in folders:
        return "has train/ but no val/" if "train" in folders else "has val/ but no train/"
    if classes:
        return (
            f"has {len(classes)} class folders ({_some(classes)}) outside train/ and val/: move them "
            "into "
            "one of these"
        )
    return f"has neither, only {_some(folders + files)}"


def check_structure(
    root: Path, counts: tuple[int, int] | None, class_count: int | None
) -> tuple[Listing, Listing]:
    """Training and validation images of a tree that has been checked from names and sizes alone.

    **Arguments:**

    - ``counts``: training and validation images, every class having its equal share of the latter; any
      numbers when not given.
    - ``class_count``: number of classes, which then must be named by WordNet ids; any number and names when
      not given.

    **Raises:** ``DataError`` for the first thing that is wrong.
    """
    tree = find_tree(root)
    folders = [tree / split for split in SPLITS]
    train, val = (_class_folders(folder, class_count) for folder in folders)
    if class_count is not None:
        _check_number(folders[0], train, val, class_count)
        _check_number(folders[1], val, train, class_count)
    if train != val:
        missing = (
            (split, sorted({*train, *val} - {*names}))
            for split, names in zip(SPLITS, (train, val), strict=True)
        )
        text = "; ".join(f"{split}/ lacks {len(names)}: {_some(names)}" for split, names in missing if names)
        raise DataError(f"{tree}: train/ and val/ must have the same class folders, but {text}")
    listings = tuple(list_split(folder, train) for folder in folders)
    for listing in listings:
        _check_files(listing)
    if counts is not None:
        _check_training_count(listings[0], counts[0])
        _check_share_of_classes(listings[1], counts[1])
    return listings


def _class_folders(folder: Path, class_count: int | None) -> list[str]:
    """Class folders of a split, if they are class folders at all."""
    names, files = _content(folder)
    images = [name for name in files if _is_image(name)]
    if images:
        raise DataError(_loose_images(folder, names, images))
    if len(names) == 1:
        inner, images = _content(folder / names[0])
        if inner and not any(map(_is_image, images)):
            raise DataError(
                f"{folder} holds only a folder {names[0]}/, which has the folders {_some(inner)}: move these "
                "one level up"
            )
    if not names:
        found = (
            f"0 of {class_count} class folders"
            if class_count
            else f"no class folders; expected {folder}/<class>/<image>"
        )
        raise DataError(f"{folder} has {found}{_still_packed(files)}")
    if class_count is not None:
        _check_wordnet_ids(folder, names)
        if len(names) < class_count:
            # Without archives beside them the class folders show only that unpacking or copying has stopped.
            rest = _still_packed(files) or "; it was unpacked or copied only in part, do it again"
            raise DataError(f"{folder} has {len(names)} of {class_count} class folders{rest}")
    return names


def _loose_images(folder: Path, names: list[str], images: list[str]) -> str:
    """What to do with images that lie beside the class folders, or in place of them."""
    if folder.name == "train":
        return (
            f"{folder} has {len(images)} images outside class folders, first {images[0]}; move each into "
            "train/<class>/"
        )
    state = (
        f"{len(images)} of its images still outside class folders"
        if names
        else f"all its {len(images)} images in one flat folder"
    )
    return f"{folder} has {state}, first {images[0]}; move each into val/<class>/, with {VALPREP} run in val/"


def _still_packed(files: list[str]) -> str:
    archives = [name for name in files if name.lower().endswith(".tar")]
    if not archives:
        return ""
    return (
        f"; {len(archives)} are still packed, first {archives[0]}: unpack each .tar into a folder of its name"
    )


def _check_wordnet_ids(folder: Path, names: list[str]) -> None:
    others = [name for name in names if not WORDNET_ID.fullmatch(name)]
    if 2 * len(others) > len(names):
        raise DataError(
            f"{folder} has class folders that are not named by WordNet ids n########: {_some(others)}; "
            "their sorted order gives other labels than the pretrained teacher's, so rename each to its "
            "class's id"
        )
    if others:
        raise DataError(
            f"{folder} has folders that are not classes n########: {_some(others)}; remove or rename them"
        )


def _check_number(folder: Path, names: list[str], other_split: list[str], class_count: int) -> None:
    if len(names) > class_count:
        surplus = sorted({*names} - {*other_split})
        which = (
            f"not in the other split: {_some(surplus)}"
            if surplus
            else "the other split has them too: this is a larger data set"
        )
        raise DataError(f"{folder} has {len(names)} class folders instead of {class_count}; {which}")


def _check_files(listing: Listing) -> None:
    """Every class has images, and no image is an empty file."""
    empty = [name for name, count in zip(listing.classes, _per_class(listing), strict=True) if not count]
    if empty:
        first = listing.folder / empty[0]
        inner, _ = _content(first)
        found = f"{len(empty)} of {len(listing.classes)} class folders without images, first {first}"
        advice = (
            f"it has a folder {inner[0]}/, whose images belong one level up"
            if inner
            else "unpack or copy them again"
        )
        raise DataError(f"{listing.folder} has {found}; {advice}")
    zero = np.flatnonzero(listing.sizes == 0)
    if len(zero):
        raise DataError(
            f"{listing.folder} has 0 bytes in {len(zero)} of {len(listing)} images, first "
            f"{listing.path(zero[0])}; unpack or copy them again"
        )


def _per_class(listing: Listing) -> np.ndarray:
    return np.bincount(listing.labels, minlength=len(listing.classes))


def _check_training_count(listing: Listing, count: int) -> None:
    if len(listing) != count:
        per_class = _per_class(listing)
        extreme, label = (
            ("fewest", per_class.argmin()) if len(listing) < count else ("most", per_class.argmax())
        )
        which = f"the class with the {extreme}, {listing.classes[label]}, has {per_class[label]}"
        raise DataError(f"{listing.folder} has {len(listing)} images instead of {count}; {which}")


def _check_share_of_classes(listing: Listing, count: int) -> None:
    share, per_class = count // len(listing.classes), _per_class(listing)
    wrong = np.flatnonzero(per_class != share)
    if len(wrong):
        first, others = wrong[0], f" ({len(wrong)} classes are wrong)" if len(wrong) > 1 else ""
        which = f"every class must have {share}, but {listing.classes[first]} has {per_class[first]}{others}"
        found = (
            f"{len(listing)} images instead of {count}"
            if len(listing) != count
            else f"{count} images, but some in the wrong class"
        )
        raise DataError(f"{listing.folder} has {found}; {which}")


def check_readable(listing: Listing, sample: int = 200, seed: int = 0) -> None:
    """Decode an evenly spread sample of the images, and the smallest files.

    **Raises:** ``DataError`` which names the first that is truncated or unreadable, and how many of those
    tried are.
    """
    total, size = len(listing), min(sample, len(listing))
    # One from each of ``size`` stretches of the same length, hence from as many classes as possible.
    spread = ((np.arange(size) + np.random.default_rng(seed).random(size)) * total / size).astype(np.int64)
    chosen = np.union1d(spread, np.argsort(listing.sizes, kind="stable")[:SMALLEST])
    paths = [listing.path(index) for index in np.minimum(chosen, total - 1)]
    # PIL warns of damaged metadata, which the pixels do not need. Warning filters belong to the process, so
    # they are set here.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        bad = [
            (path, reason)
            for path, reason in zip(paths, pool.map(_why_unreadable, paths), strict=True)
            if reason
        ]
    if bad:
        path, reason = bad[0]
        found = f"{len(bad)} of {len(paths)} images that were tried are unreadable"
        raise DataError(f"{path} cannot be decoded: {reason}; {found}; unpack or copy {listing.folder} again")


def _why_unreadable(path: Path) -> str | None:
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.convert("RGB")
            jpeg = image.format == "JPEG"
    except UnidentifiedImageError:
        return "not an image"
    except (
        Exception
    ) as error:  # besides OSError its readers let SyntaxError, ValueError, struct.error and others through
        return " ".join(str(error).split()) or type(error).__name__
    # A copy that broke off may have left zeros in place of the rest; these decode, as grey.
    if jpeg and content.endswith(bytes(64)) and not content.rstrip(b"\0").endswith(b"\xff\xd9"):
        return "the end of the file is filled with zeros"
    return None


def digest(train: Listing, val: Listing) -> str:
    """16 hex digits that name the content of a tree: names, labels and sizes, but neither place, time nor
    pixels.
    """
    content = hashlib.sha256()
    for listing in (train, val):
        content.update(f"{len(listing)}\n".encode())
        # Joined, since the bytes of an array depend on the longest name; no name has a zero byte.
        content.update(b"\0".join(listing.names.tolist()))
        for numbers in (listing.labels, listing.sizes):
            content.update(numbers.astype("<i8").tobytes())
    return content.hexdigest()[:16]
