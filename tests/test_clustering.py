"""Hint layers: each algorithm against an exhaustive version of itself, what is refused, and the controls."""

import itertools
import math

import numpy as np
import pytest
import torch
from matrices import KMEANS, NEAREST, PARTITIONS, cost, planted, random_similarity
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from sklearn.cluster import SpectralClustering

from pursuhint_lib.clustering import (
    ALGORITHMS,
    algorithms,
    choose_hint_points,
    k_curve,
    kmeans_rounds,
    random_points,
    segment_middles,
)
from pursuhint_lib.settings import SettingsError


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
        assert list(found.indices) == sorted(set(found.indices))
        assert set(found.indices) <= set(range(layers))
        assert set(found.labels) == set(range(k))
        assert [found.labels[centre] for centre in found.indices] == list(range(k))
        own = [matrix[layer, found.indices[label]] for layer, label in enumerate(found.labels)]
        assert len(own) == layers
        assert found.objective == pytest.approx(sum(1 - similarity for similarity in own))
        assert found.iterations == 1 or algorithm in KMEANS
        if algorithm in NEAREST:
            assert own == matrix[:, found.indices].max(axis=1).tolist()
        if algorithm not in KMEANS:
            for label, centre in enumerate(found.indices):
                members = np.flatnonzero(np.array(found.labels) == label)
                sums = matrix[np.ix_(members, members)].sum(axis=1)
                assert matrix[centre, members].sum() == pytest.approx(sums.max(), abs=1e-12)


def test_every_algorithm_is_in_one_family():
    assert set(ALGORITHMS) == {*NEAREST, *PARTITIONS}


