"""Every similarity metric against an independent route, its invariances, and what it refuses."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from pursuhint_lib import similarity
from pursuhint_lib.similarity import METRICS, linear_cka, r2_cca, rbf_cka, similarity_matrix

IMAGES = 48
PAIRWISE = {
    "r2": r2_cca,
    "r2-raw": partial(r2_cca, center=False),
    "cka-linear": linear_cka,
    "cka-linear-debiased": partial(linear_cka, debiased=True),
    "cka-rbf": rbf_cka,
}


def make_features(kind, latent, width, rng):
    """Features [N, at least width] and the number of leading columns that span them."""
    x = rng.normal(size=(len(latent), width))
    if kind == "random":
        return x + 0.5, width
    x = latent @ rng.normal(size=(latent.shape[1], width)) + 0.3 * x
    if kind == "correlated":
        return x - 2.0, width
    if kind == "post-relu":
        return np.maximum(x - 0.2, 0), width
    dead = np.zeros((len(x), 2))
    return np.hstack([x, 3 * x[:, :2], x[:, 2:3] - x[:, 3:4], dead]), width


@pytest.fixture(params=["random", "correlated", "rank-deficient", "post-relu"])
def pair(request):
    """Two layers of different width as arrays, and each one's spanning columns."""
    rng = np.random.default_rng(7)
    latent = rng.normal(size=(IMAGES, 5))
    (x, rank_x), (y, rank_y) = (make_features(request.param, latent, width, rng) for width in (11, 18))
    for features, rank in ((x, rank_x), (y, rank_y)):
        assert np.linalg.matrix_rank(features) == np.linalg.matrix_rank(features[:, :rank]) == rank
    return x, y, x[:, :rank_x], y[:, :rank_y]


def make_layers(count=5, images=30, seed=3):
    """Related layers of different widths, the last wider than there are images."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(images, 4))
    widths = [3, 8, 5, 12, 40][:count]
    return [torch.from_numpy(make_features("post-relu", latent, width, rng)[0]) for width in widths]


def tensors(*arrays):
    return [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]


def centred_gram(gram):
    h = np.eye(len(gram)) - 1 / len(gram)
    return h @ gram @ h


def cka_of_grams(k, m):
    k, m = centred_gram(k), centred_gram(m)
    return np.sum(k * m) / (np.linalg.norm(k) * np.linalg.norm(m))


def unbiased_hsic(k, m):
    """Song et al. (2012), eq. 5, from Gram matrices whose diagonals are set to zero."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    total = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    return total / (n * (n - 3))


def naive_rbf_cka(x, y, bandwidth=1.0):
    grams = []
    for z in (x, y):
        squared = cdist(z, z, "sqeuclidean")
        median = np.median(squared) or np.median(squared[squared > 0])
        grams.append(np.exp(-squared / (2 * bandwidth**2 * median)))
    return cka_of_grams(*grams)


def mean_squared_correlation_by_qr(x, y):
    qx, qy = np.linalg.qr(x)[0], np.linalg.qr(y)[0]
    return np.linalg.norm(qx.T @ qy) ** 2 / min(x.shape[1], y.shape[1])


def test_linear_cka_equals_the_form_with_explicit_centred_grams(pair):
    x, y, *_ = pair
    assert float(linear_cka(*tensors(x, y))) == pytest.approx(cka_of_grams(x @ x.T, y @ y.T), abs=1e-10)


def test_debiased_cka_equals_the_ratio_of_unbiased_hsic(pair):
    x, y, *_ = pair
    k, m = x @ x.T, y @ y.T
    expected = unbiased_hsic(k, m) / np.sqrt(unbiased_hsic(k, k) * unbiased_hsic(m, m))
    assert float(linear_cka(*tensors(x, y), debiased=True)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("center", [True, False])
def test_r2_equals_the_qr_route_on_spanning_columns(pair, center):
    x, y, full_x, full_y = pair
    shift = (lambda z: z - z.mean(0)) if center else (lambda z: z)
    expected = mean_squared_correlation_by_qr(shift(full_x), shift(full_y))
    assert float(r2_cca(*tensors(x, y), center=center)) == pytest.approx(expected, abs=1e-10)


def test_r2_equals_the_trace_of_the_covariance_products(pair):
    x, y, full_x, full_y = pair
    width = full_x.shape[1]
    joint = np.cov(np.hstack([full_x, full_y]), rowvar=False)
    xx, xy, yy = joint[:width, :width], joint[:width, width:], joint[width:, width:]
    expected = np.trace(np.linalg.solve(xx, xy) @ np.linalg.solve(yy, xy.T)) / min(len(xx), len(yy))
    assert float(r2_cca(*tensors(x, y))) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 2.0])
