"""Public teachers and those trained here: manifest, entries beside weights, and the gate."""

import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torchvision

from pursuhint_lib.data import DATASETS
from pursuhint_lib.models import MODELS
from pursuhint_lib.paths import manifest_entry
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.teachers import (
    TEACHERS,
    Teacher,
    check_accuracy,
    check_entry,
    find,
    read_entry,
    teacher_entry,
    write_entry,
)

CONTENT = b"weights"
CHECKSUM = sha256(CONTENT).hexdigest()
MEAN, STD = DATASETS["cifar100"].mean, DATASETS["cifar100"].std
OWN = Teacher("mine", "resnet8", "cifar100", 100, 60.0, MEAN, STD)


@pytest.mark.parametrize("name", TEACHERS)
def test_entries_are_complete(name):
    entry = TEACHERS[name]
    assert entry.name == name
    assert entry.network in MODELS
    assert (entry.dataset, entry.classes) == ("cifar100", DATASETS["cifar100"].classes)
    assert 70 < entry.accuracy < 80
    assert entry.addresses
    assert all(address.startswith("https://") for address in entry.addresses)
    assert re.fullmatch(r"([0-9a-f]{64})?", entry.sha256)
    check_entry(entry, name, "cifar100", MEAN, STD)


def test_entries_of_torchvision_are_those_of_its_weights():
    entry = teacher_entry("torchvision/resnet34/IMAGENET1K_V1")
    assert entry.network == "torchvision/resnet34"
    assert (entry.dataset, entry.classes, entry.accuracy) == ("imagenet", 1000, 73.314)
    assert (entry.mean, entry.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert entry.addresses == ("https://download.pytorch.org/models/resnet34-b627a593.pth",)
    assert entry.sha256 == "b627a593"
    # The same network with later weights has other numbers; the name says which.
    assert teacher_entry("torchvision/resnet50/IMAGENET1K_V1").accuracy == 76.13


def test_every_network_of_torchvision_with_such_weights_has_an_entry():
    count = 0
    for network in torchvision.models.list_models(module=torchvision.models):
        if "IMAGENET1K_V1" in torchvision.models.get_model_weights(network).__members__:
            entry = teacher_entry(f"torchvision/{network}/IMAGENET1K_V1")
            count += 1
            assert entry.addresses[0].startswith("https://download.pytorch.org/")
            assert re.fullmatch(r"[0-9a-f]{8,10}", entry.sha256)
            assert 50 < entry.accuracy < 90
            assert entry.classes == 1000
            assert len(entry.mean) == len(entry.std) == 3
    assert count > 50


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet65", "resnet56"),
        ("torchvision/resnet34/DEFAULT", "torchvision/resnet34/IMAGENET1K_V1"),
        ("torchvision/resnet34", "torchvision/resnet34/IMAGENET1K_V1"),
        ("torchvision/resnet43/IMAGENET1K_V1", "torchvision/resnet34/IMAGENET1K_V1"),
    ],
)
def test_an_unknown_teacher_is_named_with_the_nearest(name, near):
    with pytest.raises(SettingsError, match=rf"unknown teacher '{name}' \(did you mean '{near}'\?\)"):
        teacher_entry(name)


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "mine" / "weights.safetensors"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


def test_an_entry_comes_back_as_it_was_written_with_the_checksum_of_the_file(weights):
    assert read_entry(weights) is None
    write_entry(weights, OWN)
    assert manifest_entry(weights) == weights.with_name("weights.json")
    assert read_entry(weights) == replace(OWN, sha256=CHECKSUM)
    assert find(str(weights)) == (weights, replace(OWN, sha256=CHECKSUM))


def test_a_file_without_an_entry_is_taken_as_it_is(weights):
    assert find(str(weights)) == (weights, None)


def test_weights_that_changed_after_their_entry_are_refused(weights):
    write_entry(weights, OWN)
    weights.write_bytes(CONTENT + b"x")
    with pytest.raises(
        SettingsError,
        match=f"{weights} has changed: sha256 is .*, not {CHECKSUM} as {manifest_entry(weights)} says",
    ):
        find(str(weights))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not the JSON of a manifest entry"),
        ("\xff", "is not the JSON"),
        ("[]", "must be a mapping"),
        ("{}", "lacks name"),
        ('{"nam": "x"}', "'nam'"),
    ],
)
def test_a_damaged_entry_is_named(weights, text, reason):
    manifest_entry(weights).write_text(text, encoding="latin-1")
    with pytest.raises(SettingsError) as caught:
        find(str(weights))
    assert str(manifest_entry(weights)) in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_is_neither_file_nor_teacher_is_named(tmp_path):
    for missing in (tmp_path / "gone.pth", tmp_path / "gone"):
        with pytest.raises(SettingsError, match=f"no checkpoint at {missing}; give .*resnet56"):
            find(str(missing))
    with pytest.raises(SettingsError, match="unknown teacher 'resnet65' .did you mean 'resnet56'"):
        find("resnet65")


@pytest.mark.parametrize("measured", [60.0, 60.1, 59.9, 60.05])
def test_an_accuracy_within_the_tolerance_passes(measured):
    check_accuracy(OWN, measured)


@pytest.mark.parametrize("entry", TEACHERS.values(), ids=TEACHERS)
def test_the_edge_of_the_tolerance_does_not_depend_on_rounding(entry):
    for sign in (-1, 1):
        check_accuracy(entry, entry.accuracy + sign * 0.1)
        with pytest.raises(SettingsError):
            check_accuracy(entry, entry.accuracy + sign * 0.11)


def test_an_accuracy_that_is_off_is_refused_with_both_numbers():
    with pytest.raises(
        SettingsError,
        match="resnet110 has an accuracy of 70.27 % here, not 74.31 % ± 0.1 .*normalised.*weights.*order",
    ):
        check_accuracy(TEACHERS["resnet110"], 70.27)
    with pytest.raises(SettingsError):
        check_accuracy(OWN, float("nan"))


def test_a_teacher_that_does_not_fit_is_refused():
    check_entry(OWN, "resnet8", "cifar100", list(MEAN), list(STD))
    with pytest.raises(
        SettingsError, match="teacher mine is a resnet8, not a resnet56; give a checkpoint of resnet56"
    ):
        check_entry(OWN, "resnet56", "cifar100", MEAN, STD)
    with pytest.raises(
        SettingsError, match="learnt cifar100, and the study is on cifar10; give one that learnt cifar10"
    ):
        check_entry(OWN, "resnet8", "cifar10", MEAN, STD)
    with pytest.raises(
        SettingsError,
        match=r"mean .*0.5071.* std .*0.2675.* has mean .*0.5071.* and std \[0.2, 0.2, 0.2\] here; give a teacher",
    ):
        check_entry(OWN, "resnet8", "cifar100", MEAN, (0.2, 0.2, 0.2))
