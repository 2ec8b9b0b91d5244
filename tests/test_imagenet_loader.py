"""The benchmark of decoding at a tiny size: both ways do the same work, and it says what it measured."""

import json

import numpy as np
import pytest
import torch
from benchmark import loaded
from PIL import Image

from pursuhint_lib.paths import ROOT


@pytest.fixture(scope="module")
def benchmark():
    with loaded("imagenet_loader") as module:
        module.ALTERNATIONS, module.MADE, module.DRAWS, module.BATCH = 5, 3, 2000, 4
        yield module


def run(benchmark, tmp_path, *options):
    """Its result, from a tenth of a second."""
    file = tmp_path / "result.json"
    assert benchmark.main(["--side", "32", "--seconds", "0.1", "--json", str(file), *options]) == 0
    return json.loads(file.read_text())


def test_the_comparison_is_printed_and_written(benchmark, tmp_path, capsys):
    result = run(benchmark, tmp_path)
    assert (result["side"], result["alternations"], result["images"]["number"]) == (32, 5, 3)
    assert result["images"]["mean_megapixels"] == pytest.approx(500 * 375 / 1e6)
    assert all(len(times) == 5 for times in result["milliseconds"].values())
    for kind in ("train", "test"):
        part = result[kind]
        assert part["ratio"]["min"] <= part["ratio"]["median"] <= part["ratio"]["max"]
        # Normalising as well takes longer.
        assert part["ratio_and_normalised"]["median"] < part["ratio"]["median"]
        assert part["ours_and_normalised"]["median"] < part["ours"]["median"]
    assert set(result["versions"]) >= {"torch", "torchvision", "pillow", "jpeg"}
    out = capsys.readouterr().out
    assert "| training, ours, uint8" in out
    assert "3 images made of noise" in out
    assert "Kolmogorov" in out


def test_crops_and_pixels_agree_with_torchvisions(benchmark, tmp_path):
    result = run(benchmark, tmp_path)
    assert all(test["p"] > 0.001 and test["statistic"] < 0.07 for test in result["crops"].values())
    assert result["pixels"]["train"]["max"] <= 2
    assert result["pixels"]["test"]["max"] == 0


def test_images_of_a_tree_are_used_as_they_are(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "MOST_IMAGES", 4)
    for number in range(6):
        (tmp_path / "tree" / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (50, 40 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "tree" / f"class{number % 2}" / f"{number}.JPEG")
    result = run(benchmark, tmp_path, "--images", str(tmp_path / "tree"))
    assert (result["images"]["number"], result["images"]["what"]) == (4, "images of tree")


def test_made_images_have_the_size_of_imagenets(benchmark):
    with benchmark.image_tree(None) as (root, _):
        sizes = [path.stat().st_size for path in root.rglob("*.JPEG")]
    assert len(sizes) == 3
    assert all(90e3 < size < 130e3 for size in sizes)


def test_normalising_rows_is_torchvisions_normalisation(benchmark, tmp_path, monkeypatch):
    """The timed arithmetic gives the values of ToTensor and Normalize."""
    made = {}
    monkeypatch.setattr(
        benchmark.torch,
        "zeros",
        lambda *shape, dtype: made.setdefault("in", torch.randint(0, 256, shape, dtype=dtype)),
    )
    monkeypatch.setattr(
        benchmark.torch, "empty", lambda shape: made.setdefault("out", torch.full(shape, torch.nan))
    )
    benchmark.Ways([], 8, None, None).all()["normalise"](0)
    pixels, found = (made[name].view(benchmark.BATCH, 8, 8, 3).permute(0, 3, 1, 2) for name in ("in", "out"))
    torch.testing.assert_close(
        found, benchmark.functional.normalize(pixels / 255, benchmark.MEAN, benchmark.STD)
    )


def test_wrong_settings_are_refused_in_one_line(benchmark, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "bad.JPEG").write_bytes(b"no image")
    for options in (
        ["--side", "0"],
        ["--seconds", "-1"],
        ["--images", str(tmp_path / "none")],
        ["--images", str(tmp_path / "empty")],
        ["--images", str(tmp_path / "damaged")],
    ):
        assert benchmark.main(options) == 2
        assert capsys.readouterr().err.count("\n") == 1
    benchmark.main(["--images", str(tmp_path / "damaged")])
    assert str(tmp_path / "damaged" / "bad.JPEG") in capsys.readouterr().err


def test_the_published_figures_meet_the_target():
    """They are from real images, and from the way that the library has."""
    result = json.loads((ROOT / "benchmarks" / "results" / "imagenet_loader.json").read_text())
    assert result["images"]["number"] >= 200
    assert result["alternations"] >= 5
    assert result["train"]["ratio"]["median"] >= result["target"] == 1.5
    assert result["pixels"]["test"]["max"] == 0
