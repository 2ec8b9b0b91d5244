"""How alike are two layers? Pure functions on features, and one L×L matrix for all pairs at once.

Features of a layer are a matrix [N, C]: one row an image, one column a channel (the map averaged over
space). Row i must be the same image in every layer. Everything is computed in float64.

Sources: R²-CCA and CKA as in Kornblith et al., "Similarity of Neural Network Representations
Revisited" (2019), sections 3 and 4; debiased HSIC from Song et al. (2012). PURSUhInT (Keser et al.,
2021) uses R²-CCA, linear CKA and RBF CKA.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

# Side of the tiles in which Gram matrices are made: 54 layers × 512² × 8 bytes = 113 MB at once.
TILE = 512
# Rows of a strip of distances: 128 × 10 000 × 8 bytes = 10 MB.
STRIP = 128
# Pairs of images drawn to find out where the median distance lies.
SAMPLE = 200_000


def r2_cca(x: Tensor, y: Tensor, *, center: bool = True) -> Tensor:
    """Mean squared canonical correlation, ‖Qxᵀ Qy‖²_F / min(rank x, rank y).

    Q is an orthonormal basis of the column space, cut at the numerical rank so that dead or repeated
    channels count for nothing. Invariant to any invertible linear map of either side.

    **Arguments:** ``x`` [N, Cx], ``y`` [N, Cy]; ``center`` subtracts each column's mean (the public
    capsule of the paper does not, which lets the common mean count as shared structure).

    **Returns:** scalar in [0, 1].
    """
    x, y = _checked(x, y)
    basis_x, basis_y = _basis(x, center), _basis(y, center)
    return (basis_x.T @ basis_y).square().sum() / min(basis_x.shape[1], basis_y.shape[1])


def linear_cka(x: Tensor, y: Tensor, *, debiased: bool = False) -> Tensor:
    """Linear centred kernel alignment, ‖Ỹᵀ X̃‖²_F / (‖X̃ᵀ X̃‖_F ‖Ỹᵀ Ỹ‖_F).

    Invariant to orthogonal maps, isotropic scaling and translation.

    **Arguments:** ``x`` [N, Cx], ``y`` [N, Cy]; ``debiased`` uses the U-statistic of HSIC, whose
    expectation is 0 for independent features (it needs N ≥ 4 and can be slightly negative).

    **Returns:** scalar.
    """
    x, y = (_centered(z) for z in _checked(x, y))
    norms = (x.square().sum(1), y.square().sum(1))
    cross, own_x, own_y = ((a.T @ b).square().sum() for a, b in ((x, y), (x, x), (y, y)))
    if debiased:
        cross = _debias(cross, norms[0], norms[1])
        own_x, own_y = _debias(own_x, norms[0], norms[0]), _debias(own_y, norms[1], norms[1])
    return cross / (own_x * own_y).sqrt()


def rbf_cka(x: Tensor, y: Tensor, *, bandwidth: float = 1.0) -> Tensor:
    """CKA with the kernel exp(−d² / (2 · bandwidth² · median d²)).

    The median is over the full N×N matrix of squared distances, zero diagonal included, as in the
    paper's capsule. Invariant to orthogonal maps, isotropic scaling and translation.

    **Arguments:** ``x`` [N, Cx], ``y`` [N, Cy].

    **Returns:** scalar in [0, 1].
    """
    return _rbf_matrix(_checked(x, y), bandwidth)[0, 1]


def similarity_matrix(features: Sequence[Tensor], metric: str) -> Tensor:
    """Similarity of every layer with every layer.

    **Arguments:** ``features`` L tensors [N, C_l], rows in the same image order; ``metric`` a name in
    ``METRICS``.

    **Returns:** float64 [L, L], symmetric, diagonal 1.

    **Raises:** ``KeyError`` for an unknown metric; ``ValueError`` naming the layer (1-based) whose features are
    constant, not finite, or of another length.
    """
    matrix = METRICS[metric](_checked(*features))
    matrix = (matrix + matrix.T) / 2
    return matrix.fill_diagonal_(1.0)


def _checked(*features: Tensor) -> list[Tensor]:
    """Features as float64, refused with the layer's number where no similarity is defined."""
    for number, layer in enumerate(features, start=1):
        where = f"features of layer {number} of {len(features)}"
        if layer.ndim != 2 or layer.shape[0] != features[0].shape[0]:
            raise ValueError(f"{where} have shape {tuple(layer.shape)}; expected [{features[0].shape[0]}, channels]")
        if not bool(torch.isfinite(layer).all()):
            raise ValueError(f"{where} hold NaN or infinity; look for a diverged teacher or an overflow in low precision")
        if bool((layer == layer[0]).all()):
            raise ValueError(f"{where} are the same for every image, so nothing can be compared with them; leave that sub-block out")
    return [layer.double() for layer in features]