def test_rbf_cka_equals_the_naive_kernel_matrices(pair, bandwidth):
    x, y, *_ = pair
    assert float(rbf_cka(*tensors(x, y), bandwidth=bandwidth)) == pytest.approx(naive_rbf_cka(x, y, bandwidth), abs=1e-9)


@pytest.mark.parametrize("rest", [0.0, 1.3], ids=["silent", "not-zero"])
@pytest.mark.parametrize("seed", range(5))
def test_rbf_cka_takes_the_median_of_positive_distances_when_most_images_coincide(rest, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(40, 19)), rng.normal(size=(40, 6))
    x[:36] = rest * rng.random(19)
    assert float(rbf_cka(*tensors(x, y))) == pytest.approx(naive_rbf_cka(x, y), abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
def test_matrix_equals_the_pairwise_function_everywhere(metric):
    layers = make_layers()
    matrix = similarity_matrix(layers, metric)
    expected = torch.tensor([[float(PAIRWISE[metric](a, b)) for b in layers] for a in layers], dtype=torch.float64)
    assert matrix.dtype == torch.float64
    torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-10)
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix.diagonal(), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("metric", METRICS)
def test_matrix_leaves_its_features_as_they_were(metric):
    layers = make_layers()
    before = [layer.clone() for layer in layers]
    similarity_matrix(layers, metric)
    assert all(torch.equal(a, b) for a, b in zip(layers, before, strict=True))


def test_float32_features_are_computed_in_float64():
    layers = [layer.float() for layer in make_layers()]
    for metric in METRICS:
        assert torch.equal(similarity_matrix(layers, metric), similarity_matrix([layer.double() for layer in layers], metric))


@pytest.mark.parametrize("rows", [1, 7, 30, 64])
def test_rbf_tiles_and_strips_of_any_size_give_the_naive_value(monkeypatch, rows):
    monkeypatch.setattr(similarity, "TILE", rows)
    monkeypatch.setattr(similarity, "STRIP", rows + 1)
    layers = make_layers()
    matrix = similarity_matrix(layers, "cka-rbf")
    for i, j in ((0, 1), (1, 4), (2, 3)):
        assert float(matrix[i, j]) == pytest.approx(naive_rbf_cka(layers[i].numpy(), layers[j].numpy()), abs=1e-9)


@pytest.mark.parametrize("images", [2, 3, 4, 9, 50, 51, 300])
@pytest.mark.parametrize("sample", [2, 40, 200_000])
def test_median_distance_is_exact_for_even_and_odd_numbers_and_whatever_the_sample_says(monkeypatch, images, sample):
    monkeypatch.setattr(similarity, "SAMPLE", sample)
    monkeypatch.setattr(similarity, "STRIP", 7)
    x = torch.randn(images, 3, generator=torch.Generator().manual_seed(images), dtype=torch.float64)
    x[: images // 4] = x[0]
    distances = cdist(x.numpy(), x.numpy(), "sqeuclidean")
    np.fill_diagonal(distances, 0)
    median = np.median(distances)
    expected = median if median > 0 else np.median(distances[distances > 0])
    assert similarity._median_squared_distance(x) == pytest.approx(expected, rel=1e-12)


def transformed(x, kind):
    generator = torch.Generator().manual_seed(11)
    width = x.shape[1]
    square = torch.randn(width, width, generator=generator, dtype=torch.float64)
    spread = torch.logspace(-1, 1, width, dtype=torch.float64)
    return {
        "orthogonal map": lambda: x @ torch.linalg.qr(square)[0],
        "isotropic scale": lambda: 250.0 * x,
        "translation": lambda: x + 10 * square[0],
        "anisotropic map": lambda: x * spread,
        "invertible map": lambda: x @ (square + 3 * torch.eye(width, dtype=torch.float64)),
    }[kind]()


RIGID = ["orthogonal map", "isotropic scale", "translation"]
INVARIANT = (
    [("r2", kind) for kind in [*RIGID, "anisotropic map", "invertible map"]]
    + [("r2-raw", kind) for kind in ["orthogonal map", "isotropic scale", "anisotropic map", "invertible map"]]
    + [(metric, kind) for metric in ("cka-linear", "cka-linear-debiased", "cka-rbf") for kind in RIGID]
)
SENSITIVE = [("r2-raw", "translation")] + [(metric, "anisotropic map") for metric in ("cka-linear", "cka-linear-debiased", "cka-rbf")]


@pytest.mark.parametrize(("metric", "kind"), INVARIANT)
def test_metric_is_invariant_to(metric, kind):
    x, y = make_layers()[1:3]
    assert float(PAIRWISE[metric](transformed(x, kind), y)) == pytest.approx(float(PAIRWISE[metric](x, y)), abs=1e-8)


@pytest.mark.parametrize(("metric", "kind"), SENSITIVE)
def test_metric_changes_under(metric, kind):
    x, y = make_layers()[1:3]
    assert abs(float(PAIRWISE[metric](transformed(x, kind), y)) - float(PAIRWISE[metric](x, y))) > 0.01


@pytest.mark.parametrize("metric", METRICS)
def test_only_the_pairing_of_images_matters(metric):
    layers = make_layers()[:4]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(5))
    matrix = similarity_matrix(layers, metric)
    torch.testing.assert_close(similarity_matrix([layer[order] for layer in layers], metric), matrix, rtol=0, atol=1e-10)
    unpaired = similarity_matrix([layers[0][order], *layers[1:]], metric)
    assert (unpaired - matrix).abs()[0, 1:].min() > 0.01


