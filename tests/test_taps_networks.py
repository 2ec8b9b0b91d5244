"""Taps on torchvision's and timm's networks: their sub-blocks, where stages end, and maps from features."""

import pytest
import torch
from known_networks import KNOWN
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from pursuhint_lib.data import load_splits
from pursuhint_lib.models import build_model
from pursuhint_lib.profiling import profile_layers
from pursuhint_lib.settings import Data, SettingsError
from pursuhint_lib.taps import LayerTap, as_map, candidate_points, point_shapes, stage_ends

# torchvision's ViT and MaxViT take their own size only, Inception-v3 needs 75 pixels; 64 leave 2 × 2 at the
# end of the others.
SIDES = {"torchvision/vit_b_16": 224, "torchvision/maxvit_t": 224, "torchvision/inception_v3": 75}


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network and an image (timm's: of the size it is meant for), without memory where it can be built so
    (RegNet of torchvision computes its widths with tensors).
    """
    with torch.device("cpu" if name.startswith("torchvision/regnet") else "meta"):
        model = build_model(name, 10)
        side = SIDES.get(name, 64)
        size = model.pretrained_cfg["input_size"] if name.startswith("timm/") else (3, side, side)
        return model, torch.zeros(1, *size)


@pytest.mark.parametrize(
    ("name", "count", "sides", "first", "last"), KNOWN, ids=[known[0] for known in KNOWN]
)
def test_a_network_has_the_known_sub_blocks_and_stages(name, count, sides, first, last):
    model, image = network(name)
    points, ends = candidate_points(model, image), stage_ends(model, image)
    assert len(points) == len(set(points)) == count
    assert (points[0], points[-1], ends[-1]) == (first, last, last)
    assert not [name for name in points if any(name.startswith(f"{other}.") for other in points)]
    # In forward order, as LayerTap keeps them by the calls; square, and smaller from stage to stage.
    with LayerTap(model, sorted(points)) as tap:
        model.eval()(image)
        shapes = {name: maps.shape for name, maps in tap.features.items()}
    assert tuple(shapes) == points
    assert all(shape[2] == shape[3] for shape in shapes.values())
    assert tuple(shapes[name][2] for name in ends) == sides
    assert sorted((shape[2] for shape in shapes.values()), reverse=True) == [s[2] for s in shapes.values()]
    assert {shape[2] for shape in shapes.values()} == set(sides)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("torchvision/vit_b_16", (768,)),
        ("torchvision/swin_t", (96, 192, 384, 768)),
        ("torchvision/convnext_tiny", (96, 192, 384, 768)),
        # A dense layer gives its new features only: 32, the growth rate, at every depth.
        ("torchvision/densenet121", (32, 32, 32, 32)),
        ("timm/convnext_atto", (40, 80, 160, 320)),
        ("timm/swin_tiny_patch4_window7_224", (96, 192, 384, 768)),
        ("timm/mambaout_femto", (48, 96, 192, 288)),
        ("timm/tiny_vit_5m_224", (64, 128, 160, 320)),
        ("timm/efficientformer_l1", (48, 96, 224, 448)),
        ("timm/vit_tiny_patch16_224", (192,)),
        ("timm/levit_128s", (128, 256, 384)),
    ],
)
def test_maps_at_the_stage_ends_have_the_channels_of_the_paper(name, channels):
    model, image = network(name)
    assert tuple(shape[0] for shape in point_shapes(model, image, stage_ends(model, image))) == channels


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


def tapped(model: nn.Module, name: str, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a sub-block gives, and the map that a tap makes of it."""
    raw = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda _module, _inputs, output: raw.append(output)
    )
    with LayerTap(model, [name]) as tap:
        model(images)
        maps = tap.features[name]
    handle.remove()
    return raw[0], maps


def test_a_tap_on_an_encoder_block_gives_a_map_with_its_gradient():
    model, images = small_vit(), torch.randn(3, 3, 8, 8)
    _, name = candidate_points(model, images)
    tokens, maps = tapped(model, name, images)
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
    for name in names:
        raw, maps = tapped(model, name, images)
        assert torch.equal(maps, raw.permute(0, 3, 1, 2)), name
    assert [tuple(shape) for shape in point_shapes(model, images[:1], names[1:6:4])] == [
        (width, 8, 8),
        (2 * width, 4, 4),
    ]


