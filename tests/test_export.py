"""Exported networks: every form answers as PyTorch does, counts are those of closed forms, and the model
card's lines run.
"""

import copy
import itertools
import re
import zipfile
from dataclasses import asdict, replace
from functools import partial

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pursuhint_lib import export as exports
from pursuhint_lib.data import DATASETS, Images
from pursuhint_lib.export import FORMS, Subject, export, measure, read_report
from pursuhint_lib.export.card import model_card
from pursuhint_lib.export.measure import flops, latencies
from pursuhint_lib.models import build_model
from pursuhint_lib.paths import ROOT
from pursuhint_lib.records import Record, record_name
from pursuhint_lib.settings import Data, Schedule, SettingsError, StudentSettings, TeacherSettings, resolved

CPU = torch.device("cpu")
# Network → data set whose shape its images have.
NETWORKS = {
    "resnet8": "digits",
    "resnet8x0.25": "digits",
    "vgg8x0.125": "digits",
    "torchvision/mobilenet_v3_small": "cifar10",
}


def images_of(dataset: str, count: int = 40) -> Images:
    """Random images of a data set's shape."""
    entry, generator = DATASETS[dataset], torch.Generator().manual_seed(0)
    shape = (count, entry.channels, entry.image_size, entry.image_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.randint(0, entry.classes, (count,), generator=generator), entry, CPU)


def normalised(images: Images) -> torch.Tensor:
    """The images as the card says, written out."""
    mean, std = (
        torch.tensor(values)[None, :, None, None] for values in (images.entry.mean, images.entry.std)
    )
    return (images.images / 255 - mean) / std


def subject(name: str, dataset: str) -> Subject:
    """A network with logits of a usual size, and a record of it."""
    entry = DATASETS[dataset]
    build = partial(build_model, name, entry.classes, entry.channels)
    torch.manual_seed(0)
    network, images = build(), torch.randn(32, entry.channels, entry.image_size, entry.image_size)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.5
        for _ in range(5):
            network.train()(images)
        logits = network.eval()(images)
        last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        last.weight /= logits.std()
    schedule = Schedule(2, 50, 0.05)
    teacher, points = TeacherSettings("resnet14", Data(dataset), schedule), ("layer1.0",)
    weights = {"ce_weight": 1.0, "kd_weight": 1.0, "hint_weight": 50.0, "temperature": 4.0}
    layers = {"teacher_points": points, "student_points": points}
    rest = {"data": Data(dataset), "schedule": schedule, "seed": 3}
    run = StudentSettings(teacher=teacher, student=name, method="at", **layers, **weights, **rest)
    known = {"data_checksum": "0123456789abcdef", "versions": {"torch": "2.15.0"}}
    record = Record(
        record_name(run), "student", resolved(run), "ok", {"accuracy": 12.5, "parameters": 1}, {}, known
    )
    return Subject(record, network, build, "stage-ends", "Of 5 seeds this is the one of median accuracy.")


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request, tmp_path_factory):
    """One export of each network."""
    folder = tmp_path_factory.mktemp("exported") / "deep" / "folder"
    dataset = NETWORKS[request.param]
    one, images = subject(request.param, dataset), images_of(dataset)
    with pytest.MonkeyPatch.context() as patch:
        # What the clock says is tested elsewhere.
        patch.setattr(measure, "REPEATS", 3)
        return folder, one, images, export(one, images, folder)


@pytest.mark.parametrize("count", [1, 7])
def test_every_file_answers_as_pytorch_does_for_any_number_of_images(exported, count):
    folder, one, images, _ = exported
    asked = normalised(images)[:count]
    with torch.no_grad():
        wanted = one.network(asked)
        fresh = one.build().eval()
        fresh.load_state_dict(load_file(folder / "model.safetensors"))
        found = {
            "weights": fresh(asked),
            "graph": torch.export.load(str(folder / "model.pt2")).module()(asked),
        }
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    found["onnx"] = torch.from_numpy(session.run(None, {"images": asked.numpy()})[0])
    assert wanted.abs().max() > 0.05
    for form, logits in found.items():
        torch.testing.assert_close(
            logits, wanted, atol=1e-5, rtol=1e-4, msg=lambda text, form=form: f"{form}: {text}"
        )


