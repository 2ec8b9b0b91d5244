"""Image trees <root>/<split>/<class>/<image>: their listing, and decoding them once into
checksummed arrays.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import replacing
from ..paths import array_cache
from .decoding import DAMAGES
from .entry import DataError, Dataset

# An image tree is decoded into memory as a whole; beyond this it has to be streamed.
MAX_ARRAY_BYTES = 8 << 30


def split_folders(root: Path) -> tuple[Path, Path]:
    """Training and evaluation folder of an image tree; the latter is called test or val."""
    return root / "train", next((root / s for s in ("test", "val") if (root / s).is_dir()), root / "test")


def check_whole(root: Path, entry: Dataset) -> tuple[int, int]:
    """Training and test images of a tree that must be a known data set.

    **Raises:** ``DataError`` when classes or images are missing, as after unpacking only some of its
    archives.
    """
    folders = split_folders(root)
    found = tuple(len(list_images(folder)) for folder in folders)
    classes = len(class_names(folders[0]))
    if classes != entry.classes or found != entry.counts:
        wanted = f"{entry.classes} classes and {entry.counts[0]} + {entry.counts[1]} images"
        raise DataError(
            f"{root} has {classes} classes and {found[0]} + {found[1]} images, not {wanted}; unpack all of it"
        )
    return found


def class_names(split: Path) -> list[str]:
    """Sorted class folders of a split.

    **Raises:** ``DataError`` when there are none.
    """
    names = sorted(entry.name for entry in split.iterdir() if entry.is_dir()) if split.is_dir() else []
    if not names:
        raise DataError(f"{split} has no class folders; expected {split}/<class>/<image>")
    return names


def check_classes(train: Path, test: Path) -> None:
    """Refuse splits whose class folders differ, by which classes are numbered.

    **Raises:** ``DataError`` naming the folders that only one of them has.
    """
    only = {
        split: sorted({*class_names(split)} - {*class_names(other)})
        for split, other in ((train, test), (test, train))
    }
    if any(only.values()):
        told = ", and ".join(f"{', '.join(names)} in {split}" for split, names in only.items() if names)
        raise DataError(
            f"{train} and {test} have different class folders; they must be the same, but only there is "
            f"{told}"
        )


def cached(name: str, root: Path, side: int, channels: int) -> dict[str, Tensor]:
    """Arrays of an image tree, decoded once; the cache is used only while the tree and the cache are
    unchanged.
    """
    train, test = split_folders(root)
    files = {"train": list_images(train), "test": list_images(test)}
    check_classes(train, test)
    stats = ((path, path.stat()) for split in files.values() for path, _ in split)
    listing = "\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)
    key = hashlib.sha256(f"{side} {channels}\n{listing}".encode()).hexdigest()
    cache = array_cache(name)
    arrays = _read_cache(cache, key)
    if arrays is None:
        arrays = {}
        for split, entries in files.items():
            arrays[f"{split}_images"] = _decode([path for path, _ in entries], side, channels)
            arrays[f"{split}_labels"] = torch.tensor([label for _, label in entries], dtype=torch.int64)
        with replacing(cache) as draft:
            save_file(arrays, draft, {"key": key, "sha256": _checksum(arrays)})
    return arrays


def _read_cache(cache: Path, key: str) -> dict[str, Tensor] | None:
    """Cached arrays, or nothing when they belong to another tree or do not match their checksum."""
    if not cache.is_file():
        return None
    try:
        with safe_open(cache, framework="pt") as content:
            metadata = content.metadata() or {}
            if metadata.get("key") != key:
                return None
            arrays = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError:
        return None
    return arrays if metadata.get("sha256") == _checksum(arrays) else None


def _checksum(arrays: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {tuple(arrays[name].shape)}".encode())
        digest.update(arrays[name].numpy().tobytes())
    return digest.hexdigest()


def list_images(split: Path) -> list[tuple[Path, int]]:
    """(file, class index) of every image, in sorted order."""
    extensions = set(torchvision.datasets.folder.IMG_EXTENSIONS)
    found = [
        (path, label)
        for label, name in enumerate(class_names(split))
        for path in sorted((split / name).rglob("*"))
        if path.suffix.lower() in extensions
    ]
    if not found:
        raise DataError(f"{split} has class folders but no images ({', '.join(sorted(extensions))})")
    return found


def _decode(files: list[Path], side: int, channels: int) -> Tensor:
    """Images as uint8 [N, C, side, side]: shorter side resized to ``side`` if it differs, centre crop."""
    if len(files) * side * side * channels > MAX_ARRAY_BYTES:
        raise DataError(
            f"{len(files)} images of {side}×{side} do not fit in {MAX_ARRAY_BYTES >> 30} GiB; choose a "
            "smaller image_size"
        )

    def read(path: Path) -> np.ndarray:
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB" if channels == 3 else "L")
        except DAMAGES as error:
            raise DataError(f"{path} is not a readable image: {' '.join(str(error).split())}") from None
        if min(image.size) != side:
            scale = side / min(image.size)
            image = image.resize(
                tuple(max(side, round(length * scale)) for length in image.size), Image.Resampling.BILINEAR
            )
        left, top = ((length - side) // 2 for length in image.size)
        pixels = np.asarray(image.crop((left, top, left + side, top + side)))
        return pixels.reshape(side, side, channels)

    out = np.empty((len(files), side, side, channels), dtype=np.uint8)
    with ThreadPoolExecutor() as pool:
        for index, pixels in enumerate(pool.map(read, files, chunksize=64)):
            out[index] = pixels
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()
