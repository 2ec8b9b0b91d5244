"""The toy of notebook 00, executed from its cells and tried over all that its sliders reach."""

import itertools
import json

import numpy as np
import pytest
import torch
from matplotlib import rc_context

from pursuhint_lib.clustering import choose_hint_points, kmeans_rounds, segment_middles
from pursuhint_lib.paths import NOTEBOOKS
from pursuhint_lib.plots.saving import png, svg
from pursuhint_lib.similarity import similarity_matrix

CHANGES = [step / 20 for step in range(41)]
KS, SEEDS = range(1, 7), range(10)
TRUTH = (0,) * 2 + (1,) * 3 + (2,) * 7


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """What the notebook's cells define. They are executed once, from first to last."""
    cells = json.loads((NOTEBOOKS / "00_start_here.ipynb").read_text(encoding="utf-8"))["cells"]
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("results", "work"):
            patch.setenv(f"PURSUHINT_{folder.upper()}", str(tmp_path_factory.mktemp(folder)))
        for cell in cells:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
    return names


@pytest.fixture(scope="module")
def similarities(toy):
    """Similarity for every change and seed."""
    return {
        (change, seed): toy["compare"](toy["toy_layers"](change, seed))
        for change in CHANGES
        for seed in SEEDS
    }


@pytest.fixture(scope="module")
def found(similarities):
    """Hint layers for every change, k and seed."""
    return {
        (change, k, seed): choose_hint_points(matrix, k)
        for (change, seed), matrix in similarities.items()
        for k in KS
    }


def test_the_sliders_reach_what_is_tried_here(toy):
    change, k, seed = (toy["sliders"][name] for name in ("change", "k", "seed"))
    assert [change.min + step * change.step for step in range(41)] == pytest.approx(CHANGES)
    assert change.max == CHANGES[-1]
    assert (k.min, k.max) == (KS[0], KS[-1])
    assert (seed.min, seed.max) == (SEEDS[0], SEEDS[-1])


def test_what_is_published_is_where_the_sliders_begin(toy, found):
    assert [toy["sliders"][name].value for name in ("change", "k", "seed")] == [0.25, 3, 0]
    assert toy["points"] == found[0.25, 3, 0]
    assert toy["hints"] == [1, 4, 9]
    assert toy["middles"] == [2, 6, 10]


def test_layers_of_a_group_differ_by_so_much_noise_and_groups_by_a_mixture(toy):
    layers = toy["toy_layers"](0.5, 0)
    for before, layer in ((0, 1), (2, 3), (3, 4), (5, 6), (10, 11)):
        noise = layers[layer] - layers[before]
        # The noise is in units of the layer, however large that is.
        assert noise.std() / layers[before].std() == pytest.approx(0.5, rel=0.03)
    assert layers[2].min() == layers[5].min() == 0
    assert all(map(np.array_equal, layers, toy["toy_layers"](0.5, 0)))
    assert not np.array_equal(layers[0], toy["toy_layers"](0.5, 1)[0])


def test_linear_cka_forgives_rotation_and_scale_and_is_the_librarys(toy, similarities):
    random = np.random.default_rng(0)
    x, other = random.normal(size=(2, 1000, 16))
    rotation = np.linalg.qr(random.normal(size=(16, 16)))[0]
    assert toy["linear_cka"](x, 3 * x @ rotation + 1) == pytest.approx(1)
    assert toy["linear_cka"](x, other) < 0.03
    for change in (0.0, 0.25, 2.0):
        layers = [torch.from_numpy(layer) for layer in toy["toy_layers"](change, 0)]
        library = similarity_matrix(layers, "cka-linear").numpy()
        assert np.abs(similarities[change, 0] - library).max() < 1e-6


def test_every_similarity_is_a_number_on_the_fixed_scale(similarities):
    for matrix in similarities.values():
        assert np.isfinite(matrix).all()
        assert (matrix > 0).all()
        assert (matrix < 1 + 1e-9).all()