def test_debiased_cka_of_independent_features_is_centred_at_zero():
    generator = torch.Generator().manual_seed(0)
    draws = [[torch.randn(64, width, generator=generator) for width in (32, 48)] for _ in range(20)]
    assert abs(np.mean([float(linear_cka(*draw, debiased=True)) for draw in draws])) < 0.02
    assert np.mean([float(linear_cka(*draw)) for draw in draws]) > 0.2


def test_without_centring_independent_positive_features_look_alike():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(2000, 16, generator=generator) for _ in range(2))
    assert float(r2_cca(x, y)) < 0.02
    assert float(r2_cca(x, y, center=False)) > 1 / 16


@pytest.mark.parametrize("value", [0.0, 3.7, 40.0, 1000.1])
def test_shared_dead_channels_do_not_raise_r2_of_independent_features(value):
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(1000, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    dead = (value * torch.tensor([1.0, 1.1, 0.7, 1.3], dtype=torch.float64)).expand(1000, 4)
    expected = float(r2_cca(x, y))
    assert expected < 0.03
    assert float(r2_cca(torch.cat([x, dead], 1), torch.cat([y, dead], 1))) == pytest.approx(expected, abs=1e-9)


def test_live_channel_with_tiny_activations_counts_in_r2():
    x, y = make_layers()[1:3]
    shrunk = x.clone()
    shrunk[:, 0] *= 1e-12
    assert float(r2_cca(shrunk, y)) == pytest.approx(float(r2_cca(x, y)), abs=1e-8)
    assert abs(float(r2_cca(x[:, 1:], y)) - float(r2_cca(x, y))) > 1e-3


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda x: x.index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(float("nan"), dtype=x.dtype)), "NaN or infinity"),
        (lambda x: x.index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(float("-inf"), dtype=x.dtype)), "NaN or infinity"),
        (lambda x: x[:1].expand(len(x), -1), "same for every image"),
        (lambda x: x[:-1], r"expected \[30, channels\]"),
        (lambda x: x[:, :, None], r"expected \[30, channels\]"),
    ],
    ids=["nan", "infinity", "constant", "other-length", "not-a-matrix"],
)
def test_undefined_features_are_refused_by_layer_number(metric, spoil, reason):
    layers = make_layers()
    layers[3] = spoil(layers[3])
    with pytest.raises(ValueError, match=f"layer 4 of 5.*{reason}"):
        similarity_matrix(layers, metric)
    with pytest.raises(ValueError, match=f"layer 2 of 2.*{reason}"):
        PAIRWISE[metric](layers[0], layers[3])


def test_debiased_cka_refuses_three_images():
    x, y = (layer[:3] for layer in make_layers()[1:3])
    with pytest.raises(ValueError, match="at least 4 images, not 3"):
        linear_cka(x, y, debiased=True)
    with pytest.raises(ValueError, match="at least 4 images, not 3"):
        similarity_matrix([x, y], "cka-linear-debiased")


def test_unknown_metric_is_a_key_error():
    with pytest.raises(KeyError, match="cka-cubic"):
        similarity_matrix(make_layers(), "cka-cubic")
