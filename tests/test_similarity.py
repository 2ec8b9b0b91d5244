"""Every similarity metric against an independent route, what it does not depend on, and what it refuses.

The routes work on N×N matrices or on vectors over images, in numpy and scipy; the package works on C×C second
moments.
"""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from similarity_by_hand import (
    CCA,
    IMAGES,
    OTHERS,
    PAIRWISE,
    canonical_variates,
    leading_part,
    make_features,
    make_layers,
    make_network,
    shifted,
    unbiased_hsic,
    value,
    weighted_correlations,
)

from pursuhint_lib.clustering import choose_hint_points
from pursuhint_lib.settings import SettingsError
from pursuhint_lib.similarity import (
    METRICS,
    kernels,
    linear_cka,
    moments,
    rank,
    similarity_matrices,
)
from pursuhint_lib.similarity import similarity_matrix as one_matrix


@pytest.fixture(
    params=itertools.product(
        ["random", "correlated", "rank-deficient", "post-relu"], [(11, 18), (18, 11), (12, 12)]
    ),
    ids=str,
)
def pair(request):
    """Two layers as arrays, and the columns that span each."""
    kind, widths = request.param
    rng = np.random.default_rng(7)
    latent = rng.normal(size=(IMAGES, 5))
    x, y = (make_features(kind, latent, width, rng) for width in widths)
    spans = [features[:, :width] for features, width in zip((x, y), widths, strict=True)]
    assert [np.linalg.matrix_rank(z) for z in (x, y, *spans)] == [*widths, *widths]
    return x, y, *spans


def test_r2_equals_the_angles_between_the_spanned_spaces(pair):
    x, y, a, b = pair
    raw, centred = (scipy.linalg.subspace_angles(*spans) for spans in ((a, b), (shifted(a), shifted(b))))
    assert value("r2-raw", x, y) == pytest.approx(np.mean(np.cos(raw) ** 2), abs=1e-10)
    assert value("r2", x, y) == pytest.approx(np.mean(np.cos(centred) ** 2), abs=1e-10)


def test_svcca_equals_the_mean_cosine_between_the_leading_principal_directions(pair):
    x, y, *_ = pair
    parts = leading_part(x), leading_part(y)
    assert value("svcca", x, y) == pytest.approx(
        np.mean(np.cos(scipy.linalg.subspace_angles(*parts))), abs=1e-10
    )


def test_pwcca_weighs_by_the_channels_of_the_side_with_fewer_directions(pair):
    x, y, span_x, span_y = pair
    directions = (x, span_x, span_y), (y, span_y, span_x)
    sides = [
        weighted_correlations(*canonical_variates(a, b), z)
        for z, a, b in directions
        if a.shape[1] <= b.shape[1]
    ]
    assert value("pwcca", x, y) == pytest.approx(np.mean(sides), abs=1e-10)
    assert len(sides) == 1 or abs(sides[0] - sides[1]) > 1e-4, "the mean of both sides is no formality"


def test_procrustes_equals_the_distance_after_the_best_rotation(pair):
    x, y = (shifted(z) / np.linalg.norm(shifted(z)) for z in pair[:2])
    wide = max(x.shape[1], y.shape[1])
    x, y = (np.pad(z, ((0, 0), (0, wide - z.shape[1]))) for z in (x, y))
    rotation, _ = scipy.linalg.orthogonal_procrustes(y, x)
    assert value("procrustes", *pair[:2]) == pytest.approx(
        1 - np.linalg.norm(x - y @ rotation) ** 2 / 2, abs=1e-10
    )


def test_linear_cka_equals_the_forms_with_explicit_grams(pair):
    k, m = (z @ z.T for z in pair[:2])
    expected = unbiased_hsic(k, m) / np.sqrt(unbiased_hsic(k, k) * unbiased_hsic(m, m))
    assert value("cka-linear-debiased", *pair[:2]) == pytest.approx(expected, abs=1e-10)
    centre = np.eye(IMAGES) - 1 / IMAGES
    k, m = (centre @ gram @ centre for gram in (k, m))
    expected = np.sum(k * m) / (np.linalg.norm(k) * np.linalg.norm(m))
    assert value("cka-linear", *pair[:2]) == pytest.approx(expected, abs=1e-10)


