"""One image file → uint8 pixels for training or evaluation, in a fraction of the time of torchvision's
transforms.

Crops and sizes are those of torchvision's ImageNet recipe. For training, torchvision decodes JPEGs (the
pixels are Pillow's, without its fourth byte per pixel), and torch's antialiasing resize for uint8 scales the
crop. For evaluation, Pillow does all of it, as in torchvision's own preset. benchmarks/imagenet_loader.py
compares the speed, and says which other ways were tried.

Values stay uint8: normalising a whole batch on the device is cheaper than normalising each image here.
"""

import math
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from ..files import stand_in
from .entry import DataError

# Share of the area, and width / height, of a random crop (Szegedy et al. 2015, arXiv 1409.4842, section 6),
# and how often it is tried.
SHARES = (0.08, 1.0)
RATIOS = (3 / 4, 4 / 3)
TRIES = 10
# The shorter side before the centre crop, per pixel of the crop.
MARGIN = 256 / 224
# The number of torchvision.io.ImageReadMode.RGB.
RGB = 3
# What Pillow's readers raise for damaged files of one format or another.
DAMAGES = (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError)


@cache
def jpeg_decoder() -> Callable[[Tensor, int], Tensor] | None:
    """The operator behind torchvision.io.decode_jpeg, which itself warns at every call that it will move to
    another package. Where it is missing Pillow decodes: the same pixels, more slowly.
    """
    # Here, since it takes two seconds, and most studies stream no images.
    import torchvision  # noqa: F401 (it brings the operator)

    return getattr(torch.ops.image, "decode_jpeg", None)


def crop_box(width: int, height: int, draws: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random crop, in pixels.

    It has the distribution of torchvision's ``RandomResizedCrop.get_params`` with its default scale and
    ratio: ten tries to find a crop that fits, then the largest central one with a ratio in range.
    """
    low, high = (math.log(ratio) for ratio in RATIOS)
    for _ in range(TRIES):
        area = width * height * draws.uniform(*SHARES)
        ratio = math.exp(draws.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(draws.integers(room + 1)) for room in (width - w, height - h))
            return left, top, w, h
    w, h = min(width, round(height * RATIOS[1])), min(height, round(width / RATIOS[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def train_pixels(path: Path, side: int, draws: np.random.Generator) -> np.ndarray:
    """A random crop, resized, and mirrored with probability 1/2: uint8 [side, side, 3], RGB.

    The crop is drawn before the mirroring, and neither depends on what the image shows. The file may be of
    any kind that Pillow reads.

    **Raises:** ``DataError`` naming a file that is not there, empty, truncated or no image.
    """
    with without_remarks():
        pixels = _decoded(path)
    height, width = pixels.shape[2:]
    left, top, w, h = crop_box(width, height, draws)
    # The resize is fast for bytes that lie as in a file, pixel by pixel.
    crop = pixels[:, :, top : top + h, left : left + w].contiguous(memory_format=torch.channels_last)
    resized = interpolate(crop, size=(side, side), mode="bilinear", antialias=True)
    if draws.random() < 0.5:
        resized = resized.flip(3)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def test_pixels(path: Path, side: int) -> np.ndarray:
    """The centre of an image whose shorter side is scaled to 256/224 of ``side``: uint8 [side, side, 3], RGB.

    For 224 pixels that is, bit by bit, what torchvision's ``ImageClassification(crop_size=224,
    resize_size=256)`` normalises, the preset of the evaluation of its pretrained networks.

    **Raises:** ``DataError`` as ``train_pixels``.
    """
    with without_remarks():
        return centre(path, side, round(side * MARGIN))


def centre(path: Path, side: int, short: int, channels: int = 3) -> np.ndarray:
    """The centre of an image whose shorter side is scaled to ``short``: uint8 [side, side, channels]."""
    image = _opened(path, channels)
    if min(image.size) != short:
        scaled = [int(short * length / min(image.size)) for length in image.size]
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = (round((length - side) / 2) for length in image.size)
    # A copy, as NumPy may not write to Pillow's memory, which torch asks for.
    return np.array(image.crop((left, top, left + side, top + side))).reshape(side, side, channels)


def look_at(path: Path, side: int, channels: int) -> tuple[np.ndarray, str]:
    """What ``centre`` gives of an image, and the mode of its file, which is looked at more closely.

    **Raises:** ``DataError`` also for a JPEG that ends in zeros, as a copy that broke off may leave it; it
    would decode, as grey.
    """
    pixels = centre(path, side, side, channels)
    with Image.open(path) as image:
        mode, content = image.mode, path.read_bytes() if image.format == "JPEG" else b""
    if content.endswith(bytes(64)) and not content.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise DataError(f"{path} is not a readable image: the end of the file is filled with zeros")
    return pixels, mode


def _decoded(path: Path) -> Tensor:
    """All pixels of an image: uint8 [1, 3, H, W], RGB."""
    try:
        if decode := jpeg_decoder():
            return decode(torch.from_numpy(np.fromfile(path, dtype=np.uint8)), RGB)[None]
    except (OSError, RuntimeError):
        # Not a JPEG, whatever its name says, or damaged: Pillow reads it or knows what is wrong.
        pass
    return torch.from_numpy(np.array(_opened(path)))[None].permute(0, 3, 1, 2)


def _opened(path: Path, channels: int = 3) -> Image.Image:
    """An image of 8 bits, as RGB or grey, by Pillow.

    **Raises:** ``DataError`` if it cannot be read, or it is not known which of its values is white.
    """
    mode = "RGB" if channels == 3 else "L"
    try:
        with Image.open(path) as image:
            # Pillow has 16 bits as "I;16", or as "I" from these formats, and would clip them to white.
            sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
            if (image.mode in ("I", "F") and not sixteen) or "I;12" in str(image.tile):
                raise ValueError("its values have no range of 8 or 16 bits; save it with one of these")
            if sixteen:
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image.load()
            # Converting would copy what is right already.
            return image if image.mode == mode else image.convert(mode)
    except DAMAGES as error:
        other = stand_in(path) if isinstance(error, UnidentifiedImageError) else None
        raise DataError(f"{path} is not a readable image: {other or ' '.join(str(error).split())}") from None


@contextmanager
def without_remarks() -> Iterator[None]:
    """Pillow does not warn of odd metadata, unused transparency or very large images.

    Filters belong to the process: around threads, not in them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield
