"""Image trees and image folders: read pixel by pixel, cached safely, refused with the reason."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torchvision import transforms

from pursuhint_lib import data
from pursuhint_lib.data import DATASETS, DataError, describe, example_input, image_counts, load_splits, trees
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
def small_trees(monkeypatch):
    """CIFAR-100 may have any number of classes and images."""
    monkeypatch.setattr(
        data,
        "check_whole",
        lambda root, entry: tuple(len(data.list_images(root / split)) for split in ("train", "test")),
    )


@pytest.fixture
def tree(small_trees):
    """An image tree in the place of CIFAR-100."""
    return cifar_tree(data_root() / "cifar100")


def test_a_tree_that_was_unpacked_in_part_is_refused():
    cifar_tree(data_root() / "cifar100")
    for use in (load, lambda name: DATASETS[name].locate(Data(name))):
        with pytest.raises(
            DataError,
            match=r"has 3 classes and 6 \+ 6 images, not 100 classes and 50000 \+ 10000 images; unpack all of it",
        ):
            use("cifar100")


@pytest.fixture
def decoded(monkeypatch):
    """Number of images handed to the decoder so far, as the one entry of a list."""
    count, decode = [0], trees._decode

    def counting(files, *others):
        count[0] += len(files)
        return decode(files, *others)

    monkeypatch.setattr(trees, "_decode", counting)
    return count


def test_an_image_tree_is_read_pixel_by_pixel_with_labels_in_the_order_of_names(tree):
    splits = load("cifar100")
    for split in ("train", "test"):
        part = getattr(splits, split)
        assert part.labels.tolist() == [0, 0, 1, 1, 2, 2]
        expected = [tree[split, name, number] for name in ("Ape", "bee", "zebra") for number in (0, 1)]
        assert np.array_equal(part.images.numpy(), np.stack(expected).transpose(0, 3, 1, 2))


def test_an_image_tree_is_decoded_once(tree, monkeypatch):
    first = load("cifar100")
    monkeypatch.setattr(trees, "_decode", lambda *_: pytest.fail("decoded again"))
    second = load("cifar100")
    assert second.checksum == first.checksum
    assert torch.equal(second.train.images, first.train.images)
    assert torch.equal(second.test.labels, first.test.labels)


def test_the_cache_is_dropped_when_an_image_is_added(tree, decoded):
    load("cifar100")
    extra = data_root() / "cifar100" / "test" / "bee" / "9.png"
    Image.new("RGB", (32, 32), (1, 2, 3)).save(extra)
    part = load("cifar100").test
    assert part.labels.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert part.images[4, :, 0, 0].tolist() == [1, 2, 3]
    assert decoded == [12 + 13]


def test_the_cache_is_dropped_when_an_image_goes(tree, decoded):
    load("cifar100")
    (data_root() / "cifar100" / "train" / "Ape" / "0.png").unlink()
    assert load("cifar100").train.labels.tolist() == [0, 1, 1, 2, 2]
    assert decoded == [12 + 11]


def test_the_cache_is_dropped_when_an_image_is_replaced_by_one_of_the_same_length(tree):
    path = data_root() / "cifar100" / "train" / "Ape" / "x.bmp"
    for colour in ((1, 2, 3), (200, 100, 50)):
        Image.new("RGB", (32, 32), colour).save(path)
        assert load("cifar100").train.images[2, :, 0, 0].tolist() == list(colour)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_cache_is_made_again(tree, decoded, share):
    whole = load("cifar100")
    cache = array_cache("cifar100")
    cache.write_bytes(cache.read_bytes()[: int(cache.stat().st_size * share)])
    assert load("cifar100").checksum == whole.checksum
    assert decoded == [24]
    load("cifar100")
    assert decoded == [24]


@pytest.mark.parametrize(
    "position",
    ["length", "header", "name of images", "name of labels", "stored key", "first pixel", "last byte"],
)
def test_a_flipped_bit_in_the_cache_is_noticed(tree, decoded, position):
    whole = load("cifar100")
    cache = array_cache("cifar100")
    content = bytearray(cache.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    # Flipping the lowest bit keeps the header readable: a name becomes another name, a number another number.
    place = {
        "length": 0,
        "header": 8,
        "name of images": content.index(b"train_images"),
        "name of labels": content.index(b"train_labels"),
        "stored key": content.index(b'"key":"') + 7,
        "first pixel": header,
        "last byte": len(content) - 1,
    }
    content[place[position]] ^= 1
    cache.write_bytes(content)
    assert load("cifar100").checksum == whole.checksum
    assert decoded == [24]


def test_a_cache_that_is_no_cache_is_made_again(tree, decoded):
    whole = load("cifar100")
    save_file({"train_images": torch.zeros(2)}, array_cache("cifar100"))
    assert load("cifar100").checksum == whole.checksum
    assert decoded == [24]
    with safe_open(array_cache("cifar100"), framework="pt") as content:
        assert set(content.keys()) == {"train_images", "train_labels", "test_images", "test_labels"}


def test_no_draft_of_the_cache_is_left(tree):
    load("cifar100")
    assert [path.name for path in array_cache("cifar100").parent.iterdir()] == ["cifar100.safetensors"]


def test_an_image_tree_is_found_without_reading_it(tree, decoded):
    where = DATASETS["cifar100"].locate(Data("cifar100"))
    assert str(data_root() / "cifar100") in where
    assert "6 + 6 images" in where
    assert decoded == [0]


@pytest.mark.skipif(not TEST_ZIP.is_file(), reason=f"the CIFAR-100 images are missing: {TEST_ZIP}")
def test_the_real_test_images_are_read_pixel_by_pixel(small_trees):
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


def folder_error(root: str = "pets") -> str:
    with pytest.raises(DataError) as caught:
        load("imagefolder", root=root, image_size=8)
    return str(caught.value)


@pytest.mark.parametrize("folders", [(), ("",), ("train",)])
def test_a_folder_without_classes_is_named(folders):
    for name in folders:
        (data_root() / "pets" / name).mkdir(parents=True)
    assert f"{data_root() / 'pets' / 'train'} has no class folders" in folder_error()


def test_a_tree_without_evaluation_images_is_named():
    shutil.rmtree(folder_tree("test") / "test")
    assert f"{data_root() / 'pets' / 'test'} has no class folders" in folder_error()


def test_splits_with_different_classes_are_refused():
    root = folder_tree("test")
    (root / "test" / "dog").rename(root / "test" / "fox")
    message = folder_error()
    assert str(root / "train") in message
    assert "different class folders" in message


def test_classes_without_images_are_refused():
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (data_root() / "pets" / split / name).mkdir(parents=True)
            (data_root() / "pets" / split / name / "notes.txt").write_text("nothing")
    message = folder_error()
    assert f"{data_root() / 'pets' / 'train'} has class folders but no images" in message
    assert ".png" in message


@pytest.mark.parametrize("damage", ["text", "empty", "truncated"])
def test_an_unreadable_image_is_named(damage):
    path = folder_tree("test") / "train" / "cat" / "b.jpeg"
    content = path.read_bytes()
    path.write_bytes(
        {"text": b"no image at all", "empty": b"", "truncated": content[: len(content) // 2]}[damage]
    )
    assert f"{path} is not a readable image" in folder_error()
    assert not array_cache("pets-8").exists()


def test_a_tree_that_does_not_fit_in_memory_is_refused_before_it_is_read(monkeypatch):
    folder_tree("test")
    monkeypatch.setattr(trees, "MAX_ARRAY_BYTES", 5 * 3 * 8 * 8 - 1)
    assert "5 images of 8×8" in folder_error()
    monkeypatch.setattr(trees, "MAX_ARRAY_BYTES", 5 * 3 * 8 * 8)
    assert len(load("imagefolder", root="pets", image_size=8).train) == 5
