"""How many hint layers: silhouette and gap against plain loops, and on matrices whose blocks are known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from matrices import planted, random_similarity

from pursuhint_lib.clustering import ALGORITHMS, CRITERIA, choice, choose_hint_points, k_curve


def naive_silhouette(distance, labels):
    """Mean of (b − a) / max(a, b), 0 for a cluster of one."""
    values, labels = [], np.array(labels)
    for layer, own in enumerate(labels):
        others = np.arange(len(labels)) != layer
        if not (others & (labels == own)).any():
            values.append(0.0)
            continue
        means = {label: distance[layer, others & (labels == label)].mean() for label in set(labels)}
        a, b = means.pop(own), min(means.values())
        values.append((b - a) / max(a, b))
    return sum(values) / len(values)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_silhouette_curve_equals_naive_loops(algorithm):
    for seed, kind in enumerate(["uniform", "banded", "partly negative", "tied"]):
        matrix = random_similarity(np.random.default_rng(seed), 9, kind)
        curve = k_curve(matrix, "silhouette", algorithm)
        expected = [
            naive_silhouette(1 - matrix, choose_hint_points(matrix, k, algorithm).labels) for k in range(2, 9)
        ]
        assert (curve.criterion, curve.algorithm, curve.ks) == ("silhouette", algorithm, tuple(range(2, 9)))
        assert curve.values == pytest.approx(expected)
        assert curve.errors == (0.0,) * 7
        assert curve.best == 2 + int(np.argmax(expected))


def test_silhouette_of_one_cluster_is_no_number_and_never_best():
    """The seeds for k = 2 and 3 and the middle layer are exactly alike, so that the first centre takes
    everything.
    """
    matrix = np.full((6, 6), 0.2)
    matrix[np.ix_([0, 2, 5], [0, 2, 5])] = 1.0
    matrix[3:5, 3:5] = 0.9
    np.fill_diagonal(matrix, 1.0)
    curve = k_curve(matrix, "silhouette")
    assert np.isnan(curve.values).tolist() == [True, True, False, False]
    assert curve.best == 4 + int(np.argmax(curve.values[2:]))


def test_silhouette_of_sub_blocks_that_are_all_alike_is_refused():
    with pytest.raises(ValueError, match="kmeans-index leaves one non-empty cluster .* give k as a number"):
        k_curve(np.ones((6, 6)), "silhouette")


def test_of_equal_silhouettes_the_smaller_k_is_best():
    """Every layer on its own: all but one are clusters of one, which count 0, and so does the pair."""
    curve = k_curve(np.eye(6), "silhouette", "kmedoids")
    assert len(set(curve.values)) == 1
    assert curve.best == 2


@pytest.mark.parametrize("error", [1e-7, -1e-7])
def test_similarities_that_rounding_moved_across_1_have_a_silhouette(error):
    matrix = planted((3, 3), inside=1.01 + error)
    np.fill_diagonal(matrix, 1 + error)
    assert k_curve(matrix, "silhouette").best == 2


@pytest.mark.parametrize("algorithm", ["kmeans-index", "kmedoids", "segments"])
def test_gap_curve_equals_naive_loops(algorithm):
    matrix, draws = random_similarity(np.random.default_rng(6), 9, "banded"), 12
    curve = k_curve(matrix, "gap", algorithm, draws=draws, seed=5)
    generator = np.random.default_rng(5)
    references = [choice._borderless(matrix, generator) for _ in range(draws)]
    values, errors = [], []
    for k in range(1, 9):
        logs = [math.log(choose_hint_points(reference, k, algorithm).objective) for reference in references]
        mean = sum(logs) / draws
        values.append(mean - math.log(choose_hint_points(matrix, k, algorithm).objective))
        errors.append(math.sqrt(sum((log - mean) ** 2 for log in logs) / draws) * math.sqrt(1 + 1 / draws))
    assert (curve.criterion, curve.algorithm, curve.ks) == ("gap", algorithm, tuple(range(1, 9)))
    assert curve.values == pytest.approx(values, abs=1e-12)
    assert curve.errors == pytest.approx(errors, abs=1e-12)
    peak = values.index(max(values))
    assert curve.best == min(k for k in range(1, 9) if values[k - 1] >= values[peak] - errors[peak])


def test_reference_without_borders_permutes_within_each_distance_in_depth():
    matrix = random_similarity(np.random.default_rng(1), 12)
    reference = choice._borderless(matrix, np.random.default_rng(0))
    assert np.array_equal(reference, reference.T)
    assert np.array_equal(reference.diagonal(), np.ones(12))
    assert all(sorted(reference.diagonal(lag)) == sorted(matrix.diagonal(lag)) for lag in range(12))
    assert sum(not np.array_equal(reference.diagonal(lag), matrix.diagonal(lag)) for lag in range(12)) > 8


@pytest.mark.parametrize(
    ("sizes", "algorithm"), [((5, 5), "segments"), ((7, 3, 5), "kmeans-index"), ((7, 3, 5), "agglomerative")]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_gap_finds_planted_blocks(sizes, algorithm, seed):
    lag = np.abs(
        np.subtract.outer(np.repeat(np.arange(len(sizes)), sizes), np.repeat(np.arange(len(sizes)), sizes))
    )
    matrix = np.where(lag == 0, planted(sizes), 0.8 - 0.3 * lag)
    assert k_curve(matrix, "gap", algorithm, seed=seed).best == len(sizes)
    assert len(choose_hint_points(matrix, "gap", algorithm, seed=seed).indices) == len(sizes)


@pytest.mark.parametrize("algorithm", ["kmeans-index", "kmedoids", "segments", "agglomerative"])
@pytest.mark.parametrize("sizes", [(5, 5, 5), (4, 4, 4, 4)])
def test_gap_finds_equal_blocks_though_fewer_clusters_cut_them_badly(algorithm, sizes):
    curve = k_curve(planted(sizes), "gap", algorithm, largest=6, draws=20)
    if algorithm != "kmeans-index":
        assert curve.values[1] < curve.values[0], "looking one step ahead would stop at once"
    assert curve.best == len(sizes)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gap_of_similarity_that_only_fades_with_depth_is_1(algorithm):
    depth = np.arange(16)
    matrix = np.exp(-np.abs(depth[:, None] - depth[None, :]) / 7)
    curve = k_curve(matrix, "gap", algorithm, largest=5, draws=7)
    assert set(curve.values) == set(curve.errors) == {0.0}
    assert curve.best == 1
    # The paper's rule breaks exact ties by rounding, so noise can move it.
    for seed in (3, 4, 6) if algorithm not in ("kmeans-index", "kmeans-settled") else ():
        noise = 1e-12 * np.random.default_rng(seed).standard_normal((16, 16))
        assert k_curve(matrix + noise + noise.T, "gap", algorithm, largest=5, draws=7).best == 1


def test_gap_takes_the_last_k_where_the_peak_is_there(monkeypatch):
    matrix = planted((3, 3))
    objectives = iter([0.9, 0.5, 0.1] + [1.0] * 3)  # the matrix, then the reference
    cluster = choice.cluster
    monkeypatch.setattr(choice, "cluster", lambda *args: replace(cluster(*args), objective=next(objectives)))
    curve = k_curve(matrix, "gap", draws=1, largest=3)
    assert curve.values == pytest.approx([-math.log(0.9), -math.log(0.5), -math.log(0.1)])
    assert curve.best == 3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_gap_of_sub_blocks_that_are_exactly_alike_is_a_number(algorithm):
    """Perfect clusters have objective 0; in the references of these two k-means loses centres."""
    for matrix in (np.ones((6, 6)), np.kron(np.eye(2), np.full((4, 4), 0.8)) + 0.2):
        curve = k_curve(matrix, "gap", algorithm, draws=10)
        assert np.isfinite([*curve.values, *curve.errors]).all()


def test_gap_depends_on_its_seed_only():
    matrix = random_similarity(np.random.default_rng(3), 10, "banded")
    curves = [k_curve(matrix, "gap", draws=10, seed=seed) for seed in (4, 4, 5)]
    assert curves[0] == curves[1]
    assert curves[0].values != curves[2].values


@pytest.mark.parametrize(("criterion", "first"), [("silhouette", 2), ("gap", 1)])
def test_curve_ends_at_the_largest_k(criterion, first):
    matrix = random_similarity(np.random.default_rng(3), 15, "banded")
    for largest, last in [(None, 10), (4, 4), (2, 2), (99, 14)]:
        curve = k_curve(matrix, criterion, largest=largest, draws=2)
        assert curve.ks == tuple(range(first, last + 1))
        assert len(curve.values) == len(curve.errors) == len(curve.ks)
    assert k_curve(matrix[:6, :6], criterion, draws=2).ks == tuple(range(first, 6))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(
    ("layers", "options", "given"),
    [(2, {}, "2, 10 and 50"), (6, {"largest": 1}, "6, 1 and 50"), (6, {"draws": 0}, "6, 10 and 0")],
)
def test_curve_without_anything_to_compare_is_refused(criterion, layers, options, given):
    with pytest.raises(ValueError, match=f"at least 3 sub-blocks, largest 2 and 1 draw; given are {given}"):
        k_curve(np.eye(layers), criterion, **options)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("algorithm", ["kmeans-index", "agglomerative"])
def test_k_can_be_the_name_of_a_criterion(criterion, algorithm):
    matrix = planted((5, 5))
    best = k_curve(matrix, criterion, algorithm).best
    assert best == 2
    assert choose_hint_points(matrix, criterion, algorithm) == choose_hint_points(matrix, best, algorithm)


def test_k_is_found_with_the_algorithm_that_takes_the_points():
    found = [
        choose_hint_points(planted((3, 3, 8)), "gap", algorithm)
        for algorithm in ("kmeans-index", "agglomerative")
    ]
    assert [len(points.indices) for points in found] == [1, 3]


def test_k_by_gap_follows_the_seed():
    matrix = random_similarity(np.random.default_rng(0), 12, "banded")
    assert [len(choose_hint_points(matrix, "gap", seed=seed).indices) for seed in (0, 1)] == [2, 4]
