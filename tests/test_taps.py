"""Taps: which sub-blocks can give hints, and what is read from them."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from pursuhint_lib.models import build_model
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.taps import LayerTap, candidate_points, point_shapes, stage_ends


def on_meta(name: str, side: int, channels: int = 3) -> tuple[nn.Module, torch.Tensor]:
    """A network without memory and an example image: shapes and order of calls are those of the real one."""
    with torch.device("meta"):
        return build_model(name, 10, channels), torch.zeros(1, channels, side, side)


def small() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return build_model("resnet8x0.25", 10, 1), torch.randn(2, 1, 8, 8)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


class Unit(nn.Sequential):
    def __init__(self, inputs: int = 1):
        super().__init__(nn.Conv2d(inputs, 1, 3, padding=1), nn.BatchNorm2d(1), nn.ReLU())


class Crossed(nn.Module):
    """Modules are called in another order than they are registered in."""

    def __init__(self):
        super().__init__()
        self.last, self.first, self.middle = Unit(), Unit(), Unit()

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class Odd(nn.Module):
    """A module called twice, one never called, and one that returns a tuple."""

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    def __init__(self):
        super().__init__()
        self.twice, self.never, self.pair, self.fine = Unit(), Unit(), self.Pair(), Unit()

    def forward(self, x):
        return self.fine(self.pair(self.twice(self.twice(x)))[0])


# ---- candidates


@pytest.mark.parametrize(
    ("name", "side", "count"),
    [
        ("resnet20", 32, 9),
        ("resnet20", 8, 9),
        ("resnet56", 32, 27),
        ("resnet110", 32, 54),
        ("resnet32x4", 32, 15),
        ("vgg8", 32, 5),
        ("vgg13", 32, 10),
        ("torchvision/resnet18", 64, 8),
        ("torchvision/resnet34", 64, 16),
        ("torchvision/vgg11_bn", 64, 8),
        ("torchvision/mobilenet_v2", 64, 17),
        ("torchvision/vit_b_16", 224, 12),
    ],
)
def test_a_network_has_the_known_number_of_sub_blocks(name, side, count):
    points = candidate_points(*on_meta(name, side))
    assert len(points) == len(set(points)) == count


def test_residual_blocks_and_plain_stacks_after_the_activation_are_found_in_forward_order():
    blocks = tuple(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3))
    assert candidate_points(*on_meta("resnet20", 32)) == blocks
    stacks = tuple(f"block{block}.{unit}" for block in range(5) for unit in (2, 5))
    assert candidate_points(*on_meta("vgg13", 32)) == stacks
    model, image = on_meta("torchvision/vgg11_bn", 64)
    assert all(isinstance(model.get_submodule(name), nn.ReLU) for name in candidate_points(model, image))


def test_units_without_normalisation_or_activation_end_where_they_end():
    model = nn.Sequential(
        *(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3), nn.ReLU()),
    )
    assert candidate_points(model, torch.zeros(1, 1, 8, 8)) == ("1", "2", "6")


class Shared(nn.Module):
    """One activation after every convolution, and a convolution that is used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.again = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
        self.norm, self.relu = nn.BatchNorm2d(1), nn.ReLU()

    def forward(self, x):
        return self.again(self.again(self.relu(self.norm(self.second(self.relu(self.first(x)))))))


def test_a_module_called_twice_is_no_candidate_nor_the_end_of_one():
    model, image = Shared(), torch.zeros(1, 1, 4, 4)
    assert candidate_points(model, image) == ("first", "norm")
    assert len(point_shapes(model, image, candidate_points(model, image))) == 2


def test_a_named_block_needs_weights_and_must_not_be_a_mere_collection():
    class PoolBlock(nn.AvgPool2d):
        pass

    class DenseLayer(Unit):
        pass

    class DenseBlock(nn.ModuleDict):
        def forward(self, x):
            for layer in self.values():
                x = layer(x)
            return x

    model = nn.Sequential(DenseBlock({"a": DenseLayer(), "b": DenseLayer()}), PoolBlock(2), DenseLayer())
    assert candidate_points(model, torch.zeros(1, 1, 4, 4)) == ("0.a", "0.b", "2")


