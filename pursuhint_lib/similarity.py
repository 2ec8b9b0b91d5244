"""How alike are two layers? Pure functions on features, and one L×L matrix for all pairs at once.

Features of a layer are a matrix [N, C]: one row an image, one column a channel (the map averaged over
space). Row i must be the same image in every layer. Everything is computed in float64.

Sources: R²-CCA and CKA as in Kornblith et al., "Similarity of Neural Network Representations
Revisited" (2019), sections 3 and 4; debiased HSIC from Song et al. (2012). PURSUhInT (Keser et al.,
2021) uses R²-CCA, linear CKA and RBF CKA.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

# Rows of the Gram matrices that are held at once: 54 layers × 64 rows × 10 000 images × 8 bytes = 276 MB.
GRAM_ROWS = 64


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
    """RBF CKA of all pairs in blocks of rows; no two N×N matrices are held at once.

    ⟨HKH, HMH⟩ = ΣKM − (2/N) Σ k m + (ΣK)(ΣM)/N² with k, m the row sums, so raw kernels can be accumulated.
    """
    n = features[0].shape[0]
    # Distances do not change by this, and a large common offset would cost them their digits.
    features = [_centered(x) for x in features]
    scales = [2 * bandwidth**2 * _median_squared_distance(x) for x in features]
    products = torch.zeros(len(features), len(features), dtype=torch.float64, device=features[0].device)
    row_sums = []
    for start in range(0, n, GRAM_ROWS):
        kernels = [torch.exp(-_squared_distances(x[start : start + GRAM_ROWS], x) / s) for x, s in zip(features, scales, strict=True)]
        stacked = torch.stack([kernel.flatten() for kernel in kernels])
        products += stacked @ stacked.T
        row_sums.append(torch.stack([kernel.sum(1) for kernel in kernels]))
    sums = torch.cat(row_sums, dim=1)
    totals = sums.sum(1)
    return _normalised(products - 2 / n * sums @ sums.T + torch.outer(totals, totals) / n**2)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(1)[:, None] + b.square().sum(1)[None, :] - 2 * a @ b.T).clamp_min_(0)


def _median_squared_distance(x: Tensor) -> float:
    """Median over the full N×N matrix; over its positive entries if most images coincide."""
    distances = _squared_distances(x, x).fill_diagonal_(0)
    # The distance of equal rows comes out as rounding noise.
    noise = 4 * sum(x.shape) * torch.finfo(x.dtype).eps * x.square().sum(1).max()
    distances = distances.masked_fill_(distances <= noise, 0).cpu().numpy().ravel()
    median = float(np.median(distances))
    return median if median > 0 else float(np.median(distances[distances > 0]))


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
