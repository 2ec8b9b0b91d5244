"""Reasons, ablation and stability of the hint layers: what the second notebook shows."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from grid_runs import runs_of
from matrices import random_similarity

from pursuhint_lib import records
from pursuhint_lib.clustering import ALGORITHMS, HintPoints, choose_hint_points, segment_middles
from pursuhint_lib.data import load_splits
from pursuhint_lib.paths import StudyPaths
from pursuhint_lib.profiling import profile_layers
from pursuhint_lib.settings import SettingsError, Stability
from pursuhint_lib.similarity import similarity_matrices
from pursuhint_lib.study.experiments import ablation, stability
from pursuhint_lib.study.grid.arms import LayerMap, check_arm, choose_points
from pursuhint_lib.study.grid.hint_layers import layer_similarity
from pursuhint_lib.study.grid.profiles import load_profile, network_points
from pursuhint_lib.study.grid.reasons import describe_walk, explain, ranges
from pursuhint_lib.training import load_teacher


def blocks(*sizes, inside=0.9, outside=0.2):
    """A similarity matrix with one block per group of layers."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    matrix = np.where(groups[:, None] == groups[None, :], inside, outside)
    np.fill_diagonal(matrix, 1)
    return matrix


# ---- reasons


def test_a_reason_is_what_its_matrix_says():
    matrix = blocks(3, 2, 1)
    matrix[:3, 3:5] = matrix[3:5, :3] = 0.5
    first, second, third = explain(choose_hint_points(matrix, 3, "kmedoids"), matrix)
    assert (first.sub_block, first.members, first.nearest) == (1, (1, 2, 3), 4)
    assert (first.inside, first.outside, first.margin) == pytest.approx((0.9, 0.5, 0.4))
    assert second.nearest == 1
    assert (third.sub_block, third.members, third.inside, third.margin) == (6, (6,), None, None)
    assert third.outside == pytest.approx(0.2)
    words = ("1 stands for 1–3", "r2 inside 0.90", "nearest other cluster (of 4) 0.50", "margin 0.40")
    assert all(word in first.sentence("r2") for word in words)
    alone = third.sentence("r2")
    assert "6 stands for itself alone, " in alone
    assert "(of 1) 0.20" in alone
    (only,) = explain(choose_hint_points(blocks(4), 1, "kmedoids"), blocks(4))
    assert (only.nearest, only.outside, only.margin) == (None, None, None)
    assert only.sentence("r2").endswith("1 stands for 1–4: mean r2 inside 0.90.")


def test_inside_and_outside_equal_loops_over_pairs():
    matrix = random_similarity(np.random.default_rng(3), 11)
    points = choose_hint_points(matrix, 4, "kmedoids")
    clusters = [[i for i in range(11) if points.labels[i] == label] for label in range(4)]
    for mine, reason in zip(clusters, explain(points, matrix), strict=True):
        pairs = [matrix[i, j] for i in mine for j in mine if i != j]
        assert reason.inside == (pytest.approx(np.mean(pairs)) if pairs else None)
        means = [matrix[np.ix_(mine, its)].mean() if its != mine else -1 for its in clusters]
        assert reason.outside == pytest.approx(max(means))
        assert reason.nearest == points.indices[np.argmax(means)] + 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "never settle.* 2 sets .1, 5; 2, 5.; taken is the one after 80 rounds"),
        ({"algorithm": "kmeans-settled"}, "never settle.* 2 sets .1, 5; 2, 5.; taken is the tightest"),
        ({"cycle": ()}, "still moved after 80 rounds"),
        ({"converged": True}, "^$"),
    ],
)
def test_centres_that_never_settle_are_described(changes, words):
    points = HintPoints((0, 4), (0, 0, 0, 1, 1), "kmeans-index", 1.0, False, 80, ((0, 4), (1, 4)))
    assert re.search(words, describe_walk(replace(points, **changes)))


