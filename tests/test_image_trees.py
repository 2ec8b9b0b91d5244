"""Image trees and image folders: read pixel by pixel, cached safely, refused with the reason."""

import hashlib
import io
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from pursuhint_lib import data
from pursuhint_lib.data import DATASETS, DataError, arrays, describe, example_input, image_counts, load_splits
from pursuhint_lib.paths import ROOT, array_cache, data_root
from pursuhint_lib.settings import Data, SettingsError

CPU = torch.device("cpu")
TEST_ZIP = ROOT.parent / "shared" / "data" / "cifar100" / "test.zip"


def load(dataset: str = "digits", **other) -> data.Splits:
    return load_splits(Data(dataset, **other), CPU)


# ---- image trees

CLASSES = ("zebra", "Ape", "bee")  # not in the order in which they sort: Ape, bee, zebra


def cifar_tree(root: Path, per_class: int = 2) -> dict[tuple[str, str, int], np.ndarray]:
    """Write random 32×32 PNGs; (split, class, number) → pixels."""
    generator = np.random.default_rng(0)
    pixels = {}
    for split in ("train", "test"):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(per_class):
                pixels[split, name, number] = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels[split, name, number]).save(root / split / name / f"{number}.png")
    return pixels


@pytest.fixture
def small(monkeypatch):
    """CIFAR-100 has so many classes and images."""

    def put(classes: int, images: int) -> None:
        entry = replace(DATASETS["cifar100"], classes=classes, counts=(images, images))
        monkeypatch.setitem(DATASETS, "cifar100", entry)

    return put


@pytest.fixture
def tree(small):
    """An image tree in the place of CIFAR-100."""
    small(3, 6)
    return cifar_tree(data_root() / "cifar100")


def test_a_tree_that_was_unpacked_in_part_is_refused():
    cifar_tree(data_root() / "cifar100")
    for use in (load, lambda name: DATASETS[name].locate(Data(name))):
        with pytest.raises(
            DataError,
            match=r"3 classes and 6 \+ 6 images, not 100 classes and 50000 \+ 10000 images, .*; unpack all",
        ):
            use("cifar100")


@pytest.fixture
def decoded(monkeypatch):
    """Number of images handed to the decoder so far, as the one entry of a list."""
    count, decode = [0], arrays._decoded

    def counting(listing, *others):
        count[0] += len(listing)
        return decode(listing, *others)

    monkeypatch.setattr(arrays, "_decoded", counting)
    return count


def test_an_image_tree_is_read_pixel_by_pixel_with_labels_in_the_order_of_names(tree):
    splits = load("cifar100")
    for split in ("train", "test"):
        part = getattr(splits, split)
        assert part.labels.tolist() == [0, 0, 1, 1, 2, 2]
        expected = [tree[split, name, number] for name in ("Ape", "bee", "zebra") for number in (0, 1)]
        assert np.array_equal(part.images.numpy(), np.stack(expected).transpose(0, 3, 1, 2))


def test_an_image_tree_is_decoded_once(tree, decoded):
    first, second = load("cifar100"), load("cifar100")
    assert decoded == [12]
    assert second.checksum == first.checksum
    assert torch.equal(second.train.images, first.train.images)
    assert torch.equal(second.test.labels, first.test.labels)


def test_the_cache_is_dropped_when_an_image_is_added_or_goes(tree, decoded, small):
    load("cifar100")
    Image.new("RGB", (32, 32), (1, 2, 3)).save(data_root() / "cifar100" / "train" / "bee" / "9.png")
    small(3, 6)
    with pytest.raises(DataError):
        load("cifar100")
    (data_root() / "cifar100" / "train" / "bee" / "0.png").unlink()
    part = load("cifar100").train
    assert part.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert part.images[3, :, 0, 0].tolist() == [1, 2, 3]
    assert decoded == [24]


