"""Data sets: what is loaded, from where, and what a run sees of it in which order."""

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torchvision import transforms

from pursuhint_lib import data
from pursuhint_lib.data import DATASETS, DataError, Images, describe, example_input, image_counts, load_splits
from pursuhint_lib.paths import ROOT, array_cache, data_root
from pursuhint_lib.settings import Data, SettingsError

CPU = torch.device("cpu")
TEST_ZIP = ROOT.parent / "shared" / "data" / "cifar100" / "test.zip"


def load(dataset: str = "digits", **other) -> data.Splits:
    return load_splits(Data(dataset, **other), CPU)


def numbered(count: int, side: int = 6, **entry) -> Images:
    """Random images whose label is their own number."""
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    shape = {"image_size": side, "mean": (0.0,) * 3, "std": (1.0,) * 3, "padding": 1, "flip": True}
    return Images(pixels, torch.arange(count), replace(DATASETS["cifar100"], **{**shape, **entry}), CPU)


def epoch_of(images: Images, batch_size: int, seed: int, epoch: int, **ranks) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(images.train_batches(batch_size, seed, epoch, **ranks))
    return torch.cat([pixels for pixels, _ in batches]), torch.cat([labels for _, labels in batches])


# ---- digits


def test_digits_have_the_promised_shapes_and_counts():
    splits = load()
    assert splits.train.images.shape == (1000, 1, 8, 8)
    assert splits.test.images.shape == (797, 1, 8, 8)
    for part in (splits.train, splits.test):
        assert part.images.dtype == torch.uint8
        assert part.labels.dtype == torch.int64
        assert part.labels.unique().tolist() == list(range(10))
        assert len(part) == len(part.labels) == len(part.images)
    assert image_counts(Data("digits")) == (1000, 797)
    assert image_counts(Data("digits", train_images=300, test_images=50)) == (300, 50)
    assert example_input(Data("digits")).shape == (1, 1, 8, 8)


def test_digits_use_the_whole_range_of_grey_values():
    images = load().train.images
    assert sorted(images.unique().tolist()) == [round(value * 255 / 16) for value in range(17)]


def test_digits_mean_and_deviation_are_those_of_the_training_images():
    pixels = load().train.images.double() / 255
    entry = DATASETS["digits"]
    assert float(pixels.mean()) == pytest.approx(entry.mean[0], abs=1e-3)
    assert float(pixels.std()) == pytest.approx(entry.std[0], abs=1e-3)


def test_an_unknown_data_set_is_named_with_the_valid_ones():
    with pytest.raises(SettingsError, match=r"unknown data set 'digit' \(did you mean 'digits'\?\); valid: digits, fashion-mnist"):
        load("digit")


# ---- batches


def test_order_and_augmentation_are_a_function_of_seed_and_epoch():
    images = numbered(40)
    pixels, labels = epoch_of(images, 16, seed=3, epoch=5)
    again, labels_again = epoch_of(images, 16, seed=3, epoch=5)
    assert torch.equal(pixels, again)
    assert torch.equal(labels, labels_again)


@pytest.mark.parametrize(("seed", "epoch"), [(3, 6), (4, 5), (5, 3)])
def test_another_seed_or_epoch_gives_another_order_and_other_augmentation(seed, epoch):
    images = numbered(40)
    pixels, labels = epoch_of(images, 16, seed=3, epoch=5)
    other, other_labels = epoch_of(images, 16, seed=seed, epoch=epoch)
    assert not torch.equal(labels, other_labels)
    assert not torch.equal(pixels[labels.argsort()], other[other_labels.argsort()])


def test_the_batch_size_changes_neither_order_nor_augmentation():
    images = numbered(40)
    for whole, parted in zip(epoch_of(images, 40, seed=0, epoch=1), epoch_of(images, 7, seed=0, epoch=1), strict=True):
        assert torch.equal(whole, parted)


