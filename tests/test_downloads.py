"""torchvision's own files: converted, downloaded, and refused when damaged."""

from dataclasses import replace
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision

from pursuhint_lib import data
from pursuhint_lib.data import DATASETS, DataError, datasets, load_splits
from pursuhint_lib.paths import data_root
from pursuhint_lib.settings import Data

CPU = torch.device("cpu")


def load(dataset: str = "digits", **other) -> data.Splits:
    return load_splits(Data(dataset, **other), CPU)


def colour(train: bool) -> np.ndarray:
    """Images [N, H, W, 3], as CIFAR has them."""
    return np.random.default_rng(int(train)).integers(0, 256, (4 + 2 * train, 32, 32, 3), dtype=np.uint8)


def grey(train: bool) -> torch.Tensor:
    """Images [N, H, W], as Fashion-MNIST has them."""
    return torch.from_numpy(colour(train)[:, :28, :28, 0].copy())


@pytest.fixture
def reader(monkeypatch):
    """Put a reader in the place of a data set's own."""

    def put(name: str, folder: str, read) -> None:
        monkeypatch.setattr(torchvision.datasets, "Stub", read, raising=False)
        source = datasets._Torchvision(name, folder, "Stub")
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], load=source.load, locate=source.locate))

    return put


@pytest.mark.parametrize(
    ("name", "folder", "images", "shape", "targets"),
    [
        ("cifar10", "cifar-10-batches-py", colour, (32, 32, 3), [0, 1, 2, 0, 1, 2]),
        ("fashion-mnist", "FashionMNIST", grey, (28, 28, 1), torch.tensor([0, 1, 2, 0, 1, 2])),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_images_of_torchvision_become_channels_first(reader, name, folder, images, shape, targets, there):
    downloads = []

    def read(root, train, download):
        downloads.append(download)
        return SimpleNamespace(data=images(train), targets=targets[: 4 + 2 * train])

    reader(name, folder, read)
    if there:
        (data_root() / folder).mkdir(parents=True)
    splits = load(name)
    for part, train in ((splits.train, True), (splits.test, False)):
        pixels = np.asarray(images(train)).reshape(4 + 2 * train, *shape)
        assert np.array_equal(part.images.permute(0, 2, 3, 1).numpy(), pixels)
        assert part.labels.tolist() == [0, 1, 2, 0, 1, 2][: len(part)]
        assert part.labels.dtype == torch.int64
    assert downloads == [not there] * 2


@pytest.mark.parametrize(
    "error",
    [URLError("no route to host"), RuntimeError("Error downloading\nx.gz"), TimeoutError("timed out")],
)
def test_a_failed_download_is_one_line_that_names_the_folder(reader, error):
    def failing(root, train, download):
        raise error

    reader("cifar10", "cifar-10-batches-py", failing)
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
