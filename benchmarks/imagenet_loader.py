"""How fast does one core decode and augment ImageNet's JPEGs here, and how fast by torchvision's transforms?
Both in turns, in one process.

    python benchmarks/imagenet_loader.py [--images DIR] [--side 224] [--seconds 60] [--json FILE]

torchvision's way is its ``ImageFolder`` with RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize
on Pillow's images, and for evaluation with Resize and CenterCrop instead of the first two; it ends in a
normalised float32 image. Ours (pursuhint_lib/data/decoding.py) ends in uint8, for a batch is normalised on
the device. So that nobody has to take this on trust, the same normalisation of batches is timed on this core
too, into memory that is there already, and the ratio is given with it and without it. Ours also includes a
random generator of its own for every training image.

Times are processor seconds of one thread, so that other programs disturb them little. Files are read before
the first turn, and lie in the system's cache from then on; waiting for a disk is not part of the figures.

What was tried for training, as times torchvision's way on 248 real ImageNet images (500 × 375 for the most
part; Pillow 13.0, torchvision 0.29, torch 2.15, one core of a Xeon):

- 1.3: Pillow decodes, crops and resizes, pixels stay uint8. Also with ``draft``, which decodes at a half or a
  quarter of the size where the crop keeps enough pixels: 2 % of the crops are that large.
- 1.4: Pillow decodes, torch's antialiasing resize for uint8 scales the crop. torchvision's decoder and
  Pillow's resize: the same.
- 1.55: the first of these, with a lower height written into the JPEG's header, so that the rows below the
  crop (16 %) are not decoded.
- 1.55: torchvision's decoder and its transforms v2 on uint8 tensors.
- 1.7: torchvision's decoder, one copy of the crop with its channels last, torch's resize, mirroring after it.
  **This is what is used.** Without the copy it takes 3 % longer; mirroring by NumPy takes 0.15 ms longer,
  torch 0.02 ms.
- 1.6: the same, and ``draft`` for large crops: looking at every header costs more than it saves.
- 1.9: the same, and the lower height. libjpeg then complains about every image on standard error, which
  torchvision cannot silence.

For evaluation every pixel has to be that of torchvision's transforms, which leaves Pillow and 1.2. Torch's
resize there would give 1.6 and change 0.2 % of the values by a level or two; Pillow's resize straight to the
crop 1.4 and 2 % of them by one.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features
from scipy.stats import ks_2samp
from tabulate import tabulate
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, pil_loader
from torchvision.transforms import functional

from pursuhint_lib.data import DataError, decoding
from pursuhint_lib.files import write_json
from pursuhint_lib.records import provenance
from pursuhint_lib.settings import SettingsError

ALTERNATIONS = 7
# Images that are made when no folder is given, and that are used of a folder, at the most.
MADE = 32
MOST_IMAGES = 512
# Crops drawn in each way, and images whose pixels are compared.
DRAWS = 20_000
COMPARED = 64
BATCH = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRAIN_TARGET = 1.5


def picture(number: int) -> Image.Image:
    """500 × 375 pixels of coloured noise whose amplitudes fall with frequency as those of photographs do, and
    a few edges.
    """
    draws = np.random.default_rng(number)
    height, width = 375, 500
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(draws.normal(size=(3, height, width))) / frequency
    grey_and_colours = np.fft.irfft2(spectrum, s=(height, width))
    grey_and_colours /= grey_and_colours.std(axis=(1, 2), keepdims=True)
    pixels = 120 + 45 * grey_and_colours[:1] + 15 * grey_and_colours
    for _ in range(4):
        left, top = draws.integers(width - 50), draws.integers(height - 50)
        pixels[:, top : top + draws.integers(20, 150), left : left + draws.integers(20, 150)] += draws.normal(
            scale=25, size=(3, 1, 1)
        )
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


@contextmanager
def image_tree(given: Path | None) -> Iterator[tuple[Path, str]]:
    """A folder with one class folder of images, and what they are: links to those of a given folder, or
    images made for the purpose.

    **Raises:** ``DataError`` for a folder without images or with damaged ones.
    """
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "images").mkdir()
        if given is None:
            for number in range(MADE):
                # Colours are not subsampled, and a file has about 110 kB, as most of ImageNet's and their
                # mean.
                picture(number).save(root / "images" / f"{number:04}.JPEG", quality=82, subsampling=0)
            yield root, "images made of noise"
        else:
            found = sorted(
                path for path in given.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS and path.is_file()
            )
            if not found:
                raise DataError(f"{given} has no images ({', '.join(IMG_EXTENSIONS)})")
            for number in range(min(len(found), MOST_IMAGES)):
                path = found[number * len(found) // min(len(found), MOST_IMAGES)]
                # Finds damage under the name that the user knows, and brings the file into the system's
                # cache.
                decoding.test_pixels(path, 1)
                (root / "images" / f"{number:04}{path.suffix}").symlink_to(path.resolve())
            yield root, f"images of {given.name}"


@dataclass(frozen=True)
class Ways:
    """Ways to get the image with a number, and the normalisation of ours.

    **Arguments:** ``files`` the images, ``side`` in pixels, ``train`` and ``test``: torchvision's data sets
    of them.
    """

    files: list[Path]
    side: int
    train: ImageFolder
    test: ImageFolder

    @classmethod
    def of(cls, root: Path, side: int) -> "Ways":
        """Ways to get the images of a tree."""
        last = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        train = transforms.Compose(
            [transforms.RandomResizedCrop(side), transforms.RandomHorizontalFlip(), *last]
        )
        test = transforms.Compose(
            [transforms.Resize(round(side * 256 / 224)), transforms.CenterCrop(side), *last]
        )
        sets = [ImageFolder(str(root), transform) for transform in (train, test)]
        return cls([Path(path) for path, _ in sets[0].samples], side, *sets)

    def all(self) -> dict[str, Callable[[int], object]]:
        """Name → what is done for the image with a number."""
        mean, std = (255 * torch.tensor(values) for values in (MEAN, STD))
        # Whole rows of pixels at once, as torch is slow for an innermost dimension of three.
        scale, shift = (1 / std).repeat(self.side), (-mean / std).repeat(self.side)
        batch = torch.zeros(BATCH * self.side, 3 * self.side, dtype=torch.uint8)
        # Kept, for new memory of that size takes longer than the arithmetic.
        normalised = torch.empty(batch.shape)

        def normalise(number: int) -> None:
            # A batch takes its time once for all of its images.
            if number % BATCH == 0:
                normalised.copy_(batch).mul_(scale).add_(shift)

        return {
            "train, torchvision": lambda number: self.train[number % len(self.files)],
            "train, ours": self.our_train,
            "test, torchvision": lambda number: self.test[number % len(self.files)],
            "test, ours": lambda number: decoding.test_pixels(
                self.files[number % len(self.files)], self.side
            ),
            "normalise": normalise,
        }

    def our_train(self, number: int) -> np.ndarray:
        """An image as training gets it: its random numbers follow from a seed, the epoch and the image."""
        epoch, index = divmod(number, len(self.files))
        return decoding.train_pixels(self.files[index], self.side, np.random.default_rng((0, epoch, index)))


def take_turns(ways: Ways, seconds: float) -> dict:
    """Processor milliseconds per image of every way in every turn, and the number of images of a turn."""
    todo = ways.all()
    begun = time.perf_counter()
    # For warming up, as many images as fit into a tenth of the time.
    for number in range(len(ways.files)):
        for work in todo.values():
            work(number)
        if (elapsed := time.perf_counter() - begun) > seconds / 10:
            break
    images = max(4, int((seconds - elapsed) / ALTERNATIONS / (elapsed / (number + 1))))
    # Normalising takes whole batches.
    counts = {name: -(-images // BATCH) * BATCH if name == "normalise" else images for name in todo}
    times: dict[str, list[float]] = {name: [] for name in todo}
    for turn in range(ALTERNATIONS):
        for name, work in todo.items():
            before = time.process_time()
            for number in range(turn * counts[name], (turn + 1) * counts[name]):
                work(number)
            times[name].append((time.process_time() - before) / counts[name] * 1e3)
    return {"images_per_turn": images, "milliseconds": times}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def speeds(times: dict[str, list[float]], kind: str) -> dict:
    """Images per second of a core of both ways, and their ratio in each turn, for ``train`` or ``test``."""
    theirs, ours, normalise = (times[name] for name in (f"{kind}, torchvision", f"{kind}, ours", "normalise"))
    whole = [a + b for a, b in zip(ours, normalise, strict=True)]
    return {
        "torchvision": spread([1e3 / value for value in theirs]),
        "ours": spread([1e3 / value for value in ours]),
        "ours_and_normalised": spread([1e3 / value for value in whole]),
        "ratio": spread([a / b for a, b in zip(theirs, ours, strict=True)]),
        "ratio_and_normalised": spread([a / b for a, b in zip(theirs, whole, strict=True)]),
    }


def compare_crops(width: int = 500, height: int = 375) -> dict:
    """Kolmogorov–Smirnov statistic, and its p-value, between crops of both ways: areas, ratios
    and centres.
    """
    draws = np.random.default_rng(0)
    ours = np.array([decoding.crop_box(width, height, draws) for _ in range(DRAWS)])
    torch.manual_seed(0)
    blank = Image.new("L", (width, height))
    params = transforms.RandomResizedCrop
    theirs = np.array([params.get_params(blank, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(DRAWS)])[
        :, [1, 0, 3, 2]
    ]
    parts = {
        "area": lambda crop: crop[:, 2] * crop[:, 3],
        "ratio": lambda crop: crop[:, 2] / crop[:, 3],
        "centre, across": lambda crop: crop[:, 0] + crop[:, 2] / 2,
        "centre, down": lambda crop: crop[:, 1] + crop[:, 3] / 2,
    }
    found = {name: ks_2samp(part(ours), part(theirs)) for name, part in parts.items()}
    return {
        name: {"statistic": float(test.statistic), "p": float(test.pvalue)} for name, test in found.items()
    }


def compare_pixels(ways: Ways) -> dict:
    """Differences in levels (of 255) to torchvision's pixels: of training given the same crop, and of
    evaluation.
    """
    train, test = [], []
    preset = transforms.Compose(ways.test.transform.transforms[:2])
    for index, path in enumerate(ways.files[:COMPARED]):
        image, side, draws = pil_loader(str(path)), ways.side, np.random.default_rng(index)
        left, top, width, height = decoding.crop_box(*image.size, draws)
        crop = functional.resized_crop(image, top, left, height, width, [side, side])
        crop = functional.hflip(crop) if draws.random() < 0.5 else crop
        ours = decoding.train_pixels(path, side, np.random.default_rng(index))
        train.append(np.abs(ours.astype(int) - np.asarray(crop)))
        test.append(np.abs(decoding.test_pixels(path, side).astype(int) - np.asarray(preset(image))))
    return {
        kind: {
            "mean": float(np.mean(found)),
            "max": int(np.max(found)),
            "share": float(np.mean(np.array(found) > 0)),
            "images": len(found),
        }
        for kind, found in (("train", train), ("test", test))
    }


def conditions(ways: Ways, what: str) -> dict:
    """The machine, the versions and the images."""
    sizes = [pil_loader(str(path)).size for path in ways.files]
    where = provenance(torch.device("cpu"), what)
    turbo = features.version("libjpeg_turbo")
    jpeg = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        **where,
        "versions": {**where["versions"], "pillow": Image.__version__, "jpeg": jpeg},
        "images": {
            "what": what,
            "number": len(ways.files),
            "mean_kilobytes": statistics.fmean(path.stat().st_size for path in ways.files) / 1e3,
            "mean_megapixels": statistics.fmean(width * height for width, height in sizes) / 1e6,
        },
    }


def measure(given: Path | None, side: int, seconds: float) -> dict:
    """Everything, in about so many seconds.

    **Raises:** ``DataError`` for a folder without images or with damaged ones.
    """
    begun = time.perf_counter()
    with image_tree(given) as (root, what):
        ways = Ways.of(root, side)
        where = conditions(ways, what)
        pixels, crops = compare_pixels(ways), compare_crops()
        turns = take_turns(ways, max(seconds - (time.perf_counter() - begun), 0.0))
    rates = {kind: speeds(turns["milliseconds"], kind) for kind in ("train", "test")}
    return {
        "side": side,
        "alternations": ALTERNATIONS,
        "target": TRAIN_TARGET,
        **rates,
        **turns,
        "crops": crops,
        "pixels": pixels,
        **where,
    }


def table(result: dict) -> str:
    """The result as text."""

    def cell(part: dict, digits: int) -> str:
        return f"{part['median']:.{digits}f} ({part['min']:.{digits}f} to {part['max']:.{digits}f})"

    rows = []
    for kind, label in (("train", "training"), ("test", "evaluation")):
        part = result[kind]
        rows.append([f"{label}, torchvision", cell(part["torchvision"], 0), ""])
        rows.append([f"{label}, ours, uint8", cell(part["ours"], 0), cell(part["ratio"], 2)])
        rows.append(
            [
                f"{label}, ours, normalised",
                cell(part["ours_and_normalised"], 0),
                cell(part["ratio_and_normalised"], 2),
            ]
        )
    images, versions = result["images"], result["versions"]
    normalise = statistics.median(result["milliseconds"]["normalise"])
    crops = ", ".join(
        f"{name} {test['statistic']:.4f} (p {test['p']:.2f})" for name, test in result["crops"].items()
    )
    verdict = "met" if result["train"]["ratio"]["median"] >= result["target"] else "MISSED"
    train, test = (result["pixels"][kind] for kind in ("train", "test"))
    return "\n".join(
        [
            f"{result['device']}, one thread of {result['cores']} cores, load {result['load_average']:.1f}; "
            f"torch {versions['torch']}, "
            f"torchvision {versions['torchvision']}, Pillow {versions['pillow']}, {versions['jpeg']}",
            f"{images['number']} {images['what']}: {images['mean_kilobytes']:.0f} kB and "
            f"{images['mean_megapixels']:.2f} megapixels on average; "
            f"{result['side']} pixels; {result['images_per_turn']} images in each of "
            f"{result['alternations']} turns",
            tabulate(rows, headers=["", "images/s of a core", "times torchvision"], tablefmt="github"),
            f"Target for training: {result['target']} times, {verdict}. Normalising a batch of {BATCH} on "
            f"this core: {normalise:.3f} ms per image.",
            f"Crops, Kolmogorov–Smirnov statistic of {DRAWS} draws in each way: {crops}.",
            f"Pixels, given the same crop: {train['mean']:.3f} levels of 255 apart on average, "
            f"{train['max']} at the most (torch keeps the weights "
            f"of a resize in 16 bits, Pillow in 32). Evaluation: {test['share']:.1%} of the values differ.",
        ]
    )


def main(arguments: Sequence[str]) -> int:
    """Measure and report; exit status 2 and one line for a setting that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="a folder of images, or of folders of them (default: images made of noise)",
    )
    parser.add_argument("--side", type=int, default=224, help="pixels (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="for the whole measurement (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file, too")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if min(options.side, options.seconds) <= 0:
            raise SettingsError("give numbers above 0 for --side and --seconds")
        result = measure(options.images, options.side, options.seconds)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        torch.set_num_threads(threads)
    print(table(result))
    if options.json:
        write_json(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