def test_the_cache_is_dropped_when_an_image_is_replaced_by_one_of_the_same_length(tree):
    path = data_root() / "cifar100" / "train" / "Ape" / "x.bmp"
    path.with_name("0.png").unlink()
    for colour in ((1, 2, 3), (200, 100, 50)):
        Image.new("RGB", (32, 32), colour).save(path)
        assert load("cifar100").train.images[1, :, 0, 0].tolist() == list(colour)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def of_another(content: bytes) -> bytes:
    """A whole cache, but of another tree."""
    stored = io.BytesIO()
    torch.save({"key": "of another", "train_images": torch.zeros(2)}, stored)
    return hashlib.sha256(stored.getvalue()).hexdigest().encode() + b"\n" + stored.getvalue()


CACHES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "checksum": lambda content: flipped(content, 0),
    "head": lambda content: flipped(content, 70),
    "pixel": lambda content: flipped(content, len(content) // 2),
    "of another tree": of_another,
}


@pytest.mark.parametrize("damage", CACHES)
def test_a_damaged_cache_is_made_again(tree, decoded, damage):
    whole, cache = load("cifar100"), array_cache("cifar100")
    cache.write_bytes(CACHES[damage](cache.read_bytes()))
    assert load("cifar100").checksum == load("cifar100").checksum == whole.checksum
    assert decoded == [24]
    assert [path.name for path in cache.parent.iterdir()] == ["cifar100.arrays"], "no draft is left"


def test_an_image_tree_is_found_without_reading_it(tree, decoded):
    where = DATASETS["cifar100"].locate(Data("cifar100"))
    assert str(data_root() / "cifar100") in where
    assert "6 + 6 images" in where
    assert decoded == [0]


@pytest.mark.skipif(not TEST_ZIP.is_file(), reason=f"the CIFAR-100 images are missing: {TEST_ZIP}")
def test_the_real_test_images_are_read_pixel_by_pixel(small):
    small(5, 15)
    root = data_root() / "cifar100"
    expected, labels = [], []
    with zipfile.ZipFile(TEST_ZIP) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        classes = sorted({name.split("/")[1] for name in names})
        assert len(names) == 10_000
        assert len(classes) == 100
        for label, chosen in enumerate(classes[::22]):
            for name in [name for name in names if name.split("/")[1] == chosen][:3]:
                archive.extract(name, root)
                with Image.open(root / name) as image:
                    expected.append(np.asarray(image.convert("RGB")))
                labels.append(label)
    shutil.copytree(root / "test", root / "train")
    splits = load("cifar100")
    assert len(expected) == 15
    for part in (splits.train, splits.test):
        assert np.array_equal(part.images.permute(0, 2, 3, 1).numpy(), np.stack(expected))
        assert part.labels.tolist() == labels


def test_an_image_tree_goes_before_torchvisions_files(tree):
    (data_root() / "cifar-100-python").mkdir()
    assert len(load("cifar100").train) == 6
    assert load("cifar100").test.labels.tolist() == [0, 0, 1, 1, 2, 2]


# ---- image folders


def folder_tree(evaluation: str) -> Path:
    """JPEGs of various sizes, one of them grey and one in capitals and a folder deeper."""
    root = data_root() / "pets"
    generator = np.random.default_rng(1)
    sizes = {
        "cat/a.jpg": (16, 16),
        "cat/b.jpeg": (32, 48),
        "cat/deep/c.JPG": (64, 32),
        "dog/grey.jpg": (40, 20),
        "dog/small.jpg": (8, 12),
    }
    for split in ("train", evaluation):
        for name, (width, height) in sizes.items():
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (height, width) if "grey" in name else (height, width, 3)
            Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(path, quality=95)
        (root / split / "cat" / "notes.txt").write_text("not an image")
    return root


@pytest.mark.parametrize("evaluation", ["test", "val"])
def test_an_image_folder_is_resized_and_cropped_as_torchvision_does(evaluation):
    root = folder_tree(evaluation)
    settings = Data("imagefolder", root="pets", image_size=16)
    entry, splits = describe(settings), load_splits(settings, CPU)
    assert (entry.classes, entry.channels, entry.image_size) == (2, 3, 16)
    assert image_counts(settings) == (5, 5)
    assert "5 + 5 images" in entry.locate(settings)
    assert example_input(settings).shape == (1, 3, 16, 16)
    prepare = transforms.Compose(
        [transforms.Resize(16, transforms.InterpolationMode.BILINEAR), transforms.CenterCrop(16)]
    )
    for split, part in (("train", splits.train), (evaluation, splits.test)):
        assert part.labels.tolist() == [0, 0, 0, 1, 1]
        expected = []
        for name in ("cat/a.jpg", "cat/b.jpeg", "cat/deep/c.JPG", "dog/grey.jpg", "dog/small.jpg"):
            with Image.open(root / split / name) as image:
                expected.append(np.asarray(prepare(image.convert("RGB"))))
        assert np.array_equal(part.images.permute(0, 2, 3, 1).numpy(), np.stack(expected))
    grey = splits.train.images[3]
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])