def test_what_is_measured_is_what_is_there(exported):
    folder, one, images, found = exported
    with torch.no_grad():
        logits = one.network(normalised(images))
    right = (
        100
        * sum(int(row.argmax()) == int(label) for row, label in zip(logits, images.labels, strict=True))
        / len(images)
    )
    assert found.accuracy == pytest.approx(right)
    assert found.largest == pytest.approx(logits.abs().max().item(), rel=1e-4)
    assert found.images == len(images)
    assert found.parameters == sum(
        tensor.numel()
        for name, tensor in one.network.state_dict().items()
        if not re.search("running|num_batches", name)
    )
    assert list(found.forms) == ["safetensors", "torch.export", "ONNX"]
    for form in found.forms.values():
        assert form.bytes == (folder / form.file).stat().st_size > 4 * found.parameters
        assert form.difference <= 1e-4 * max(1, found.largest)
        assert form.accuracy == pytest.approx(right)


def test_the_files_say_nothing_of_this_machine_and_hold_no_pickled_code(exported):
    folder, *_ = exported
    assert {file.name for file in folder.iterdir()} == {"README.md", *(form.file for form in FORMS.values())}
    with zipfile.ZipFile(folder / "model.pt2") as members:
        contents = {name: members.read(name) for name in members.namelist()}
    assert contents["archive/data/sample_inputs/model.pt"] == b""
    assert not [
        name
        for name, content in contents.items()
        if b'"use_pickle": true' in content or content.startswith(b"PK")
    ]
    for content in (*contents.values(), *(file.read_bytes() for file in folder.iterdir())):
        assert str(ROOT).encode() not in content
        assert b"site-packages" not in content


def test_the_onnx_file_is_valid_of_the_stated_version_and_takes_any_batch(exported):
    folder, *_ = exported
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    model = onnx.load(folder / "model.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    (images,), (logits,) = model.graph.input, model.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    assert [
        images.type.tensor_type.shape.dim[0].dim_param,
        logits.type.tensor_type.shape.dim[0].dim_param,
    ] == ["batch", "batch"]
    assert "operators of version 18" in (folder / "README.md").read_text()


def test_the_lines_of_the_card_run_and_load_this_very_network(exported, monkeypatch):
    folder, one, images, found = exported
    text = (folder / "README.md").read_text()
    monkeypatch.chdir(folder)
    blocks = re.findall("```python\n(.+?)```", text, flags=re.S)
    assert len(blocks) == 3
    assert len(blocks[0].strip().splitlines()) == 3
    asked = normalised(images)[:3]
    with torch.no_grad():
        wanted = one.network(asked)
        empty = one.network(torch.zeros(1, *asked.shape[1:]))
        for block in blocks[:2]:
            scope: dict = {}
            exec(block, scope)
            torch.testing.assert_close(scope["network"](asked), wanted)
    exec(blocks[2], scope)
    torch.testing.assert_close(torch.from_numpy(scope["logits"]), empty, atol=1e-5, rtol=1e-4)
    for told in (
        one.record.name,
        one.record.name[-12:],
        "stage-ends: layer1.0",
        "resnet14",
        "| seed | 3 |",
        "12.50 in its record",
        one.why,
        "MIT",
    ):
        assert told in text
    for number in (*images.entry.mean, *images.entry.std):
        assert f"{number:g}" in text
    assert f"{found.flops:,} floating-point operations" in text


def test_a_teachers_card_tells_where_it_is_from(exported):
    _, one, images, found = exported
    settings = TeacherSettings(
        "resnet14", Data("digits"), Schedule(2, 50, 0.05), checkpoint="some/file.safetensors"
    )
    record = replace(one.record, name=record_name(settings), kind="teacher", settings=resolved(settings))
    text = model_card(replace(one, record=record, arm="", why="It taught."), found, images.entry)
    assert text.startswith("# resnet14, ")
    assert "A teacher, trained elsewhere." in text
    assert "the data set digits and the weights some/file.safetensors" in text
    assert "epochs" not in text


def off(runner, by: float):
    """A runner that answers a little otherwise."""
    return lambda images: runner(images) + by