def _centered(x: Tensor) -> Tensor:
    return x - x.mean(0, keepdim=True)


def _basis(x: Tensor, center: bool) -> Tensor:
    """Orthonormal basis [N, rank] of the column space.

    Columns are brought to unit length before the singular values are cut, so that the cut judges directions and not scale.
    """
    # A constant channel leaves rounding noise of its own size when it is centred, which must not pass for a direction.
    sizes = x.norm(dim=0)
    x = _centered(x) if center else x
    lengths = x.norm(dim=0)
    alive = lengths > torch.maximum(lengths.max(), sizes) * x.shape[0] * torch.finfo(x.dtype).eps
    u, singular, _ = torch.linalg.svd(x[:, alive] / lengths[alive], full_matrices=False)
    return u[:, singular > singular[0] * max(x.shape) * torch.finfo(x.dtype).eps]


def _debias(product: Tensor, norms_x: Tensor, norms_y: Tensor) -> Tensor:
    """U-statistic of ‖X̃ᵀ Ỹ‖²_F from the biased value and the squared row norms (Kornblith's code, Song et al.)."""
    n = norms_x.shape[0]
    if n < 4:
        raise ValueError(f"debiased CKA needs at least 4 images, not {n}")
    return product - n / (n - 2) * (norms_x * norms_y).sum() + norms_x.sum() * norms_y.sum() / ((n - 1) * (n - 2))


def _block_sums(left: Sequence[Tensor]) -> Tensor:
    """‖Aᵢᵀ Aⱼ‖²_F for all pairs of [N, C_l] matrices, from one product."""
    stacked = torch.cat(list(left), dim=1)
    squares = (stacked.T @ stacked).square()
    widths = [a.shape[1] for a in left]
    rows = torch.stack([part.sum(0) for part in squares.split(widths, dim=0)])
    return torch.stack([part.sum(1) for part in rows.split(widths, dim=1)], dim=1)


def _r2_matrix(features: Sequence[Tensor], center: bool = True) -> Tensor:
    bases = [_basis(x, center) for x in features]
    ranks = torch.tensor([b.shape[1] for b in bases], dtype=torch.float64, device=bases[0].device)
    return _block_sums(bases) / torch.minimum(ranks[:, None], ranks[None, :])


def _linear_cka_matrix(features: Sequence[Tensor], debiased: bool = False) -> Tensor:
    centered = [_centered(x) for x in features]
    products = _block_sums(centered)
    if debiased:
        norms = [x.square().sum(1) for x in centered]
        for i, norm_i in enumerate(norms):
            for j, norm_j in enumerate(norms):
                products[i, j] = _debias(products[i, j], norm_i, norm_j)
    return _normalised(products)


def _rbf_matrix(features: Sequence[Tensor], bandwidth: float = 1.0) -> Tensor:
    """RBF CKA of all pairs of layers, tile by tile over the upper triangle; no N×N matrix is ever held.

    ⟨HKH, HMH⟩ = ΣKM − (2/N) Σ k m + (ΣK)(ΣM)/N² with k, m the row sums, so raw kernels can be accumulated.
    """
    n, layers = features[0].shape[0], len(features)
    # Distances do not change by this, and a large common offset would cost them their digits.
    features = [_centered(x) for x in features]
    scales = [2 * bandwidth**2 * _median_squared_distance(x) for x in features]
    products = torch.zeros(layers, layers, dtype=torch.float64, device=features[0].device)
    sums = torch.zeros(layers, n, dtype=torch.float64, device=features[0].device)
    blocks = [slice(start, min(start + TILE, n)) for start in range(0, n, TILE)]
    # One buffer for all tiles: fresh memory would cost as much as the arithmetic.
    buffer = torch.empty(layers * min(TILE, n) ** 2, dtype=torch.float64, device=features[0].device)
    for i, rows in enumerate(blocks):
        for columns in blocks[i:]:
            height, width = rows.stop - rows.start, columns.stop - columns.start
            kernels = buffer[: layers * height * width].view(layers, height, width)
            for kernel, x, scale in zip(kernels, features, scales, strict=True):
                _squared_distances(x[rows], x[columns], out=kernel).div_(-scale).exp_()
            flat = kernels.flatten(1)
            # A tile off the diagonal stands for its mirror image too.
            products += (1 if rows is columns else 2) * (flat @ flat.T)
            sums[:, rows] += kernels.sum(2)
            if rows is not columns:
                sums[:, columns] += kernels.sum(1)
    totals = sums.sum(1)
    return _normalised(products - 2 / n * sums @ sums.T + torch.outer(totals, totals) / n**2)


