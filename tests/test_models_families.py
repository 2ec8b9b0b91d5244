"""Each family of networks: what it computes, its hint layers, its gradients and its public checkpoints."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import mobilenetv2, resnet, shufflenetv2

from pursuhint_lib.models import build_model
from pursuhint_lib.models.mobilenet import InvertedResidual
from pursuhint_lib.models.resnet import Bottleneck
from pursuhint_lib.models.shufflenet import DownBlock, ShuffleBottleneck, SplitBlock
from pursuhint_lib.models.wide_resnet import PreactBlock
from pursuhint_lib.taps import LayerTap, candidate_points, point_shapes, stage_ends

FAMILIES = ("wrn_16_1", "ResNet50", "MobileNetV2", "ShuffleV1", "ShuffleV2")
ALL = ("resnet8x0.25", "vgg8x0.125", *FAMILIES)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def lived_in(module: nn.Module, x: torch.Tensor) -> nn.Module:
    """The module in double precision and evaluation, its norms with random weights and with the statistics of
    ``x``.

    Statistics drawn at random would drown the images in deep networks, and any two of them would agree.
    """
    generator = torch.Generator().manual_seed(7)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(part.bias, -0.5, 0.5, generator=generator)
            part.momentum = 1.0
    with torch.no_grad():
        module.double().train()(x.double())
    return module.eval()


def seeded(name: str, seed: int = 0, classes: int = 10, channels: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(name, classes, channels)


def images(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- what a network computes, from its weights alone


class Weights(dict):
    """A state dict with the two layers that all networks here are made of."""

    def conv(self, name: str, x: torch.Tensor, stride: int = 1, groups: int = 1) -> torch.Tensor:
        weight, bias = self[f"{name}.weight"], self.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2, groups=groups)

    def shortcut(self, name: str, x: torch.Tensor, stride: int) -> torch.Tensor:
        """A convolution with its norm, where the block has one; the input itself otherwise."""
        return self.norm(f"{name}.1", self.conv(f"{name}.0", x, stride)) if f"{name}.0.weight" in self else x

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        mean, variance, weight, bias = (
            self[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=1e-5)

    def head(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), self[f"{name}.weight"], self[f"{name}.bias"])


def shuffled(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Channel j of group g goes to place j · groups + g."""
    size = x.shape[1] // groups
    return x[:, [group * size + member for member in range(size) for group in range(groups)]]


def basic_block(w: Weights, at: str, x: torch.Tensor, stride: int) -> torch.Tensor:
    y = w.norm(f"{at}bn1", w.conv(f"{at}conv1", x, stride)).relu()
    y = w.norm(f"{at}bn2", w.conv(f"{at}conv2", y))
    return (y + w.shortcut(f"{at}downsample", x, stride)).relu()


def preact_block(w: Weights, at: str, x: torch.Tensor, stride: int) -> torch.Tensor:
    active = w.norm(f"{at}bn1", x).relu()
    y = w.conv(f"{at}conv1", active, stride)
    y = w.conv(f"{at}conv2", w.norm(f"{at}bn2", y).relu())
    return y + (w.conv(f"{at}convShortcut", active, stride) if f"{at}convShortcut.weight" in w else x)


def bottleneck(w: Weights, at: str, x: torch.Tensor, stride: int) -> torch.Tensor:
    y = w.norm(f"{at}bn1", w.conv(f"{at}conv1", x)).relu()
    y = w.norm(f"{at}bn2", w.conv(f"{at}conv2", y, stride)).relu()
    y = w.norm(f"{at}bn3", w.conv(f"{at}conv3", y))
    return (y + w.shortcut(f"{at}shortcut", x, stride)).relu()


def inverted_residual(w: Weights, at: str, x: torch.Tensor, stride: int) -> torch.Tensor:
    hidden = w[f"{at}conv.0.weight"].shape[0]
    y = w.norm(f"{at}conv.1", w.conv(f"{at}conv.0", x)).relu()
    y = w.norm(f"{at}conv.4", w.conv(f"{at}conv.3", y, stride, groups=hidden)).relu()
    y = w.norm(f"{at}conv.7", w.conv(f"{at}conv.6", y))
    return x + y if x.shape == y.shape else y


def shuffle_bottleneck(w: Weights, at: str, x: torch.Tensor, stride: int) -> torch.Tensor:
    groups = 1 if x.shape[1] == 24 else 3
    y = shuffled(w.norm(f"{at}bn1", w.conv(f"{at}conv1", x, groups=groups)).relu(), groups)
    y = w.norm(f"{at}bn2", w.conv(f"{at}conv2", y, stride, groups=y.shape[1])).relu()
    y = w.norm(f"{at}bn3", w.conv(f"{at}conv3", y, groups=3))
    # The mean over 3×3 counts the zeros of the border.
    averaged = F.conv2d(
        x, torch.full((x.shape[1], 1, 3, 3), 1 / 9, dtype=x.dtype), stride=2, padding=1, groups=x.shape[1]
    )
    return torch.cat((y, averaged), 1).relu() if stride == 2 else (x + y).relu()


