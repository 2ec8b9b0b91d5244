"""Networks: layouts, sizes and weights on disk."""

import json
import os
import pickle
import sys
from hashlib import sha256

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from pursuhint_lib.models import MODELS, build_model, load_checkpoint, parameter_count, save_weights
from pursuhint_lib.paths import ROOT
from pursuhint_lib.settings import SettingsError

LAYOUTS = ROOT.parent / "shared" / "reference" / "checkpoint_layouts.json"
needs_layouts = pytest.mark.skipif(
    not LAYOUTS.is_file(), reason=f"the layouts of the public checkpoints are missing: {LAYOUTS}"
)

# The networks that the public CIFAR-100 checkpoints come in, the others being ours, and the SHA-256 of each
# one's layout at 100 classes: sorted lines "name [shape]", so that the check also stands without the layouts
# file.
PUBLIC = {
    "resnet8": "c7e36ff449432b48e3c8ce5dc34e87ec07aa4e979dec39e49aba5bb79d44bfa4",
    "resnet14": "dc881d5570e2148d56638dfb09d080f572e8b447714fa8c128cceeb4132ba700",
    "resnet20": "649926fcf6240e69227724bf80f80dd2488b4d3596aefeb671a21401510956d2",
    "resnet32": "eee1916dfc5fb1e308c71103b2d2338964f1711a480e332ef84b858b184d27fc",
    "resnet44": "f532b91b42661858d8662ac6d745cefaf5510d2807810ae2c05202d615363eca",
    "resnet56": "2fac08358d132b705dfd6bb46185b7e7635f6143fe99ec3a198dc8f41067d12b",
    "resnet110": "c6e9176cff1a7fee1116dc2c4d569fca195988c4d721771b31f20e5a6fa76b84",
    "resnet8x4": "c7572c24d425e097caeb3ef67c0bba8dd597eb814ecb5ac3655f1dc799134039",
    "resnet32x4": "632a5be2e9d2198d63349b5d88bd72677195d010bbf3c66c00c29a67138a08bb",
    "wrn_16_1": "c86622e01c0182ef662c5b0e986321fd35ae66195dfeefb4112c1655e3cc1d8b",
    "wrn_16_2": "e6a57f3ddf2bbfc453c40f9cf0a8593d69625b421f5a6d2f73e195caad397476",
    "wrn_40_1": "d0752782d5324ce6c54a1b36e88eb10a7313b794ca531e97f676c991a1aab9bd",
    "wrn_40_2": "cf299ba03b832625f04c17841cb39e1b9b5de86c9f32158ce331d65d10954116",
    "vgg8": "af0a4ac2401e1baa7d5dbb9814b9fbcdf138df4fb7ee66d4625eb5d5372e0e9d",
    "vgg11": "c01653e99717593a1d95796092f1c73f6b876ad4bb67215d1c6427ea4b5f5281",
    "vgg13": "7ff3cbdb2a68220aa9c5d22912c9ed82ca32c11b558da5c9b5527b7b13801645",
    "vgg16": "671ffc473361af0f085bce3dbdc19faeea55d677bd10119bef9dfec020a075a8",
    "vgg19": "68d64a6eacb282aacc073b9379e03d794cddfc747abeb87b76b4768de287433a",
    "ResNet50": "1383964ae529a18cdae28b915771c0c96185a89e9664c8ac431c0d863e73d42d",
    "MobileNetV2": "da613af71c09a1df2c8f305556ac605318c15920b69c5a6ab9b57ea3e604eead",
    "ShuffleV1": "a6a7e5aaad503399911afefaf8512831ee9a0137e0307e30fa20bc9c07b21eea",
    "ShuffleV2": "453a84f2a0f166f6b5a1b069b1bf7277bd38854de28c0383a3cc25363cd9d0e7",
}

SMALL = "resnet8x0.25"


def seeded(name: str = SMALL, seed: int = 0, classes: int = 10, channels: int = 3) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(name, classes, channels)