@pytest.mark.parametrize("layers", [1, 6])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_as_many_points_as_layers_takes_every_layer(algorithm, layers):
    found = choose_hint_points(random_similarity(np.random.default_rng(0), layers), layers, algorithm)
    assert found.indices == found.labels == tuple(range(layers))
    assert (found.objective, found.converged) == (0, True)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_point_is_the_medoid_of_all_or_for_kmeans_the_middle(algorithm):
    matrix = random_similarity(np.random.default_rng(1), 8)
    medoid = int(matrix.sum(axis=0).argmax())
    assert medoid != 3
    found = choose_hint_points(matrix, 1, algorithm)
    assert found.indices == ((3,) if algorithm in KMEANS else (medoid,))
    assert found.labels == (0,) * 8


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("between", [0.3, 0.0, -0.1], ids=["related", "unrelated", "opposed"])
@pytest.mark.parametrize("sizes", [(5, 5, 5), (3, 7, 5), (5, 3, 5, 3)])
def test_planted_blocks_give_their_middles(algorithm, between, sizes):
    ends = np.cumsum(sizes)
    found = choose_hint_points(planted(sizes, between=between), len(sizes), algorithm)
    assert found.indices == tuple(int(end) - 1 - size // 2 for end, size in zip(ends, sizes, strict=True))
    assert found.labels == tuple(np.repeat(np.arange(len(sizes)), sizes).tolist())


@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - {*KMEANS, "segments"}))
def test_blocks_that_are_not_contiguous_are_found(algorithm):
    matrix = planted((5, 5, 5))
    order = np.random.default_rng(3).permutation(15)
    found = choose_hint_points(matrix[np.ix_(order, order)], 3, algorithm)
    assert sorted(order[list(found.indices)].tolist()) == [2, 7, 12]
    assert len({(label, order[layer] // 5) for layer, label in enumerate(found.labels)}) == 3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("max_sets", [algorithms.MAX_SETS, 0], ids=["enumeration", "programme"])
def test_tiny_noise_changes_nothing(monkeypatch, algorithm, max_sets):
    monkeypatch.setattr(algorithms, "MAX_SETS", max_sets)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        matrix = random_similarity(rng, 14, "banded" if seed % 2 else "uniform")
        noise = 1e-12 * rng.standard_normal((14, 14))
        plain, noisy = (choose_hint_points(m, 4, algorithm) for m in (matrix, matrix + noise + noise.T))
        assert noisy.objective == pytest.approx(plain.objective, abs=1e-9)
        assert (noisy.indices, noisy.labels, noisy.cycle) == (plain.indices, plain.labels, plain.cycle)


@pytest.mark.parametrize("max_sets", [algorithms.MAX_SETS, 0], ids=["enumeration", "programme"])
@pytest.mark.parametrize("kind", ["uniform", "partly negative", "banded"])
@pytest.mark.parametrize("k", range(1, 9))
def test_kmedoids_finds_the_best_of_all_subsets(monkeypatch, kind, k, max_sets):
    """In pairs either layer is the medoid: the first of the best subsets is taken."""
    monkeypatch.setattr(algorithms, "MAX_SETS", max_sets)
    for seed in range(4):
        matrix = random_similarity(np.random.default_rng(seed), 8, kind)
        costs = {subset: round(cost(matrix, subset), 9) for subset in itertools.combinations(range(8), k)}
        found = choose_hint_points(matrix, k, "kmedoids")
        assert found.indices == min(costs, key=costs.get)
        assert found.objective == pytest.approx(min(costs.values()), abs=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6, 1e-7])
def test_integer_programme_is_exact_even_where_sets_hardly_differ(monkeypatch, scale):
    """HiGHS stops within 1e-6 of the optimum unless care is taken."""
    monkeypatch.setattr(algorithms, "MAX_SETS", 0)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        layers, k = int(rng.integers(8, 11)), int(rng.integers(2, 6))
        matrix = 0.5 + scale * (random_similarity(rng, layers) - 0.5) / 2
        np.fill_diagonal(matrix, 1.0)
        least = min(cost(matrix, subset) for subset in itertools.combinations(range(layers), k))
        assert choose_hint_points(matrix, k, "kmedoids").objective <= least + 2e-9


def test_integer_programme_keeps_all_centres_where_layers_are_exactly_alike(monkeypatch):
    monkeypatch.setattr(algorithms, "MAX_SETS", 0)
    found = choose_hint_points(np.kron(np.eye(3), np.ones((4, 4))), 5, "kmedoids")
    assert len(set(found.indices)) == 5
    assert {centre // 4 for centre in found.indices} == {0, 1, 2}
    assert found.objective == 0


def test_integer_programme_leaves_no_gap_where_layers_have_no_order(monkeypatch):
    """Here the best whole solution is worse than the best with fractions, so that the solver has
    to branch.
    """
    matrix = random_similarity(np.random.default_rng(0), 22)
    tried = choose_hint_points(matrix, 5, "kmedoids")
    monkeypatch.setattr(algorithms, "MAX_SETS", 0)
    assert choose_hint_points(matrix, 5, "kmedoids") == tried


def test_sets_are_tried_up_to_max_sets_and_the_programme_is_solved_beyond(monkeypatch):
    matrix, solve, solved = planted((3, 3)), algorithms.milp, []
    monkeypatch.setattr(
        algorithms, "milp", lambda *args, **kwargs: solved.append(args) or solve(*args, **kwargs)
    )
    for most, programmes in [(math.comb(6, 2), 0), (math.comb(6, 2) - 1, 1)]:
        monkeypatch.setattr(algorithms, "MAX_SETS", most)
        assert choose_hint_points(matrix, 2, "kmedoids").indices == (1, 4)
        assert len(solved) == programmes


@pytest.mark.parametrize("k", [6, 10])
def test_kmedoids_of_a_large_teacher_is_at_least_as_tight_as_any_other_choice(k):
    """54 choose 6 sets are 26 million: the integer programme decides, and no swap of one medoid helps."""
    assert math.comb(54, k) > algorithms.MAX_SETS
    matrix = random_similarity(np.random.default_rng(9), 54, "banded")
    found = choose_hint_points(matrix, k, "kmedoids")
    others = [choose_hint_points(matrix, k, algorithm).objective for algorithm in ALGORITHMS]
    swapped = [
        cost(matrix, [*found.indices[:position], candidate, *found.indices[position + 1 :]])
        for position, candidate in itertools.product(range(k), range(54))
    ]
    assert found.objective <= min(others + swapped) + 1e-9


def test_solver_that_gives_up_is_an_error_with_its_message(monkeypatch):
    solve = algorithms.milp
    monkeypatch.setattr(algorithms, "MAX_SETS", 0)
    monkeypatch.setattr(
        algorithms,
        "milp",
        lambda *args, **kwargs: solve(*args, **(kwargs | {"options": {"time_limit": 0.0}})),
    )
    with pytest.raises(RuntimeError, match="no exact k-medoids: Time limit reached"):
        choose_hint_points(random_similarity(np.random.default_rng(0), 20), 4, "kmedoids")


@pytest.mark.parametrize("kind", ["uniform", "partly negative", "banded"])
@pytest.mark.parametrize("k", range(1, 9))
def test_segments_are_the_best_of_all_splits_and_medoids(kind, k):
    for seed in range(4):
        matrix = random_similarity(np.random.default_rng(seed), 8, kind)
        best = min(
            (
                round(
                    sum(1 - matrix[layer, centres[part]] for part, run in enumerate(runs) for layer in run), 9
                ),
                centres,
                runs,
            )
            for borders in itertools.combinations(range(1, 8), k - 1)
            for runs in [[range(first, end) for first, end in itertools.pairwise((0, *borders, 8))]]
            for centres in itertools.product(*runs)
        )[:2]
        found = choose_hint_points(matrix, k, "segments")
        assert found.objective == pytest.approx(best[0], abs=1e-8)
        assert list(found.labels) == sorted(found.labels)
        assert found.indices == best[1]


def test_segments_stay_contiguous_where_the_most_similar_centre_is_elsewhere():
    matrix = planted((5, 5))
    matrix[1, [0, 2, 3, 4]] = matrix[[0, 2, 3, 4], 1] = 0.3
    matrix[1, 5:] = matrix[5:, 1] = 0.6
    found = choose_hint_points(matrix, 2, "segments")
    assert found.labels == (0,) * 5 + (1,) * 5
    assert matrix[1, found.indices[1]] > matrix[1, found.indices[0]]


@pytest.mark.parametrize("kind", ["uniform", "partly negative", "banded"])
def test_agglomerative_is_average_linkage(kind):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        layers = int(rng.integers(3, 20))
        matrix = random_similarity(rng, layers, kind)
        tree = hierarchy.linkage(squareform(1 - matrix, checks=False), method="average")
        for k in range(1, layers + 1):
            expected = hierarchy.fcluster(tree, k, criterion="maxclust").tolist()
            found = choose_hint_points(matrix, k, "agglomerative").labels
            assert len(set(zip(found, expected, strict=True))) == len(set(found)) == len(set(expected)) == k


@pytest.mark.parametrize("algorithm", PARTITIONS)
def test_of_equally_central_members_the_earlier_is_the_centre(algorithm):
    """Blocks of equal similarities; in nine layers sums depend on their order in the last digit."""
    matrix = np.kron(np.eye(2), np.full((9, 9), 0.7)) + 0.1
    np.fill_diagonal(matrix, 1.0)
    assert choose_hint_points(matrix, 2, algorithm).indices == (0, 9)


def test_spectral_ignores_negative_similarities():
    matrix = random_similarity(np.random.default_rng(2), 12, "partly negative")
    assert (matrix < 0).any()
    plain, clipped = (choose_hint_points(m, 3, "spectral") for m in (matrix, matrix.clip(min=0)))
    assert plain.labels == clipped.labels


def test_spectral_follows_its_seed():
    matrix = random_similarity(np.random.default_rng(1), 30)
    assert len({choose_hint_points(matrix, 5, "spectral", seed=seed).labels for seed in range(4)}) > 1


def changed(matrix, value, *place):
    matrix = matrix.copy()
    matrix[place] = value
    return matrix


BLOCKS = planted((3, 3))


@pytest.mark.parametrize(
    "function",
    [choose_hint_points, kmeans_rounds, lambda matrix, _: k_curve(matrix, "gap")],
    ids=["choose", "rounds", "curve"],
)
@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.ones((4, 5)), "square"),
        (np.ones(6), "square"),
        (np.ones((3, 3, 3)), "square"),
        (changed(np.eye(6), np.nan, 4, 2), "sub-block 5"),
        (changed(np.eye(6), np.inf, 4, 2), "sub-block 5"),
        (changed(BLOCKS, BLOCKS[4, 1] + 1e-7, 4, 1), "not symmetric in sub-blocks 2 and 5; average it"),
        (1 - BLOCKS, "sub-block 1 is 0 like itself, not 1; .* not distances"),
    ],
    ids=["4×5", "vector", "cube", "nan", "infinite", "skewed", "distances"],
)
def test_matrix_that_is_no_similarity_matrix_is_refused(function, matrix, words):
    with pytest.raises(ValueError, match=words):
        function(matrix, 2)


