"""Image trees that fit in memory: decoded once, and kept as checksummed arrays."""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ..files import read_checked, write_checked
from ..paths import array_cache
from .decoding import centre, without_remarks
from .entry import DataError
from .tree import Listing, digest

MAX_ARRAY_BYTES = 8 << 30


def check_size(listing: Listing, side: int, channels: int) -> None:
    """Refuse images that are too many or too large to be held in memory as a whole.

    **Raises:** ``DataError``
    """
    if len(listing) * side * side * channels > MAX_ARRAY_BYTES:
        raise DataError(
            f"{len(listing)} images of {side}×{side} do not fit in {MAX_ARRAY_BYTES >> 30} GiB; choose a "
            "smaller image_size"
        )


def cached(name: str, listings: tuple[Listing, Listing], side: int, channels: int) -> dict[str, Tensor]:
    """Arrays of an image tree: shorter side resized to ``side`` if it differs, centre crop.

    The cache is used only while files and cache are unchanged.

    **Returns:** ``{train,test}_{images,labels}``: uint8 [N, channels, side, side] and int64 [N].

    **Raises:** ``DataError`` naming a file that cannot be read, or when all do not fit.
    """
    key, cache = _key(listings, side, channels), array_cache(name)
    if cache.is_file():
        try:
            stored = torch.load(io.BytesIO(read_checked(cache)), weights_only=True)
            if stored.pop("key") == key:
                return stored
        except ValueError:
            pass  # it is made again
    arrays = {}
    for split, listing in zip(("train", "test"), listings, strict=True):
        arrays[f"{split}_images"] = _decoded(listing, side, channels)
        arrays[f"{split}_labels"] = torch.from_numpy(listing.labels)
    content = io.BytesIO()
    torch.save({"key": key, **arrays}, content)
    write_checked(cache, content.getbuffer())
    return arrays


def _key(listings: tuple[Listing, Listing], side: int, channels: int) -> str:
    """A name for the files as they are now: places, sizes and times, and what they are made into."""
    times = [part.path(index).stat().st_mtime_ns for part in listings for index in range(len(part))]
    made = (side, channels, *(part.folder for part in listings), digest(*listings), times)
    return hashlib.sha256(repr(made).encode()).hexdigest()


def _decoded(listing: Listing, side: int, channels: int) -> Tensor:
    check_size(listing, side, channels)
    out = np.empty((len(listing), side, side, channels), dtype=np.uint8)
    with without_remarks(), ThreadPoolExecutor() as pool:
        paths = map(listing.path, range(len(listing)))
        for index, pixels in enumerate(pool.map(lambda path: centre(path, side, side, channels), paths)):
            out[index] = pixels
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()