def shuffle_block_v2(w: Weights, at: str, x: torch.Tensor, stride: int) -> torch.Tensor:
    if stride == 2:
        left = w.norm(f"{at}bn1", w.conv(f"{at}conv1", x, 2, groups=x.shape[1]))
        left, right = w.norm(f"{at}bn2", w.conv(f"{at}conv2", left)).relu(), x
    else:
        left, right = x.chunk(2, dim=1)
    first, second, third = (3, 4, 5) if stride == 2 else (1, 2, 3)
    y = w.norm(f"{at}bn{first}", w.conv(f"{at}conv{first}", right)).relu()
    y = w.norm(f"{at}bn{second}", w.conv(f"{at}conv{second}", y, stride, groups=y.shape[1]))
    y = w.norm(f"{at}bn{third}", w.conv(f"{at}conv{third}", y)).relu()
    return shuffled(torch.cat((left, y), 1), 2)


def chain(
    w: Weights,
    stages: str,
    block: Callable,
    strides: tuple[int, ...],
    counts: tuple[int, ...],
    x: torch.Tensor,
) -> torch.Tensor:
    """All blocks of a network, stage after stage; ``stages`` is the pattern of a block's name."""
    for stage, (stride, count) in enumerate(zip(strides, counts, strict=True)):
        for number in range(count):
            x = block(w, stages.format(stage, stage + 1, number), x, stride if number == 0 else 1)
    return x


def basic_resnet(w: Weights, x: torch.Tensor) -> torch.Tensor:
    x = w.norm("bn1", w.conv("conv1", x)).relu()
    blocks = sum(name.startswith("layer1.") and name.endswith(".conv1.weight") for name in w)
    return w.head("fc", chain(w, "layer{1}.{2}.", basic_block, (1, 2, 2), (blocks,) * 3, x))


def vgg(w: Weights, x: torch.Tensor) -> torch.Tensor:
    for block in range(5):
        for unit in range(0, 12, 3):
            if f"block{block}.{unit}.weight" in w:
                x = w.norm(f"block{block}.{unit + 1}", w.conv(f"block{block}.{unit}", x)).relu()
        x = F.max_pool2d(x, 2) if block < 3 else x
    return w.head("classifier", x)


def wrn_16(w: Weights, x: torch.Tensor) -> torch.Tensor:
    x = chain(w, "block{1}.layer.{2}.", preact_block, (1, 2, 2), (2, 2, 2), w.conv("conv1", x))
    return w.head("fc", w.norm("bn1", x).relu())


def resnet50(w: Weights, x: torch.Tensor) -> torch.Tensor:
    x = w.norm("bn1", w.conv("conv1", x)).relu()
    return w.head("linear", chain(w, "layer{1}.{2}.", bottleneck, (1, 2, 2, 2), (3, 4, 6, 3), x))


def mobilenet_v2(w: Weights, x: torch.Tensor) -> torch.Tensor:
    x = w.norm("conv1.1", w.conv("conv1.0", x, 2)).relu()
    x = chain(w, "blocks.{0}.{2}.", inverted_residual, (1, 1, 2, 2, 1, 2, 1), (1, 2, 3, 4, 3, 3, 1), x)
    return w.head("classifier.0", w.norm("conv2.1", w.conv("conv2.0", x)).relu())


def shufflenet_v1(w: Weights, x: torch.Tensor) -> torch.Tensor:
    x = w.norm("bn1", w.conv("conv1", x)).relu()
    return w.head("linear", chain(w, "layer{1}.{2}.", shuffle_bottleneck, (2, 2, 2), (4, 8, 4), x))


def shufflenet_v2(w: Weights, x: torch.Tensor) -> torch.Tensor:
    x = w.norm("bn1", w.conv("conv1", x)).relu()
    x = chain(w, "layer{1}.{2}.", shuffle_block_v2, (2, 2, 2), (4, 8, 4), x)
    return w.head("linear", w.norm("bn2", w.conv("conv2", x)).relu())


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("resnet8x0.25", basic_resnet),
        ("resnet14", basic_resnet),
        ("vgg8x0.125", vgg),
        ("vgg11", vgg),
        ("wrn_16_1", wrn_16),
        ("wrn_16_2", wrn_16),
        ("ResNet50", resnet50),
        ("MobileNetV2", mobilenet_v2),
        ("ShuffleV1", shufflenet_v1),
        ("ShuffleV2", shufflenet_v2),
    ],
)
def test_a_network_computes_what_its_weights_say(name, by_hand):
    x = images(4, 3, 16, 16).double()
    model = lived_in(seeded(name), x)
    with torch.no_grad():
        found = model(x)
        torch.testing.assert_close(found, by_hand(Weights(model.state_dict()), x))
    assert (found[0] - found[1]).abs().max() > 0.01 * found.abs().max()


