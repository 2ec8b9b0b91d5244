"""Taps on torchvision's networks: how many sub-blocks each has, where its stages end, and maps from its
features.
"""

import pytest
import torch
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from pursuhint_lib.data import load_splits
from pursuhint_lib.models import build_model
from pursuhint_lib.profiling import profile_layers
from pursuhint_lib.settings import Data, SettingsError
from pursuhint_lib.taps import LayerTap, as_map, candidate_points, point_shapes, stage_ends


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network and an image, without memory where it can be built so (RegNet computes its widths with
    tensors).
    """
    # ViT and MaxViT take their own size only; Inception-v3 needs 75 pixels; 64 leave 2 × 2 at the end of the
    # others.
    side = {"vit_b_16": 224, "maxvit_t": 224, "inception_v3": 75}.get(name, 64)
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return build_model(f"torchvision/{name}", 10), torch.zeros(1, 3, side, side)


# name, sub-blocks, stages, first and last sub-block. The counts are those of the papers or of torchvision's
# own tables.
KNOWN = [
    # Residual blocks: 2 + 2 + 2 + 2, and 3 + 4 + 6 + 3; the stem is none.
    ("resnet18", 8, 4, "layer1.0", "layer4.1"),
    ("resnet34", 16, 4, "layer1.0", "layer4.2"),
    ("resnet50", 16, 4, "layer1.0", "layer4.2"),
    ("wide_resnet50_2", 16, 4, "layer1.0", "layer4.2"),
    (
        "regnet_y_400mf",
        16,
        4,
        "trunk_output.block1.block1-0",
        "trunk_output.block4.block4-5",
    ),  # 1 + 3 + 6 + 6
    # Plain stacks: the 13 convolutions, each up to its ReLU; five sizes, one for each pooling.
    ("vgg16_bn", 13, 5, "features.2", "features.42"),
    ("vgg16", 13, 5, "features.1", "features.29"),
    ("alexnet", 5, 3, "features.1", "features.11"),
    # Inverted residuals: the convolutions before and after them are none. Those with stride 2 begin a stage.
    ("mobilenet_v2", 17, 5, "features.1", "features.17"),
    ("mobilenet_v3_small", 11, 4, "features.1", "features.11"),
    ("mobilenet_v3_large", 15, 5, "features.1", "features.15"),
    ("mnasnet1_0", 16, 4, "layers.8.0", "layers.13.0"),
    ("efficientnet_b0", 16, 5, "features.1.0", "features.7.0"),
    ("efficientnet_v2_s", 40, 5, "features.1.0", "features.6.14"),  # 10 of them FusedMBConv
    ("shufflenet_v2_x1_0", 16, 3, "stage2.0", "stage4.3"),  # 4 + 8 + 4
    # Dense layers 6 + 12 + 24 + 16; a _DenseBlock is a collection of them, and a _Transition is no block.
    ("densenet121", 58, 4, "features.denseblock1.denselayer1", "features.denseblock4.denselayer16"),
    # Branching units, whole: what is within a branch is one of several outputs at that depth.
    ("googlenet", 9, 3, "inception3a", "inception5b"),
    ("inception_v3", 11, 3, "Mixed_5b", "Mixed_7c"),
    ("squeezenet1_1", 8, 3, "features.3", "features.12"),
    # Transformers and the like; the MLPBlock in an EncoderBlock is within a block.
    ("convnext_tiny", 18, 4, "features.1.0", "features.7.2"),  # 3 + 3 + 9 + 3
    ("vit_b_16", 12, 1, "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_11"),
    ("swin_t", 12, 4, "features.1.0", "features.7.1"),  # 2 + 2 + 6 + 2
    ("swin_v2_t", 12, 4, "features.1.0", "features.7.1"),
    ("maxvit_t", 4, 4, "blocks.0", "blocks.3"),  # a MaxVitBlock is a whole stage: the outermost counts
]


@pytest.mark.parametrize(
    ("name", "count", "stages", "first", "last"), KNOWN, ids=[known[0] for known in KNOWN]
)
def test_a_network_has_the_known_sub_blocks_and_stages(name, count, stages, first, last):
    model, image = network(name)
    points, ends = candidate_points(model, image), stage_ends(model, image)
    assert len(points) == len(set(points)) == count
    assert (points[0], points[-1]) == (first, last)
    assert not [name for name in points if any(name.startswith(f"{other}.") for other in points)]
    assert len(ends) == stages
    assert ends[-1] == last
    assert set(ends) <= set(points)
    # Each can be tapped and gives a map; sides only shrink with depth, if the maps are read the right way
    # round.
    shapes = point_shapes(model, image, points)
    assert all(len(shape) == 3 and shape[1] == shape[2] for shape in shapes)
    assert [shape[1] for shape in shapes] == sorted((shape[1] for shape in shapes), reverse=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_b_16", [(768, 14, 14)]),
        ("swin_t", [(96, 16, 16), (192, 8, 8), (384, 4, 4), (768, 2, 2)]),
        ("convnext_tiny", [(96, 16, 16), (192, 8, 8), (384, 4, 4), (768, 2, 2)]),
        # A dense layer gives its new features only: 32, the growth rate, at every depth.
        ("densenet121", [(32, 16, 16), (32, 8, 8), (32, 4, 4), (32, 2, 2)]),
    ],
)
def test_maps_at_the_stage_ends_have_the_known_shapes(name, expected):
    model, image = network(name)
    assert [tuple(shape) for shape in point_shapes(model, image, stage_ends(model, image))] == expected


# ---- maps


def test_maps_stay_the_tensors_they_are():
    maps = torch.randn(2, 3, 4, 5)
    assert as_map(maps) is maps


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 9, 5), (2, 5, 3, 3)),
        ((2, 10, 5), (2, 5, 3, 3)),
        ((2, 197, 5), (2, 5, 14, 14)),
        ((2, 1, 5), (2, 5, 1, 1)),
        ((2, 2, 5), (2, 5, 1, 1)),
        ((2, 11, 5), (2, 5, 11, 1)),  # a class and a distillation token: not told from any other number
        ((2, 0, 5), (2, 5, 0, 1)),
        ((2, 5), (2, 5, 1, 1)),
    ],
)
def test_tokens_become_maps_by_their_number(shape, expected):
    assert as_map(torch.zeros(shape)).shape == expected


@pytest.mark.parametrize("extra", [0, 1])
def test_tokens_are_laid_out_row_by_row_without_the_class_token(extra):
    tokens = torch.randn(2, extra + 9, 5)
    maps = as_map(tokens)
    for row in range(3):
        for column in range(3):
            assert torch.equal(maps[:, :, row, column], tokens[:, extra + 3 * row + column])
    # A number that is no square: in their order, none dropped.
    assert torch.equal(as_map(tokens[:, :7])[:, :, :, 0], tokens[:, :7].transpose(1, 2))


def test_channels_come_forward_when_they_are_last():
    maps = torch.randn(2, 4, 5, 3)
    assert torch.equal(as_map(maps, channels_last=True), torch.einsum("bhwc->bchw", maps))


@pytest.mark.parametrize("shape", [(3,), (), (1, 2, 3, 4, 5)])
def test_what_is_no_map_is_refused(shape):
    with pytest.raises(SettingsError, match="is neither a map"):
        as_map(torch.zeros(shape))


def test_a_sub_block_that_gives_no_map_is_named():
    model = nn.Sequential(nn.Conv3d(1, 1, 1))
    with pytest.raises(SettingsError, match="sub-block 0: shape \\(1, 1, 2, 2, 2\\)"), LayerTap(model, ["0"]):
        model(torch.zeros(1, 1, 2, 2, 2))


# ---- taps


def small_vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=8, patch_size=2, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=10
    )


def small_swin(width: int = 8) -> SwinTransformer:
    torch.manual_seed(0)
    return SwinTransformer([2, 2], width, [2, 1], [2, 2], [2, 2], num_classes=10)


def raw_output(model: nn.Module, name: str, images: torch.Tensor) -> torch.Tensor:
    seen = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda _module, _inputs, output: seen.append(output)
    )
    model(images)
    handle.remove()
    return seen[0]


def test_a_tap_on_an_encoder_block_gives_a_map_with_its_gradient():
    model, images = small_vit(), torch.randn(3, 3, 8, 8)
    (_, name) = points = candidate_points(model, images)
    with LayerTap(model, points) as tap:
        model(images)
        maps = tap.features[name]
    tokens = raw_output(model, name, images)
    assert tokens.shape == (3, 17, 8)
    assert torch.equal(maps, tokens[:, 1:].transpose(1, 2).reshape(3, 8, 4, 4))
    maps.square().mean().backward()
    assert model.conv_proj.weight.grad.abs().sum() > 0
    assert model.heads.head.weight.grad is None


# Width 8 on 8 × 8 patches: channels and both sides are the same number, so that no shape could tell.
@pytest.mark.parametrize("width", [8, 12])
def test_swin_maps_are_turned_whatever_their_size(width):
    model, images = small_swin(width).eval(), torch.randn(2, 3, 16, 16)
    # The stem ends in a LayerNorm; features.2 merges patches; the attention is inside a block; a whole stage
    # ends in a block.
    names = [
        "features.0",
        "features.1.0",
        "features.1",
        "features.1.1.attn",
        "features.2",
        "features.3.0",
        "norm",
    ]
    with LayerTap(model, names) as tap:
        model(images)
        found = tap.features
    for name in names:
        assert torch.equal(found[name], raw_output(model, name, images).permute(0, 3, 1, 2)), name
    assert [tuple(shape) for shape in point_shapes(model, images[:1], names[1:6:4])] == [
        (width, 8, 8),
        (2 * width, 4, 4),
    ]


@pytest.mark.parametrize(
    ("network_name", "names"),
    [
        # The convolution of the stem, and what follows once the channels are in front again.
        ("swin_t", ["features.0.0", "permute", "avgpool"]),
        # LayerNorm and Linear inside, but the block convolves and gives channels first.
        (
            "convnext_tiny",
            [
                "features.0",
                "features.1.0",
                "features.1.0.block",
                "features.2",
                "features.2.0",
                "avgpool",
                "classifier.0",
            ],
        ),
        # Its attention layers normalise tokens inside, and give channels first.
        ("maxvit_t", ["blocks.0", "blocks.0.layers.0", "blocks.0.layers.0.layers.window_attention"]),
        ("mobilenet_v3_small", ["features.1", "features.1.block.1"]),
    ],
)
def test_channels_first_maps_stay(network_name, names):
    model, image = network(network_name)
    with LayerTap(model, names) as tap:
        model.eval()(image)
        found = tap.features
    for name in names:
        assert found[name].shape == raw_output(model, name, image).shape, name


@pytest.mark.parametrize("build", [small_vit, small_swin])
def test_transformers_are_profiled_like_other_networks(build):
    model = build().eval()
    images = load_splits(Data("digits"), torch.device("cpu")).train.spread(6)
    # Digits are grey, so that the one channel is shown three times.
    teacher = nn.Sequential()
    teacher.append(nn.Upsample(size=8 if build is small_vit else 16))
    teacher.append(nn.Conv2d(1, 3, 1))
    teacher.append(model)
    points = candidate_points(teacher, torch.zeros(1, 1, 8, 8))
    features = profile_layers(teacher, images, points)
    shapes = point_shapes(teacher, torch.zeros(1, 1, 8, 8), points)
    assert [features[name].shape for name in points] == [(6, shape[0]) for shape in shapes]
    assert all(part.std(0).min() > 0 for part in features.values())