def test_sub_blocks_come_in_the_order_of_calls_and_not_of_registration():
    assert candidate_points(Crossed(), torch.zeros(1, 1, 4, 4)) == ("first.2", "middle.2", "last.2")


def test_a_block_within_a_block_is_not_a_candidate_of_its_own():
    class InnerBlock(Unit):
        pass

    class OuterBlock(nn.Sequential):
        pass

    model = nn.Sequential(OuterBlock(InnerBlock(), InnerBlock()), OuterBlock(InnerBlock()))
    assert candidate_points(model, torch.zeros(1, 1, 4, 4)) == ("0", "1")


def test_a_convolution_that_sees_everything_at_once_is_a_fully_connected_layer():
    # A head of convolutions, after 2 × 2 pixels and after one; the third convolution sees one pixel, too, but
    # in a border of zeros.
    features = (nn.Conv2d(1, 1, 3, 2, 1), nn.ReLU(), nn.Conv2d(1, 1, 3, 2, 1), nn.ReLU())
    head = (nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten())
    assert candidate_points(nn.Sequential(*features, *head), torch.zeros(1, 1, 8, 8)) == ("1", "3")
    deeper = nn.Sequential(*features, nn.Conv2d(1, 1, 3, 2, 1), nn.Conv2d(1, 1, 3, 1, 1), nn.Flatten())
    assert candidate_points(deeper, torch.zeros(1, 1, 8, 8)) == ("1", "3", "4", "5")


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("resnet20", 8, ("layer1.2", "layer2.2", "layer3.2")),
        ("resnet20", 32, ("layer1.2", "layer2.2", "layer3.2")),
        ("vgg8", 32, ("block0.2", "block1.2", "block2.2", "block4.2")),
        ("vgg13", 32, ("block0.5", "block1.5", "block2.5", "block4.5")),
        ("torchvision/resnet18", 64, ("layer1.1", "layer2.1", "layer3.1", "layer4.1")),
        # features.11 and features.17 change the channels, but not the size.
        ("torchvision/mobilenet_v2", 64, tuple(f"features.{number}" for number in (1, 3, 6, 13, 17))),
    ],
)
def test_stages_end_before_the_size_changes(name, side, expected):
    assert stage_ends(*on_meta(name, side)) == expected


def test_the_shapes_of_points_are_in_the_order_asked_for():
    model, image = on_meta("resnet8x4", 32)
    assert [tuple(shape) for shape in point_shapes(model, image, ["layer3.0", "layer1.0"])] == [
        (256, 8, 8),
        (64, 32, 32),
    ]


def dry_runs(model: nn.Module, image: torch.Tensor) -> None:
    points = candidate_points(model, image)
    stage_ends(model, image)
    point_shapes(model, image, points)


@pytest.mark.parametrize(
    "mode", ["train", "eval", "train with frozen normalisation", "eval with one stage in training"]
)
def test_a_dry_run_leaves_no_trace(mode):
    model, image = small()
    model.train()(image)
    model.train(mode.startswith("train"))
    if "frozen" in mode:
        model.bn1.eval()
    if "one stage" in mode:
        model.layer2.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    dry_runs(model, image)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert hooks(model) == 0


@pytest.mark.parametrize(
    "call", [candidate_points, stage_ends, lambda model, image: point_shapes(model, image, ["layer1.0"])]
)
def test_a_failed_dry_run_leaves_no_hooks(call):
    model, _ = small()
    with pytest.raises((SettingsError, RuntimeError), match="to have 1 channels, but got 3"):
        call(model, torch.zeros(1, 3, 8, 8))
    assert hooks(model) == 0


# ---- taps


@pytest.mark.parametrize("mode", [True, False])
def test_taps_give_what_a_forward_pass_by_hand_gives(mode):
    model, images = small()
    model.train(mode)
    names = ("layer3.0", "layer1.0", "layer2.0")
    with LayerTap(model, names) as tap:
        model(images)
        features = tap.features
    assert tuple(features) == ("layer1.0", "layer2.0", "layer3.0")
    assert tap.names == names
    x = F.relu(model.bn1(model.conv1(images)))
    for name, stage in (("layer1.0", model.layer1), ("layer2.0", model.layer2), ("layer3.0", model.layer3)):
        x = stage[0](x)
        assert torch.equal(features[name], x)


