"""Networks: layouts, sizes and weights on disk."""

import json
import os
import pickle
import re
import sys
from hashlib import sha256

import numpy as np
import pytest
import torch
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
    """Message with which a checkpoint is refused."""
    with pytest.raises(SettingsError) as caught:
        load_checkpoint(model or seeded(), path)
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
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_network_ends_in_the_classes_asked_for(name, shape):
    with torch.device("meta"):
        assert build_model(name, 13, shape[0])(torch.zeros(2, *shape)).shape == (2, 13)


@pytest.mark.parametrize(
    "name",
    [
        SMALL,
        "vgg8x0.125",
        "wrn_16_1",
        "MobileNetV2",
        "ShuffleV1",
        "ShuffleV2",
        "torchvision/squeezenet1_1",
        "timm/test_vit",
    ],
)
def test_the_seed_decides_the_initial_weights(name):
    assert equal(seeded(name, seed=1), seeded(name, seed=1))
    assert not equal(seeded(name, seed=1), seeded(name, seed=2))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "resnet200",
            "unknown network 'resnet200' .*did you mean 'resnet20'.*vgg8x0.125.*torchvision/<name>",
        ),
        ("", "unknown network ''.*resnet20.*timm/<name>"),
        (
            "torchvision/resnet19",
            "unknown torchvision network 'resnet19' .*did you mean 'resnet1.*mobilenet_v2",
        ),
        *(
            (f"timm/{name}", f"unknown timm network {name!r}.* names these are near: .*resnet(18|50)")
            for name in ("resnet19", "resnet", "resnet18.a1_in1k")
        ),
        ("timm/", "unknown timm network ''.* names these are near: "),
        ("timm/hf-hub:timm/resnet18", "unknown timm network 'hf-hub:timm/resnet18'.* names these are near: "),
    ],
)
def test_an_unknown_network_is_named_with_valid_ones(name, words):
    with pytest.raises(SettingsError, match=words) as caught:
        build_model(name, 10)
    # Of timm's thousand only near ones.
    assert len(str(caught.value)) < 250 or not name.startswith("timm/")


# timm's is torchvision's but for the stem of 7 × 7 on one channel.
@pytest.mark.parametrize(
    ("name", "channels", "parameters"),
    [
        ("torchvision/resnet18", 3, 11_176_512 + 512 * 11 + 11),
        ("timm/resnet18", 1, 11_176_512 + 512 * 11 + 11 - 2 * 64 * 7 * 7),
    ],
)
def test_networks_of_libraries_take_the_numbers_of_classes_and_channels(name, channels, parameters):
    model = seeded(name, classes=11, channels=channels).eval()
    assert parameter_count(model) == parameters
    with torch.no_grad():
        assert model(torch.zeros(2, channels, 32, 32)).shape == (2, 11)


def test_torchvision_networks_refuse_grey_images():
    with pytest.raises(
        SettingsError, match=r"torchvision/resnet18 takes 3 channels and the data has 1; use one of resnet8, "
    ):
        build_model("torchvision/resnet18", 10, 1)


def test_without_timm_its_networks_say_how_to_get_it_and_all_others_are_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SettingsError, match="^timm/resnet18 needs the package timm.*pip install timm$"):
        build_model("timm/resnet18", 10)
    build_model("torchvision/resnet18", 11)


# ---- weights on disk


def written(content, path):
    """The path, after the content was written in the format of its ending."""
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


def test_saved_weights_come_back_bit_by_bit(tmp_path):
    model, other = seeded(seed=1), seeded(seed=2)
    model.train()(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    model.to(memory_format=torch.channels_last)
    save_weights(model, tmp_path / "deep" / "weights.safetensors")
    load_checkpoint(other, tmp_path / "deep" / "weights.safetensors")
    assert equal(model, other)
    assert int(other.bn1.num_batches_tracked) == 1
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["weights.safetensors"]


def prefixed(state: dict, prefix: str) -> dict:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def without_counters(state: dict) -> dict:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


# Form → what a file of it holds.
FORMS = {
    "plain": lambda state: state,
    # RepDistiller's files hold a learning rate of numpy: lr · rate ** np.sum(epoch > milestones).
    "public teacher": lambda state: {
        "epoch": 240,
        "model": state,
        "optimizer": {"param_groups": [{"lr": 0.05 * 0.1 ** np.sum(np.array([150, 180]) < 240)}]},
        "best_acc": torch.tensor(72.4),
    },
    "state_dict": lambda state: {"arch": "resnet", "state_dict": state, "best_prec1": 92.6},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.1},
    "net": lambda state: {"net": state, "acc": 95.0, "epoch": 3},
    "name of the model beside": lambda state: {"model": "resnet8", "net": state},
    "parallel": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled in parallel": lambda state: prefixed(state, "module._orig_mod."),
    "parallel compiled": lambda state: prefixed(state, "_orig_mod.module."),
    "held by a trainer": lambda state: {"state_dict": prefixed(state, "model."), "global_step": 9},
    "parallel, within": lambda state: {"state_dict": prefixed(state, "module.")},
    "what torch saves of a parallel network": lambda _: torch.nn.DataParallel(seeded(seed=1)).state_dict(),
    "of before torch counted batches": without_counters,
}