@pytest.mark.parametrize(
    ("block", "channels", "by_hand", "stride"),
    [
        (lambda: PreactBlock(6, 6, 1), 6, preact_block, 1),
        (lambda: PreactBlock(6, 6, 2), 6, preact_block, 2),
        (lambda: PreactBlock(6, 8, 2), 6, preact_block, 2),
        (lambda: Bottleneck(8, 8, 1), 8, bottleneck, 1),
        (lambda: Bottleneck(8, 12, 2), 8, bottleneck, 2),
        (lambda: InvertedResidual(6, 6, 1, 3), 6, inverted_residual, 1),
        (lambda: InvertedResidual(6, 8, 2, 6), 6, inverted_residual, 2),
        (lambda: ShuffleBottleneck(60, 60, 1, 3), 60, shuffle_bottleneck, 1),
        (lambda: ShuffleBottleneck(24, 60, 2, 3), 24, shuffle_bottleneck, 2),
        (lambda: ShuffleBottleneck(60, 120, 2, 3), 60, shuffle_bottleneck, 2),
        (lambda: SplitBlock(8), 8, shuffle_block_v2, 1),
        (lambda: DownBlock(6, 10), 6, shuffle_block_v2, 2),
    ],
)
def test_a_block_computes_what_its_weights_say(block, channels, by_hand, stride):
    torch.manual_seed(0)
    x = images(2, channels, 7, 7).double()
    module = lived_in(block(), x)
    with torch.no_grad():
        found = module(x)
        torch.testing.assert_close(found, by_hand(Weights(module.state_dict()), "", x, stride))
    assert found.shape[2:] == ((7, 7) if stride == 1 else (4, 4))


def torchvision_bottleneck(in_channels: int, channels: int, stride: int) -> nn.Module:
    shortcut = nn.Sequential(
        nn.Conv2d(in_channels, 4 * channels, 1, stride, bias=False), nn.BatchNorm2d(4 * channels)
    )
    return resnet.Bottleneck(in_channels, channels, stride, shortcut if stride > 1 else None)


@pytest.mark.parametrize(
    ("ours", "theirs", "channels"),
    [
        (lambda: Bottleneck(8, 8, 1), lambda: torchvision_bottleneck(8, 2, 1), 8),
        (lambda: Bottleneck(8, 12, 2), lambda: torchvision_bottleneck(8, 3, 2), 8),
        (lambda: InvertedResidual(6, 6, 1, 6), lambda: mobilenetv2.InvertedResidual(6, 6, 1, 6), 6),
        (lambda: InvertedResidual(6, 8, 2, 6), lambda: mobilenetv2.InvertedResidual(6, 8, 2, 6), 6),
        (lambda: SplitBlock(8), lambda: shufflenetv2.InvertedResidual(8, 8, 1), 8),
        (lambda: DownBlock(6, 10), lambda: shufflenetv2.InvertedResidual(6, 10, 2), 6),
    ],
)
def test_a_block_agrees_with_the_one_of_torchvision(ours, theirs, channels):
    torch.manual_seed(0)
    x = images(2, channels, 8, 8).double()
    module, other = lived_in(ours(), x), theirs().double().eval()
    other.load_state_dict(dict(zip(other.state_dict(), module.state_dict().values(), strict=True)))
    for part in other.modules():
        if isinstance(part, nn.ReLU6):
            part.max_val = math.inf
    with torch.no_grad():
        torch.testing.assert_close(module(x), other(x))


def test_the_layers_of_shufflenet_v2_are_those_of_torchvision_but_for_the_stem():
    with torch.device("meta"):
        ours, theirs = build_model("ShuffleV2", 100), torchvision.models.shufflenet_v2_x1_0(num_classes=100)
    shapes = [
        [
            tensor.shape
            for name, tensor in model.state_dict().items()
            if not name.startswith(("conv1.", "bn1."))
        ]
        for model in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]


# ---- initial weights


