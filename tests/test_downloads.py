"""torchvision's own files: converted, downloaded, and refused when damaged."""

from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch

from pursuhint_lib import data
from pursuhint_lib.data import DATASETS, DataError, load_splits
from pursuhint_lib.paths import data_root
from pursuhint_lib.settings import Data

CPU = torch.device("cpu")


def load(dataset: str = "digits", **other) -> data.Splits:
    return load_splits(Data(dataset, **other), CPU)


class Colour:
    """Arrays [N, H, W, 3] and a list of targets, as CIFAR has them."""

    downloads: list = []  # noqa: RUF012

    def __init__(self, root, train, download):
        self.downloads.append(download)
        self.data = np.random.default_rng(int(train)).integers(
            0, 256, (6 if train else 4, 32, 32, 3), dtype=np.uint8
        )
        self.targets = [number % 3 for number in range(len(self.data))]


class Grey:
    """Tensors [N, H, W], as Fashion-MNIST has them."""

    def __init__(self, root, train, download):
        self.data = torch.randint(
            0,
            256,
            (6 if train else 4, 28, 28),
            generator=torch.Generator().manual_seed(int(train)),
            dtype=torch.uint8,
        )
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


def raising(error: Exception) -> type:
    def fail(self, root, train, download):
        raise error

    return type("Failing", (), {"__init__": fail})


@pytest.mark.parametrize(
    "error",
    [URLError("no route to host"), RuntimeError("Error downloading\nx.gz"), TimeoutError("timed out")],
)
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


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\x00\x08\x03\x00\x00\x00\x05\x00\x00\x00\x1c\x00\x00\x00\x1c" + bytes(100)],
    ids=["empty", "short"],
)
def test_damaged_files_of_fashion_mnist_are_named(content):
    raw = data_root() / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (raw / name).write_bytes(content)
    with pytest.raises(DataError, match=f"fashion-mnist is damaged in {data_root() / 'FashionMNIST'}"):
        load("fashion-mnist")


def test_where_a_data_set_is_can_be_asked_without_reading_it():
    assert DATASETS["digits"].locate(Data("digits")) == "ships with scikit-learn"
    with pytest.raises(DataError) as caught:
        DATASETS["cifar10"].locate(Data("cifar10"))
    for word in (
        f"cifar10 is not in {data_root()}",
        "cifar10/train/<class>/*.png",
        "cifar-10-batches-py",
        "PURSUHINT_DATA",
    ):
        assert word in str(caught.value)
    (data_root() / "cifar-10-batches-py").mkdir(parents=True)
    assert str(data_root() / "cifar-10-batches-py") in DATASETS["cifar10"].locate(Data("cifar10"))
