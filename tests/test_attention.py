"""Attention maps of a few test images: what they are, whose are kept, and that they are kept once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pursuhint_lib import records, training
from pursuhint_lib.attention import attention_maps, keep_maps, read_arrays
from pursuhint_lib.data import Images, describe, example_input, load_splits
from pursuhint_lib.models import build_model
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.settings import Data, SettingsError
from pursuhint_lib.study.grid.cells import cell_settings, fork, run_cell
from pursuhint_lib.study.grid.hint_layers import hint_choices
from pursuhint_lib.study.grid.profiles import load_profile, network_points
from pursuhint_lib.taps import stage_ends

PATHS = StudyPaths("smoke")
ENDS = ["layer1.0", "layer2.0", "layer3.0"]


@pytest.fixture
def profile():
    arms, pair = ("none", "stage-ends"), load_profile("smoke").pairs[0]
    changes = {"arms": arms, "metrics": ("r2",), "methods": ("ce", "kd", "at")}
    return fork(load_profile("smoke"), pair, apart=False, **changes)


def test_maps_are_means_of_squares_scaled_to_255():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 5, 3, stride=2), nn.Identity()

        def forward(self, images):
            return self.second(torch.zeros_like(self.first(images)))

    network, images = Two().train(), torch.randn(4, 1, 9, 9)
    maps = attention_maps(network, ["first", "second", "first"], images)
    assert list(maps) == ["first", "second"]
    assert network.training
    outputs = network.first(images).detach().numpy()
    for image, attention in zip(outputs, maps["first"].numpy(), strict=True):
        expected = sum(channel**2 for channel in image) / len(image)
        assert attention.max() == 255
        np.testing.assert_allclose(attention / 255, expected / expected.max(), atol=0.51 / 255)
    assert not maps["second"].any()


def test_the_first_seeds_students_with_hints_and_without_and_the_teacher_keep_theirs(profile):
    (pair,) = profile.pairs
    found = {method: run_cell(profile, pair, method) for method in profile.methods}
    firsts = [found["at"]["none"][0], found["at"]["stage-ends"][0]]
    assert firsts[0] == found["kd"]["none"][0]
    teacher = records.record_name(profile.teacher_settings("resnet14"))
    assert {path.stem for path in PATHS.map_images.parent.iterdir()} == {
        "images",
        teacher,
        *(record.name for record in firsts),
    }
    for record in firsts:
        maps = read_arrays(PATHS.maps(record.name))
        assert [(name, array.shape, array.dtype) for name, array in maps.items()] == [
            (name, (6, side, side), np.uint8) for name, side in zip(ENDS, (8, 4, 2), strict=True)
        ]
    assert list(read_arrays(PATHS.maps(teacher))) == list(network_points("resnet14", profile.data).candidates)


def test_the_images_are_the_first_of_six_classes_and_the_maps_are_of_them(profile):
    record = run_cell(profile, profile.pairs[0], "at")["stage-ends"][0]
    kept, test = read_arrays(PATHS.map_images), load_splits(profile.data, torch.device("cpu")).test
    labels = test.labels.tolist()
    firsts = [labels.index(label) for label in kept["labels"]]
    assert len(set(kept["labels"].tolist())) == 6
    assert np.array_equal(kept["images"], test.images[firsts].numpy())
    student = training.seeded_model("resnet8x0.25", profile.data, 0)
    student.load_state_dict(load_file(PATHS.weights(record.name)))
    normalised = torch.cat([images for images, _ in test.ordered_batches()])[firsts]
    for name, array in attention_maps(student, ENDS, normalised).items():
        np.testing.assert_allclose(
            read_arrays(PATHS.maps(record.name))[name].astype(int), array.int(), atol=1
        )


def test_what_is_kept_is_not_made_again_and_a_loaded_record_makes_nothing(profile):
    (pair,) = profile.pairs
    record = run_cell(profile, pair, "at")["stage-ends"][0]
    files = {path: path.stat().st_mtime_ns for path in PATHS.map_images.parent.iterdir()}
    cell = cell_settings(profile, pair, "at", 0, hint_choices(profile, "resnet14", 3))
    training.distill(replace(cell, keep_maps=True), force=True)
    assert {path: path.stat().st_mtime_ns for path in PATHS.map_images.parent.iterdir()} == files
    PATHS.maps(record.name).unlink()
    run_cell(profile, pair, "at")
    assert read_arrays(PATHS.maps(record.name)) is None


def test_keeping_maps_changes_no_records_name_and_no_result(profile):
    cell = cell_settings(profile, profile.pairs[0], "at", 0, hint_choices(profile, "resnet14", 3))
    kept, plain = replace(cell, keep_maps=True, profile="kept"), replace(cell, profile="plain")
    for with_maps, without in zip(training.distill(kept), training.distill(plain), strict=True):
        assert (with_maps.name, with_maps.history, with_maps.answers) == (
            without.name,
            without.history,
            without.answers,
        )
    assert not StudyPaths("plain").map_images.exists()


@pytest.mark.parametrize("student", ["resnet8", "vgg8", "wrn_16_1"])
def test_the_maps_of_a_student_of_cifar_take_less_than_10_kb(student):
    """Of noise, which can hardly be compressed, on a network that has learnt nothing."""
    entry, generator = describe(Data("cifar100")), torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (200, 3, 32, 32), generator=generator, dtype=torch.uint8)
    test = Images(noise, torch.arange(200) % 100, entry, torch.device("cpu"))
    network = build_model(student, 100)
    keep_maps("smoke", "one", network, stage_ends(network, example_input(Data("cifar100"))), test)
    assert PATHS.maps("one").stat().st_size < 10_000
    assert PATHS.map_images.stat().st_size < 20_000
    assert torch.equal(torch.tensor(read_arrays(PATHS.map_images)["images"]), noise[[0, 16, 33, 50, 66, 83]])


def test_a_damaged_file_is_named():
    PATHS.map_images.parent.mkdir(parents=True)
    PATHS.map_images.write_bytes(b"PK no more")
    with pytest.raises(SettingsError, match="images.npz is damaged .*; restore it, or delete it"):
        read_arrays(PATHS.map_images)
