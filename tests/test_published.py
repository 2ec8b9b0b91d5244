"""Published accuracies, and the table of all methods beside them."""

import math

import pandas as pd
import pytest

from pursuhint_lib.distillers import distiller
from pursuhint_lib.models import MODELS
from pursuhint_lib.study.grid.profiles import load_profile
from pursuhint_lib.study.publish.published import PUBLISHED, methods_table, published, published_alone


def test_published_accuracies_are_of_methods_and_networks_that_exist():
    for (dataset, teacher, student), row in PUBLISHED.items():
        assert dataset in ("cifar100", "imagenet")
        assert all(name in MODELS or name.startswith("torchvision/") for name in (teacher, student))
        assert all(50 < accuracy < 100 and source for accuracy, source in row.values())
        assert all(distiller(method).title for method in row)
    assert published("cifar100", "resnet56", "resnet20", "at") == (70.55, "RepDistiller")
    assert published("cifar100", "wrn_40_2", "wrn_40_1", "fsp") is None
    assert published("cifar100", "resnet32x4", "ShuffleV2", "crd") == (75.65, "RepDistiller")
    assert published("cifar100", "ResNet50", "MobileNetV2", "nst") == (64.96, "RepDistiller")


@pytest.mark.parametrize(
    ("dataset", "network", "expected"),
    [
        ("cifar100", "resnet56", (72.34, "RepDistiller")),
        ("cifar100", "resnet20", (69.06, "RepDistiller")),
        ("cifar100", "resnet8", None),
        ("digits", "resnet20", None),
        ("imagenet", "torchvision/resnet18", (69.76, "torchvision")),
    ],
)
def test_the_published_accuracy_of_a_network_alone_is_of_the_same_data(dataset, network, expected):
    assert published_alone(dataset, network) == expected


def test_every_method_stands_beside_the_published_accuracy_of_its_pair(own_folders):
    rows = [
        ("resnet56-resnet20", method, arm, record, accuracy)
        for method, arm, record, accuracy in (
            ("ce", "alone", "a", 68.0),
            ("ce", "alone", "b", 69.0),
            ("kd", "none", "c", 69.5),
            ("at", "alone", "a", 68.0),
            ("at", "none", "c", 69.5),
            ("at", "stage-ends", "d", 70.5),
            # Both metrics took the same layers: one student.
            ("at", "pursuhint-r2", "e", 71.0),
            ("at", "pursuhint-cka-linear", "e", 71.0),
            ("at", "pursuhint-cka-rbf", "f", 73.0),
        )
    ]
    frame = pd.DataFrame(rows, columns=["pair", "method", "arm", "record", "accuracy"])
    lite = load_profile("cifar100-lite")
    table = methods_table(lite, frame).query("pair == 'resnet56 → resnet20'").set_index("method")
    assert list(table.index) == ["the teacher", "student alone", "KD", "AT"]
    assert table["no hints"].tolist()[1:] == [68.5, 69.5, 69.5]
    assert table.loc["AT", ["stage ends", "PURSUhInT", "published"]].tolist() == [70.5, 72.0, 70.55]
    assert table.loc["the teacher", ["published", "by"]].tolist() == [72.34, "RepDistiller"]
    assert math.isnan(table.loc["KD", "stage ends"])
    assert "published" not in methods_table(load_profile("quick"), frame)
