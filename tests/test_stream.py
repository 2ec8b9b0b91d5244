"""Images that are read while training: the same whatever the number of workers and processes, and every one
of them once.
"""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from pursuhint_lib import data
from pursuhint_lib.data import Data, DataError, load_splits, sample, stream
from pursuhint_lib.models import build_model, load_checkpoint, save_weights
from pursuhint_lib.paths import sample_tree
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.training import evaluate

CPU = torch.device("cpu")
SETTINGS = Data("imagenet-sample", image_size=32)


def coloured(images: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """CIFAR-like images whose colour says which they are, and labels in turns."""
    pixels = (
        torch.arange(images, dtype=torch.uint8)[:, None, None, None].expand(images, 3, 32, 32).contiguous()
    )
    return pixels, torch.arange(images) % classes


@pytest.fixture(autouse=True)
def small_sample(monkeypatch):
    """A tree of four classes with ten images for training and four for evaluation, made as the real one from
    CIFAR-100.
    """
    for module in (data, sample):
        monkeypatch.setattr(module, "SAMPLE_CLASSES", 4)
        monkeypatch.setattr(module, "SAMPLE_IMAGES", (10, 4))
    images, labels = coloured(200, 8)
    arrays = {
        "train_images": images,
        "train_labels": labels,
        "test_images": images[:80],
        "test_labels": labels[:80],
    }
    monkeypatch.setitem(
        data.DATASETS,
        "imagenet-sample",
        dataclasses.replace(data.DATASETS["imagenet-sample"], classes=4, counts=(40, 16)),
    )
    monkeypatch.setitem(
        data.DATASETS,
        "cifar100",
        dataclasses.replace(data.DATASETS["cifar100"], load=lambda settings: arrays),
    )


def test_the_sample_is_a_tree_of_enlarged_images_in_several_sizes():
    splits = load_splits(SETTINGS, CPU)
    assert (len(splits.train), len(splits.test)) == (40, 16)
    assert splits.train.labels.bincount().tolist() == [10] * 4
    assert splits.train.listing.classes == ("class00", "class02", "class04", "class06")
    sizes = set()
    for index in range(10):
        with Image.open(splits.train.listing.path(index)) as image:
            sizes.add(image.size)
    assert sizes == set(sample.SIDES)
    # Class 2 of 8, image 3 of the class: number 26 of the array, so that its grey is 26.
    with Image.open(sample_tree() / "train" / "class02" / "003.JPEG") as image:
        assert abs(np.asarray(image).mean() - 26) < 2
    before = {path: path.stat().st_mtime_ns for path in sample_tree().rglob("*.JPEG")}
    assert load_splits(SETTINGS, CPU).checksum == splits.checksum
    assert {path: path.stat().st_mtime_ns for path in sample_tree().rglob("*.JPEG")} == before


def test_two_processes_that_make_the_sample_at_once_leave_one(tmp_path):
    arrays = data.DATASETS["cifar100"].load(Data("cifar100"))
    sample.make_sample(arrays, tmp_path / "tree")
    sample.make_sample(arrays, tmp_path / "tree")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("tree")] == ["tree"]


def test_every_image_comes_once_an_epoch_in_an_order_and_crops_of_seed_and_epoch():
    train = load_splits(SETTINGS, CPU).train
    epochs = {key: list(train.train_batches(16, *key)) for key in ((0, 0), (0, 1), (1, 0))}
    for batches in epochs.values():
        assert [len(batch.labels) for batch in batches] == [16, 16, 8]
        assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == list(range(40))
        assert all(torch.equal(batch.labels, train.labels[batch.indices]) for batch in batches)
    orders = {tuple(torch.cat([batch.indices for batch in batches]).tolist()) for batches in epochs.values()}
    assert len(orders) == 3
    again = list(train.train_batches(16, 0, 0))
    assert all(torch.equal(a.images, b.images) for a, b in zip(epochs[0, 0], again, strict=True))
    assert again[0].images.is_contiguous(memory_format=torch.channels_last)


