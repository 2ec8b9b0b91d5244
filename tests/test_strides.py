"""Gradients are right on CPUs of every kind: oneDNN#6035 corrupts memory in strided 1×1 convolutions."""

import ast
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from pursuhint_lib.cli import main
from pursuhint_lib.models import MODELS
from pursuhint_lib.models.rewriting import avoid_corruption
from pursuhint_lib.paths import ROOT

# Those of the study that have such a convolution with few channels.
NARROW = "resnet8x0.25,resnet8x0.5"
# Networks that one of our sizes is too small for.
LARGE_ONLY = {"ResNet50"}
# Where rounding adds up to more than 1e-4, in 50 and more layers at 64 px with one thread: at most so many
# times what it does in contiguous fp32, since BatchNorm's sums over images and places are less exact in
# channels-last. A wrong kernel is off by half of all and more.
ROUNDING = 16
INSTRUCTIONS = ["AVX2", "ALL"]


def wrong(networks: str, sizes: str, instructions: str, threads: int) -> dict:
    """Networks whose gradients are not those of contiguous double precision, in a process of its own."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(ROOT / "tests" / "strides.py"), networks, sizes, str(threads)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])
    found = ast.literal_eval(done.stdout)
    assert len(found) == len(networks.split(",")) * len(sizes.split(","))
    return {place: off for place, off in found.items() if off[0] > max(1e-4, ROUNDING * off[1])}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_gradients_of_narrow_networks_are_right(instructions, threads):
    assert wrong(NARROW, "8,32,64", instructions, threads) == {}


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_gradients_of_all_networks_are_right(instructions, threads):
    small = ",".join(name for name in MODELS if name not in LARGE_ONLY)
    assert wrong(small, "8,32", instructions, threads) == {}
    assert wrong(",".join(MODELS), "64", instructions, threads) == {}


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_the_smoke_study_runs_without_avx512(threads, tmp_path):
    places = {f"PURSUHINT_{name}": str(tmp_path / name.lower()) for name in ("RESULTS", "WORK")}
    environment = {**os.environ, **places, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "pursuhint_lib", "run", "smoke", "--cores", str(threads)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
    assert "All 12 steps are done" in done.stdout


@pytest.mark.parametrize("stride", [2, 3, (2, 1)])
@pytest.mark.parametrize("channels", [2, 15])
def test_the_way_around_computes_the_same(stride, channels):
    torch.manual_seed(0)
    convolution = nn.Conv2d(channels, 8, 1, stride=stride)
    images = torch.randn(4, channels, 9, 8)
    wanted, state = convolution(images), list(convolution.state_dict())
    assert avoid_corruption(convolution) is convolution
    torch.testing.assert_close(convolution(images), wanted)
    assert list(convolution.state_dict()) == state


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(16, 8, 1, stride=2),
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(4, 8, 3, stride=2),
        nn.Conv2d(4, 8, 1, stride=2, padding=1),
        nn.Conv2d(4, 8, 1, stride=2, groups=4),
    ],
    ids=["wide", "no stride", "3×3", "padded", "grouped"],
)
def test_all_other_convolutions_stay(convolution):
    stride = convolution.stride
    avoid_corruption(convolution)
    assert convolution.stride == stride
    assert not convolution._forward_pre_hooks


OWN = """
import torch
import torch.nn.functional as F
from torch import nn


class Hidden(nn.Module):
    # A strided 1×1 convolution that no module shows.
    def __init__(self, classes, channels):
        super().__init__()
        self.first = nn.Conv2d(channels, 4, 3, padding=1)
        self.weight = nn.Parameter(0.1 * torch.randn(8, 4, 1, 1))
        self.block1 = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
        self.block2 = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.classifier = nn.Linear(16, classes)
        self.hint_points = ("block1", "block2")

    def forward(self, images):
        maps = self.block2(self.block1(F.conv2d(self.first(images), self.weight, stride=2)))
        return self.classifier(maps.mean((2, 3)))
"""


def test_a_wrong_convolution_ends_the_check(tmp_path):
    """Under AVX2 four channels are too few for a strided convolution that no module shows."""
    (tmp_path / "hidden.py").write_text(OWN)
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ntitle: mine\n"
        "data: {dataset: digits, train_images: 100, test_images: 100}\n"
        "teacher: {epochs: 2, batch_size: 50, learning_rate: 0.05}\n"
        "student: {epochs: 2, batch_size: 50, learning_rate: 0.05}\n"
        "pairs: [{teacher: 'hidden:Hidden', student: 'hidden:Hidden'}]\n"
        "methods: [ce, kd, at]\narms: [none, stage-ends]\nseeds: [0]\nprofile_images: 100\n"
    )
    command = [sys.executable, "-m", "pursuhint_lib", "run", str(tmp_path / "mine.yaml"), "--check"]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2, done.stdout + done.stderr
    # Its numbers are wrong, or it overwrites memory; this may end the process in a later convolution only.
    said = done.stdout + done.stderr
    assert (
        "gradients of a convolution with weights 8×4×1×1, stride 2" in said
        or "or of one tried before it, end the process" in said
    ), said


def test_the_smoke_profile_passes_the_check():
    assert main(["run", "smoke", "--check"]) == 0