def equal(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = model.state_dict(), other.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def refused(path, model=None) -> str:
    """Message with which a checkpoint is refused; the model must be as before."""
    model = model or seeded()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SettingsError) as caught:
        load_checkpoint(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def layout(name: str) -> dict[str, list[int]]:
    """Name → shape of everything in the state dict of a network with 100 classes."""
    with torch.device("meta"):
        state = build_model(name, 100).state_dict()
    return {key: list(tensor.shape) for key, tensor in state.items()}


def digest(shapes: dict[str, list[int]]) -> str:
    return sha256("\n".join(sorted(f"{key} {shape}" for key, shape in shapes.items())).encode()).hexdigest()


@needs_layouts
def test_the_digests_are_those_of_the_public_layouts():
    assert {name: digest(shapes) for name, shapes in json.loads(LAYOUTS.read_text()).items()} == PUBLIC


@needs_layouts
@pytest.mark.parametrize("name", PUBLIC)
def test_names_shapes_and_order_are_those_of_the_public_checkpoints(name):
    assert list(layout(name).items()) == list(json.loads(LAYOUTS.read_text())[name].items())


@pytest.mark.parametrize("name", PUBLIC)
def test_the_layout_is_that_of_the_public_checkpoints_also_without_the_file(name):
    assert digest(layout(name)) == PUBLIC[name]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20", 278_324),
        ("resnet56", 861_620),
        ("resnet8x4", 1_233_540),
        ("resnet32x4", 7_433_860),
        ("wrn_16_1", 180_916),
        ("wrn_16_2", 703_284),
        ("wrn_40_1", 569_780),
        ("wrn_40_2", 2_255_156),
        ("vgg8", 3_965_028),
        ("vgg13", 9_462_180),
        ("ResNet50", 23_705_252),
        ("MobileNetV2", 812_836),
        ("ShuffleV1", 949_258),
        ("ShuffleV2", 1_355_528),
    ],
)
def test_parameter_counts_are_those_of_the_literature(name, count):
    with torch.device("meta"):
        assert parameter_count(build_model(name, 100)) == count


def test_frozen_parameters_count_and_buffers_do_not():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    model[0].weight.requires_grad_(False)
    assert parameter_count(model) == 3 * 2 + 2 + 2 + 2


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (1, 28, 28)], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        "resnet8x4",
        "resnet8x0.25",
        "resnet8x0.5",
        "vgg8",
        "vgg8x0.125",
        "wrn_16_1",
        "wrn_40_2",
        "MobileNetV2",
        "ShuffleV1",
        "ShuffleV2",
    ],
)
def test_images_become_one_finite_logit_per_class(name, shape):
    model = seeded(name, classes=7, channels=shape[0]).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        logits = model(torch.randn(2, *shape, generator=generator))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])


def norm(state: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    mean, variance, weight, bias = (
        state[f"{name}.{part}"].view(1, -1, 1, 1)
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def resnet_by_hand(state: dict, x: torch.Tensor) -> torch.Tensor:
    """A residual network from its weights alone."""
    x = norm(state, "bn1", F.conv2d(x, state["conv1.weight"], padding=1)).relu()
    blocks = sorted({name.rsplit(".", 2)[0] for name in state if ".conv1." in name})
    for block in blocks:
        stride = 2 if block in ("layer2.0", "layer3.0") else 1
        y = norm(
            state, f"{block}.bn1", F.conv2d(x, state[f"{block}.conv1.weight"], stride=stride, padding=1)
        ).relu()
        y = norm(state, f"{block}.bn2", F.conv2d(y, state[f"{block}.conv2.weight"], padding=1))
        if f"{block}.downsample.0.weight" in state:
            x = norm(
                state,
                f"{block}.downsample.1",
                F.conv2d(x, state[f"{block}.downsample.0.weight"], stride=stride),
            )
        x = (x + y).relu()
    return x.flatten(2).mean(2) @ state["fc.weight"].T + state["fc.bias"]


def vgg_by_hand(state: dict, x: torch.Tensor) -> torch.Tensor:
    """A VGG network from its weights alone."""
    for block in range(5):
        for unit in range(0, 12, 3):
            if f"block{block}.{unit}.weight" in state:
                x = F.conv2d(
                    x, state[f"block{block}.{unit}.weight"], state[f"block{block}.{unit}.bias"], padding=1
                )
                x = norm(state, f"block{block}.{unit + 1}", x).relu()
        if block < 3:
            x = F.max_pool2d(x, 2)
    return x.flatten(2).mean(2) @ state["classifier.weight"].T + state["classifier.bias"]


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        (SMALL, resnet_by_hand),
        ("resnet14", resnet_by_hand),
        ("vgg8x0.125", vgg_by_hand),
        ("vgg11", vgg_by_hand),
    ],
)
def test_a_network_computes_what_its_paper_says(name, by_hand):
    model = seeded(name)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model.train()(images)
    model.double().eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images.double()), by_hand(model.state_dict(), images.double()))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_network_ends_in_the_classes_asked_for(name):
    with torch.device("meta"):
        model = build_model(name, 13, 1)
        assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 13)


