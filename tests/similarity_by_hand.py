"""Features, and every similarity metric by an independent route."""

from functools import partial

import numpy as np
import scipy.linalg
import torch

from pursuhint_lib.similarity import (
    METRICS,
    linear_cka,
    r2_cca,
    rbf_cka,
)
from pursuhint_lib.similarity import similarity_matrix as one_matrix

IMAGES = 48


def pairwise(metric, x, y):
    return one_matrix([x, y], metric)[0, 1]


PAIRWISE = {metric: partial(pairwise, metric) for metric in METRICS} | {
    "r2": r2_cca,
    "r2-raw": partial(r2_cca, center=False),
    "cka-linear": linear_cka,
    "cka-linear-debiased": partial(linear_cka, debiased=True),
    "cka-rbf": rbf_cka,
}
CCA = ("r2", "r2-raw", "svcca", "pwcca")
OTHERS = tuple(metric for metric in METRICS if metric not in CCA)


def make_features(kind, latent, width, rng):
    """Features [N, at least width]; the leading width columns span them."""
    x = rng.normal(size=(len(latent), width))
    if kind == "random":
        return x + 0.5
    x = latent @ rng.normal(size=(latent.shape[1], width)) + 0.3 * x
    if kind == "correlated":
        return x - 2.0
    if kind == "post-relu":
        return np.maximum(x - 0.2, 0)
    return np.hstack([x, 3 * x[:, :2], x[:, 2:3] - x[:, 3:4], np.zeros((len(x), 2))])


def make_layers(images=60, widths=(3, 8, 5, 12, 8), seed=3):
    """Related layers; two are equally wide."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(images, 4))
    return [torch.from_numpy(make_features("post-relu", latent, width, rng)) for width in widths]


def make_network(seed=3, images=80):
    """Ten layers that drift apart with depth in three stages, float32 and named out of alphabetical order."""
    rng = np.random.default_rng(seed)
    latent, layers = rng.normal(size=(images, 6)), {}
    for depth in range(10):
        latent = latent + (1.2 if depth in (3, 7) else 0.25) * rng.normal(size=latent.shape)
        layers[f"stage{9 - depth}"] = torch.from_numpy(
            make_features("post-relu", latent, 6 + depth, rng)
        ).float()
    return layers


def value(metric, x, y):
    return float(PAIRWISE[metric](torch.as_tensor(x), torch.as_tensor(y)))


def shifted(x):
    return x - x.mean(0)


def unbiased_hsic(k, m):
    """Song et al. (2012), eq. 5, from Gram matrices whose diagonals are set to zero."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    total = (
        np.trace(k @ m)
        + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ m @ one)
    )
    return total / (n * (n - 3))


def leading_part(x):
    """Projection [N, C] of centred features onto the fewest principal directions with 99 % of
    their variance.
    """
    x = shifted(x)
    _, sizes, directions = np.linalg.svd(x, full_matrices=False)
    kept = next(k for k in range(1, len(sizes) + 1) if np.sum(sizes[:k] ** 2) >= 0.99 * np.sum(sizes**2))
    return x @ directions[:kept].T


def weighted_correlations(variates, correlations, x):
    """Morcos et al. (2018), section 3: Σ α ρ / Σ α with α_k = Σ_c |⟨h_k, x_c⟩|, one vector over images at a
    time.
    """
    weights = [sum(abs(float(h @ channel)) for channel in shifted(x).T) for h in variates.T]
    return sum(w * c for w, c in zip(weights, correlations, strict=True)) / sum(weights)


def canonical_variates(x, y):
    """Canonical variates of x as unit vectors over images, and the correlations: Hotelling's generalised
    eigenproblem, Sxy Syy⁻¹ Syx w = ρ² Sxx w.
    """
    x, y = shifted(x), shifted(y)
    squares, maps = scipy.linalg.eigh(x.T @ y @ np.linalg.solve(y.T @ y, y.T @ x), x.T @ x)
    return x @ maps / np.linalg.norm(x @ maps, axis=0), np.sqrt(squares.clip(0))
