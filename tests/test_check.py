"""``--check`` ends in one line that names the culprit, whatever that is: nothing is trained that would fail
later.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from pursuhint_lib import training
from pursuhint_lib.cli import main
from pursuhint_lib.distillers import DISTILLERS, Distiller
from pursuhint_lib.distillers.maps import PerPoint
from pursuhint_lib.models import MODELS, build_model, save_weights

SCHEDULE = {"epochs": 1, "batch_size": 50, "learning_rate": 0.05}
TWELVE = {**SCHEDULE, "batch_size": 12}
PROFILE = {
    "name": "mine",
    "title": "a test",
    "data": {"dataset": "digits", "train_images": 100, "test_images": 100},
    "teacher": SCHEDULE,
    "student": SCHEDULE,
    "pairs": [{"teacher": "resnet8x0.5", "student": "resnet8x0.25"}],
    "methods": ["kd", "fitnet"],
    "arms": ["none", "stage-ends"],
    "metrics": ["cka-linear"],
    "seeds": [0],
    "profile_images": 100,
}
PICTURES = {"dataset": "imagefolder", "root": "pictures", "image_size": 8}


class Block(nn.Sequential):
    def __init__(self, before: int, after: int):
        super().__init__(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU())


class Network(nn.Module):
    """Three blocks, the last of which gives one pixel of a digit, or as many as are asked for."""

    def __init__(self, classes: int, channels: int, blocks: int = 3):
        super().__init__()
        self.blocks = nn.Sequential(Block(channels, 4), *(Block(4, 4) for _ in range(blocks - 1)))
        self.last = nn.Linear(4, classes)

    def forward(self, images):
        return self.last(self.blocks(images).mean((2, 3)))


class NoTraining(Network):
    def forward(self, images):
        return self.missing(images) if self.training else super().forward(images)


class Auxiliary(Network):
    def forward(self, images):
        return (super().forward(images),) * 2 if self.training else super().forward(images)


class Wordless(Network):
    def forward(self, images):
        assert not self.training
        return super().forward(images)


class Exiting(Network):
    def forward(self, images):
        if self.training:
            raise SystemExit("no licence")
        return super().forward(images)


class Infinite(Network):
    def forward(self, images):
        return super().forward(images) / (1 - self.training)


class Unsaved(Network):
    def state_dict(self, *arguments, **keywords):
        raise NotImplementedError("ask the author")


class Unloaded(Network):
    def load_state_dict(self, state, **keywords):
        raise KeyError("epoch")


class Forgetful(Network):
    def __init__(self, classes: int, channels: int):
        super().__init__(classes, channels)
        self.register_buffer("scale", torch.rand(classes), persistent=False)

    def forward(self, images):
        return super().forward(images) * self.scale


class Drawing(Network):
    def forward(self, images):
        return super().forward(images) + torch.rand(())


class Extra(Network):
    def get_extra_state(self):
        return {"version": 2}

    def set_extra_state(self, state):
        pass


OWN = (NoTraining, Auxiliary, Wordless, Exiting, Infinite, Unsaved, Unloaded, Forgetful, Drawing, Extra)


def pictures(root: Path, classes: int = 2, images: int = 6, make=None) -> None:
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(images):
                image = make(draw) if make else draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / f"{number}.tif")


def pair(teacher: str = "resnet8x0.5", student: str = "resnet8x0.25") -> dict:
    return {"pairs": [{"teacher": teacher, "student": student}]}


def in_pictures(**changes) -> dict:
    return {"data": PICTURES, "teacher": {**SCHEDULE, "batch_size": 6}, "student": TWELVE, **changes}


def key_error(student, teacher):
    raise KeyError("mask")


# What is wrong → changes of the profile, the words that name it, and what is done before.
FAULTS = {
    "a teacher that cannot be trained": (
        pair("NoTraining"),
        ("network NoTraining", "AttributeError", "missing"),
    ),
    "a student with auxiliary outputs": (pair(student="Auxiliary"), ("Auxiliary gives tuple", "in training")),
    "a teacher with auxiliary outputs": (pair("Auxiliary"), ("Auxiliary gives tuple", "(50, 10)")),
    "an error without words": (pair("Wordless"), ("network Wordless", "AssertionError")),
    "code that ends the process": (pair(student="Exiting"), ("network Exiting", "SystemExit", "no licence")),
    "a loss that is not finite": (pair("Infinite"), ("network Infinite", "the loss is not finite")),
    "a last batch of one for a teacher": (
        {**pair("Network"), "data": {"dataset": "digits", "train_images": 37}, "teacher": TWELVE},
        ("network Network on a batch of 1", "more than 1 value per channel"),
    ),
    "a last batch of one for a student": (
        {**pair(student="Network"), "data": {"dataset": "digits", "train_images": 61}, "student": TWELVE},
        ("network Network on a batch of 1", "more than 1 value per channel"),
    ),
    "a last batch of one that is compared": (
        {"methods": ["rkd"], "data": {"dataset": "digits", "train_images": 101}},
        ("rkd on a batch of 1", "at least 2"),
    ),
    "a last batch of one in a folder": (
        in_pictures(methods=["rkd"], student={**SCHEDULE, "batch_size": 11}),
        ("rkd on a batch of 1", "at least 2"),
        lambda root: pictures(root / "data" / "pictures"),
    ),
    "weights that are not saved": (pair("Unsaved"), ("network Unsaved", "NotImplementedError", "the author")),
    "weights that are not loaded": (pair(student="Unloaded"), ("network Unloaded", "epoch")),
    "weights that are not all": (pair("Forgetful"), ("network Forgetful", "answers otherwise")),
    "chance in evaluation": (pair(student="Drawing"), ("network Drawing", "answers otherwise", "drawn")),
    "a state that is no tensor": (pair("Extra"), ("network Extra", "dict")),
    "a method that raises": ({"methods": ["raising"]}, ("resnet8x0.25, raising", "KeyError", "mask")),
    "one class": (
        in_pictures(),
        ("classes: 1", "give 2 or more"),
        lambda root: pictures(root / "data" / "pictures", classes=1),
    ),
    "two sub-blocks": (
        pair("Short", "Short"),
        ("sub-blocks of Short: 2", "give 3 or more"),
    ),
    "no hints": ({"methods": ["ce", "kd"]}, ("methods with hints: 0",)),
    "no hint layers": ({"arms": ["none"]}, ("arms with hint layers: 0",)),
    "few profiled images": ({"profile_images": 9, "metrics": ["cka-linear"]}, ("profiled images: 9",)),
    "images that are all the same": (
        in_pictures(),
        ("train: all 12 images", "look the same"),
        lambda root: pictures(root / "data" / "pictures", make=lambda _: np.full((8, 8), 9, dtype=np.uint8)),
    ),
    "images of unknown range": (
        in_pictures(),
        ("0.tif is not a readable image", "8 or 16 bits"),
        lambda root: pictures(root / "data" / "pictures", make=lambda d: d.random((8, 8), dtype=np.float32)),
    ),
    "a class of companions": (
        in_pictures(),
        ("train has no images", "class0"),
        lambda root: [
            file.rename(file.with_name(f"._{file.name}"))
            for file in [pictures(root / "data" / "pictures"), *root.rglob("train/class0/*.tif")][1:]
        ],
    ),
    "an image that was cut": (
        in_pictures(),
        ("5.tif is not a readable image",),
        lambda root: [
            pictures(root / "data" / "pictures"),
            (root / "data/pictures/test/class1/5.tif").write_bytes(b"II*\0"),
        ],
    ),
    "a pointer of Git LFS": (
        {"checkpoints": {"resnet8x0.5": "FOLDER/t.pth"}},
        ("t.pth", "pointer of Git LFS", "git lfs pull"),
        lambda root: (root / "t.pth").write_text("version https://git-lfs.github.com/spec/v1\n"),
    ),
    "a web page": (
        {"checkpoints": {"resnet8x0.5": "FOLDER/t.pth"}},
        ("t.pth", "web page"),
        lambda root: (root / "t.pth").write_text("<!DOCTYPE html><html>404</html>"),
    ),
    "a checkpoint of another network": (
        {"checkpoints": {"resnet8x0.5": "FOLDER/t.safetensors"}},
        ("t.safetensors is a checkpoint of another network",),
        lambda root: save_weights(build_model("resnet14", 10, 1), root / "t.safetensors"),
    ),
    "a committed profile's name": ({"name": "quick"}, ("name is quick", "config/", "give another name")),
    "a text for a number": ({"teacher": {**SCHEDULE, "learning_rate": "fast"}}, ("learning_rate is 'fast'",)),
}


@pytest.fixture(autouse=True)
def of_own(monkeypatch):
    """Networks and methods of a user's own, and no training."""
    for network in (Network, *OWN):
        monkeypatch.setitem(MODELS, network.__name__, network)
    monkeypatch.setitem(MODELS, "Short", partial(Network, blocks=2))
    raising = Distiller("raising", "a test", "anything", partial(PerPoint, key_error), 1.0)
    monkeypatch.setitem(DISTILLERS, "raising", raising)
    monkeypatch.setattr(training.runs, "fit", lambda *a, **k: pytest.fail("something was trained"))


