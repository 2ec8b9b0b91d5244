"""The paper's k-means against a literal transcription of its rule, cycles included."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matrices import KMEANS, cost, planted, random_similarity

from pursuhint_lib.clustering import algorithms, choose_hint_points, kmeans_rounds


def paper_k_means(similarity, k, most=80):
    """The rule of the paper's public code, word for word: (sorted centres, settled, rounds) and the centres
    before each round.
    """
    layers = len(similarity)
    centres = {j: math.floor(j * (layers - 1) / (k - 1)) if k > 1 else 0 for j in range(k)}
    states = []
    for rounds in range(1, most + 1):
        states.append(tuple(centres.values()))
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
            return (tuple(sorted(centres.values())), True, rounds), states
        centres = updated
    return (tuple(sorted(centres.values())), False, most), [*states, tuple(centres.values())]


def cycle_of(states):
    """Sorted states from the first that comes twice until it comes again; none if none does."""
    for start, end in sorted(itertools.combinations(range(len(states)), 2), key=lambda pair: pair[1]):
        if states[start] == states[end]:
            return tuple(tuple(sorted(state)) for state in states[start:end])
    return ()


def many_cases(kind):
    """Matrices of all sizes and, as every fourth, one of 54 layers."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        layers = 54 if seed % 4 == 0 else int(rng.integers(2, 20))
        yield random_similarity(rng, layers, kind), int(rng.integers(1, min(layers, 15) + 1))


@pytest.mark.parametrize(
    ("kind", "least_cycles"), [("uniform", 12), ("tied", 12), ("partly negative", 12), ("banded", 0)]
)
def test_kmeans_index_equals_the_papers_rule(kind, least_cycles):
    periods = [len(found.cycle) for found in compared(kind)]
    assert sum(period > 0 for period in periods) >= least_cycles
    assert len(set(periods)) > 3 or kind == "banded"


def compared(kind, most=80):
    """What kmeans-index finds in many matrices, each compared with the paper's rule."""
    for matrix, k in many_cases(kind):
        found = choose_hint_points(matrix, k, "kmeans-index")
        expected, states = paper_k_means(matrix.tolist(), k, most)
        assert (found.indices, found.converged, found.iterations, found.cycle) == (
            *expected,
            cycle_of(states),
        )
        yield found


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 6])
def test_kmeans_index_whose_rounds_run_out_equals_the_papers_rule(monkeypatch, most):
    """Just before, at and after the round in which it settles or closes its cycle."""
    monkeypatch.setattr(algorithms, "MAX_ROUNDS", most)
    both = [*compared("uniform", most), *compared("banded", most)]
    seen = {(found.converged, bool(found.cycle)) for found in both}
    assert {(True, False), (False, False)} <= seen
    assert ((False, True) in seen) == (most >= 3)


def test_known_cycle_is_not_walked_again(monkeypatch):
    matrix = random_similarity(np.random.default_rng(5), 6)
    rounds = kmeans_rounds(matrix, 2)
    calls = []
    assign = algorithms._assign
    monkeypatch.setattr(
        algorithms,
        "_assign",
        lambda similarity, centres: calls.append(centres) or assign(similarity, centres),
    )
    assert choose_hint_points(matrix, 2).iterations == 80
    assert len(calls) == len(rounds) + 1 < 10


@pytest.mark.parametrize("kind", ["uniform", "tied", "banded"])
def test_kmeans_settled_takes_the_tightest_set_of_the_cycle(kind):
    moved = 0
    for matrix, k in many_cases(kind):
        index, settled = (choose_hint_points(matrix, k, algorithm) for algorithm in KMEANS)
        (_, converged, _), states = paper_k_means(matrix.tolist(), k)
        cycle = cycle_of(states)
        assert (settled.converged, settled.cycle) == (converged, cycle)
        if not cycle:
            assert settled == replace(index, algorithm="kmeans-settled")
            continue
        costs = {centres: round(cost(matrix, centres), 9) for centres in cycle}
        assert settled.indices == min(centres for centres in cycle if costs[centres] == min(costs.values()))
        assert settled.objective <= index.objective + 1e-9
        moved += settled.indices != index.indices
    assert moved >= 5 or kind == "banded"


def test_kmeans_settled_takes_the_first_of_equally_tight_sets(monkeypatch):
    """A walk between the mirror images of a set in a mirrored matrix."""
    matrix = planted((3, 3))
    monkeypatch.setattr(
        algorithms,
        "kmeans_rounds",
        lambda *_: [algorithms.Round(centres, ()) for centres in [(5, 3), (0, 2), (3, 5), (0, 2)]],
    )
    assert cost(matrix, (0, 2)) == pytest.approx(cost(matrix, (3, 5)), abs=1e-12)
    found = choose_hint_points(matrix, 2, "kmeans-settled")
    assert found.cycle == ((0, 2), (3, 5))
    assert found.indices == (0, 2)
    # The walk is at (0, 2) after moves 1, 3, 5 … and at (3, 5) after the 80th.
    assert choose_hint_points(matrix, 2, "kmeans-index").indices == (3, 5)


@pytest.mark.parametrize("kind", ["uniform", "tied", "banded"])
def test_kmeans_rounds_are_the_papers_and_end_where_it_settles_or_repeats(kind):
    for matrix, k in many_cases(kind):
        rounds = kmeans_rounds(torch.from_numpy(matrix), k)
        (_, converged, iterations), states = paper_k_means(matrix.tolist(), k)
        visited = [step.centres for step in rounds]
        assert visited == states[: len(visited)]
        assert len(set(visited[:-1])) == len(visited[:-1])
        repeated = visited[-1] in visited[:-1]
        assert (
            (len(visited) == iterations and not repeated) if converged else (repeated or len(visited) == 81)
        )
        for centres, labels in rounds:
            distances = [[1 - matrix[layer, centre] for centre in centres] for layer in range(len(matrix))]
            assert labels == tuple(row.index(min(row)) for row in distances)


@pytest.mark.parametrize(
    ("layers", "k", "seeds"),
    [
        (18, 3, (0, 8, 17)),
        (54, 3, (0, 26, 53)),
        (27, 3, (0, 13, 26)),
        (15, 3, (0, 7, 14)),
        (16, 4, (0, 5, 10, 15)),
    ],
)
def test_kmeans_starts_at_the_published_seeds(layers, k, seeds):
    assert kmeans_rounds(random_similarity(np.random.default_rng(0), layers), k)[0].centres == seeds
