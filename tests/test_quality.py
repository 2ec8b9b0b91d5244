"""The layer-quality score against plain loops, and what it refuses."""

import math

import numpy as np
import pytest
import torch

from pursuhint_lib import quality
from pursuhint_lib.quality import layer_quality


def by_loops(x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The module's formula, one pair of images after the other."""
    n, classes = len(x), [int(c) for c in np.unique(labels)]
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    cosine = {(i, j): abs(x[i] @ x[j]) / math.sqrt((x[i] @ x[i]) * (x[j] @ x[j])) for i, j in pairs}
    inside = {c: [cosine[i, j] for i, j in pairs if labels[i] == labels[j] == c] for c in classes}
    between = [cosine[i, j] for i, j in pairs if labels[i] != labels[j]]
    entropies = []
    for c in classes:
        variances = np.sort(np.linalg.eigvalsh(np.cov(x[labels == c].T)))[::-1].clip(0)
        shares, kept = variances / variances.sum(), []
        while sum(kept) < 0.95:
            kept.append(shares[len(kept)])
        kept = np.array(kept) / sum(kept)
        entropies.append(-sum(p * math.log(p) for p in kept))
    gaps = [
        min(np.linalg.norm(x[i] - x[j]) for i, j in pairs if labels[i] == c != labels[j]) for c in classes
    ]
    separation = np.mean([np.mean(inside[c]) for c in classes]) - np.mean(between)
    information = (1 - np.mean([min(inside[c]) for c in classes])) * np.mean(entropies) / math.log(5)
    length = np.mean([np.linalg.norm(row) for row in x])
    efficiency = 2 * np.mean(gaps) / length * (n / math.pi) ** (1 / np.linalg.matrix_rank(x - x.mean(0)))
    return {
        "score": separation + math.sqrt(information * efficiency),
        "separation": separation,
        "information": information,
        "efficiency": efficiency,
    }


@pytest.fixture
def layer():
    """Post-ReLU features of three unequal classes, with a dead and a repeated channel."""
    rng = np.random.default_rng(4)
    labels = np.array([0] * 9 + [1] * 6 + [2] * 12)
    x = np.maximum(rng.normal(size=(27, 5)) + 1.5 * rng.normal(size=(3, 5))[labels], 0) + 0.01
    return np.hstack([x, np.zeros((27, 1)), x[:, :1]]), labels


def test_the_score_equals_plain_loops(layer):
    x, labels = layer
    found, expected = vars(layer_quality(torch.from_numpy(x), torch.from_numpy(labels))), by_loops(x, labels)
    assert found == pytest.approx(expected, abs=1e-9)


def test_order_of_images_and_scale_do_not_matter_and_labels_do(layer):
    x, labels = (torch.from_numpy(a) for a in layer)
    order = torch.randperm(27, generator=torch.Generator().manual_seed(1))
    score = layer_quality(x, labels).score
    assert layer_quality(1e3 * x[order], labels[order]).score == pytest.approx(score, abs=1e-9)
    assert abs(layer_quality(x, labels[order]).score - score) > 0.05


def test_well_separated_classes_score_higher():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    centres, noise = torch.eye(3).repeat(1, 4), 0.3 * torch.randn(60, 12, generator=generator)
    near, far = (layer_quality(scale * centres[labels] + noise, labels) for scale in (0.1, 2.0))
    assert far.separation > near.separation + 0.3
    assert far.score > near.score


def test_of_too_many_images_evenly_spaced_ones_are_compared(layer, monkeypatch):
    x, labels = (torch.from_numpy(a) for a in layer)
    monkeypatch.setattr(quality, "MAX_IMAGES", 15)
    rows = [image * 27 // 15 for image in range(15)]
    assert layer_quality(x, labels) == layer_quality(x[rows], labels[rows])


@pytest.mark.parametrize(
    ("features", "labels", "words"),
    [
        (torch.rand(6, 3), torch.zeros(6), "two classes with at least two images each"),
        (torch.rand(6, 3), torch.arange(6), "two classes with at least two images each"),
        (torch.rand(6, 3), torch.tensor([0, 0, 0, 1, 2, 3]), "two classes with at least two images each"),
        (torch.zeros(6, 3), torch.arange(6) % 2, "not all zero"),
    ],
    ids=["one class", "one image each", "one class of two", "silent layer"],
)
def test_what_has_no_class_geometry_is_refused(features, labels, words):
    with pytest.raises(ValueError, match=words):
        layer_quality(features, labels)


def test_silent_images_are_allowed():
    x = torch.rand(8, 3, generator=torch.Generator().manual_seed(0))
    x[3] = 0
    assert math.isfinite(layer_quality(x, torch.arange(8) % 2).score)