@pytest.mark.parametrize(
    ("form", "ending"),
    [
        *((form, "pth") for form in FORMS),
        *((form, "safetensors") for form in ("plain", "parallel", "of before torch counted batches")),
    ],
)
def test_a_state_dict_is_loaded_in_whatever_form(tmp_path, form, ending):
    model, other = seeded(seed=1), seeded(seed=2)
    assert not equal(model, other)
    load_checkpoint(other, str(written(FORMS[form](model.state_dict()), tmp_path / f"weights.{ending}")))
    assert equal(model, other)


class Versioned(torch.nn.Module):
    """A layer whose weights of version 1, or of none, were half as large."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.module = torch.nn.Linear(2, 2)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
        if local_metadata.get("version", 1) < 2:
            state_dict[f"{prefix}module.weight"] = 2 * state_dict[f"{prefix}module.weight"]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize("make", [lambda: build_model("torchvision/mnasnet0_5", 10), Versioned])
def test_networks_with_versions_come_back_as_they_were(tmp_path, make, ending):
    """torchvision's mnasnet refuses weights of no version; a part called module is no wrapper."""
    model, other, path = make(), make(), tmp_path / f"weights.{ending}"
    save_weights(model, path) if ending == "safetensors" else torch.save(model.state_dict(), path)
    load_checkpoint(other, path)
    assert equal(model, other)


def test_weights_of_an_older_version_are_brought_up_to_date(tmp_path):
    model, other = Versioned(), Versioned()
    state = model.state_dict()
    state._metadata[""]["version"] = 1
    torch.save(state, tmp_path / "weights.pth")
    load_checkpoint(other, tmp_path / "weights.pth")
    assert torch.equal(other.module.weight, 2 * model.module.weight)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {name: state[name] for name in state if name != "bn1.bias"}, 'Missing .*"bn1.bias"'),
        (lambda state: state | {"fc.weight": torch.zeros(100, 16)}, r"mismatch .*fc.weight.*\[100, 16\]"),
        (lambda state: state | {"fc2.weight": torch.zeros(1)}, 'Unexpected .*"fc2.weight"'),
        (lambda state: {"model": {}}, 'Missing .*"conv1.weight"'),
        (lambda state: seeded("resnet14").state_dict(), 'Unexpected .*"layer1.1.conv1.weight"'),
    ],
)
def test_differences_to_another_network_are_named(tmp_path, change, words):
    message = refused(written(change(seeded().state_dict()), tmp_path / "other.pth"))
    assert re.search(f"is a checkpoint of another network: .*{words}", message)
    assert len(message) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [1, 2], {"conv1.weight": 3}, {"model": None}, {1: torch.zeros(2)}], ids=str
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    refused(written(content, tmp_path / "odd.pth"))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_missing_file_is_named(tmp_path, ending):
    assert "no checkpoint at" in refused(tmp_path / f"absent.{ending}")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.25, 0.5, 0.75, 0.99, 0.9999])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_truncated_file_is_refused(tmp_path, ending, share):
    path = written(seeded().state_dict(), tmp_path / f"weights.{ending}")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<html>404 Not Found</html>", "a web page"),
        (b"\n<!DOCTYPE html>\n<html lang=en>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n", "git lfs pull"),
        (b"hello world", "cannot be read"),
        (b"\x80\x02garbage", ""),
        (b"PK\x03\x04" + bytes(50), "cannot be read"),
    ],
)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_of_something_else_is_refused(tmp_path, ending, content, words):
    (tmp_path / f"odd.{ending}").write_bytes(content)
    assert words in refused(tmp_path / f"odd.{ending}")


class Executable:
    """Unpickling it would create a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def pickled(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [torch.save, pickled])
def test_pickled_code_is_refused_and_not_run(tmp_path, write):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    write({"extra": Executable(trace)}, path)
    assert "pickled code is not run" in refused(path)
    assert not trace.exists()