@pytest.mark.parametrize(
    "name",
    [SMALL, "vgg8x0.125", "wrn_16_1", "MobileNetV2", "ShuffleV1", "ShuffleV2", "torchvision/squeezenet1_1"],
)
def test_the_seed_decides_the_initial_weights(name):
    assert equal(seeded(name, seed=1), seeded(name, seed=1))
    assert not equal(seeded(name, seed=1), seeded(name, seed=2))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "resnet200",
            (
                "unknown network 'resnet200'",
                "did you mean 'resnet20'",
                "vgg8x0.125",
                "torchvision/<name>",
                "timm/<name>",
            ),
        ),
        (
            "torchvision/resnet19",
            ("unknown torchvision network 'resnet19'", "did you mean 'resnet1", "mobilenet_v2"),
        ),
        ("", ("unknown network ''", "resnet20")),
    ],
)
def test_an_unknown_network_is_named_with_the_valid_ones(name, words):
    with pytest.raises(SettingsError) as caught:
        build_model(name, 10)
    for word in words:
        assert word in str(caught.value)


def test_torchvision_networks_take_the_number_of_classes():
    model = seeded("torchvision/resnet18", classes=11).eval()
    assert model.fc.out_features == 11
    assert parameter_count(model) == 11_176_512 + 512 * 11 + 11
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 11)


def test_torchvision_networks_refuse_grey_images():
    with pytest.raises(
        SettingsError, match=r"torchvision/resnet18 takes 3 channels and the data has 1; use one of resnet8, "
    ):
        build_model("torchvision/resnet18", 10, 1)


def test_timm_networks_take_the_numbers_of_classes_and_channels():
    model = seeded("timm/resnet18", classes=11, channels=1).eval()
    # As torchvision's, but for the stem of 7 × 7 on three channels.
    assert parameter_count(model) == 11_176_512 + 512 * 11 + 11 - 2 * 64 * 7 * 7
    with torch.no_grad():
        assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 11)


def test_the_seed_decides_the_weights_of_timm_networks():
    assert equal(seeded("timm/test_vit", seed=1), seeded("timm/test_vit", seed=1))
    assert not equal(seeded("timm/test_vit", seed=1), seeded("timm/test_vit", seed=2))


@pytest.mark.parametrize("name", ["resnet19", "resnet", "", "hf-hub:timm/resnet18", "resnet18.a1_in1k"])
def test_an_unknown_timm_network_is_named_with_near_ones_only(name):
    with pytest.raises(SettingsError) as caught:
        build_model(f"timm/{name}", 10)
    assert f"unknown timm network {name!r}; near it are " in str(caught.value)
    assert not name.startswith("resnet") or "resnet18" in str(caught.value) or "resnet50" in str(caught.value)
    assert len(str(caught.value)) < 250


def test_without_timm_its_networks_say_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        SettingsError,
        match="^timm/resnet18 needs the package timm, which is not installed; run: pip install timm$",
    ):
        build_model("timm/resnet18", 10)
    assert parameter_count(build_model("torchvision/resnet18", 11)) == 11_176_512 + 512 * 11 + 11


# ---- weights on disk