@pytest.mark.parametrize(
    ("matrix", "k", "algorithm", "words"),
    [
        *((np.eye(6), k, "kmeans-index", f"k is {k}; .*between 1 and 6") for k in (0, -1, 7)),
        *(
            (np.ones((8, 8)), 3, name, f"{name} puts two centres on sub-block 4, .* smaller k or kmedoids")
            for name in KMEANS
        ),
        (np.eye(4), 2, "oracle", "unknown algorithm 'oracle'; valid: kmeans-index, kmeans-settled, kmedoids"),
        (np.eye(4), "gap", "oracle", "unknown algorithm 'oracle'"),
        (np.eye(4), "elbow", "kmedoids", "unknown criterion 'elbow'; valid: silhouette, gap"),
    ],
)
def test_what_cannot_be_clustered_is_refused_with_what_can(matrix, k, algorithm, words):
    with pytest.raises((ValueError, SettingsError), match=words):
        choose_hint_points(matrix, k, algorithm)


def test_spectral_with_too_few_clusters_is_refused(monkeypatch):
    two = staticmethod(lambda matrix: np.arange(len(matrix)) % 2)
    monkeypatch.setattr(SpectralClustering, "fit_predict", two)
    with pytest.raises(ValueError, match="spectral .* does not find 3 clusters, .* take a smaller k"):
        choose_hint_points(BLOCKS, 3, "spectral")