def test_global_random_state_is_neither_used_nor_changed():
    images = numbered(20)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    pixels, _ = epoch_of(images, 8, seed=0, epoch=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(epoch_of(images, 8, seed=0, epoch=0)[0], pixels)


def test_every_image_is_seen_once_an_epoch_and_the_last_batch_is_kept():
    batches = list(numbered(23).train_batches(10, seed=0, epoch=0))
    assert [len(labels) for _, labels in batches] == [10, 10, 3]
    assert [len(pixels) for pixels, _ in batches] == [10, 10, 3]
    labels = torch.cat([labels for _, labels in batches])
    assert sorted(labels.tolist()) == list(range(23))
    assert labels.tolist() != list(range(23))


def test_pixels_stay_with_their_label():
    images = numbered(30, padding=0, flip=False)
    pixels, labels = epoch_of(images, 8, seed=2, epoch=0)
    assert torch.equal(pixels, images.images[labels].float() / 255)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_global_batch_without_overlap(world):
    images = numbered(22)
    whole = list(images.train_batches(8, seed=1, epoch=2))
    ranks = [list(images.train_batches(8, seed=1, epoch=2, rank=rank, world=world)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {len(whole)}
    for number, (pixels, labels) in enumerate(whole):
        parts = [batches[number] for batches in ranks]
        sets = [set(own.tolist()) for _, own in parts]
        assert sum(map(len, sets)) == len(set().union(*sets)) == len(labels)
        assert max(map(len, sets)) - min(map(len, sets)) <= 1
        joined, joined_labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        order, expected = joined_labels.argsort(), labels.argsort()
        assert torch.equal(joined_labels[order], labels[expected])
        assert torch.equal(joined[order], pixels[expected])


@pytest.mark.parametrize(("side", "pad"), [(5, 2), (8, 1), (6, 0)])
def test_augmentation_equals_a_plain_loop_over_images(side, pad):
    images = numbered(12, side, padding=pad)
    generator = torch.Generator().manual_seed(side)
    chosen = torch.randperm(12, generator=generator)[:9]
    shifts = torch.randint(0, 2 * pad + 1, (9, 2), generator=generator)
    mirrored = torch.tensor([True, False, True] * 3)
    expected = []
    for index, (down, right), mirror in zip(chosen.tolist(), shifts.tolist(), mirrored.tolist(), strict=True):
        padded = np.zeros((3, side + 2 * pad, side + 2 * pad), dtype=np.uint8)
        padded[:, pad : pad + side, pad : pad + side] = images.images[index].numpy()
        crop = padded[:, down : down + side, right : right + side]
        expected.append(crop[:, :, ::-1] if mirror else crop)
    assert np.array_equal(images._augmented(chosen, shifts, mirrored).numpy(), np.stack(expected))


def test_every_shift_within_the_padding_occurs():
    images = numbered(300, 5, padding=1, flip=False)
    images.images.zero_()
    images.images[:, :, 2, 2] = 255
    pixels, _ = epoch_of(images, 300, seed=0, epoch=0)
    positions = pixels[:, 0].flatten(1).argmax(1)
    assert set(positions.tolist()) == {5 * row + column for row in (1, 2, 3) for column in (1, 2, 3)}


@pytest.mark.parametrize(("flip", "low", "high"), [(True, 0.4, 0.6), (False, 0.0, 0.0)])
def test_half_of_the_images_are_mirrored_where_the_data_set_allows_it(flip, low, high):
    images = numbered(400, 4, padding=0, flip=flip)
    pixels, labels = epoch_of(images, 400, seed=0, epoch=0)
    straight = images.images[labels].float() / 255
    same, mirror = ((pixels == candidate).flatten(1).all(1) for candidate in (straight, straight.flip(3)))
    assert (same ^ mirror).all()
    assert low <= float(mirror.float().mean()) <= high


def test_digits_are_never_mirrored():
    assert not DATASETS["digits"].flip


def test_ordered_batches_are_the_stored_images_normalised():
    images = numbered(23, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    batches = list(images.ordered_batches(10))
    assert [len(labels) for _, labels in batches] == [10, 10, 3]
    pixels, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    assert labels.tolist() == list(range(23))
    assert pixels.dtype == torch.float32
    for channel, (mean, deviation) in enumerate(((0.1, 0.5), (0.2, 0.25), (0.3, 2.0))):
        expected = (images.images[:, channel].double() / 255 - mean) / deviation
        torch.testing.assert_close(pixels[:, channel].double(), expected, rtol=0, atol=1e-6)


def test_training_batches_are_normalised_too():
    images = numbered(10, padding=0, flip=False, mean=(0.5,) * 3, std=(0.25,) * 3)
    pixels, labels = epoch_of(images, 10, seed=0, epoch=0)
    torch.testing.assert_close(pixels, (images.images[labels].float() / 255 - 0.5) / 0.25)


def test_the_first_images_are_the_first_in_stored_order():
    images = numbered(10)
    assert images.first(4).labels.tolist() == [0, 1, 2, 3]
    assert torch.equal(images.first(4).images, images.images[:4])


# ---- subsets


def test_a_subset_keeps_the_share_of_every_class():
    whole, part = load().train.labels, load(train_images=300).train.labels
    assert len(part) == 300
    assert (part.bincount() - whole.bincount() * 0.3).abs().max() <= 1


def test_a_subset_is_taken_from_the_images_in_stored_order_and_is_the_same_every_time():
    whole, part = load(), load(train_images=200, test_images=100)
    again = load(train_images=200, test_images=100)
    for name in ("train", "test"):
        subset, everything = getattr(part, name), getattr(whole, name)
        assert torch.equal(subset.images, getattr(again, name).images)
        position = -1
        for pixels, label in zip(subset.images, subset.labels, strict=True):
            matches = ((everything.images == pixels).flatten(1).all(1) & (everything.labels == label)).nonzero()[:, 0]
            position = next(int(match) for match in matches if match > position)
    assert part.checksum == again.checksum != whole.checksum


def test_another_subset_seed_gives_another_subset():
    assert load(train_images=200, subset_seed=1).checksum != load(train_images=200).checksum


def test_a_subset_of_all_images_is_all_images():
    assert load(train_images=1000, test_images=797).checksum == load().checksum


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"train_images": 1001}, ("digits train", "1000 images", "10 classes", "1001")),
        ({"train_images": 9}, ("digits train", "10 classes", "subset of 9")),
        ({"test_images": 798}, ("digits test", "797 images", "798")),
    ],
)
def test_a_subset_that_cannot_be_taken_is_refused(counts, words):
    with pytest.raises(DataError) as caught:
        load(**counts)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("count", [10, 500, 990])
