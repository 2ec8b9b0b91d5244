"""Data sets as uint8 arrays, and batches of them made on the device.

A data set is decoded once (``load_arrays``) and lives on the device as uint8; cropping, flipping
and normalising happen there, in batches. Order and augmentation are a function of (seed, epoch) only.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from .files import replacing
from .paths import array_cache, data_root
from .settings import Data, SettingsError, choose

# An image tree is decoded into memory as a whole; beyond this it has to be streamed.
MAX_ARRAY_BYTES = 8 << 30


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


def describe(settings: Data) -> Dataset:
    """The data set's entry; for an image folder, completed from the tree.

    **Raises:** ``SettingsError`` for an unknown name, ``DataError`` for a folder without classes.
    """
    entry = DATASETS[choose("data set", settings.dataset, DATASETS)]
    if settings.dataset != "imagefolder":
        return entry
    if not settings.root or not settings.image_size:
        raise SettingsError("the data set imagefolder needs root (a folder under the data folder) and image_size (pixels)")
    classes = len(_class_names(data_root() / settings.root / "train"))
    return replace(entry, classes=classes, image_size=settings.image_size, padding=settings.image_size // 8)


def example_input(settings: Data) -> Tensor:
    """A zero image [1, C, H, W] of the data set's shape, for dry runs."""
    entry = describe(settings)
    return torch.zeros(1, entry.channels, entry.image_size, entry.image_size)


def image_counts(settings: Data) -> tuple[int, int]:
    """Number of training and test images that a run will see."""
    train, test = describe(settings).counts
    if settings.dataset == "imagefolder":
        train, test = (len(_listing(folder)) for folder in _split_folders(data_root() / settings.root))
    return settings.train_images or train, settings.test_images or test


def evenly_spaced(count: int, total: int) -> Tensor:
    """Ascending indices of ``count`` out of ``total`` rows; of all of them if there are no more."""
    count = min(count, total)
    return torch.arange(count) * total // count


