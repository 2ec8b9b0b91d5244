"""The toy of notebook 00, and the table of published accuracies."""

import itertools

import pandas as pd
import pytest
import torch

from pursuhint_lib.distillers import distiller
from pursuhint_lib.models import MODELS
from pursuhint_lib.study.experiments.toy import toy_layers, toy_study
from pursuhint_lib.study.grid.profiles import load_profile
from pursuhint_lib.study.publish.published import PUBLISHED, published, published_alone, published_table


def test_the_groups_that_are_made_are_found():
    for seed in range(5):
        toy = toy_study([2, 3, 7], 0.25, 3, seed)
        assert toy.points.labels == (0,) * 2 + (1,) * 3 + (2,) * 7
        assert all(
            low < index <= high
            for index, low, high in zip(toy.points.indices, (-1, 1, 4), (1, 4, 11), strict=True)
        )
    assert toy.middles == (1, 5, 9)
    assert "clusters of 2, 3, 7 layers" in str(toy)
    assert toy.figure().axes


def test_a_large_change_inside_the_groups_leaves_equal_stretches_of_depth():
    for seed in range(5):
        toy = toy_study([2, 3, 7], 1.0, 3, seed)
        assert [toy.points.labels.count(label) for label in range(3)] == [4, 4, 4]
        assert toy.points.indices == toy.middles


def test_layers_of_a_group_differ_by_so_much_noise_and_groups_by_a_mixture():
    one, two, three, four = toy_layers([2, 2], 0.5)
    assert float((two - one).std()) == pytest.approx(0.5, rel=0.05)
    # The noise is in units of the layer, however large that is.
    assert float((four - three).std() / three.std()) == pytest.approx(0.5, rel=0.05)
    assert float(three.min()) == 0.0
    assert not toy_layers([2, 1], 0.0)[0].sub(toy_layers([2, 1], 0.0)[1]).any()
    assert all(
        torch.equal(a, b) for a, b in zip(toy_layers([2, 1], 0.5, 3), toy_layers([2, 1], 0.5, 3), strict=True)
    )


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


def test_the_published_stand_beside_the_mean_of_the_arm_that_their_authors_use():
    rows = [
        ("resnet56-resnet20", "resnet56", "resnet20", method, arm, seed, accuracy + seed)
        for (method, arm, accuracy), seed in itertools.product(
            [
                ("ce", "alone", 68.0),
                ("kd", "none", 69.0),
                ("at", "none", 69.0),
                ("at", "stage-ends", 70.0),
                ("at", "last", 10.0),
            ],
            (0, 1),
        )
    ]
    frame = pd.DataFrame(rows, columns=["pair", "teacher", "student", "method", "arm", "seed", "accuracy"])
    table = published_table(load_profile("cifar100-lite"), frame).set_index("method")
    assert table["here"].to_dict() == {"ce": 68.5, "kd": 69.5, "at": 70.5}
    assert table["difference"].round(6).to_dict() == {"ce": -0.56, "kd": -1.16, "at": -0.05}
    assert published_table(load_profile("quick"), frame).empty
