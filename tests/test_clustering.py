"""Hint points: the paper's k-means against a literal transcription, k-medoids against all subsets, and the controls."""

import itertools
import math

import numpy as np
import pytest
import torch

from pursuhint_lib import clustering
from pursuhint_lib.clustering import ALGORITHMS, choose_hint_points, random_points, segment_middles


def random_similarity(rng, layers, kind="uniform"):
    """Symmetric [L, L], unit diagonal, other entries below 1."""
    half = rng.random((layers, layers))
    matrix = (half + half.T) / 2
    if kind == "banded":
        depth = np.arange(layers)
        matrix = 0.2 * matrix + 0.8 * np.exp(-np.abs(depth[:, None] - depth[None, :]) / 3)
    if kind == "tied":
        matrix = np.minimum(np.round(matrix, 1), 0.9)
    if kind == "partly negative":
        matrix = 1.2 * matrix - 0.3
    np.fill_diagonal(matrix, 1.0)
    return matrix


def paper_k_means(similarity, k):
    """numbers.md 4.4 word for word: (sorted centres, settled, rounds)."""
    layers = len(similarity)
    centres = {j: math.floor(j * (layers - 1) / (k - 1)) if k > 1 else 0 for j in range(k)}
    for rounds in range(1, 81):
        members = {j: [] for j in range(k)}
        for layer in range(layers):
            distances = [1 - similarity[layer][centres[j]] for j in range(k)]
            members[distances.index(min(distances))].append(layer)
        updated = {}
        for j in range(k):
            if not members[j]:
                updated[j] = centres[j]
                continue
            middle = int(sum(members[j]) / len(members[j]))
            gaps = [abs(member - middle) for member in members[j]]
            updated[j] = members[j][gaps.index(min(gaps))]
        if updated == centres:
            return tuple(sorted(centres.values())), True, rounds
        centres = updated
    return tuple(sorted(centres.values())), False, 80


@pytest.mark.parametrize("kind", ["uniform", "banded", "tied", "partly negative"])
def test_kmeans_index_equals_the_papers_rule(kind):
    for seed in range(50):
        rng = np.random.default_rng(seed)
        layers = int(rng.integers(2, 20))
        k = int(rng.integers(1, layers + 1))
        matrix = random_similarity(rng, layers, kind)
        found = choose_hint_points(matrix, k, "kmeans-index")
        assert (found.indices, found.converged, found.iterations) == paper_k_means(matrix.tolist(), k), f"seed {seed}"


@pytest.mark.parametrize(("seed", "layers", "k"), [(5, 6, 2), (0, 8, 2), (0, 9, 4), (0, 14, 6)])
def test_kmeans_index_that_cycles_stops_at_80_rounds_and_says_so(seed, layers, k):
    matrix = random_similarity(np.random.default_rng(seed), layers)
    found = choose_hint_points(matrix, k)
    assert not found.converged
    assert found.iterations == 80
    assert found.indices == paper_k_means(matrix.tolist(), k)[0]