def test_all_matrices_at_once_equal_the_pairwise_functions_in_the_order_of_the_layers():
    layers = dict(zip(["c", "e", "a", "d", "b"], make_layers(), strict=True))
    found = similarity_matrices(layers, METRICS)
    assert list(found) == list(METRICS) == list(PAIRWISE)
    for metric, matrix in found.items():
        expected = torch.tensor(
            [[value(metric, a, b) for b in layers.values()] for a in layers.values()], dtype=torch.float64
        )
        torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-10)
        assert torch.equal(matrix, matrix.T)
        assert torch.equal(matrix.diagonal(), torch.ones(5, dtype=torch.float64))
        assert (matrix[0, 1:] - matrix[0, 1]).abs()[1:].min() > 1e-4
        torch.testing.assert_close(one_matrix(list(layers.values()), metric), matrix, rtol=0, atol=1e-12)
        backwards = similarity_matrices(dict(reversed(layers.items())), [metric])[metric]
        torch.testing.assert_close(backwards.flip(0, 1), matrix, rtol=0, atol=1e-12)


@pytest.mark.parametrize("panel", [1, 13, 10**6])
@pytest.mark.parametrize("rows", [1, 7, 59, 60, 10**6])
def test_no_value_depends_on_the_sizes_of_panels_and_blocks(monkeypatch, panel, rows):
    layers = {str(i): layer for i, layer in enumerate(make_layers())}
    expected = similarity_matrices(layers, METRICS)
    for module, name, size in (
        (moments, "PANEL", panel),
        (moments, "ROWS", rows),
        (kernels, "TILE", rows),
        (kernels, "SIDE", rows + 1),
    ):
        monkeypatch.setattr(module, name, size)
    for metric, matrix in similarity_matrices(layers, METRICS).items():
        torch.testing.assert_close(matrix, expected[metric], rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_features_are_computed_in_float64_and_left_as_they_were(dtype):
    layers = [layer.to(dtype) for layer in make_layers()]
    doubles = [layer.double().clone() for layer in layers]
    for metric in (*METRICS, *METRICS):
        assert torch.equal(one_matrix(layers, metric), one_matrix(doubles, metric))
        assert value(metric, *layers[:2]) == pytest.approx(
            float(one_matrix(doubles, metric)[0, 1]), abs=1e-12
        )
    assert [rank(layer) for layer in layers] == [3, 8, 5, 12, 8]
    assert all(
        torch.equal(layer, original.to(dtype)) for layer, original in zip(layers, make_layers(), strict=True)
    )


def test_memory_mapped_and_strided_features_give_the_same_values(tmp_path, monkeypatch):
    monkeypatch.setattr(moments, "ROWS", 16)
    layers, mapped = make_network(), {}
    for name, layer in layers.items():
        layer.numpy().tofile(tmp_path / name)
        mapped[name] = torch.from_file(str(tmp_path / name), size=layer.numel(), dtype=torch.float32).view(
            layer.shape
        )
    strided = {name: torch.stack([layer, layer + 1], dim=2)[:, :, 0] for name, layer in layers.items()}
    expected = similarity_matrices(layers, METRICS)
    for other, metric in itertools.product((mapped, strided), METRICS):
        torch.testing.assert_close(
            similarity_matrices(other, [metric])[metric], expected[metric], rtol=0, atol=1e-12
        )


def transformed(x, kind):
    generator = torch.Generator().manual_seed(11)
    width = x.shape[1]
    square = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return {
        "rotation": lambda: x @ torch.linalg.qr(square)[0],
        "isotropic scale": lambda: 1e-9 * x,
        "translation": lambda: x + 10 * square[0],
        "order and signs": lambda: x[:, torch.randperm(width, generator=generator)] * square[0].sign(),
        "anisotropic map": lambda: x * torch.logspace(-1, 1, width, dtype=torch.float64),
        "invertible map": lambda: x @ (square + 3 * torch.eye(width, dtype=torch.float64)),
    }[kind]()


KINDS = ("rotation", "isotropic scale", "translation", "order and signs", "anisotropic map", "invertible map")
# PWCCA's weights come from the channels of the first layer, which has fewer directions; so it sees no map of
# the second one.
INVARIANT = (
    {("r2", kind, side) for kind in KINDS for side in (0, 1)}
    | {("r2-raw", kind, side) for kind in KINDS if kind != "translation" for side in (0, 1)}
    | {("pwcca", kind, 1) for kind in KINDS}
    | {("pwcca", kind, 0) for kind in KINDS[1:4]}
    | {(metric, kind, side) for metric in ("svcca", *OTHERS) for kind in KINDS[:4] for side in (0, 1)}
)


@pytest.mark.parametrize("side", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
def test_metric_does_not_see_what_it_is_invariant_to_and_sees_everything_else(metric, kind, side):
    layers = [make_layers()[2], make_layers()[1]]
    before = value(metric, *layers)
    layers[side] = transformed(layers[side], kind)
    change = abs(value(metric, *layers) - before)
    assert change < 1e-9 if (metric, kind, side) in INVARIANT else change > 1e-3


def on_accelerator(layers):
    if not torch.accelerator.is_available():
        pytest.skip("no GPU on this machine")
    return {name: layer.to(torch.accelerator.current_accelerator()) for name, layer in layers.items()}


def reordered(layers):
    order = torch.randperm(80, generator=torch.Generator().manual_seed(5))
    return {name: layer[order] for name, layer in layers.items()}


CHANGES = {
    "order of images": reordered,
    "order of channels": lambda layers: {name: layer.flip(1) for name, layer in layers.items()},
    "scale of layers": lambda layers: {
        name: layer.double() * (0.7 * 10.0 ** (3 * i - 12)) for i, (name, layer) in enumerate(layers.items())
    },
    "device": on_accelerator,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_matter_changes_neither_the_matrix_nor_the_chosen_points(change):
    layers = make_network()
    before, after = (
        similarity_matrices(layers, METRICS),
        similarity_matrices(CHANGES[change](layers), METRICS),
    )
    for metric in METRICS:
        assert (after[metric] - before[metric]).abs().max() < 1e-9
        assert after[metric].device.type == "cpu"
        for algorithm in ("kmeans-index", "kmedoids"):
            points, same = (choose_hint_points(found[metric], 3, algorithm) for found in (before, after))
            assert (points.indices, points.labels) == (same.indices, same.labels)


def test_a_wrong_pairing_of_images_changes_every_metric_for_that_layer_only():
    layers = make_network()
    before = similarity_matrices(layers, METRICS)
    layers["stage8"] = reordered(layers)["stage8"]
    for metric, matrix in similarity_matrices(layers, METRICS).items():
        change = (matrix - before[metric]).abs().numpy()
        assert change[1, [0, 2]].min() > 0.05
        assert np.delete(np.delete(change, 1, 0), 1, 1).max() < 1e-12


def test_debiased_cka_of_independent_features_is_centred_at_zero():
    generator = torch.Generator().manual_seed(0)
    draws = [[torch.randn(64, width, generator=generator) for width in (32, 48)] for _ in range(20)]
    assert abs(np.mean([value("cka-linear-debiased", *draw) for draw in draws])) < 0.02
    assert min(value("cka-linear", *draw) for draw in draws) > 0.2


@pytest.mark.parametrize("constant", [0.0, 3.7, -1000.1, 1e6, 1e15])
def test_shared_dead_channels_change_no_metric_of_independent_features_but_the_one_without_centring(constant):
    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=(400, width)) for width in (8, 12))
    dead = np.tile([constant, 1.1 * constant, constant / 3], (400, 1))
    assert value("r2", x, y) < 0.06
    for metric in METRICS:
        # Without centring, all constants of both sides are one more direction, which they share.
        expected = (
            (8 * value(metric, shifted(x), shifted(y)) + 1) / 9
            if metric == "r2-raw" and constant
            else value(metric, x, y)
        )
        assert value(metric, np.hstack([x, dead]), np.hstack([y, dead])) == pytest.approx(expected, abs=1e-9)
    assert rank(torch.from_numpy(np.hstack([x, dead]))) == 8


def test_channel_that_is_a_rounded_sum_of_others_is_no_direction_and_a_faint_one_is():
    x, y = (layer.float() for layer in make_layers()[1:3])
    for rounded in (x[:, :1] + x[:, 1:2], 1e-4 * (x[:, 3:4] - 0.3 * x[:, 5:6]), x.sum(1, keepdim=True)):
        more = torch.cat([x, rounded], dim=1)
        assert np.linalg.matrix_rank(shifted(more.double().numpy())) == 9
        assert rank(more) == rank(x) == 8
        assert value("r2", more, y) == pytest.approx(value("r2", x, y), abs=1e-6)
    for faint, constant in ((1e-6, 0), (1e-12, 0), (1e-20, 0), (1e-30, 0), (1e-9, 3)):
        scaled = torch.cat([x[:, 1:], faint * x[:, :1].double() + constant], dim=1)
        assert rank(scaled) == 8
        assert value("r2", scaled, y) == pytest.approx(value("r2", x, y), abs=1e-6)
    assert rank(torch.cat([x, 3.7 + 1e-15 * x[:, :1].double()], dim=1)) == 8
    assert abs(value("r2", x[:, 1:], y) - value("r2", x, y)) > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_r2_of_ill_conditioned_features_agrees_with_the_qr_route(seed):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(shifted(rng.normal(size=(60, 14))))[0]
    x = basis[:, :8] * np.logspace(0, -4.5, 8) @ np.linalg.qr(rng.normal(size=(8, 8)))[0] + 5
    # The faintest directions are the shared ones.
    y = basis[:, 5:] @ rng.normal(size=(9, 9))
    assert np.linalg.cond(shifted(x) / np.linalg.norm(shifted(x), axis=0)) > 1e4
    assert value("r2", x, y) == pytest.approx(3 / 8, abs=1e-6)
    assert 1 - 1e-6 < value("r2", x, basis[:, :9]) <= 1
    assert rank(torch.from_numpy(x)) == 8


def test_rank_counts_the_directions_of_centred_features(pair):
    assert [rank(torch.from_numpy(z)) for z in pair] == [np.linalg.matrix_rank(shifted(z)) for z in pair]
    for images in (2, 5, 12, 13):
        assert rank(torch.from_numpy(pair[1][:images])) == np.linalg.matrix_rank(shifted(pair[1][:images]))
    # Opposite channels: one direction fewer once they are centred.
    x = np.hstack([pair[2], 7 - pair[2][:, :1]])
    assert (rank(torch.from_numpy(x)), np.linalg.matrix_rank(x)) == (pair[2].shape[1], pair[2].shape[1] + 1)


SPOILT = {
    "nan": (lambda x: x.where(x < x[:, 1].max(), torch.nan), "hold NaN or infinity"),
    "infinity": (lambda x: x.index_fill(0, torch.tensor(59), -torch.inf), "hold NaN or infinity"),
    "nearly infinity": (lambda x: 1e100 * x, "hold NaN or infinity"),
    "constant": (lambda x: x[:1].expand(len(x), -1), "are the same for every image"),
    "other length": (lambda x: x[:-1], r"have shape \(59, 12\); expected \[60, channels\]"),
    "not a matrix": (lambda x: x[:, :, None], r"have shape \(60, 12, 1\); expected \[60, channels\]"),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("how", SPOILT)
def test_undefined_features_are_refused_by_number_and_name(how, metric):
    (spoil, reason), layers = SPOILT[how], make_layers()
    layers[3] = spoil(layers[3])
    named = dict(zip(["conv1", "layer1.0", "layer1.1", "layer2.1", "layer3"], layers, strict=True))
    for place, call, arguments in (
        ("4 of 5", one_matrix, (layers, metric)),
        (r"4 of 5 \(layer2.1\)", similarity_matrices, (named, [metric])),
        ("2 of 2", PAIRWISE[metric], (layers[0], layers[3])),
    ):
        with pytest.raises(ValueError, match=f"sub-block {place} {reason}"):
            call(*arguments)


@pytest.mark.parametrize("metric", METRICS)
def test_only_canonical_correlations_refuse_a_layer_that_spans_every_direction(metric):
    full = torch.from_numpy(scipy.stats.ortho_group.rvs(14, random_state=0) * np.linspace(0.6, 1.4, 14))
    layers = {
        "narrow": full[:, :3] + full[:, 1:4].square(),
        "wide": full,
        "deficient": full[:, :4] @ torch.ones(4, 30).double().tril(1),
    }
    if metric in CCA:
        directions = 14 if metric == "r2-raw" else 13
        words = rf"2 of 3 \(wide\) span all {directions} .* 14 images .* more than 15 .*cka-linear-debiased"
        with pytest.raises(ValueError, match=words):
            similarity_matrices(layers, [metric])
        layers["wide"] = full[:, : directions - 1]
    assert similarity_matrices(layers, [metric])[metric].isfinite().all()


def test_debiased_cka_refuses_too_few_images_and_layers_that_bias_explains_alone():
    x, y, z = make_layers(images=8)[:3]
    with pytest.raises(ValueError, match="at least 4 images, not 3"):
        linear_cka(x[:3], y[:3], debiased=True)
    assert -1 <= value("cka-linear-debiased", x[:4], y[:4]) <= 1
    # One image is apart from all others: without the diagonal nothing is left.
    lonely = torch.zeros_like(y).index_fill_(0, torch.tensor(5), 2.5)
    assert unbiased_hsic(*2 * [shifted(lonely.numpy()) @ shifted(lonely.numpy()).T]) == pytest.approx(
        0, abs=1e-12
    )
    with pytest.raises(
        ValueError,
        match=r"sub-block 2 of 3 \(b\) have nothing left once the bias of 8 images is taken off.*cka-linear",
    ):
        similarity_matrices({"a": x, "b": lonely, "c": z}, ["cka-linear-debiased"])


def test_unknown_metric_is_a_key_error():
    with pytest.raises(SettingsError, match="cka-cubic"):
        similarity_matrices(make_network(), ["r2", "cka-cubic"])