def test_image_sizes_of_one_folder_do_not_share_a_cache():
    folder_tree("test")
    shapes = [
        load("imagefolder", root="pets", image_size=side).train.images.shape[-1] for side in (16, 8, 16)
    ]
    assert shapes == [16, 8, 16]


def test_an_image_folder_takes_any_aspect_ratio():
    for split in ("train", "test"):
        for name, size in {"a": (37, 5), "b": (5, 37), "c": (7, 11)}.items():
            (data_root() / "odd" / split / name).mkdir(parents=True)
            Image.new("RGB", size, (10, 20, 30)).save(data_root() / "odd" / split / name / "x.png")
    images = load("imagefolder", root="odd", image_size=8).train.images
    assert torch.equal(
        images, torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(3, 3, 8, 8)
    )


@pytest.mark.parametrize("other", [{}, {"root": "pets"}, {"image_size": 8}])
def test_an_image_folder_needs_a_root_and_a_size(other):
    with pytest.raises(SettingsError, match="imagefolder needs root .* and image_size"):
        load("imagefolder", **other)


PETS = Data("imagefolder", root="pets", image_size=8)


def refused(settings: Data, *words: str) -> None:
    """A run and the check both say all of the words."""
    for use in (lambda: load_splits(settings, CPU), lambda: DATASETS["imagefolder"].locate(settings)):
        with pytest.raises(DataError) as caught:
            use()
        for word in words:
            assert word in str(caught.value)


@pytest.mark.parametrize("folders", [(), ("",), ("train",)])
def test_a_folder_without_classes_is_named(folders):
    for name in folders:
        (data_root() / "pets" / name).mkdir(parents=True)
    refused(PETS, f"{data_root() / 'pets'} has no train/<class>/<image>")


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


UNREADABLE = "{}/train/cat/b.jpeg is not a readable image"
# What is done to a tree, and what is said of it.
DAMAGES = {
    "no test images": (
        lambda root: shutil.rmtree(root / "test"),
        "has no test/<class>/<image> or val/<class>/<image>",
    ),
    "other classes": (lambda root: (root / "test/dog").rename(root / "test/fox"), "same class folders"),
    "no images": (lambda root: emptied(root / "train/dog"), "has no images (.jpg, .jpeg, .png"),
    "text": (lambda root: (root / "train/cat/b.jpeg").write_bytes(b"no image at all"), UNREADABLE),
    "empty": (lambda root: (root / "train/cat/b.jpeg").write_bytes(b""), UNREADABLE),
    "truncated": (lambda root: halved(root / "train/cat/b.jpeg"), UNREADABLE),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_read_is_told_by_a_run_and_by_the_check(damage):
    root = folder_tree("test")
    change, told = DAMAGES[damage]
    change(root)
    refused(PETS, told.format(root))
    assert not array_cache("pets-8").exists()


@pytest.mark.parametrize("count", [1, 4, 9])
def test_subsets_that_cannot_be_taken_are_refused(count):
    folder_tree("test")
    refused(replace(PETS, train_images=count), f"a subset of {count} cannot keep their shares; give 2 to 3")


def test_a_tree_that_does_not_fit_in_memory_is_refused_before_it_is_read(monkeypatch):
    folder_tree("test")
    monkeypatch.setattr(arrays, "MAX_ARRAY_BYTES", 5 * 3 * 8 * 8 - 1)
    refused(PETS, "5 images of 8×8", "choose a smaller image_size")
    monkeypatch.setattr(arrays, "MAX_ARRAY_BYTES", 5 * 3 * 8 * 8)
    assert len(load_splits(PETS, CPU).train) == 5
