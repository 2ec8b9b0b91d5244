"""RBF CKA against explicit N×N kernels, its exact median; and every metric on features that tempt it to
divide by nothing.
"""

import collections
import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from pursuhint_lib.similarity import METRICS, kernels, moments, rbf_cka, similarity_matrices


def make_pair(kind, images=48, seed=7):
    """Two related layers of different width, float64."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(images, 5))
    x, y = (
        latent @ rng.normal(size=(5, width)) + 0.3 * rng.normal(size=(images, width)) for width in (11, 18)
    )
    return {
        "random": lambda: (rng.normal(size=x.shape) + 0.5, rng.normal(size=y.shape)),
        "correlated": lambda: (x - 2.0, 40 * y + 1000.0),
        "rank-deficient": lambda: (
            np.hstack([x, 3 * x[:, :2], x[:, :1] - x[:, 1:2], np.full((images, 1), 7.7)]),
            y,
        ),
        "post-relu": lambda: (np.maximum(x, 0), np.maximum(y - 1, 0)),
        "most images coincide": lambda: (np.where(np.arange(images)[:, None] < 40, 1.3 * x[:1], x), y),
        "most images are silent": lambda: (
            np.where(np.arange(images)[:, None] < 40, 0, x),
            y.repeat(2, axis=1),
        ),
        "one image is far away": lambda: (np.where(np.arange(images)[:, None] == 3, 1000, x), y),
    }[kind]()


KINDS = [
    "random",
    "correlated",
    "rank-deficient",
    "post-relu",
    "most images coincide",
    "most images are silent",
    "one image is far away",
]


def median_squared_distance(x):
    """Over the full matrix with its zero diagonal, or over its positive entries if that is 0."""
    squared = cdist(x, x, "sqeuclidean")
    return np.median(squared) or np.median(squared[squared > 0])


def found_median(x):
    return kernels._median_squared_distance(moments.Layers([torch.as_tensor(x)]), 0)


def naive_rbf_cka(x, y, bandwidth=1.0):
    grams = []
    for z in (x, y):
        kernel = np.exp(-cdist(z, z, "sqeuclidean") / (2 * bandwidth**2 * median_squared_distance(z)))
        centre = np.eye(len(z)) - 1 / len(z)
        grams.append(centre @ kernel @ centre)
    return np.sum(grams[0] * grams[1]) / (np.linalg.norm(grams[0]) * np.linalg.norm(grams[1]))


@pytest.mark.parametrize("tile", [1, 7, 47, 48, 64])
@pytest.mark.parametrize("images", [2, 3, 9, 48])
@pytest.mark.parametrize("kind", KINDS)
def test_rbf_cka_equals_the_naive_kernel_matrices(monkeypatch, kind, images, tile):
    for name, size in (("SAMPLE", 20_000), ("TILE", tile), ("SIDE", tile + 1)):
        monkeypatch.setattr(kernels, name, size)
    x, y = (z[-images:] for z in make_pair(kind))
    for bandwidth in (0.3, 1.0, 2.0):
        found = float(rbf_cka(*map(torch.from_numpy, (x, y)), bandwidth=bandwidth))
        assert found == pytest.approx(naive_rbf_cka(x, y, bandwidth), abs=1e-9)
        swapped = float(rbf_cka(*map(torch.from_numpy, (y, x)), bandwidth=bandwidth))
        assert swapped == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("images", [2, 3, 4, 9, 50, 51, 300])
@pytest.mark.parametrize("sample", [2, 40, 200_000])
def test_median_distance_is_exact_for_even_and_odd_numbers_and_whatever_the_sample_says(
    monkeypatch, images, sample
):
    monkeypatch.setattr(kernels, "SAMPLE", sample)
    monkeypatch.setattr(kernels, "SIDE", 7)
    x = torch.randn(images, 3, generator=torch.Generator().manual_seed(images), dtype=torch.float64)
    for same in (0, images // 4, images // 2, images - 1):
        x[:same] = x[0]
        assert found_median(x) == pytest.approx(median_squared_distance(x), rel=1e-12)


@pytest.mark.parametrize("images", [7, 8])
def test_median_distance_is_exact_whatever_bracket_is_tried_first(monkeypatch, images):
    x = torch.randn(images, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    distances = np.sort(cdist(x, x, "sqeuclidean").ravel())[images::2]
    for low, high in itertools.combinations([-1.0, 0.0, *(distances + 1e-9), 1e9], 2):
        monkeypatch.setattr(kernels, "_bracket", lambda *_, bracket=(low, high): bracket)
        assert found_median(x) == pytest.approx(median_squared_distance(x), rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1000.0], ids=["around-zero", "far-from-zero"])
@pytest.mark.parametrize("same", [1060, 1061, 1062, 1350, 1498, 1499])
def test_median_distance_is_exact_around_the_border_where_half_of_all_pairs_coincide(same, shift):
    rng = np.random.default_rng(same)
    # Rows are repeated bit for bit, but not next to each other: 1061² entries of the matrix are half of
    # 1500².
    x = rng.normal(size=(1500, 4)).astype(np.float32) + np.float32(shift)
    x[rng.permutation(1500)[:same]] = x[0]
    assert found_median(x) == pytest.approx(median_squared_distance(x.astype(np.float64)), rel=1e-9)


def test_median_distance_of_images_in_few_groups_is_one_of_their_distances():
    places = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    # A third of all entries is 0, two ninths each are 1, 18 and 25.
    assert found_median(places[torch.arange(2000) % 3]) == pytest.approx(1.0, rel=1e-12)


def degenerate_features(images, rng):
    """Features of up to 6 channels with what can go wrong: ties, spikes, dead channels, offsets, scales."""
    width = int(rng.integers(1, 7))
    x = rng.normal(size=(images, width))
    lonely = np.arange(images)[:, None] == rng.integers(images)
    kinds = [
        x,
        np.maximum(x, 0),
        x[rng.integers(0, max(1, images // 2), images)],
        np.eye(13)[:images, :width],
        lonely * x,
        np.rint(x),
    ]
    x = [*kinds, x[:, :1] * x[0], x + 10.0 ** rng.integers(-8, 9), 1 + 1e-16 * x][rng.integers(9)]
    dead = np.full((images, 1), rng.normal() * 10.0 ** rng.integers(-20, 21))
    x = np.hstack([x, *[extra for extra in (dead, x[:, :1], x[:, :1] + x[:, -1:]) if rng.random() < 0.3]])
    for shape, reach, chance in ((1, 20, 0.4), (x.shape[1], 20, 0.2), ((images, 1), 8, 0.1)):
        if rng.random() < chance:
            x = x * 10.0 ** rng.integers(-reach, reach + 1, shape)
    return torch.from_numpy(x).float() if rng.random() < 0.4 else torch.from_numpy(x)


def test_degenerate_features_give_a_similarity_or_a_message_and_never_nan(monkeypatch):
    monkeypatch.setattr(kernels, "SAMPLE", 500)
    given, refusals = collections.Counter(), []
    for seed in range(500):
        rng = np.random.default_rng(seed)
        images = int(rng.integers(2, 13))
        layers = {name: degenerate_features(images, rng) for name in "abc"[: rng.integers(2, 4)]}
        for metric in METRICS:
            try:
                matrix = similarity_matrices(layers, [metric])[metric]
            except ValueError as error:
                few = images < 4 and metric == "cka-linear-debiased" and "at least 4 images" in str(error)
                refusals.append(few or f"of {len(layers)} (" in str(error))
                continue
            lowest = -1 if metric == "cka-linear-debiased" else 0
            assert ((matrix >= lowest - 1e-7) & (matrix <= 1 + 1e-7)).all(), (
                f"seed {seed}, {metric}: {matrix}"
            )
            assert torch.equal(matrix, matrix.T)
            assert torch.equal(matrix.diagonal(), torch.ones(len(layers), dtype=torch.float64))
            given[metric] += 1
    assert all(refusals)
    assert min(given[metric] for metric in METRICS) > 100


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="no sub-block to compare"):
        similarity_matrices({}, ["cka-rbf"])
