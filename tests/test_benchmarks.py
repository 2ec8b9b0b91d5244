"""The benchmark at a tiny size: what it times are the right values, and it counts the comparisons of the
naive way rightly.
"""

import itertools
import json
import os
import sys
from collections import namedtuple

import numpy as np
import psutil
import pytest
import torch
from benchmark import loaded

from pursuhint_lib.clustering import choose_hint_points
from pursuhint_lib.similarity import linear_cka, r2_cca

STAGES = ((3, 4), (2, 6))
IMAGES = 60


@pytest.fixture(scope="module")
def benchmark():
    with loaded("similarity") as module:
        yield module


@pytest.fixture
def sizes(benchmark, monkeypatch):
    """Tiny sizes, measured in this process, for a fresh one takes seconds to start."""
    monkeypatch.setattr(benchmark, "in_own_process", lambda function, *arguments: function(*arguments))
    return benchmark.Sizes(
        STAGES, STAGES, STAGES, images=IMAGES, streamed_images=IMAGES, streamed_rbf_images=20, seeds=3
    )


def literal_k_means(layers, k, distance, most=80):
    """The capsule's k-means, which asks for a distance whenever it needs one: sorted centres
    and whether it settled.
    """
    centres = [j * (layers - 1) // (k - 1) for j in range(k)]
    for _ in range(most):
        members = [[] for _ in range(k)]
        for layer in range(layers):
            members[int(np.argmin([distance(layer, centre) for centre in centres]))].append(layer)
        moved = [
            min(own, key=lambda i, own=own: abs(i - int(np.mean(own)))) if own else old
            for own, old in zip(members, centres, strict=True)
        ]
        if moved == centres:
            return sorted(centres), True
        centres = moved
    return sorted(centres), False


def random_similarity(seed, layers=20):
    matrix = np.random.default_rng(seed).random((layers, layers))
    return np.maximum((matrix + matrix.T) / 2, np.eye(layers))


def test_naive_values_are_the_librarys(benchmark):
    r2, *ckas = (rival.compare for rival in benchmark.RIVALS)
    layers = list(benchmark.make_features(STAGES, IMAGES, seed=0).values())
    for x, y in itertools.combinations(layers, 2):
        arrays = x.double().numpy(), y.double().numpy()
        assert r2(*arrays) == pytest.approx(float(r2_cca(x, y, center=False)), abs=1e-9)
        for way in ckas:
            assert way(*arrays) == pytest.approx(float(linear_cka(x, y)), abs=1e-9)


def test_evaluations_are_those_of_a_k_means_that_counts_them(benchmark):
    settled = set()
    for seed, k in itertools.product(range(12), (2, 3, 5)):
        matrix, calls = random_similarity(seed), itertools.count()

        def distance(layer, centre, matrix=matrix, calls=calls):
            next(calls)
            return 1 - matrix[layer, centre]

        centres, converged = literal_k_means(len(matrix), k, distance)
        points = choose_hint_points(matrix, k)
        assert (list(points.indices), points.converged) == (centres, converged)
        assert benchmark.evaluations(points) == next(calls)
        settled.add(converged)
    assert settled == {True, False}


def test_features_are_a_residual_stream_of_the_stages_widths(benchmark):
    features = list(benchmark.make_features(STAGES, 400, seed=0).values())
    assert [tuple(x.shape) for x in features] == [(400, 4)] * 3 + [(400, 6)] * 2
    assert all(x.dtype == torch.float32 and x.min() == 0 for x in features)
    assert linear_cka(features[0], features[1]) > linear_cka(features[0], features[2]) > 0.1


def test_pairs_mix_the_stages(benchmark):
    r2, cka, _ = benchmark.RIVALS
    stages = ((18, 16), (18, 32), (18, 64))
    assert benchmark.stage_pairs(r2, stages) == [(0, 17), (0, 35), (0, 53), (18, 35), (18, 53), (36, 53)]
    assert benchmark.stage_pairs(cka, stages) == [(0, 35), (0, 53), (18, 53)]


def test_features_on_disk_are_those_of_one_stream(benchmark, tmp_path, monkeypatch):
    with loaded("synthetic_features") as features:
        monkeypatch.setattr(features, "ROWS", 25)
        features.write_features(tmp_path, STAGES, IMAGES)
    layers = [
        torch.from_file(str(tmp_path / str(i)), size=IMAGES * width).view(IMAGES, width)
        for i, width in enumerate((4, 4, 4, 6, 6))
    ]
    # The maps are the same in every chunk: neighbours resemble each other over all rows and not over shuffled
    # ones.
    assert linear_cka(layers[0], layers[1]) > linear_cka(layers[0], layers[1].flip(0)) + 0.2


def test_whole_measurement_gives_a_row_with_a_verdict_per_target(benchmark, sizes):
    rows, sentences, figures = benchmark.measure(sizes, stream=sys.platform == "linux")
    assert [row.limit for row in rows if row.limit is not None and row.unit == "s"] == [4, 25, 60]
    assert [row.limit for row in rows if row.unit == "×"] == [
        200,
        200,
        None,
        3000,
        3000,
        None,
        3000,
        3000,
        None,
    ]
    assert all(
        row.value >= 0 and (row.verdict in ("met", "MISSED")) == (row.limit is not None) for row in rows
    )
    assert [sentence.split()[2] for sentence in sentences] == [
        "k-means",
        "k-means",
        "naive",
        "naive",
        "published",
    ]
    assert all(
        figures[name][0]["largest_difference"] < 1e-9
        for name in ("naive R²", "naive linear CKA", "published linear CKA")
    )
    usual = figures["naive R²"][0]
    assert usual["evaluations"] == 5 * 3 * usual["rounds"]
    json.dumps(figures)


@pytest.mark.parametrize(
    ("rounds", "seeds", "label"),
    [([4, 80, 6, 80], [2, 1], "seed 1, which cycles"), ([4, 6, 6], [1], "if it cycled")],
)
def test_ratios_are_for_the_median_seed_and_for_the_first_that_cycles(
    benchmark, sizes, monkeypatch, rounds, seeds, label
):
    def compare_ways(rival, stages, images, seed):
        return {
            "seed": seed,
            "rounds": rounds[seed],
            "evaluations": 5 * 3 * rounds[seed],
            "layers": 5,
            "naive_median": 0.5,
            "here_seconds": 0.1,
        }

    monkeypatch.setattr(benchmark, "compare_ways", compare_ways)
    rows, found = benchmark.ratio_rows(benchmark.RIVALS[0], sizes, rounds)
    assert [comparison["seed"] for comparison in found] == seeds
    assert label in rows[1].what
    assert [row.value for row in rows] == pytest.approx([5 * 3 * 6 * 5, 5 * 3 * 80 * 5, 5 * 6 / 2 * 5])


def test_a_case_of_its_own_runs_in_another_process(benchmark):
    assert benchmark.in_own_process(os.getpid) != os.getpid()


def test_own_work_does_not_count_as_that_of_other_programs(benchmark, monkeypatch):
    machine = namedtuple("Machine", "user system idle iowait")(50.0, 20.0, 400.0, 7.0)
    own = namedtuple("Own", "user system children_user children_system")(1.0, 2.0, 30.0, 4.0)
    monkeypatch.setattr(psutil, "cpu_times", lambda: machine)
    monkeypatch.setattr(os, "times", lambda: own)
    assert benchmark.foreign_seconds() == 50 + 20 - 1 - 2 - 30 - 4


def test_report_names_the_conditions_and_every_row(benchmark, capsys):
    rows = [
        benchmark.Row("some case", 3.2, "s", 4, "so many images"),
        benchmark.Row("a ratio", 150, "×", 200),
    ]
    benchmark.print_report(rows, ["A sentence."], {**benchmark.conditions(), "foreign_cores": 0.25})
    printed = capsys.readouterr().out
    assert all(
        part in printed
        for part in (
            "cores",
            "0.25",
            "numpy",
            "some case",
            "3.20 s",
            "< 4 s",
            "met",
            "≥ 200 ×",
            "MISSED",
            "A sentence.",
        )
    )