def test_workers_change_nothing(monkeypatch):
    train = load_splits(SETTINGS, CPU).train
    alone = list(train.train_batches(16, 3, 2)), list(train.ordered_batches(16))
    monkeypatch.setattr(stream, "worker_count", lambda device: 2)
    for without, with_workers in zip(
        alone, (train.train_batches(16, 3, 2), train.ordered_batches(16)), strict=True
    ):
        for a, b in zip(without, with_workers, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("first", [0, 1])
def test_processes_take_disjoint_parts_of_every_batch(first):
    train = load_splits(SETTINGS, CPU).train
    whole = list(train.train_batches(16, 0, 0))[first:]
    parts = [list(train.train_batches(16, 0, 0, rank, 3, first)) for rank in range(3)]
    for number, batch in enumerate(whole):
        for rank in range(3):
            assert torch.equal(parts[rank][number].indices, batch.indices[rank::3])
            assert torch.equal(parts[rank][number].images, batch.images[rank::3])


@pytest.mark.parametrize("kind", ["streamed", "in memory"])
def test_processes_share_out_the_evaluation(kind):
    images = load_splits(SETTINGS if kind == "streamed" else Data("digits", test_images=16), CPU).test
    parts = [labels for rank in range(3) for _, labels in images.ordered_batches(5, rank, 3)]
    assert sorted(len(labels) for labels in parts) == [1, 5, 5, 5]
    assert torch.equal(torch.cat(parts).sort().values, images.labels.sort().values)


def test_a_spread_of_images_keeps_files_and_labels_together():
    train = load_splits(SETTINGS, CPU).train
    some = train.spread(8)
    assert some.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert some.listing.path(3) == train.listing.path(15)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_in_one_line(monkeypatch, workers):
    monkeypatch.setattr(stream, "worker_count", lambda device: workers)
    train = load_splits(SETTINGS, CPU).train
    broken = train.listing.path(7)
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError) as refused:
        list(train.train_batches(16, 0, 0))
    assert str(refused.value).startswith(f"{broken} is not a readable image")
    assert "\n" not in str(refused.value)


def test_some_classes_are_evenly_spaced_and_counted_from_0():
    splits = load_splits(Data("imagenet-sample", image_size=32, classes=2), CPU)
    assert splits.train.listing.classes == ("class00", "class04")
    assert splits.train.labels.bincount().tolist() == [10, 10]
    assert len(splits.test) == 8
    settings = Data("imagenet-sample", classes=2)
    assert (data.describe(settings).classes, data.class_positions(settings), data.image_counts(settings)) == (
        2,
        [0, 2],
        (20, 8),
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Data("imagenet", classes=1001), "classes is 1001, but imagenet has 1000; give 2 to 1000"),
        (
            Data("cifar100", classes=10),
            "classes can be given for imagenet, imagenet-sample, not for cifar100",
        ),
    ],
)
def test_classes_that_are_not_there_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        data.describe(settings)


def test_subsets_keep_the_shares_of_the_classes():
    splits = load_splits(Data("imagenet-sample", train_images=20, test_images=8), CPU)
    assert splits.train.labels.bincount().tolist() == [5] * 4
    assert splits.test.labels.bincount().tolist() == [2] * 4


def test_a_classifier_of_more_classes_is_loaded_for_some_of_them(tmp_path):
    whole, part = build_model("resnet8", 10, 3).eval(), build_model("resnet8", 3, 3).eval()
    save_weights(whole, tmp_path / "whole.safetensors")
    load_checkpoint(part, tmp_path / "whole.safetensors", classes=[1, 4, 9])
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(part(images), whole(images)[:, [1, 4, 9]])
    with pytest.raises(SettingsError, match="shape"):
        load_checkpoint(part, tmp_path / "whole.safetensors")


def test_top_5_is_counted_where_the_data_set_asks_for_it():
    class Ranked(torch.nn.Module):
        """Says 0, 1, 2 … in this order, for every image."""

        def forward(self, images):
            return -torch.arange(10.0).expand(len(images), 10)

    images = load_splits(SETTINGS, CPU).test
    assert evaluate(Ranked(), images) == {"accuracy": 25.0, "top5_accuracy": 100.0}
    assert evaluate(Ranked(), load_splits(Data("digits", test_images=50), CPU).test).keys() == {"accuracy"}