def checked(folder: Path, capsys, **changes) -> tuple[int, list[str]]:
    """Exit status and lines that say what is wrong."""
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(PROFILE | changes).replace("FOLDER", str(folder)))
    status = main(["run", str(file), "--check"])
    out, err = capsys.readouterr()
    return status, [line for line in (out + err).splitlines() if line.startswith((" ✗ ", "error: "))]


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_ends_the_check_in_one_line_that_names_it(fault, tmp_path, capsys):
    changes, words, *before = fault
    for prepare in before:
        prepare(tmp_path)
    status, lines = checked(tmp_path, capsys, **changes)
    assert status == 2
    (line,) = lines
    for word in words:
        assert word in line


def test_the_faults_are_twenty_or_more():
    assert len(FAULTS) >= 20


# What is as unusual, and right.
FINE = {
    "a learning rate as YAML 1.2 writes it": {"teacher": {**SCHEDULE, "learning_rate": 1e-3}},
    "a last batch of one where maps have space": {"data": {"dataset": "digits", "train_images": 51}},
    "a network of its own": pair("Network", "Network"),
}


@pytest.mark.parametrize("changes", FINE.values(), ids=FINE)
def test_what_is_unusual_passes(changes, tmp_path, capsys):
    assert checked(tmp_path, capsys, **changes) == (0, [])


def test_a_teacher_that_is_given_need_not_learn(tmp_path, capsys):
    save_weights(Auxiliary(10, 1), tmp_path / "t.safetensors")
    given = {"checkpoints": {"Auxiliary": "FOLDER/t.safetensors"}, **pair("Auxiliary")}
    assert checked(tmp_path, capsys, **given) == (0, [])


def test_weights_under_two_names_are_saved(tmp_path, capsys, monkeypatch):
    def tied(classes, channels):
        network = Network(classes, channels)
        network.alias = network.last
        return network

    monkeypatch.setitem(MODELS, "tied", tied)
    assert checked(tmp_path, capsys, **pair("tied")) == (0, [])