@pytest.mark.parametrize(
    ("layers", "k", "seeds"), [(18, 3, (0, 8, 17)), (54, 3, (0, 26, 53)), (27, 3, (0, 13, 26)), (15, 3, (0, 7, 14)), (16, 4, (0, 5, 10, 15))]
)
def test_kmeans_index_starts_at_the_published_seeds(monkeypatch, layers, k, seeds):
    used = []
    assign = clustering._assign
    monkeypatch.setattr(clustering, "_assign", lambda similarity, centres: used.append(tuple(centres)) or assign(similarity, centres))
    choose_hint_points(random_similarity(np.random.default_rng(0), layers), k)
    assert used[0] == seeds


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", ["uniform", "banded"])
def test_hint_points_describe_one_consistent_clustering(algorithm, kind):
    for seed in range(25):
        rng = np.random.default_rng(seed)
        layers = int(rng.integers(2, 12))
        k = int(rng.integers(1, layers + 1))
        matrix = random_similarity(rng, layers, kind)
        found = choose_hint_points(torch.from_numpy(matrix), k, algorithm)
        assert found.algorithm == algorithm
        assert len(found.indices) == k
        assert list(found.indices) == sorted(set(found.indices))
        assert set(found.indices) <= set(range(layers))
        assert len(found.labels) == layers
        assert set(found.labels) == set(range(k))
        assert [found.labels[centre] for centre in found.indices] == list(range(k))
        assert all(matrix[layer, found.indices[label]] == matrix[layer, list(found.indices)].max() for layer, label in enumerate(found.labels))
        assert found.objective == pytest.approx(sum(1 - matrix[layer, list(found.indices)].max() for layer in range(layers)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_as_many_points_as_layers_takes_every_layer(algorithm):
    matrix = random_similarity(np.random.default_rng(0), 6)
    found = choose_hint_points(matrix, 6, algorithm)
    assert found.indices == found.labels == (0, 1, 2, 3, 4, 5)
    assert found.objective == 0


@pytest.mark.parametrize("max_sets", [clustering.MAX_SETS, 0], ids=["enumeration", "swap-descent"])
@pytest.mark.parametrize("seed", range(30))
def test_kmedoids_finds_the_best_of_all_subsets(monkeypatch, seed, max_sets):
    monkeypatch.setattr(clustering, "MAX_SETS", max_sets)
    rng = np.random.default_rng(seed)
    k = 1 + seed % 8
    matrix = random_similarity(rng, 8, "uniform" if seed % 2 else "partly negative")
    costs = {subset: sum(min(1 - matrix[layer, centre] for centre in subset) for layer in range(8)) for subset in itertools.combinations(range(8), k)}
    found = choose_hint_points(matrix, k, "kmedoids", seed=seed)
    assert found.indices == min(costs, key=costs.get)
    assert found.objective == pytest.approx(min(costs.values()), abs=1e-12)


def test_swap_descent_depends_on_the_seed_only(monkeypatch):
    monkeypatch.setattr(clustering, "MAX_SETS", 0)
    matrix = random_similarity(np.random.default_rng(4), 25)
    assert choose_hint_points(matrix, 5, "kmedoids", seed=3) == choose_hint_points(matrix, 5, "kmedoids", seed=3)


def test_swap_descent_ends_where_no_single_swap_helps(monkeypatch):
    monkeypatch.setattr(clustering, "MAX_SETS", 0)
    matrix = random_similarity(np.random.default_rng(9), 25)
    found = choose_hint_points(matrix, 4, "kmedoids")
    for position, candidate in itertools.product(range(4), range(25)):
        swapped = [*found.indices[:position], candidate, *found.indices[position + 1 :]]
        assert (1 - matrix[:, swapped]).min(axis=1).sum() >= found.objective - 1e-9


@pytest.mark.parametrize("k", [0, -1, 7])
def test_impossible_number_of_points_is_refused_with_the_valid_range(k):
    with pytest.raises(ValueError, match=f"k is {k}; .*between 1 and 6"):
        choose_hint_points(np.eye(6), k)


@pytest.mark.parametrize("shape", [(4, 5), (6,), (3, 3, 3)])
def test_matrix_that_is_not_square_is_refused(shape):
    with pytest.raises(ValueError, match="square"):
        choose_hint_points(np.ones(shape), 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_matrix_that_is_not_finite_is_refused_by_sub_block_number(value):
    matrix = np.eye(6)
    matrix[4, 2] = value
    with pytest.raises(ValueError, match="sub-block 5"):
        choose_hint_points(matrix, 2)


def test_unknown_algorithm_is_a_key_error():
    with pytest.raises(KeyError, match="oracle"):
        choose_hint_points(np.eye(4), 2, "oracle")


@pytest.mark.parametrize(
    ("layers", "k", "expected"),
    [(27, 3, (4, 13, 22)), (9, 3, (1, 4, 7)), (9, 1, (4,)), (15, 5, (1, 4, 7, 10, 13)), (4, 4, (0, 1, 2, 3)), (1, 1, (0,))],
)
def test_segment_middles_of_odd_segments(layers, k, expected):
    assert segment_middles(layers, k) == expected


def test_segment_middles_are_within_half_a_sub_block_of_the_true_middles():
    for layers in range(1, 60):
        for k in range(1, layers + 1):
            points = segment_middles(layers, k)
            assert len(set(points)) == k
            assert all(abs(point + 0.5 - (j + 0.5) * layers / k) <= 0.5 + 1e-9 for j, point in enumerate(points))


@pytest.mark.parametrize(("layers", "k"), [(27, 3), (9, 3), (12, 1), (18, 3), (54, 3)])
def test_segment_middles_are_what_kmeans_index_gives_when_similarity_only_falls_with_distance(layers, k):
    depth = np.arange(layers)
    matrix = np.exp(-np.abs(depth[:, None] - depth[None, :]) / layers)
    assert segment_middles(layers, k) == choose_hint_points(matrix, k).indices


def test_random_points_are_different_ascending_sets():
    drawn = random_points(10, 3, 40, seed=2)
    assert len(set(drawn)) == 40
    assert all(len(set(points)) == 3 and list(points) == sorted(points) and points[0] >= 0 and points[-1] < 10 for points in drawn)


def test_first_random_points_do_not_depend_on_how_many_are_drawn():
    assert random_points(12, 3, 20, seed=5)[:6] == random_points(12, 3, 6, seed=5)


def test_random_points_follow_their_seed():
    assert random_points(12, 3, 6, seed=1) == random_points(12, 3, 6, seed=1)
    assert random_points(12, 3, 6, seed=1) != random_points(12, 3, 6, seed=2)


def test_random_points_can_take_every_set_and_no_more():
    assert set(random_points(6, 2, 15)) == set(itertools.combinations(range(6), 2))
    with pytest.raises(ValueError, match="only 15 different sets of 2 among 6 sub-blocks; 16"):
        random_points(6, 2, 16)


def test_random_points_are_uniform_over_sub_blocks():
    counts = np.bincount([point for seed in range(400) for point in random_points(8, 2, 1, seed=seed)[0]], minlength=8)
    assert counts.min() > 60
    assert counts.max() < 140
