"""Profiling: features of all sub-blocks from one pass, and the matrices made of them."""

import pytest
import torch
import torch.nn.functional as F

from pursuhint_lib import profiling
from pursuhint_lib.data import Images, load_splits
from pursuhint_lib.models import build_model
from pursuhint_lib.paths import work_root
from pursuhint_lib.profiling import profile_layers
from pursuhint_lib.settings import Data
from pursuhint_lib.similarity import METRICS, similarity_matrices
from pursuhint_lib.taps import candidate_points

POINTS = ("layer1.0", "layer2.0", "layer3.0")


@pytest.fixture
def teacher() -> torch.nn.Module:
    """A small network whose BatchNorm statistics are not the initial ones."""
    torch.manual_seed(0)
    model = build_model("resnet8x0.25", 10, 1)
    model.train()(torch.randn(16, 1, 8, 8))
    return model.eval()


@pytest.fixture
def images() -> Images:
    return load_splits(Data("digits"), torch.device("cpu")).train.spread(40)


def by_hand(model: torch.nn.Module, images: Images) -> dict[str, torch.Tensor]:
    """Features of every stage, one image after the other."""
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in POINTS}
    mean, deviation = images.entry.mean[0], images.entry.std[0]
    with torch.no_grad():
        for image in images.images:
            x = (image[None].float() / 255 - mean) / deviation
            x = F.relu(model.bn1(model.conv1(x)))
            for name, stage in zip(POINTS, (model.layer1, model.layer2, model.layer3), strict=True):
                x = stage(x)
                rows[name].append(x.sum((2, 3)) / (x.shape[2] * x.shape[3]))
    return {name: torch.cat(parts) for name, parts in rows.items()}


@pytest.mark.parametrize("batch", [7, 40, 500])
def test_features_are_those_of_a_pass_by_hand_in_stored_order(teacher, images, monkeypatch, batch):
    monkeypatch.setattr(profiling, "BATCH", batch)
    found, expected = profile_layers(teacher, images, POINTS), by_hand(teacher, images)
    assert tuple(found) == POINTS == candidate_points(teacher, torch.zeros(1, 1, 8, 8))
    assert tuple(profile_layers(teacher, images, POINTS[::-1])) == POINTS[::-1]
    for name, channels in zip(POINTS, (4, 8, 16), strict=True):
        assert found[name].shape == (40, channels)
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [7, 500])
def test_too_many_features_for_memory_go_to_a_file_that_leaves_no_trace(teacher, images, monkeypatch, batch):
    kept = profile_layers(teacher, images, POINTS)
    monkeypatch.setattr(profiling, "MEMORY_BYTES", 4 * 40 * (4 + 8 + 16) - 1)
    monkeypatch.setattr(profiling, "BATCH", batch)
    mapped = profile_layers(teacher, images, POINTS)
    assert all(str(work_root()) in features.untyped_storage().filename for features in mapped.values())
    assert list(work_root().iterdir()) == []
    for name in POINTS:
        torch.testing.assert_close(mapped[name], kept[name], rtol=1e-5, atol=1e-6)
    assert similarity_matrices(mapped, METRICS)["cka-rbf"].shape == (3, 3)


@pytest.mark.parametrize("training", [True, False])
def test_the_teacher_is_left_in_evaluation_mode_with_its_statistics(teacher, images, training):
    expected = by_hand(teacher, images)
    state = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    found = profile_layers(teacher.train(training), images, POINTS)
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in teacher.state_dict().items())
    assert sum(len(module._forward_hooks) for module in teacher.modules()) == 0
    torch.testing.assert_close(found["layer3.0"], expected["layer3.0"], rtol=1e-5, atol=1e-6)