def test_any_size_from_the_number_of_classes_on_can_be_taken(count):
    assert len(load(train_images=count).train) == count


@pytest.mark.parametrize("count", [991, 999])
def test_a_size_close_to_all_is_taken_or_refused_in_words(count):
    try:
        assert len(load(train_images=count).train) == count
    except DataError as error:
        assert str(count) in str(error)


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
    monkeypatch.setattr(data, "_check_whole", lambda root, entry: tuple(len(data._listing(root / split)) for split in ("train", "test")))


@pytest.fixture
def tree(small_trees):
    """An image tree in the place of CIFAR-100."""
    return cifar_tree(data_root() / "cifar100")


def test_a_tree_that_was_unpacked_in_part_is_refused():
    cifar_tree(data_root() / "cifar100")
    for use in (load, lambda name: DATASETS[name].locate(Data(name))):
        with pytest.raises(DataError, match=r"has 3 classes and 6 \+ 6 images, not 100 classes and 50000 \+ 10000 images; unpack all of it"):
            use("cifar100")


@pytest.fixture
def decoded(monkeypatch):
    """Number of images handed to the decoder so far, as the one entry of a list."""
    count, decode = [0], data._decode

    def counting(files, *others):
        count[0] += len(files)
        return decode(files, *others)

    monkeypatch.setattr(data, "_decode", counting)
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
    monkeypatch.setattr(data, "_decode", lambda *_: pytest.fail("decoded again"))
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


@pytest.mark.parametrize("position", ["length", "header", "name of images", "name of labels", "stored key", "first pixel", "last byte"])
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


# ---- image folders


def folder_tree(evaluation: str) -> Path:
    """JPEGs of various sizes, one of them grey and one in capitals and a folder deeper."""
    root = data_root() / "pets"
    generator = np.random.default_rng(1)
    sizes = {"cat/a.jpg": (16, 16), "cat/b.jpeg": (32, 48), "cat/deep/c.JPG": (64, 32), "dog/grey.jpg": (40, 20), "dog/small.jpg": (8, 12)}
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
    prepare = transforms.Compose([transforms.Resize(16, transforms.InterpolationMode.BILINEAR), transforms.CenterCrop(16)])
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
    shapes = [load("imagefolder", root="pets", image_size=side).train.images.shape[-1] for side in (16, 8, 16)]
    assert shapes == [16, 8, 16]


def test_an_image_folder_takes_any_aspect_ratio():
    for split in ("train", "test"):
        for name, size in {"a": (37, 5), "b": (5, 37), "c": (7, 11)}.items():
            (data_root() / "odd" / split / name).mkdir(parents=True)
            Image.new("RGB", size, (10, 20, 30)).save(data_root() / "odd" / split / name / "x.png")
    images = load("imagefolder", root="odd", image_size=8).train.images
    assert torch.equal(images, torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(3, 3, 8, 8))


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
    path.write_bytes({"text": b"no image at all", "empty": b"", "truncated": content[: len(content) // 2]}[damage])
    assert f"{path} is not a readable image" in folder_error()
    assert not array_cache("pets-8").exists()


def test_a_tree_that_does_not_fit_in_memory_is_refused_before_it_is_read(monkeypatch):
    folder_tree("test")
    monkeypatch.setattr(data, "MAX_ARRAY_BYTES", 5 * 3 * 8 * 8 - 1)
    assert "5 images of 8×8" in folder_error()
    monkeypatch.setattr(data, "MAX_ARRAY_BYTES", 5 * 3 * 8 * 8)
    assert len(load("imagefolder", root="pets", image_size=8).train) == 5


# ---- torchvision's readers


class Colour:
    """Arrays [N, H, W, 3] and a list of targets, as CIFAR has them."""

    downloads: list = []  # noqa: RUF012

    def __init__(self, root, train, download):
        self.downloads.append(download)
        self.data = np.random.default_rng(int(train)).integers(0, 256, (6 if train else 4, 32, 32, 3), dtype=np.uint8)
        self.targets = [number % 3 for number in range(len(self.data))]


class Grey:
    """Tensors [N, H, W], as Fashion-MNIST has them."""

    def __init__(self, root, train, download):
        self.data = torch.randint(0, 256, (6 if train else 4, 28, 28), generator=torch.Generator().manual_seed(int(train)), dtype=torch.uint8)
        self.targets = torch.arange(len(self.data)) % 3


@pytest.fixture
def reader(monkeypatch):
    """Put a reader in the place of a data set's own."""

    def put(name: str, folder: str, cls: type) -> None:
        source = data._Torchvision(name, folder, cls)
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], load=source.load, locate=source.locate))

    return put