def test_rounding_errors_in_a_similarity_matrix_are_accepted():
    matrix = changed(changed(BLOCKS, BLOCKS[4, 1] + 1e-9, 4, 1), 1 - 1e-7, 2, 2)
    assert choose_hint_points(matrix, 2).indices == choose_hint_points(BLOCKS, 2).indices


def test_segment_middles_are_within_half_a_sub_block_of_the_true_middles():
    for layers in range(1, 60):
        for k in range(1, layers + 1):
            points = np.array(segment_middles(layers, k))
            assert len(set(points)) == k
            assert (abs(points + 0.5 - (np.arange(k) + 0.5) * layers / k) <= 0.5 + 1e-9).all()


@pytest.mark.parametrize(("layers", "k"), [(27, 3), (9, 3), (12, 1), (18, 3), (54, 3)])
def test_segment_middles_are_what_kmeans_index_gives_when_similarity_only_falls_with_distance(layers, k):
    depth = np.arange(layers)
    matrix = np.exp(-np.abs(depth[:, None] - depth[None, :]) / layers)
    assert segment_middles(layers, k) == choose_hint_points(matrix, k).indices


def test_random_points_follow_their_seed():
    assert random_points(12, 3, 6, seed=1) == random_points(12, 3, 6, seed=1)
    assert random_points(12, 3, 6, seed=1) != random_points(12, 3, 6, seed=2)


def test_random_points_can_take_every_set_and_no_more():
    assert set(random_points(6, 2, 15)) == set(itertools.combinations(range(6), 2))
    with pytest.raises(ValueError, match="only 15 different sets of 2 among 6 sub-blocks; 16"):
        random_points(6, 2, 16)


def test_random_points_are_uniform_over_sub_blocks():
    counts = np.bincount(
        [point for seed in range(400) for point in random_points(8, 2, 1, seed=seed)[0]], minlength=8
    )
    assert counts.min() > 60
    assert counts.max() < 140