@pytest.mark.parametrize(
    ("network_name", "names"),
    [
        # The convolution of the stem, and what follows once the channels are in front again.
        ("torchvision/swin_t", ["features.0.0", "permute", "avgpool"]),
        # LayerNorm and Linear inside, but the block convolves and gives channels first.
        (
            "torchvision/convnext_tiny",
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
        (
            "torchvision/maxvit_t",
            ["blocks.0", "blocks.0.layers.0", "blocks.0.layers.0.layers.window_attention"],
        ),
        ("torchvision/mobilenet_v3_small", ["features.1", "features.1.block.1"]),
    ],
)
def test_channels_first_maps_stay(network_name, names):
    model, image = network(network_name)
    for name in names:
        raw, maps = tapped(model.eval(), name, image)
        assert maps.shape == raw.shape, name


@pytest.mark.parametrize("build", [small_vit, small_swin])
def test_transformers_are_profiled_like_other_networks(build):
    model = build().eval()
    images = load_splits(Data("digits"), torch.device("cpu")).train.spread(6)
    # Digits are grey, so that the one channel is shown three times.
    teacher = nn.Sequential(nn.Upsample(size=8 if build is small_vit else 16), nn.Conv2d(1, 3, 1), model)
    points = candidate_points(teacher, torch.zeros(1, 1, 8, 8))
    features = profile_layers(teacher, images, points)
    shapes = point_shapes(teacher, torch.zeros(1, 1, 8, 8), points)
    assert [features[name].shape for name in points] == [(6, shape[0]) for shape in shapes]
    assert all(part.std(0).min() > 0 for part in features.values())


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("timm/mambaout_femto", "stages.3.blocks.0"),
        ("timm/tiny_vit_5m_224", "stages.3.blocks.0"),
        ("timm/swin_tiny_patch4_window7_224", "layers.3.blocks.1"),
    ],
)
def test_blocks_with_channels_last_are_turned(name, block):
    torch.manual_seed(0)
    model = build_model(name, 10)
    raw, maps = tapped(model.eval(), block, torch.randn(2, 3, 224, 224))
    assert raw.shape[1:3] == (7, 7)
    assert torch.equal(maps, torch.einsum("bhwc->bchw", raw))


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("timm/test_vit", 1),
        ("timm/vit_little_patch16_reg4_gap_256", 4),
        ("timm/deit_tiny_distilled_patch16_224", 2),
    ],
)
def test_class_tokens_and_registers_are_dropped_by_the_number_that_the_network_states(name, prefix):
    torch.manual_seed(0)
    model = build_model(name, 10)
    raw, maps = tapped(model.eval(), "blocks.0", torch.randn(2, *model.pretrained_cfg["input_size"]))
    side = maps.shape[2]
    assert raw.shape[1] == prefix + side * side
    for row, column in ((0, 0), (0, side - 1), (side - 1, 1)):
        assert torch.equal(maps[:, :, row, column], raw[:, prefix + side * row + column])


@pytest.mark.parametrize(
    ("tokens", "prefix", "size"),
    [
        (197, 1, (14, 14)),
        (196, 5, (14, 14)),
        (201, 5, (14, 14)),
        (9, 5, (2, 2)),
        (198, 1, (198, 1)),
        (196, 0, (14, 14)),
        (197, 0, (197, 1)),
    ],
)
def test_the_number_of_tokens_and_the_prefix_give_the_size(tokens, prefix, size):
    assert as_map(torch.zeros(2, tokens, 3), prefix=prefix).shape == (2, 3, *size)


# ---- networks that give no chain of sub-blocks


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "timm/hrnet_w18_small",
            "the sub-blocks of HighResolutionNet are no chain",
        ),  # four branches side by side
        ("timm/crossvit_9_240", "the sub-blocks of CrossVit are no chain"),  # two
        (
            "timm/gcvit_xxtiny",
            "the sub-blocks of GlobalContextVit are no chain",
        ),  # a side branch makes the queries
        (
            "timm/mvitv2_tiny",
            "no sub-blocks found in MultiScaleVit: stages.0.blocks.0 and the like give no single map",
        ),  # tokens and their size
        (
            "timm/selecsls42",
            "no sub-blocks found in SelecSls: features.0 and the like give no single map",
        ),  # lists of maps
    ],
)
def test_a_network_of_branches_or_of_several_outputs_is_refused(name, words):
    with pytest.raises(SettingsError) as caught:
        candidate_points(*network(name))
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("torchvision/vit_b_16", "timm/vit_tiny_patch16_224"),
        *("timm/swin_tiny_patch4_window7_224", "timm/mixer_s32_224"),
    ],
)
def test_a_network_for_other_images_says_so(name):
    model, _ = network(name)
    with pytest.raises(SettingsError, match=r"cannot be run on images of shape \(3, 32, 32\): .+\Z"):
        candidate_points(model, torch.zeros(1, 3, 32, 32, device="meta"))


@pytest.mark.parametrize(
    "name", ["timm/resnet18", "timm/mobilenetv3_small_050", "timm/convnext_atto", "timm/regnety_002"]
)
def test_networks_for_any_size_are_tapped_on_small_images(name):
    model, _ = network(name)
    image = torch.zeros(1, 3, 32, 32, device="meta")
    shapes = point_shapes(model, image, candidate_points(model, image))
    assert shapes[-1][1:] == (1, 1)