def test_saved_weights_come_back_bit_by_bit(tmp_path):
    model, other = seeded(seed=1), seeded(seed=2)
    model.train()(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    model.to(memory_format=torch.channels_last)
    assert not equal(model, other)
    save_weights(model, tmp_path / "deep" / "weights.safetensors")
    load_checkpoint(other, tmp_path / "deep" / "weights.safetensors")
    assert equal(model, other)
    assert int(other.bn1.num_batches_tracked) == 1
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["weights.safetensors"]


def prefixed(state: dict, prefix: str) -> dict:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"epoch": 240, "model": state, "best_acc": torch.tensor(72.4)},
        # RepDistiller's files hold a learning rate of numpy: lr · rate ** np.sum(epoch > milestones).
        lambda state: {
            "epoch": 240,
            "model": state,
            "optimizer": {"param_groups": [{"lr": 0.05 * 0.1 ** np.sum(np.array([150, 180]) < 240)}]},
        },
        lambda state: prefixed(state, "module."),
        lambda state: prefixed(state, "_orig_mod."),
        lambda state: prefixed(state, "module._orig_mod."),
        lambda state: prefixed(state, "_orig_mod.module."),
        lambda state: {"model": prefixed(state, "module.")},
    ],
    ids=[
        "plain",
        "epoch",
        "public teacher",
        "optimiser",
        "parallel",
        "compiled",
        "compiled in parallel",
        "parallel compiled",
        "both",
    ],
)
def test_a_pickled_state_dict_is_loaded_however_it_is_wrapped(tmp_path, wrap):
    model, other = seeded(seed=1), seeded(seed=2)
    torch.save(wrap(model.state_dict()), tmp_path / "weights.pth")
    load_checkpoint(other, tmp_path / "weights.pth")
    assert equal(model, other)


def test_safetensors_with_prefixes_are_loaded(tmp_path):
    model, other = seeded(seed=1), seeded(seed=2)
    save_file(prefixed(model.state_dict(), "module."), tmp_path / "weights.safetensors")
    load_checkpoint(other, str(tmp_path / "weights.safetensors"))
    assert equal(model, other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: {name: tensor for name, tensor in state.items() if name != "bn1.bias"},
            "bn1.bias is missing",
        ),
        (
            lambda state: state | {"fc.weight": torch.zeros(100, 16)},
            "fc.weight has shape (100, 16), not (10, 16)",
        ),
        (lambda state: state | {"fc2.weight": torch.zeros(1)}, "fc2.weight is not part of it"),
        (lambda state: {"model": {}}, "conv1.weight is missing"),
    ],
)
def test_the_first_difference_to_another_network_is_named(tmp_path, change, words):
    torch.save(change(seeded().state_dict()), tmp_path / "other.pth")
    message = refused(tmp_path / "other.pth")
    assert "is a checkpoint of another network" in message
    assert words in message


def test_a_checkpoint_of_another_depth_is_refused(tmp_path):
    save_weights(seeded("resnet14"), tmp_path / "other.safetensors")
    assert "conv1.weight has shape (16, 3, 3, 3), not (4, 3, 3, 3)" in refused(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [1, 2], {"conv1.weight": 3}, {"model": None}, {1: torch.zeros(2)}], ids=str
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "odd.pth")
    refused(tmp_path / "odd.pth")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_missing_file_is_named(tmp_path, ending):
    assert "no checkpoint at" in refused(tmp_path / f"absent.{ending}")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.25, 0.5, 0.75, 0.99, 0.9999])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_truncated_file_is_refused(tmp_path, ending, share):
    path = tmp_path / f"weights.{ending}"
    model = seeded()
    if ending == "pth":
        torch.save(model.state_dict(), path)
    else:
        save_weights(model, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(path)


@pytest.mark.parametrize(
    "content", [b"<html>404 Not Found</html>", b"hello world", b"\x80\x02garbage", b"PK\x03\x04" + bytes(50)]
)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_of_something_else_is_refused(tmp_path, ending, content):
    (tmp_path / f"odd.{ending}").write_bytes(content)
    refused(tmp_path / f"odd.{ending}")


class Executable:
    """Unpickling it would create a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_pickled_code_is_refused_and_not_run(tmp_path, writer):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    content = {"model": seeded().state_dict(), "extra": Executable(trace)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"extra": Executable(trace)}, protocol=2))
    message = refused(path)
    assert "pickled code is not run" in message
    assert not trace.exists()
