"""Data sets: what is loaded, from where, and what a run sees of it in which order."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pursuhint_lib import data
from pursuhint_lib.data import DATASETS, Images, example_input, image_counts, load_splits
from pursuhint_lib.settings import Data, SettingsError

CPU = torch.device("cpu")


def load(dataset: str = "digits", **other) -> data.Splits:
    return load_splits(Data(dataset, **other), CPU)


def numbered(count: int, side: int = 6, **entry) -> Images:
    """Random images whose label is their own number."""
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    shape = {"image_size": side, "mean": (0.0,) * 3, "std": (1.0,) * 3, "padding": 1, "flip": True}
    return Images(pixels, torch.arange(count), replace(DATASETS["cifar100"], **{**shape, **entry}), CPU)


def epoch_of(
    images: Images, batch_size: int, seed: int, epoch: int, **ranks
) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(images.train_batches(batch_size, seed, epoch, **ranks))
    for batch in batches:
        assert torch.equal(images.labels[batch.indices], batch.labels)
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


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


def test_digits_use_the_whole_range_of_grey_values_with_the_stated_mean_and_deviation():
    images, entry = load().train.images, DATASETS["digits"]
    assert sorted(images.unique().tolist()) == [round(value * 255 / 16) for value in range(17)]
    assert float(images.double().mean() / 255) == pytest.approx(entry.mean[0], abs=1e-3)
    assert float(images.double().std() / 255) == pytest.approx(entry.std[0], abs=1e-3)
    assert not entry.flip


def test_an_unknown_data_set_is_named_with_the_valid_ones():
    with pytest.raises(
        SettingsError,
        match=r"unknown data set 'digit' \(did you mean 'digits'\?\); valid: digits, fashion-mnist",
    ):
        load("digit")


# ---- batches


@pytest.mark.parametrize(("seed", "epoch"), [(3, 5), (3, 6), (4, 5), (5, 3)])
def test_order_and_augmentation_are_a_function_of_seed_and_epoch(seed, epoch):
    images = numbered(40)
    pixels, labels = epoch_of(images, 16, seed=3, epoch=5)
    other, other_labels = epoch_of(images, 16, seed=seed, epoch=epoch)
    same = (seed, epoch) == (3, 5)
    assert torch.equal(labels, other_labels) == same
    assert torch.equal(pixels[labels.argsort()], other[other_labels.argsort()]) == same


def test_the_batch_size_changes_neither_order_nor_augmentation():
    images = numbered(40)
    for whole, parted in zip(
        epoch_of(images, 40, seed=0, epoch=1), epoch_of(images, 7, seed=0, epoch=1), strict=True
    ):
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
    assert [len(batch.labels) for batch in batches] == [10, 10, 3]
    assert [len(batch.images) for batch in batches] == [10, 10, 3]
    labels = torch.cat([batch.labels for batch in batches])
    assert sorted(labels.tolist()) == list(range(23))
    assert labels.tolist() != list(range(23))


def test_pixels_stay_with_their_label_and_are_normalised():
    images = numbered(30, padding=0, flip=False, mean=(0.5,) * 3, std=(0.25,) * 3)
    pixels, labels = epoch_of(images, 8, seed=2, epoch=0)
    torch.testing.assert_close(pixels, (images.images[labels].float() / 255 - 0.5) / 0.25)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_global_batch_without_overlap(world):
    images = numbered(22)
    whole = list(images.train_batches(8, seed=1, epoch=2))
    ranks = [list(images.train_batches(8, seed=1, epoch=2, rank=rank, world=world)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {len(whole)}
    for number, (pixels, labels, _) in enumerate(whole):
        parts = [batches[number] for batches in ranks]
        sets = [set(own.tolist()) for _, own, _ in parts]
        assert sum(map(len, sets)) == len(set().union(*sets)) == len(labels)
        assert max(map(len, sets)) - min(map(len, sets)) <= 1
        joined, joined_labels, _ = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
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


def test_some_of_the_images_are_evenly_spaced_in_stored_order():
    images = numbered(10)
    rows = [0, len(images) // 4, len(images) // 2, 3 * len(images) // 4]
    assert torch.equal(images.spread(4).images, images.images[rows])
    assert torch.equal(images.spread(4).labels, images.labels[rows])
    assert torch.equal(images.spread(len(images) + 1).images, images.images)


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
            matches = (
                (everything.images == pixels).flatten(1).all(1) & (everything.labels == label)
            ).nonzero()[:, 0]
            position = next(int(match) for match in matches if match > position)
    assert part.checksum == again.checksum != whole.checksum


def test_another_subset_seed_gives_another_subset_and_all_images_are_all():
    assert load(train_images=200, subset_seed=1).checksum != load(train_images=200).checksum
    assert load(train_images=1000, test_images=797).checksum == load().checksum


@pytest.mark.parametrize("count", [10, 500, 990])
def test_any_size_from_the_number_of_classes_on_can_be_taken(count):
    assert len(load(train_images=count).train) == count


IMPOSSIBLE = [
    *(
        ({"train_images": count}, f"digits train has 1000 images of 10 classes; a subset of {count} cannot")
        for count in (9, 991, 999, 1001)
    ),
    ({"train_images": 991}, "cannot keep their shares; give 10 to 990, or none for all"),
    ({"test_images": 798}, "digits test has 797 images of 10 classes; a subset of 798 cannot"),
    ({"train_images": 900, "held_out": 200}, "too few for 200 held out beside 900; give fewer"),
    ({"held_out": 1001}, "digits has 1000 training images, too few for 1001 held out beside the others"),
    (
        {"train_images": 300, "held_out": 5},
        "digits rest of train has 700 images of 10 classes; a subset of 5",
    ),
    ({"held_out": 10, "test_images": 10}, "held_out and test_images are both given"),
]


@pytest.mark.parametrize(("counts", "message"), IMPOSSIBLE)
def test_a_subset_that_cannot_be_taken_is_refused(counts, message):
    with pytest.raises(SettingsError, match=message):
        load(**counts)


# ---- held-out images


class Untouchable:
    """Test images or labels that nobody may look at."""

    def look(self, *_):
        raise AssertionError("a test image or label was looked at")

    __getattr__ = __getitem__ = __len__ = __iter__ = __array__ = look


def rows_of(part: Images, everything: Images) -> list[int]:
    """Where the images of a part are among all training images; every image of the digits is there once."""
    known = {pixels.numpy().tobytes(): index for index, pixels in enumerate(everything.images)}
    assert len(known) == len(everything)
    return [known[pixels.numpy().tobytes()] for pixels in part.images]


@pytest.mark.parametrize("learnt", [300, 700, None])
def test_held_out_images_are_other_training_images_with_as_many_of_each_class(learnt):
    everything, held = load().train, load(train_images=learnt, held_out=300)
    trained, tested = (rows_of(part, everything) for part in (held.train, held.test))
    assert (len(trained), len(tested)) == (learnt or 700, 300)
    assert not set(trained) & set(tested)
    for rows, part in ((trained, held.train), (tested, held.test)):
        assert rows == sorted(rows)
        assert torch.equal(part.labels, everything.labels[rows])
        assert (part.labels.bincount() - everything.labels.bincount() * len(rows) / 1000).abs().max() <= 1
    assert image_counts(Data("digits", train_images=learnt, held_out=300)) == (learnt or 700, 300)


def test_the_images_that_are_learnt_are_those_of_a_run_that_is_tested():
    plain, held = load(train_images=300), load(train_images=300, held_out=100)
    assert torch.equal(plain.train.images, held.train.images)
    assert held.checksum == load(train_images=300, held_out=100).checksum != plain.checksum


def test_test_images_are_not_looked_at_where_training_images_are_held_out(monkeypatch):
    arrays = DATASETS["digits"].load(Data("digits"))
    kept = load(train_images=300, held_out=100)
    poisoned = {**arrays, "test_images": Untouchable(), "test_labels": Untouchable()}
    monkeypatch.setitem(DATASETS, "digits", replace(DATASETS["digits"], load=lambda settings: poisoned))
    assert load(train_images=300, held_out=100).checksum == kept.checksum
    with pytest.raises(AssertionError, match="was looked at"):
        load(train_images=300)