def test_taps_hand_over_the_tensors_themselves_with_their_gradient():
    model, images = small()
    seen = []
    model.layer2[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with LayerTap(model, ["layer2.0"]) as tap:
        model(images)
        found = tap.features["layer2.0"]
    assert found is seen[0]
    found.square().mean().backward()
    assert model.conv1.weight.grad.abs().sum() > 0
    assert model.fc.weight.grad is None


def test_every_run_gives_its_own_features_once_and_hooks_are_there_only_within_the_block():
    model, images = small()
    model.eval()
    found, tap = [], LayerTap(model, ["layer1.0"])
    for image in images:
        with tap:
            assert hooks(model) == 1
            model(image[None])
            found.append(tap.features["layer1.0"])
            with pytest.raises(RuntimeError, match=r"sub-block layer1\.0 was not called"):
                _ = tap.features
        assert hooks(model) == 0
    assert found[0].shape == found[1].shape == (1, 4, 8, 8)
    assert not torch.equal(*found)
    with pytest.raises(KeyboardInterrupt), tap:
        raise KeyboardInterrupt
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("twice", "sub-block twice is called more than once"),
        ("never", "sub-block never was not called"),
        ("pair", "sub-block pair returns tuple, not one"),
    ],
)
def test_a_sub_block_without_one_output_is_named(name, words):
    model = Odd()
    with pytest.raises(RuntimeError, match=words), LayerTap(model, ["fine", name]) as tap:
        model(torch.zeros(1, 1, 4, 4))
        _ = tap.features
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [("layer4.0", r"'layer4.0' \(did you mean 'layer3.0'\?\)"), ("", "''")],
)
def test_an_unknown_sub_block_is_named_with_the_nearest(name, words):
    model, _ = small()
    with pytest.raises(SettingsError, match=f"unknown sub-block {words}"):
        LayerTap(model, ["layer1.0", name])
    assert hooks(model) == 0


class InPlace(nn.Module):
    """Whatever a block gives is written over by the next operation."""

    def __init__(self, operation):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1))
        self.operation = operation

    def forward(self, images):
        return self.operation(self.block(images), self.training).mean((2, 3))


IN_PLACE = {
    "a module": lambda maps, _: nn.ReLU(inplace=True)(maps),
    "a function": lambda maps, _: nn.functional.relu_(maps),
    "a sum": lambda maps, _: maps.add_(1),
    "part of a map": lambda maps, _: maps[:, :1].zero_(),
    "dropout, in training only": lambda maps, training: nn.functional.dropout(maps, 0.9, training, True),
}


@pytest.mark.parametrize("operation", IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_taps_give_what_a_module_gave_whatever_is_written_over_it(operation, context):
    model, images = InPlace(operation), torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    tap, given = LayerTap(model, ["block"]), []
    model.block.register_forward_hook(lambda _module, _inputs, output: given.append(output.detach().clone()))
    for training in (False, True, False, True):
        model.train(training)
        with context(), tap:
            model(images)
            found = tap.features["block"]
        assert torch.equal(found, given[-1])
        assert (given[-1] < 0).any()
    if context is torch.enable_grad:
        found.pow(3).sum().backward()
        assert model.block[0].weight.grad.abs().sum() > 0


def test_torchvisions_first_norm_is_kept_before_its_activation():
    model = torchvision.models.resnet18().eval()
    with torch.no_grad(), LayerTap(model, ["bn1", "relu"]) as tap:
        model(torch.randn(1, 3, 32, 32))
        found = tap.features
    assert found["bn1"].min() < 0
    assert torch.equal(found["bn1"].relu(), found["relu"])


def test_an_output_that_is_written_over_now_and_then_is_refused():
    calls = []
    model = InPlace(lambda maps, _: (calls.append(0), maps.add_(1) if len(calls) > 1 else maps)[1])
    tap = LayerTap(model, ["block"])
    with tap:
        model(torch.zeros(1, 1, 4, 4))
        assert tap.features["block"].shape == (1, 1, 4, 4)
    with pytest.raises(RuntimeError, match="block is written over in some forward passes only"), tap:
        model(torch.zeros(1, 1, 4, 4))
        _ = tap.features