def _squared_distances(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    norms = torch.add(a.square().sum(1)[:, None], b.square().sum(1)[None, :], out=out)
    return norms.addmm_(a, b.T, alpha=-2).clamp_min_(0)


def _median_squared_distance(x: Tensor) -> float:
    """Median over the full N×N matrix, zero diagonal included; over its positive entries if most images coincide.

    That matrix holds N zeros and each of the N(N−1)/2 pairs twice, so order statistics of the pairs are enough.
    """
    n = x.shape[0]
    middle = ((n**2 - 1) // 2, n**2 // 2)
    # With two images one of the two middle values lies on the diagonal.
    ranks = [(rank - n) // 2 for rank in middle if rank >= n]
    median = _pair_order_statistics(x, ranks) * len(ranks) / 2
    if median > 0:
        return median
    positive = torch.cat([d[d > 0] for d in _pair_distances(x)])
    return float(np.median(positive.cpu().numpy()))


def _pair_distances(x: Tensor) -> Iterator[Tensor]:
    """Squared distances of all pairs i < j, a strip [STRIP, N] at a time; NaN where a strip has no pair to give."""
    # The distance of equal rows comes out as rounding noise.
    noise = 4 * sum(x.shape) * torch.finfo(x.dtype).eps * x.square().sum(1).max()
    for start in range(0, x.shape[0], STRIP):
        distances = _squared_distances(x[start : start + STRIP], x[start:])
        distances.masked_fill_(distances <= noise, 0)
        rows = len(distances)
        distances[:, :rows].masked_fill_(torch.ones(rows, rows, dtype=torch.bool, device=x.device).tril(), torch.nan)
        yield distances


def _pair_order_statistics(x: Tensor, ranks: Sequence[int]) -> float:
    """Mean of the pair distances at one or two neighbouring 0-based ranks, exactly, without sorting all pairs.

    A sample says where they lie; one pass counts what is below and keeps what is there. A misleading
    sample costs a second pass, never exactness.
    """
    pairs = x.shape[0] * (x.shape[0] - 1) // 2
    generator = torch.Generator().manual_seed(0)
    i = torch.randint(x.shape[0], (SAMPLE,), generator=generator).to(x.device)
    j = (i + torch.randint(1, x.shape[0], (SAMPLE,), generator=generator).to(x.device)) % x.shape[0]
    sample = (x[i] - x[j]).square().sum(1).sort().values
    # Five standard errors of a sample quantile on either side.
    slack = 2.5 / len(sample) ** 0.5
    low, high = (sample[int(min(max(r / pairs + s, 0), 1) * (len(sample) - 1))] for r, s in ((ranks[0], -slack), (ranks[-1], slack)))
    while True:
        below, inside = 0, []
        for distances in _pair_distances(x):
            under, upto = distances < low, distances <= high
            below += int(under.count_nonzero())
            inside.append(distances[upto.logical_xor_(under)])
        found = torch.cat(inside).sort().values
        if below <= ranks[0] and ranks[-1] < below + len(found):
            return float(found[[rank - below for rank in ranks]].mean())
        low, high = low.new_zeros(()), low.new_full((), torch.inf)


def _normalised(products: Tensor) -> Tensor:
    own = products.diagonal()
    return products / (own[:, None] * own[None, :]).sqrt()


# Name → function from checked float64 features to the [L, L] matrix. A new metric is one entry.
METRICS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "r2": _r2_matrix,
    "r2-raw": lambda features: _r2_matrix(features, center=False),
    "cka-linear": _linear_cka_matrix,
    "cka-linear-debiased": lambda features: _linear_cka_matrix(features, debiased=True),
    "cka-rbf": _rbf_matrix,
}