@pytest.mark.parametrize("name", FAMILIES)
def test_convolutions_start_at_the_stated_scale(name):
    for part in seeded(name).modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() >= 5_000:
            fan_in, fan_out = part.weight[0].numel(), part.out_channels * part.kernel_size[0] ** 2
            expected = math.sqrt(1 / (3 * fan_in)) if name.startswith("Shuffle") else math.sqrt(2 / fan_out)
            assert part.weight.std().item() == pytest.approx(expected, rel=0.05)


# ---- hint layers


@pytest.mark.parametrize(
    ("name", "blocks", "ends", "shapes"),
    [
        ("wrn_16_1", 6, (2, 4, 6), ((16, 32), (32, 16), (64, 8))),
        ("wrn_16_2", 6, (2, 4, 6), ((32, 32), (64, 16), (128, 8))),
        ("wrn_40_1", 18, (6, 12, 18), ((16, 32), (32, 16), (64, 8))),
        ("wrn_40_2", 18, (6, 12, 18), ((32, 32), (64, 16), (128, 8))),
        ("ResNet50", 16, (3, 7, 13, 16), ((256, 32), (512, 16), (1024, 8), (2048, 4))),
        ("MobileNetV2", 17, (3, 6, 13, 17), ((12, 16), (16, 8), (48, 4), (160, 2))),
        ("ShuffleV1", 16, (4, 12, 16), ((240, 16), (480, 8), (960, 4))),
        ("ShuffleV2", 16, (4, 12, 16), ((116, 16), (232, 8), (464, 4))),
    ],
)
def test_sub_blocks_and_stages_are_found(name, blocks, ends, shapes):
    with torch.device("meta"):
        model, example = build_model(name, 10), torch.zeros(1, 3, 32, 32)
        points, last = candidate_points(model, example), stage_ends(model, example)
        found = point_shapes(model, example, last)
    assert len(points) == blocks
    assert tuple(points.index(name) + 1 for name in last) == ends
    assert [tuple(shape) for shape in found] == [(channels, size, size) for channels, size in shapes]


def test_on_digits_the_last_stages_of_mobilenet_share_a_single_pixel():
    with torch.device("meta"):
        model, example = build_model("MobileNetV2", 10, 1), torch.zeros(1, 1, 8, 8)
        last = stage_ends(model, example)
        assert last == ("blocks.1.1", "blocks.2.2", "blocks.6.0")
        assert [shape[1] for shape in point_shapes(model, example, last)] == [4, 2, 1]


@pytest.mark.parametrize(("name", "per_stage"), [("wrn_16_2", 2), ("wrn_40_2", 6)])
def test_the_hint_of_a_wide_block_is_its_raw_sum_after_the_next_norm_and_relu(name, per_stage):
    x = images(2, 3, 32, 32).double()
    model = lived_in(seeded(name), x)
    points = candidate_points(model, x[:1])
    assert len(points) == 3 * per_stage
    assert stage_ends(model, x[:1]) == tuple(points[per_stage - 1 :: per_stage])
    # The entrance of a stage still has the channels and the size of the stage before it.
    assert points[per_stage - 1] == "block2.layer.0.relu1"
    expected = [shape for shape in ((32, 32, 32), (64, 16, 16), (128, 8, 8)) for _ in range(per_stage)]
    assert [tuple(shape) for shape in point_shapes(model, x[:1], points)] == expected
    raw, blocks = [], [name for name, module in model.named_modules() if isinstance(module, PreactBlock)]
    for block in blocks:
        model.get_submodule(block).register_forward_hook(lambda _module, _inputs, output: raw.append(output))
    with torch.no_grad(), LayerTap(model, points) as tap:
        logits = model(x)
        features = tap.features
    w = Weights(model.state_dict())
    norms = [*(f"{block}.bn1" for block in blocks[1:]), "bn1"]
    for point, norm, summed in zip(points, norms, raw, strict=True):
        assert (summed < 0).any()
        torch.testing.assert_close(features[point], w.norm(norm, summed).relu())
    torch.testing.assert_close(w.head("fc", features["relu"]), logits)


# ---- running, training and loading


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8)], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_every_parameter(name, shape):
    model = seeded(name, channels=shape[0]).train()
    logits = model(images(4, *shape))
    assert logits.shape == (4, 10)
    F.cross_entropy(logits, torch.arange(4)).backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert [key for key, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []
    assert any(grad.any() for key, grad in gradients.items() if "conv1" in key or key.startswith("block0"))


@needs_gpu
@pytest.mark.parametrize("name", ALL)
def test_a_gpu_computes_the_same(name):
    x = images(2, 3, 32, 32).double()
    model = lived_in(seeded(name), x)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(model.to("cuda")(x.to("cuda")).cpu(), expected, rtol=1e-9, atol=1e-9)
    model.train()(x.to("cuda")).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