@pytest.mark.parametrize(
    ("name", "by"), [("safetensors", float("nan")), ("torch.export", 2e-3), ("ONNX", 2e-3)]
)
def test_a_form_that_answers_otherwise_is_named_and_removed(tmp_path, monkeypatch, name, by):
    form = FORMS[name]
    monkeypatch.setitem(
        exports.FORMS, name, replace(form, load=lambda path, build: off(form.load(path, build), by))
    )
    one = subject("resnet8x0.25", "digits")
    with pytest.raises(
        SettingsError,
        match=rf"{re.escape(one.record.name)} as {name} gives other logits .* 0\.0001 of the largest logit",
    ):
        export(one, images_of("digits", 12), tmp_path)
    assert not (tmp_path / form.file).exists()
    assert not (tmp_path / "README.md").exists()


# ---- counting and timing


@pytest.mark.parametrize(("channels", "side", "classes"), [(1, 8, 10), (3, 32, 100)])
def test_operations_are_those_of_the_closed_form(channels, side, classes):
    def convolution(kernel, inputs, outputs, size):
        return 2 * kernel**2 * inputs * outputs * size**2

    half, quarter = side // 2, side // 4
    wanted = convolution(3, channels, 16, side) + 2 * convolution(3, 16, 16, side)
    wanted += convolution(3, 16, 32, half) + convolution(3, 32, 32, half) + convolution(1, 16, 32, half)
    wanted += (
        convolution(3, 32, 64, quarter) + convolution(3, 64, 64, quarter) + convolution(1, 32, 64, quarter)
    )
    wanted += 2 * 64 * classes
    assert (
        flops(build_model("resnet8", classes, channels).eval(), torch.zeros(1, channels, side, side))
        == wanted
    )


def test_operations_of_a_convolution_in_groups_and_of_a_product():
    network = nn.Sequential(
        nn.Conv2d(8, 12, 3, groups=4, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 5 * 7, 3)
    )
    assert flops(network, torch.zeros(1, 8, 5, 7)) == 2 * (12 * 5 * 7 * 9 * 2) + 2 * (12 * 5 * 7 * 3)


def test_latency_is_the_median_of_what_the_clock_says(monkeypatch):
    # A pass takes 1 ms, 2 ms, 3 ms and so on; the first ones are not counted.
    took = itertools.count(1)
    monkeypatch.setattr(measure.timeit, "timeit", lambda one, number: number * next(took) / 1000)
    (found,) = latencies({"one": lambda images: images}, torch.zeros(1, 1, 2, 2), batches=(4,))
    counted = range(measure.WARM_UP + 1, measure.WARM_UP + measure.REPEATS + 1)
    assert (found.runtime, found.batch) == ("one", 4)
    middle = (counted[0] + counted[-1]) / 2
    assert found.median == pytest.approx(middle)
    assert (found.low + found.high) / 2 == pytest.approx(middle)
    assert found.high - found.low == pytest.approx((measure.REPEATS - 1) / 2, rel=1e-3)


def test_latency_is_measured_on_one_thread_with_the_right_number_of_images():
    threads, asked = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        found = latencies(
            {"a": lambda x: asked.append(("a", len(x), torch.get_num_threads())), "b": lambda x: None},
            torch.zeros(1, 1, 2, 2),
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert set(asked) == {("a", 1, 1), ("a", 64, 1)}
    assert [(one.runtime, one.batch) for one in found] == [("a", 1), ("b", 1), ("a", 64), ("b", 64)]
    assert all(0 < one.low <= one.median <= one.high for one in found)


# ---- measurements as JSON


def test_measurements_come_back_from_json(exported):
    *_, found = exported
    assert read_report(asdict(found)) == found
    assert found.milliseconds("ONNX Runtime") == found.latency[1].median


NOT_WHOLE = {
    "forms": lambda content: content["forms"].pop("ONNX"),
    "latency": lambda content: content.update(latency=content["latency"][:-1]),
    "flops": lambda content: content.pop("flops"),
    "unknown": lambda content: content.update(unknown=1),
}


@pytest.mark.parametrize("spoil", NOT_WHOLE)
def test_measurements_that_are_not_whole_are_refused(exported, spoil):
    content = copy.deepcopy(asdict(exported[-1]))
    NOT_WHOLE[spoil](content)
    with pytest.raises((ValueError, TypeError, KeyError)):
        read_report(content)