def test_no_last_bit_decides_between_two_hint_layers(similarities, found):
    for (change, k, seed), points in found.items():
        if k > 1:
            nearest = np.sort(similarities[change, seed][:, points.indices], axis=1)
            assert (nearest[:, -1] - nearest[:, -2]).min() > 1e-9


def test_every_choice_settles_in_stretches_of_depth(found):
    for (_, k, _), points in found.items():
        assert points.converged
        assert list(points.labels) == sorted(points.labels)
        assert len(set(points.labels)) == k


def test_with_little_change_three_clusters_are_the_groups(found):
    for change, seed in itertools.product(CHANGES, SEEDS):
        if change <= 0.25:
            assert found[change, 3, seed].labels == TRUTH
    # The sentence is as strong as it can be.
    assert any(found[0.3, 3, seed].labels != TRUTH for seed in SEEDS)


def test_the_squares_fade_as_the_change_grows(similarities):
    same = np.equal.outer(TRUTH, TRUTH) & ~np.eye(12, dtype=bool)
    for seed in SEEDS:
        inside = [similarities[change, seed][same].mean() for change in CHANGES]
        assert (np.diff(inside) < 0).all()
        assert inside[0] > 0.999
        assert inside[-1] < 0.15


def test_with_much_change_three_hint_layers_are_the_middles_of_equal_segments(found):
    for (change, k, seed), points in found.items():
        if change >= 0.75:
            middles, sizes = segment_middles(12, k), [points.labels.count(label) for label in range(k)]
            assert max(sizes) - min(sizes) <= 2
            assert max(abs(i - j) for i, j in zip(points.indices, middles, strict=True)) <= 1
            assert k != 3 or points.indices == middles, seed
    assert any(found[0.7, 3, seed].indices != segment_middles(12, 3) for seed in SEEDS)


def test_another_number_of_hint_layers_joins_groups_or_cuts_one(found):
    for (_, k, _), points in found.items():
        shared = set(zip(points.labels, TRUTH, strict=True))
        clusters_with_groups = [len([g for label, g in shared if label == own]) for own in range(k)]
        groups_in_clusters = [len([label for label, g in shared if g == own]) for own in range(3)]
        assert k > 2 or max(clusters_with_groups) > 1
        assert k < 4 or max(groups_in_clusters) > 1


def test_where_clusters_are_equal_stretches_the_hint_layers_are_their_middles(found):
    equal = 0
    for (_, k, _), points in found.items():
        if len({points.labels.count(label) for label in range(k)}) == 1:
            assert points.indices == segment_middles(12, k)
            equal += k > 1
    assert equal > 100


def test_layers_that_are_exactly_alike_all_go_to_the_first_centre():
    assert kmeans_rounds(np.ones((12, 12)), 3)[0].labels == (0,) * 12


@pytest.mark.parametrize("change", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("k", KS)
def test_the_picture_shows_similarity_borders_and_hint_layers(toy, similarities, found, change, k):
    axis, bar = toy["play"](change, k, 9).axes
    (image,), points = axis.images, found[change, k, 9]
    assert np.allclose(image.get_array(), similarities[change, 9])
    assert image.get_clim() == (0, 1)
    assert bar.get_ylabel() == "linear CKA"
    *borders, dots = axis.lines
    assert dots.get_xdata().tolist() == dots.get_ydata().tolist() == [i + 1 for i in points.indices]
    ends = [layer + 0.5 for layer in range(1, 12) if points.labels[layer - 1] != points.labels[layer]]
    assert [line.get_ydata()[0] for line in borders[::2]] == ends
    assert [line.get_xdata()[0] for line in borders[1::2]] == ends
    assert image.get_extent() == [0.5, 12.5, 12.5, 0.5]


def test_the_picture_is_the_same_bytes_on_every_machine(toy):
    matrix, points = toy["similarity"], toy["points"]
    first = toy["picture"](matrix, points)
    noise = 1 + 1e-13 * np.random.default_rng(0).normal(size=matrix.shape)
    with rc_context({"font.size": 20, "image.interpolation": "bilinear", "image.cmap": "gray"}):
        second = toy["picture"](matrix * noise, points)
    assert svg(first) == svg(second)
    assert png(first, 140) == png(second, 140)