@pytest.mark.parametrize("there", [False, True])
def test_colour_images_of_torchvision_become_channels_first(reader, monkeypatch, there):
    monkeypatch.setattr(Colour, "downloads", [])
    reader("cifar10", "cifar-10-batches-py", Colour)
    if there:
        (data_root() / "cifar-10-batches-py").mkdir(parents=True)
    splits = load("cifar10")
    assert splits.train.images.shape == (6, 3, 32, 32)
    assert splits.test.images.shape == (4, 3, 32, 32)
    assert np.array_equal(splits.train.images.permute(0, 2, 3, 1).numpy(), Colour(None, True, None).data)
    assert np.array_equal(splits.test.images.permute(0, 2, 3, 1).numpy(), Colour(None, False, None).data)
    assert splits.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert splits.train.labels.dtype == torch.int64
    assert Colour.downloads[:2] == [not there] * 2


def test_grey_images_of_torchvision_get_a_channel(reader):
    reader("fashion-mnist", "FashionMNIST", Grey)
    splits = load("fashion-mnist")
    assert splits.train.images.shape == (6, 1, 28, 28)
    assert torch.equal(splits.train.images[:, 0], Grey(None, True, None).data)
    assert torch.equal(splits.test.images[:, 0], Grey(None, False, None).data)
    assert splits.test.labels.tolist() == [0, 1, 2, 0]


def test_an_image_tree_goes_before_torchvisions_files(reader, tree):
    reader("cifar100", "cifar-100-python", Colour)
    assert len(load("cifar100").train) == 6
    assert load("cifar100").test.labels.tolist() == [0, 0, 1, 1, 2, 2]


def raising(error: Exception) -> type:
    def fail(self, root, train, download):
        raise error

    return type("Failing", (), {"__init__": fail})


@pytest.mark.parametrize("error", [URLError("no route to host"), RuntimeError("Error downloading\nx.gz"), TimeoutError("timed out")])
def test_a_failed_download_is_one_line_that_names_the_folder(reader, error):
    reader("cifar10", "cifar-10-batches-py", raising(error))
    with pytest.raises(DataError) as caught:
        load("cifar10")
    message = str(caught.value)
    assert "\n" not in message
    assert f"cifar10 cannot be downloaded to {data_root()}" in message
    assert "PURSUHINT_DATA" in message
    assert " ".join(str(error).split()) in message


def test_damaged_files_of_cifar_are_named_and_not_downloaded():
    folder = data_root() / "cifar-100-python"
    folder.mkdir(parents=True)
    (folder / "train").write_bytes(b"not a pickle")
    with pytest.raises(DataError) as caught:
        load("cifar100")
    assert f"cifar100 is damaged in {folder}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x00\x00\x08\x03\x00\x00\x00\x05\x00\x00\x00\x1c\x00\x00\x00\x1c" + bytes(100)], ids=["empty", "short"])
def test_damaged_files_of_fashion_mnist_are_named(content):
    raw = data_root() / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (raw / name).write_bytes(content)
    with pytest.raises(DataError, match=f"fashion-mnist is damaged in {data_root() / 'FashionMNIST'}"):
        load("fashion-mnist")


def test_where_a_data_set_is_can_be_asked_without_reading_it():
    assert DATASETS["digits"].locate(Data("digits")) == "ships with scikit-learn"
    with pytest.raises(DataError) as caught:
        DATASETS["cifar10"].locate(Data("cifar10"))
    for word in (f"cifar10 is not in {data_root()}", "cifar10/train/<class>/*.png", "cifar-10-batches-py", "PURSUHINT_DATA"):
        assert word in str(caught.value)
    (data_root() / "cifar-10-batches-py").mkdir(parents=True)
    assert str(data_root() / "cifar-10-batches-py") in DATASETS["cifar10"].locate(Data("cifar10"))
