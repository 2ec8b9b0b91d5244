"""Sub-blocks and stages of torchvision's and timm's networks, as they are known."""

# name, sub-blocks, sizes of the maps at the stage ends, first and last sub-block. The counts are those of the
# papers or of torchvision's own tables.
KNOWN = [
    # Residual blocks: 2 + 2 + 2 + 2, and 3 + 4 + 6 + 3; the stem is none.
    ("torchvision/resnet18", 8, (16, 8, 4, 2), "layer1.0", "layer4.1"),
    ("torchvision/resnet34", 16, (16, 8, 4, 2), "layer1.0", "layer4.2"),
    ("torchvision/resnet50", 16, (16, 8, 4, 2), "layer1.0", "layer4.2"),
    ("torchvision/wide_resnet50_2", 16, (16, 8, 4, 2), "layer1.0", "layer4.2"),
    (
        "torchvision/regnet_y_400mf",
        16,
        (16, 8, 4, 2),
        "trunk_output.block1.block1-0",
        "trunk_output.block4.block4-5",
    ),  # 1 + 3 + 6 + 6
    # Plain stacks: the 13 convolutions, each up to its ReLU; five sizes, one for each pooling.
    ("torchvision/vgg16_bn", 13, (64, 32, 16, 8, 4), "features.2", "features.42"),
    ("torchvision/vgg16", 13, (64, 32, 16, 8, 4), "features.1", "features.29"),
    ("torchvision/alexnet", 5, (15, 7, 3), "features.1", "features.11"),
    # Inverted residuals: the convolutions before and after them are none. Those with stride 2 begin a stage.
    ("torchvision/mobilenet_v2", 17, (32, 16, 8, 4, 2), "features.1", "features.17"),
    ("torchvision/mobilenet_v3_small", 11, (16, 8, 4, 2), "features.1", "features.11"),
    ("torchvision/mobilenet_v3_large", 15, (32, 16, 8, 4, 2), "features.1", "features.15"),
    ("torchvision/mnasnet1_0", 16, (16, 8, 4, 2), "layers.8.0", "layers.13.0"),
    ("torchvision/efficientnet_b0", 16, (32, 16, 8, 4, 2), "features.1.0", "features.7.0"),
    (
        "torchvision/efficientnet_v2_s",
        40,
        (32, 16, 8, 4, 2),
        "features.1.0",
        "features.6.14",
    ),  # 10 of them FusedMBConv
    ("torchvision/shufflenet_v2_x1_0", 16, (8, 4, 2), "stage2.0", "stage4.3"),  # 4 + 8 + 4
    # Dense layers 6 + 12 + 24 + 16; a _DenseBlock is a collection of them, and a _Transition is no block.
    (
        "torchvision/densenet121",
        58,
        (16, 8, 4, 2),
        "features.denseblock1.denselayer1",
        "features.denseblock4.denselayer16",
    ),
    # Branching units, whole: what is within a branch is one of several outputs at that depth.
    ("torchvision/googlenet", 9, (8, 4, 2), "inception3a", "inception5b"),
    ("torchvision/inception_v3", 11, (7, 3, 1), "Mixed_5b", "Mixed_7c"),
    ("torchvision/squeezenet1_1", 8, (15, 7, 3), "features.3", "features.12"),
    # Transformers and the like; the MLPBlock in an EncoderBlock is within a block.
    ("torchvision/convnext_tiny", 18, (16, 8, 4, 2), "features.1.0", "features.7.2"),  # 3 + 3 + 9 + 3
    ("torchvision/vit_b_16", 12, (14,), "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_11"),
    ("torchvision/swin_t", 12, (16, 8, 4, 2), "features.1.0", "features.7.1"),  # 2 + 2 + 6 + 2
    ("torchvision/swin_v2_t", 12, (16, 8, 4, 2), "features.1.0", "features.7.1"),
    (
        "torchvision/maxvit_t",
        4,
        (56, 28, 14, 7),
        "blocks.0",
        "blocks.3",
    ),  # a MaxVitBlock is a whole stage: the outermost counts
    # Residual blocks of all makes, stage by stage; the stem is none.
    ("timm/resnet18", 8, (56, 28, 14, 7), "layer1.0", "layer4.1"),  # 2 + 2 + 2 + 2
    ("timm/resnet26d", 8, (56, 28, 14, 7), "layer1.0", "layer4.1"),
    ("timm/resnetv2_18", 8, (56, 28, 14, 7), "stages.0.blocks.0", "stages.3.blocks.1"),  # PreActBasic
    ("timm/skresnet18", 8, (56, 28, 14, 7), "layer1.0", "layer4.1"),  # SelectiveKernelBasic
    (
        "timm/res2net50_14w_8s",
        16,
        (56, 28, 14, 7),
        "layer1.0",
        "layer4.2",
    ),  # 3 + 4 + 6 + 3 of class Bottle2neck
    (
        "timm/dla34",
        12,
        (56, 28, 14, 7),
        "level2.tree1",
        "level5.tree2",
    ),  # 2 + 4 + 4 + 2 at the leaves of its trees
    ("timm/regnety_002", 13, (56, 28, 14, 7), "s1.b1", "s4.b7"),  # 1 + 1 + 4 + 7
    ("timm/cspresnet50", 13, (64, 32, 16, 8), "stages.0.blocks.0", "stages.3.blocks.1"),  # 3 + 3 + 5 + 2
    (
        "timm/inception_resnet_v2",
        40,
        (35, 17, 8),
        "repeat.0",
        "block8",
    ),  # 10 × Block35, 20 × Block17, 10 × Block8
    ("timm/nf_resnet26", 8, (56, 28, 14, 7), "stages.0.0", "stages.3.1"),
    # Plain stacks; the two convolutions of 4096 channels behind the last pooling are fully connected layers.
    ("timm/vgg11_bn", 8, (224, 112, 56, 28, 14), "features.2", "features.27"),
    # Dense layers: 6 + 12 + 24 + 16.
    (
        "timm/densenet121",
        58,
        (56, 28, 14, 7),
        "features.denseblock1.denselayer1",
        "features.denseblock4.denselayer16",
    ),
    # Inverted residuals; without expansion they are DepthwiseSeparableConv. Plain convolutions before and
    # after are none.
    ("timm/mobilenetv2_050", 17, (112, 56, 28, 14, 7), "blocks.0.0", "blocks.6.0"),
    ("timm/mobilenetv3_small_050", 11, (56, 28, 14, 7), "blocks.0.0", "blocks.4.2"),
    ("timm/efficientnet_b0", 16, (112, 56, 28, 14, 7), "blocks.0.0", "blocks.6.0"),
    (
        "timm/tf_efficientnetv2_b0",
        20,
        (48, 24, 12, 6),
        "blocks.1.0",
        "blocks.5.7",
    ),  # all but the plain convolution, its first block
    ("timm/lcnet_035", 13, (112, 56, 28, 14, 7), "blocks.0.0", "blocks.5.1"),
    ("timm/ghostnet_050", 16, (112, 56, 28, 14, 7), "blocks.0.0", "blocks.8.3"),
    (
        "timm/fasternet_t0",
        4,
        (56, 28, 14, 7),
        "stages.0",
        "stages.3",
    ),  # a Block is a whole stage: the outermost counts
    # Reparametrised: the first block is the stem. 1 + 2 + 4 + 14 + 1; and 1 + 2 · (2 + 8 + 10 + 1), depthwise
    # and pointwise each.
    ("timm/repvgg_a0", 22, (112, 56, 28, 14, 7), "stem", "stages.3.0"),
    ("timm/mobileone_s0", 43, (112, 56, 28, 14, 7), "stem", "stages.3.1"),
    # Blocks of convolutions or pooling in the manner of transformers.
    ("timm/convnext_atto", 12, (56, 28, 14, 7), "stages.0.blocks.0", "stages.3.blocks.1"),  # 2 + 2 + 6 + 2
    ("timm/poolformer_s12", 12, (56, 28, 14, 7), "stages.0.blocks.0", "stages.3.blocks.1"),
    ("timm/edgenext_xx_small", 12, (64, 32, 16, 8), "stages.0.blocks.0", "stages.3.blocks.1"),
    (
        "timm/efficientformer_l1",
        15,
        (56, 28, 14, 7),
        "stages.0.blocks.0",
        "stages.3.blocks.4",
    ),  # 3 + 2 + 6 + 4; MetaBlock2d, and the last 1d
    ("timm/mambaout_femto", 18, (56, 28, 14, 7), "stages.0.blocks.0", "stages.3.blocks.2"),  # 3 + 3 + 9 + 3
    (
        "timm/coatnet_pico_rw_224",
        12,
        (56, 28, 14, 7),
        "stages.0.blocks.0",
        "stages.3.blocks.1",
    ),  # 2 + 3 MbConvBlock, 5 + 2 TransformerBlock2d
    # Transformers on tokens: one size throughout, or the few of their pyramid.
    ("timm/vit_tiny_patch16_224", 12, (14,), "blocks.0", "blocks.11"),
    ("timm/deit_tiny_patch16_224", 12, (14,), "blocks.0", "blocks.11"),
    (
        "timm/deit_tiny_distilled_patch16_224",
        12,
        (14,),
        "blocks.0",
        "blocks.11",
    ),  # a class and a distillation token
    (
        "timm/vit_little_patch16_reg4_gap_256",
        14,
        (16,),
        "blocks.0",
        "blocks.13",
    ),  # four registers, no class token
    ("timm/mixer_s32_224", 8, (7,), "blocks.0", "blocks.7"),
    (
        "timm/xcit_nano_12_p16_224",
        14,
        (14,),
        "blocks.0",
        "cls_attn_blocks.1",
    ),  # 12, and 2 that attend to the class token
    ("timm/levit_128s", 9, (14, 7, 4), "stages.0.blocks.0", "stages.2.blocks.3"),  # 2 + 3 + 4
    ("timm/pit_ti_224", 12, (27, 14, 7), "transformers.0.blocks.0", "transformers.2.blocks.3"),  # 2 + 6 + 4
    (
        "timm/swin_tiny_patch4_window7_224",
        12,
        (56, 28, 14, 7),
        "layers.0.blocks.0",
        "layers.3.blocks.1",
    ),  # 2 + 2 + 6 + 2
    (
        "timm/tiny_vit_5m_224",
        11,
        (56, 28, 14, 7),
        "stages.0",
        "stages.3.blocks.1",
    ),  # a ConvLayer is the first stage; 2 + 6 + 2
]