def test_runs_of_numbers_are_written_short():
    assert ranges((1, 2, 3, 5, 7, 8)) == "1–3, 5, 7–8"


# ---- arms


def test_every_clustering_arm_uses_its_algorithm_and_the_others_their_rule():
    matrix = blocks(2, 4, 3)
    layer_map = LayerMap(9, (1, 5, 8), {"r2": matrix}, (0.1, 0.9, 0.2, 0.8, 0.3, 0.9, 0.0, 0.1, 0.2))
    prefixes = {"pursuhint": "kmeans-index", "settled": "kmeans-settled"} | {
        name: name for name in ALGORITHMS if not name.startswith("kmeans")
    }
    assert set(prefixes.values()) == set(ALGORITHMS)
    for prefix, algorithm in prefixes.items():
        check_arm(f"{prefix}-r2", ["r2"])
        choice = choose_points(f"{prefix}-r2", layer_map, 3)
        assert choice.clusters.algorithm == algorithm
        assert choice.indices == choose_hint_points(matrix, 3, algorithm).indices
        assert len(choice.reasons) == 3
    quality = choose_points("quality", layer_map, 3)
    assert quality.indices == (1, 3, 5)
    assert quality.reason.endswith(": 2 (0.90), 6 (0.90), 4 (0.80).")
    assert choose_points("reversed", layer_map, 3).indices == (8, 5, 1)
    thirds = tuple((layer, layer // 3) for layer in range(9))
    assert choose_points("all", layer_map, 3).matched == thirds
    assert choose_points("all", LayerMap(4, (3,), {}), 3).matched == ((0, 0), (1, 0), (2, 1), (3, 2))
    assert choose_points("stage-ends", layer_map, 3).matched == ((1, 0), (5, 1), (8, 2))


def test_the_mixed_arms_are_the_papers_points_and_the_stage_ends_with_their_deepest_exchanged():
    layer_map = LayerMap(9, (1, 5, 8), {"r2": blocks(3, 3, 3)})
    check_arm("deepened-r2", ["r2"])
    assert choose_points("pursuhint-r2", layer_map, 3).indices == (1, 4, 7)
    deepened, shallowed = (choose_points(f"{arm}-r2", layer_map, 3) for arm in ("deepened", "shallowed"))
    assert (deepened.indices, shallowed.indices) == ((1, 4, 8), (1, 5, 7))
    assert re.search("under r2, .* 8, .* last stage end, 9", deepened.reason)
    assert re.search("stage ends, .* 9, .* under r2, 8", shallowed.reason)
    with pytest.raises(SettingsError, match="arm deepened-cka-rbf: metric 'cka-rbf' is not computed"):
        check_arm("deepened-cka-rbf", ["r2"])


def test_all_shares_out_the_weight_and_reversed_turns_the_points_round():
    profile = load_profile("smoke")
    layer_similarity(profile, "resnet14")
    runs = runs_of(profile, profile.pairs[0], "at")
    every, ends, turned = (runs[arm, 0] for arm in ("all", "stage-ends", "reversed"))
    assert len(every.teacher_points) == len(every.student_points) == 6
    assert every.student_points == tuple(name for name in ends.student_points for _ in range(2))
    assert every.hint_weight * 6 == ends.hint_weight * 3
    assert turned.teacher_points == ends.teacher_points[::-1]
    assert turned.student_points == ends.student_points
    assert turned.hint_weight == ends.hint_weight


# ---- ablation


def test_the_grid_has_every_choice_and_the_frame_its_figures():
    matrix = blocks(2, 5, 2)
    grid = ablation.selection_grid({"r2": matrix}, (2, 3), tuple(ALGORITHMS))
    assert set(grid) == {("r2", name) for name in ALGORITHMS}
    frame = ablation.ablation_frame(grid)
    assert (frame["excess"] > -1e-12).all()
    assert (frame.loc[frame["algorithm"] == "kmeans-index", ["from paper"]] == 0).all(axis=None)
    row = frame[(frame["algorithm"] == "kmedoids") & (frame["k"] == 3)].iloc[0]
    assert row["sub-blocks"] == "1 3 8"
    assert row["from middles"] == pytest.approx(
        np.mean(np.abs(np.array([0, 2, 7]) - np.array(segment_middles(9, 3))))
    )


def test_the_centre_rule_finds_the_medoid_that_was_passed_over():
    matrix = blocks(5, 4, inside=0.5)
    # Sub-block 5 is the most typical of the first five; by number, the third is in the middle.
    matrix[4, :4] = matrix[:4, 4] = 0.9
    points = choose_hint_points(matrix, 2)
    table = ablation.centre_rule(points, matrix)
    assert table.iloc[0].to_dict() == pytest.approx(
        {"members": 5, "centre": 3, "medoid": 5, "to centre": (3 * 0.5 + 0.9) / 4, "to medoid": 0.9}
    )
    assert table.iloc[1]["to centre"] == table.iloc[1]["to medoid"] == pytest.approx(0.5)


def test_depth_explains_a_matrix_of_distances_and_stages_one_of_blocks():
    depth = np.arange(9)
    faded = np.exp(-np.abs(depth[:, None] - depth[None, :]) / 3)
    assert ablation.depth_share(faded, (2, 5, 8))["distance"] == pytest.approx(1)
    assert ablation.depth_share(faded, (2, 5, 8))["stages"] < 0.9
    assert ablation.depth_share(blocks(3, 3, 3), (2, 5, 8))["stages"] == pytest.approx(1)
    noise = np.random.default_rng(0).random((40, 40))
    shares = ablation.depth_share((noise + noise.T) / 2, (39,))
    assert abs(shares["stages"]) < 1e-9
    assert shares["distance"] < 0.15


def test_margins_and_tables_of_agreement():
    matrix = blocks(3, 3)
    points = choose_hint_points(matrix, 2, "kmedoids")
    assert ablation.assignment_margins(points, matrix) == pytest.approx([0.8, 0.7, 0.7, 0.8, 0.7, 0.7])
    assert ablation.assignment_margins(choose_hint_points(matrix, 1, "kmedoids"), matrix) == [0.0] * 6
    shifts = ablation.shift_table({"a": (0, 4), "b": (2, 4), "c": (4, 0)})
    assert shifts.loc["a", "b"] == 1
    assert shifts.loc["a", "c"] == 0, "matched in depth order"
    other = choose_hint_points(blocks(1, 5), 2, "kmedoids")
    rand = ablation.rand_table({"x": points.labels, "y": other.labels})
    assert rand.loc["x", "x"] == 1
    assert rand.loc["x", "y"] == rand.loc["y", "x"] < 0.5


# ---- stability


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory):
    """Where all tests below keep the one stability study."""
    return tmp_path_factory.mktemp("study")


@pytest.fixture
def studied(study_folder, monkeypatch):
    """The smoke profile and the stability of its teacher's hint layers; computed by the first
    test that asks.
    """
    monkeypatch.setenv("PURSUHINT_RESULTS", str(study_folder / "results"))
    monkeypatch.setenv("PURSUHINT_WORK", str(study_folder / "work"))
    profile = load_profile("smoke")
    return profile, stability.stability_frame(profile, "resnet14", 3)


def test_every_kind_of_change_is_there_under_every_metric(studied):
    profile, frame = studied
    counts = frame.groupby(["kind", "metric"]).size().unstack()
    assert (counts.T == {"bootstrap": 2, "images": 2, "teacher seed": 1, "test images": 1}).all(axis=None)
    assert set(counts.columns) == set(profile.metrics)
    assert set(frame.loc[frame["kind"] == "images", "images"]) == {30, 80}


def test_a_change_gives_what_the_plain_functions_give(studied):
    profile, frame = studied
    splits = load_splits(profile.data, "cpu")
    names = network_points("resnet14", profile.data).candidates
    matrix = layer_similarity(profile, "resnet14").layer_map.similarity["cka-linear"]
    reference = choose_hint_points(matrix, 3)
    for kind, value, images, seed in (
        ("test images", 100, splits.test.spread(100), ()),
        ("teacher seed", 1, splits.train.spread(100), (1,)),
        ("images", 80, splits.train.spread(80), ()),
    ):
        teacher = load_teacher(profile.teacher_settings("resnet14", *seed))
        features = profile_layers(teacher, images, names)
        points = choose_hint_points(similarity_matrices(features, ["cka-linear"])["cka-linear"], 3)
        chosen = frame["kind"].eq(kind) & frame["value"].eq(value) & frame["metric"].eq("cka-linear")
        row = frame[chosen].iloc[0]
        assert row["points"] == points.indices
        assert row["shift"] == np.mean(np.abs(np.array(points.indices) - reference.indices))
        assert row["same"] == (points.indices == reference.indices)


def test_a_metric_that_refuses_so_few_images_is_counted_and_not_averaged(studied):
    _, frame = studied
    few = frame[(frame["kind"] == "images") & (frame["images"] == 30)].set_index("metric")
    assert np.isnan(few.loc["r2", "ari"])
    assert np.isfinite(few.loc["cka-linear", "ari"])
    table = stability.stability_table(frame).set_index(["change", "metric"])
    assert table.loc[("images", "r2"), "refused"] == 1
    assert table.loc[("images", "cka-linear"), "refused"] == 0
    assert np.isfinite(table.loc[("images", "r2"), "adjusted Rand index"])


def test_the_further_teacher_has_a_record_of_its_own(studied):
    profile, _ = studied
    other = profile.teacher_settings("resnet14", 1)
    assert records.load(profile.name, other).settings["seed"] == 1
    assert other != profile.teacher_settings("resnet14")
    assert stability.further_teachers(
        replace(profile, stability=Stability(teacher_seeds=(1,))), "resnet14"
    ) == [other]


def test_a_stored_study_is_loaded_without_a_teacher_and_other_settings_make_a_new_one(studied):
    profile, frame = studied
    assert stability.stability_file(profile, "resnet14", 3).found() is not None
    weights = StudyPaths(profile.name).work / "weights"
    hidden = weights.rename(weights.with_name("hidden"))
    pd.testing.assert_frame_equal(stability.stability_frame(profile, "resnet14", 3), frame)
    hidden.rename(weights)
    assert stability.stability_file(profile, "resnet14", 2).found() is None
    assert (
        stability.stability_file(replace(profile, stability=Stability(draws=3)), "resnet14", 3).found()
        is None
    )


def test_pairwise_metrics_use_fewer_images(studied, monkeypatch):
    profile, _ = studied
    monkeypatch.setattr(stability, "PAIRWISE_IMAGES", dict.fromkeys(stability.PAIRWISE_IMAGES, 60))
    features = profile_layers(
        load_teacher(profile.teacher_settings("resnet14")),
        load_splits(profile.data, "cpu").train.spread(100),
        ("layer1.0", "layer2.0"),
    )
    change = stability.Change("bootstrap", 0, features)
    assert stability._chosen(change, "cka-rbf", 1)["images"] == 60
    assert stability._chosen(change, "cka-linear", 1)["images"] == 100


def test_frequency_is_the_share_of_samples():
    frame = pd.DataFrame(
        [
            ("bootstrap", "r2", (0, 2)),
            ("bootstrap", "r2", (0, 3)),
            ("bootstrap", "r2", None),
            ("images", "r2", (1, 2)),
            ("bootstrap", "cka", (1, 3)),
        ],
        columns=["kind", "metric", "points"],
    )
    shares = stability.selection_frequency(frame, ["r2", "cka"], 4)
    assert shares["r2"].tolist() == [1, 0, 0.5, 0.5]
    assert shares["cka"].tolist() == [0, 1, 0, 1]
