"""Taps on timm's networks: how many sub-blocks each has, where its stages end, and maps from its features."""

import pytest
import torch
from torch import nn

from pursuhint_lib.models import build_model
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.taps import LayerTap, as_map, candidate_points, point_shapes, stage_ends


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network and an image of the size it is meant for, without memory."""
    with torch.device("meta"):
        model = build_model(f"timm/{name}", 10)
        return model, torch.zeros(1, *model.pretrained_cfg["input_size"])


# name, sub-blocks, sizes of the maps at the stage ends, first and last sub-block. The counts are those of the
# papers.
KNOWN = [
    # Residual blocks of all makes, stage by stage; the stem is none.
    ("resnet18", 8, (56, 28, 14, 7), "layer1.0", "layer4.1"),  # 2 + 2 + 2 + 2
    ("resnet26d", 8, (56, 28, 14, 7), "layer1.0", "layer4.1"),
    ("resnetv2_18", 8, (56, 28, 14, 7), "stages.0.blocks.0", "stages.3.blocks.1"),  # PreActBasic
    ("skresnet18", 8, (56, 28, 14, 7), "layer1.0", "layer4.1"),  # SelectiveKernelBasic
    ("res2net50_14w_8s", 16, (56, 28, 14, 7), "layer1.0", "layer4.2"),  # 3 + 4 + 6 + 3 of class Bottle2neck
    (
        "dla34",
        12,
        (56, 28, 14, 7),
        "level2.tree1",
        "level5.tree2",
    ),  # 2 + 4 + 4 + 2 at the leaves of its trees
    ("regnety_002", 13, (56, 28, 14, 7), "s1.b1", "s4.b7"),  # 1 + 1 + 4 + 7
    ("cspresnet50", 13, (64, 32, 16, 8), "stages.0.blocks.0", "stages.3.blocks.1"),  # 3 + 3 + 5 + 2
    ("inception_resnet_v2", 40, (35, 17, 8), "repeat.0", "block8"),  # 10 × Block35, 20 × Block17, 10 × Block8
    ("nf_resnet26", 8, (56, 28, 14, 7), "stages.0.0", "stages.3.1"),
    # Plain stacks; the two convolutions of 4096 channels behind the last pooling are fully connected layers.
    ("vgg11_bn", 8, (224, 112, 56, 28, 14), "features.2", "features.27"),
    # Dense layers: 6 + 12 + 24 + 16.
    (
        "densenet121",
        58,
        (56, 28, 14, 7),
        "features.denseblock1.denselayer1",
        "features.denseblock4.denselayer16",
    ),
    # Inverted residuals; without expansion they are DepthwiseSeparableConv. Plain convolutions before and
    # after are none.
    ("mobilenetv2_050", 17, (112, 56, 28, 14, 7), "blocks.0.0", "blocks.6.0"),
    ("mobilenetv3_small_050", 11, (56, 28, 14, 7), "blocks.0.0", "blocks.4.2"),
    ("efficientnet_b0", 16, (112, 56, 28, 14, 7), "blocks.0.0", "blocks.6.0"),
    (
        "tf_efficientnetv2_b0",
        20,
        (48, 24, 12, 6),
        "blocks.1.0",
        "blocks.5.7",
    ),  # all but the plain convolution, its first block
    ("lcnet_035", 13, (112, 56, 28, 14, 7), "blocks.0.0", "blocks.5.1"),
    ("ghostnet_050", 16, (112, 56, 28, 14, 7), "blocks.0.0", "blocks.8.3"),
    (
        "fasternet_t0",
        4,
        (56, 28, 14, 7),
        "stages.0",
        "stages.3",
    ),  # a Block is a whole stage: the outermost counts
    # Reparametrised: the first block is the stem. 1 + 2 + 4 + 14 + 1; and 1 + 2 · (2 + 8 + 10 + 1), depthwise
    # and pointwise each.
    ("repvgg_a0", 22, (112, 56, 28, 14, 7), "stem", "stages.3.0"),
    ("mobileone_s0", 43, (112, 56, 28, 14, 7), "stem", "stages.3.1"),
    # Blocks of convolutions or pooling in the manner of transformers.
    ("convnext_atto", 12, (56, 28, 14, 7), "stages.0.blocks.0", "stages.3.blocks.1"),  # 2 + 2 + 6 + 2
    ("poolformer_s12", 12, (56, 28, 14, 7), "stages.0.blocks.0", "stages.3.blocks.1"),
    ("edgenext_xx_small", 12, (64, 32, 16, 8), "stages.0.blocks.0", "stages.3.blocks.1"),
    (
        "efficientformer_l1",
        15,
        (56, 28, 14, 7),
        "stages.0.blocks.0",
        "stages.3.blocks.4",
    ),  # 3 + 2 + 6 + 4; MetaBlock2d, and the last 1d
    ("mambaout_femto", 18, (56, 28, 14, 7), "stages.0.blocks.0", "stages.3.blocks.2"),  # 3 + 3 + 9 + 3
    (
        "coatnet_pico_rw_224",
        12,
        (56, 28, 14, 7),
        "stages.0.blocks.0",
        "stages.3.blocks.1",
    ),  # 2 + 3 MbConvBlock, 5 + 2 TransformerBlock2d
    # Transformers on tokens: one size throughout, or the few of their pyramid.
    ("vit_tiny_patch16_224", 12, (14,), "blocks.0", "blocks.11"),
    ("deit_tiny_patch16_224", 12, (14,), "blocks.0", "blocks.11"),
    (
        "deit_tiny_distilled_patch16_224",
        12,
        (14,),
        "blocks.0",
        "blocks.11",
    ),  # a class and a distillation token
    ("vit_little_patch16_reg4_gap_256", 14, (16,), "blocks.0", "blocks.13"),  # four registers, no class token
    ("mixer_s32_224", 8, (7,), "blocks.0", "blocks.7"),
    (
        "xcit_nano_12_p16_224",
        14,
        (14,),
        "blocks.0",
        "cls_attn_blocks.1",
    ),  # 12, and 2 that attend to the class token
    ("levit_128s", 9, (14, 7, 4), "stages.0.blocks.0", "stages.2.blocks.3"),  # 2 + 3 + 4
    ("pit_ti_224", 12, (27, 14, 7), "transformers.0.blocks.0", "transformers.2.blocks.3"),  # 2 + 6 + 4
    (
        "swin_tiny_patch4_window7_224",
        12,
        (56, 28, 14, 7),
        "layers.0.blocks.0",
        "layers.3.blocks.1",
    ),  # 2 + 2 + 6 + 2
    (
        "tiny_vit_5m_224",
        11,
        (56, 28, 14, 7),
        "stages.0",
        "stages.3.blocks.1",
    ),  # a ConvLayer is the first stage; 2 + 6 + 2
]


@pytest.mark.parametrize(
    ("name", "count", "sides", "first", "last"), KNOWN, ids=[known[0] for known in KNOWN]
)
def test_a_network_has_the_known_sub_blocks_and_stages(name, count, sides, first, last):
    model, image = network(name)
    points, ends = candidate_points(model, image), stage_ends(model, image)
    assert len(points) == len(set(points)) == count
    assert (points[0], points[-1]) == (first, last)
    assert not [name for name in points if any(name.startswith(f"{other}.") for other in points)]
    assert ends[-1] == last
    # In forward order, as LayerTap keeps them by the calls; square, and smaller from stage to stage.
    with LayerTap(model, sorted(points)) as tap:
        model.eval()(image)
        shapes = {name: maps.shape for name, maps in tap.features.items()}
    assert tuple(shapes) == points
    assert all(shape[2] == shape[3] for shape in shapes.values())
    assert [shapes[name][2] for name in ends] == list(sides)
    assert sorted({shape[2] for shape in shapes.values()}, reverse=True) == list(sides)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("convnext_atto", (40, 80, 160, 320)),
        ("swin_tiny_patch4_window7_224", (96, 192, 384, 768)),
        ("mambaout_femto", (48, 96, 192, 288)),
        ("tiny_vit_5m_224", (64, 128, 160, 320)),
        ("efficientformer_l1", (48, 96, 224, 448)),
        ("vit_tiny_patch16_224", (192,)),
        ("levit_128s", (128, 256, 384)),
    ],
)
def test_maps_at_the_stage_ends_have_the_channels_of_the_paper(name, channels):
    model, image = network(name)
    assert tuple(shape[0] for shape in point_shapes(model, image, stage_ends(model, image))) == channels


# ---- maps, by their values


def raw_and_tapped(model: nn.Module, name: str, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    raw = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda _module, _inputs, output: raw.append(output)
    )
    with torch.no_grad(), LayerTap(model.eval(), [name]) as tap:
        model(images)
        maps = tap.features[name]
    handle.remove()
    return raw[0], maps


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("mambaout_femto", "stages.3.blocks.0"),
        ("tiny_vit_5m_224", "stages.3.blocks.0"),
        ("swin_tiny_patch4_window7_224", "layers.3.blocks.1"),
    ],
)
def test_blocks_with_channels_last_are_turned(name, block):
    torch.manual_seed(0)
    model = build_model(f"timm/{name}", 10)
    raw, maps = raw_and_tapped(model, block, torch.randn(2, 3, 224, 224))
    assert raw.shape[1:3] == (7, 7)
    assert torch.equal(maps, torch.einsum("bhwc->bchw", raw))


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("test_vit", 1), ("vit_little_patch16_reg4_gap_256", 4), ("deit_tiny_distilled_patch16_224", 2)],
)
def test_class_tokens_and_registers_are_dropped_by_the_number_that_the_network_states(name, prefix):
    torch.manual_seed(0)
    model = build_model(f"timm/{name}", 10)
    raw, maps = raw_and_tapped(model, "blocks.0", torch.randn(2, *model.pretrained_cfg["input_size"]))
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
        ("hrnet_w18_small", "the sub-blocks of HighResolutionNet are no chain"),  # four branches side by side
        ("crossvit_9_240", "the sub-blocks of CrossVit are no chain"),  # two
        (
            "gcvit_xxtiny",
            "the sub-blocks of GlobalContextVit are no chain",
        ),  # a side branch makes the queries
        (
            "mvitv2_tiny",
            "no sub-blocks found in MultiScaleVit: stages.0.blocks.0 and the like give no single map",
        ),  # tokens and their size
        (
            "selecsls42",
            "no sub-blocks found in SelecSls: features.0 and the like give no single map",
        ),  # lists of maps
    ],
)
def test_a_network_of_branches_or_of_several_outputs_is_refused(name, words):
    with pytest.raises(SettingsError) as caught:
        candidate_points(*network(name))
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224"])
def test_a_network_for_other_images_says_so(name):
    model, _ = network(name)
    with pytest.raises(SettingsError, match=r"cannot be run on images of shape \(3, 32, 32\): "):
        candidate_points(model, torch.zeros(1, 3, 32, 32, device="meta"))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "regnety_002"])
def test_networks_for_any_size_are_tapped_on_small_images(name):
    model, _ = network(name)
    image = torch.zeros(1, 3, 32, 32, device="meta")
    shapes = point_shapes(model, image, candidate_points(model, image))
    assert shapes[-1][1:] == (1, 1)