class Images:
    """One split on one device.

    **Arguments:** ``images`` uint8 [N, C, H, W], ``labels`` int64 [N], ``entry`` of the data set, ``device``.
    """

    def __init__(self, images: Tensor, labels: Tensor, entry: Dataset, device: torch.device):
        self.entry, self.device = entry, device
        self.images, self.labels = images.to(device), labels.to(device)
        self._mean, self._std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (entry.mean, entry.std))

    def __len__(self) -> int:
        return len(self.labels)

    def train_batches(self, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, augmented batches; the last one may be smaller.

        Each process takes every ``world``-th image of the global batch.

        **Returns:** iterator of images float32 [B, C, H, W] and labels [B].
        """
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]))
        order = torch.randperm(len(self), generator=generator)
        shifts = torch.randint(0, 2 * self.entry.padding + 1, (len(self), 2), generator=generator)
        mirrored = torch.rand(len(self), generator=generator) < (0.5 if self.entry.flip else 0.0)
        order, shifts, mirrored = (t.to(self.device) for t in (order, shifts, mirrored))
        for start in range(0, len(self), batch_size):
            chosen = order[start : start + batch_size][rank::world]
            yield self._normalised(self._augmented(chosen, shifts[chosen], mirrored[chosen])), self.labels[chosen]

    def ordered_batches(self, batch_size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Un-augmented batches in the stored order."""
        for start in range(0, len(self), batch_size):
            yield self._normalised(self.images[start : start + batch_size]), self.labels[start : start + batch_size]

    def spread(self, count: int) -> "Images":
        """``count`` images, evenly spaced in the stored order, which in an image tree is that of the classes; all if there are no more."""
        rows = evenly_spaced(count, len(self))
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

    def _normalised(self, images: Tensor) -> Tensor:
        scaled = (images.float() / 255 - self._mean) / self._std
        return scaled.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Splits:
    """Training and test images of one run, and a checksum of both."""

    train: Images
    test: Images
    checksum: str


def load_splits(settings: Data, device: torch.device) -> Splits:
    """Load a data set, take the subsets that the settings ask for, and put them on the device.

    **Raises:** ``DataError`` if it is not there, not readable, or smaller than asked for.
    """
    entry = describe(settings)
    arrays = entry.load(settings)
    parts = {}
    for split, count in (("train", settings.train_images), ("test", settings.test_images)):
        labels = arrays[f"{split}_labels"]
        keep = _stratified(labels, count, settings.subset_seed, f"{settings.dataset} {split}")
        parts[split] = (arrays[f"{split}_images"][keep], labels[keep])
    digest = hashlib.sha256()
    for images, labels in parts.values():
        digest.update(images.numpy().tobytes())
        digest.update(labels.numpy().tobytes())
    return Splits(Images(*parts["train"], entry, device), Images(*parts["test"], entry, device), digest.hexdigest()[:16])


def _stratified(labels: Tensor, count: int | None, seed: int, what: str) -> Tensor:
    """Ascending indices of a subset in which every class keeps its share; all when no count is given."""
    everything = np.arange(len(labels))
    if count is None or count == len(labels):
        return torch.from_numpy(everything)
    classes = len(labels.unique())
    # The images left out must show every class too, or the shares could not be kept.
    if not classes <= count <= len(labels) - classes:
        limits = f"give {classes} to {len(labels) - classes}, or none for all"
        raise DataError(f"{what} has {len(labels)} images of {classes} classes; a subset of {count} cannot keep their shares; {limits}")
    keep, _ = train_test_split(everything, train_size=count, stratify=labels.numpy(), random_state=seed)
    return torch.from_numpy(np.sort(keep))


def _digits(settings: Data) -> dict[str, Tensor]:
    """scikit-learn's 1 797 handwritten digits, 8×8, values 0 … 16. The first 1 000 are for training."""
    digits = load_digits()
    images = torch.from_numpy((digits.images * 255 / 16).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    return {"train_images": images[:1000], "train_labels": labels[:1000], "test_images": images[1000:], "test_labels": labels[1000:]}


@dataclass(frozen=True)
class _Torchvision:
    """A small torchvision set: from an image tree <data>/<name>/{train,test}/<class>/, from torchvision's own files in
    <data>/<folder>, or downloaded there by torchvision, which checks the published MD5."""

    name: str
    folder: str
    reader: type

    def locate(self, settings: Data) -> str:
        tree = data_root() / self.name
        if (tree / "train").is_dir():
            train, test = _check_whole(tree, DATASETS[self.name])
            return f"image tree {tree}, {train} + {test} images"
        if (data_root() / self.folder).is_dir():
            return f"torchvision's files in {data_root() / self.folder}"
        raise NotDownloaded(
            f"{self.name} is not in {data_root()}: neither an image tree {self.name}/train/<class>/*.png nor torchvision's {self.folder}/; "
            f"the run will try to download it, or set PURSUHINT_DATA to the folder that has it"
        )

    def load(self, settings: Data) -> dict[str, Tensor]:
        root, entry = data_root(), DATASETS[self.name]
        if (root / self.name / "train").is_dir():
            _check_whole(root / self.name, entry)
            return _cached(self.name, root / self.name, entry.image_size, entry.channels)
        download = not (root / self.folder).is_dir()
        try:
            splits = {split: self.reader(root, train=split == "train", download=download) for split in ("train", "test")}
        except (RuntimeError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            tried = f"cannot be downloaded to {root}" if download else f"is damaged in {root / self.folder}"
            raise DataError(f"{self.name} {tried} ({reason}); remove what is there, or set PURSUHINT_DATA to a folder that has it") from None
        arrays = {}
        for split, content in splits.items():
            pixels = torch.as_tensor(np.asarray(content.data))
            arrays[f"{split}_images"] = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
            arrays[f"{split}_labels"] = torch.as_tensor(content.targets, dtype=torch.int64)
        return arrays


def _imagefolder(settings: Data) -> dict[str, Tensor]:
    """Any tree <data>/<root>/{train, test or val}/<class>/<image>, resized and cropped to a square."""
    root = data_root() / settings.root
    return _cached(f"{root.name}-{settings.image_size}", root, settings.image_size, 3)


def _locate_imagefolder(settings: Data) -> str:
    train, test = image_counts(settings)
    return f"image tree {data_root() / settings.root}, {train} + {test} images"


def _split_folders(root: Path) -> tuple[Path, Path]:
    """Training and evaluation folder of an image tree; the latter is called test or val."""
    return root / "train", next((root / s for s in ("test", "val") if (root / s).is_dir()), root / "test")


def _check_whole(root: Path, entry: Dataset) -> tuple[int, int]:
    """Training and test images of a tree that must be a known data set.

    **Raises:** ``DataError`` when classes or images are missing, as after unpacking only some of its archives.
    """
    folders = _split_folders(root)
    found = tuple(len(_listing(folder)) for folder in folders)
    classes = len(_class_names(folders[0]))
    if classes != entry.classes or found != entry.counts:
        wanted = f"{entry.classes} classes and {entry.counts[0]} + {entry.counts[1]} images"
        raise DataError(f"{root} has {classes} classes and {found[0]} + {found[1]} images, not {wanted}; unpack all of it")
    return found


def _class_names(split: Path) -> list[str]:
    """Sorted class folders of a split.

    **Raises:** ``DataError`` when there are none.
    """
    names = sorted(entry.name for entry in split.iterdir() if entry.is_dir()) if split.is_dir() else []
    if not names:
        raise DataError(f"{split} has no class folders; expected {split}/<class>/<image>")
    return names


def _cached(name: str, root: Path, side: int, channels: int) -> dict[str, Tensor]:
    """Arrays of an image tree, decoded once; the cache is used only while the tree and the cache are unchanged."""
    train, test = _split_folders(root)
    files = {"train": _listing(train), "test": _listing(test)}
    if _class_names(train) != _class_names(test):
        raise DataError(f"{train} and {test} have different class folders; they must be the same")
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


def _listing(split: Path) -> list[tuple[Path, int]]:
    """(file, class index) of every image, in sorted order."""
    extensions = set(torchvision.datasets.folder.IMG_EXTENSIONS)
    found = [
        (path, label)
        for label, name in enumerate(_class_names(split))
        for path in sorted((split / name).rglob("*"))
        if path.suffix.lower() in extensions
    ]
    if not found:
        raise DataError(f"{split} has class folders but no images ({', '.join(sorted(extensions))})")
    return found


def _decode(files: list[Path], side: int, channels: int) -> Tensor:
    """Images as uint8 [N, C, side, side]: shorter side resized to ``side`` if it differs, centre crop."""
    if len(files) * side * side * channels > MAX_ARRAY_BYTES:
        raise DataError(f"{len(files)} images of {side}×{side} do not fit in {MAX_ARRAY_BYTES >> 30} GiB; choose a smaller image_size")

    def read(path: Path) -> np.ndarray:
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB" if channels == 3 else "L")
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"{path} is not a readable image: {error}") from None
        if min(image.size) != side:
            scale = side / min(image.size)
            image = image.resize(tuple(max(side, round(length * scale)) for length in image.size), Image.Resampling.BILINEAR)
        left, top = ((length - side) // 2 for length in image.size)
        pixels = np.asarray(image.crop((left, top, left + side, top + side)))
        return pixels.reshape(side, side, channels)

    out = np.empty((len(files), side, side, channels), dtype=np.uint8)
    with ThreadPoolExecutor() as pool:
        for index, pixels in enumerate(pool.map(read, files, chunksize=64)):
            out[index] = pixels
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


_fashion = _Torchvision("fashion-mnist", "FashionMNIST", torchvision.datasets.FashionMNIST)
_cifar10 = _Torchvision("cifar10", "cifar-10-batches-py", torchvision.datasets.CIFAR10)
_cifar100 = _Torchvision("cifar100", "cifar-100-python", torchvision.datasets.CIFAR100)
_CIFAR = {"channels": 3, "image_size": 32, "padding": 4, "flip": True, "counts": (50_000, 10_000)}

# A new data set is one entry. Mean and standard deviation are those of the training images.
DATASETS: dict[str, Dataset] = {
    "digits": Dataset(
        classes=10, channels=1, image_size=8, mean=(0.3070,), std=(0.3764,), padding=1, flip=False, counts=(1000, 797),
        load=_digits, locate=lambda settings: "ships with scikit-learn",
    ),
    "fashion-mnist": Dataset(
        classes=10, channels=1, image_size=28, mean=(0.2860,), std=(0.3530,), padding=2, flip=True, counts=(60_000, 10_000),
        load=_fashion.load, locate=_fashion.locate,
    ),
    "cifar10": Dataset(
        classes=10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), **_CIFAR, load=_cifar10.load, locate=_cifar10.locate
    ),
    "cifar100": Dataset(
        classes=100, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761), **_CIFAR, load=_cifar100.load, locate=_cifar100.locate
    ),
    # Statistics of ImageNet, which its pretrained networks expect; classes, size and padding come from the folder.
    "imagefolder": Dataset(
        classes=0, channels=3, image_size=0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), padding=0, flip=True, counts=(0, 0),
        load=_imagefolder, locate=_locate_imagefolder,
    ),
}  # fmt: skip
