"""Metrics that need second moments only: every pair of layers from one blocked product, in float64.

The features are read a few thousand rows at a time and never copied whole, so they may lie in a
memory-mapped file. What is held beside them: one product of two panels of layers, and for each layer a few
matrices [C, C].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows that are read, centred and widened to float64 at once, and channels of the layers that share one
# product: 2 × 2048 × 4096 × 8 bytes of rows and 4096² × 8 bytes of product are 270 MB at most.
ROWS = 2048
PANEL = 4096
# Share of the largest singular value (of unit-length channels) below which a direction is rounding: float32
# features carry 6e-8, and eigenvalues of a float64 product settle at 1e-14, the square of 1e-7.
RANK_CUT = 1e-6
# Share of a layer's variance that SVCCA keeps.
SVCCA_VARIANCE = 0.99


@dataclass(frozen=True)
class Moments:
    """What the metrics need of one layer.

    **Arguments:** ``label`` how messages call it; ``images`` N; ``mean`` [C]; ``scatter`` [C, C], X̃ᵀX̃ of
    the centred features; ``lengths`` [N], squared length of each centred row.
    """

    label: str
    images: int
    mean: Tensor
    scatter: Tensor
    lengths: Tensor

    @property
    def raw_scatter(self) -> Tensor:
        """XᵀX of the features as they are, [C, C]."""
        return self.scatter + self.images * torch.outer(self.mean, self.mean)


# A metric that is a function of second moments: what a layer's ``Moments`` become for it, and a function of
# two of these and the cross product X̃ᵀỸ [Cx, Cy] to a scalar.
MomentMetric = tuple[Callable[[Moments], object], Callable[[object, object, Tensor], Tensor]]


class Layers:
    """Features of all layers, read in blocks of rows.

    **Arguments:** ``features`` L tensors [N, C_l] of any float type, rows in the same image order; ``names``
    of the layers for messages, if they have any.

    **Raises:** ``ValueError`` that names the layer whose features have the wrong shape, are not finite, or
    are the same for every image.
    """

    def __init__(self, features: Sequence[Tensor], names: Sequence[str] = ()):
        if not features:
            raise ValueError("there is no sub-block to compare; give the features of at least one")
        # Apple's GPUs have no float64.
        self.features = [layer.cpu() if layer.device.type == "mps" else layer for layer in features]
        named = [f" ({name})" for name in names] or [""] * len(self.features)
        self.labels = [f"sub-block {i} of {len(named)}{name}" for i, name in enumerate(named, start=1)]
        self.images = len(self.features[0])
        self.device = self.features[0].device
        self.offsets = [
            self._checked_offset(layer, label)
            for layer, label in zip(self.features, self.labels, strict=True)
        ]

    def _checked_offset(self, layer: Tensor, label: str) -> Tensor:
        """Mean less the first image [C]: both are taken off in turn, so that a constant channel leaves no
        rounding behind.
        """
        if layer.ndim != 2 or len(layer) != self.images:
            raise ValueError(
                f"features of {label} have shape {tuple(layer.shape)}; expected [{self.images}, channels]"
            )
        total, spread = torch.zeros(layer.shape[1], dtype=torch.float64, device=self.device), 0.0
        for rows in blocks(self.images, ROWS):
            part = layer[rows].to(torch.float64, copy=True).sub_(layer[0])
            total += part.sum(0)
            spread += float(part.square_().sum())
        # NaN counts as too large. The bounds keep squares of squares within float64; float32 features never
        # come near them.
        if not spread < 1e150:
            raise ValueError(
                f"features of {label} hold NaN or infinity (or nearly); look for a diverged teacher or an "
                "overflow in low precision"
            )
        if spread < 1e-150:
            raise ValueError(
                f"features of {label} are the same for every image, so nothing can be compared with them; "
                "leave that sub-block out"
            )
        return total / self.images

    def rows(self, layer: int, rows: slice) -> Tensor:
        """Centred features of some images, float64 [rows, C]."""
        features = self.features[layer]
        return features[rows].to(torch.float64, copy=True).sub_(features[0]).sub_(self.offsets[layer])

    def panels(self) -> list[list[int]]:
        """Neighbouring layers in groups of at most ``PANEL`` channels (a wider layer is alone)."""
        groups: list[list[int]] = []
        width = PANEL + 1
        for index, layer in enumerate(self.features):
            if width + layer.shape[1] > PANEL:
                groups.append([])
                width = 0
            groups[-1].append(index)
            width += layer.shape[1]
        return groups

    def products(self, left: Sequence[int], right: Sequence[int]) -> dict[tuple[int, int], Tensor]:
        """X̃ᵢᵀ X̃ⱼ [C_i, C_j] for i of one panel and j of another, as views of one product."""
        widths = [[self.features[i].shape[1] for i in panel] for panel in (left, right)]
        total = torch.zeros(sum(widths[0]), sum(widths[1]), dtype=torch.float64, device=self.device)
        for rows in blocks(self.images, ROWS):
            a = torch.cat([self.rows(i, rows) for i in left], dim=1)
            b = a if left is right else torch.cat([self.rows(j, rows) for j in right], dim=1)
            total.addmm_(a.T, b)
        strips = zip(left, total.split(widths[0], dim=0), strict=True)
        return {
            (i, j): cross
            for i, strip in strips
            for j, cross in zip(right, strip.split(widths[1], dim=1), strict=True)
        }

    def moments(self, layer: int, scatter: Tensor) -> Moments:
        """Moments of a layer whose own product is known."""
        lengths = torch.cat([self.rows(layer, rows).square().sum(1) for rows in blocks(self.images, ROWS)])
        return Moments(
            self.labels[layer], self.images, self.features[layer][0] + self.offsets[layer], scatter, lengths
        )


def blocks(length: int, size: int) -> list[slice]:
    """[0, length) in slices of ``size``; the last one may be shorter."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def moment_matrices(layers: Layers, metrics: Mapping[str, MomentMetric]) -> dict[str, Tensor]:
    """Similarity of every layer with every layer under several metrics, from the same products: name →
    float64 [L, L].
    """
    count = len(layers.features)
    found = {name: torch.eye(count, dtype=torch.float64) for name in metrics}
    states: dict[str, dict[int, object]] = {name: {} for name in metrics}
    panels = layers.panels()
    for number, right in enumerate(panels):
        # A panel with itself comes first: it gives the layers' own moments, which all comparisons need.
        for left in (right, *panels[:number]):
            products = layers.products(left, right)
            for i in right if left is right else ():
                own = layers.moments(i, products[i, i])
                for name, (prepare, _) in metrics.items():
                    states[name][i] = prepare(own)
            for (i, j), cross in products.items():
                for name, (_, compare) in metrics.items() if i < j else ():
                    value = float(compare(states[name][i], states[name][j], cross))
                    found[name][i, j] = found[name][j, i] = value
    return found


def _checked_rank(moments: Moments, basis: Tensor, possible: int) -> Tensor:
    """The basis, unless it spans all that so few images can span: then it correlates with everything."""
    if basis.shape[1] == 0:
        raise ValueError(
            f"features of {moments.label} are the same for every image but for rounding; leave that "
            "sub-block out"
        )
    if basis.shape[1] >= possible:
        raise ValueError(
            f"features of {moments.label} span all {possible} directions that {moments.images} images have, "
            "so canonical correlations with "
            f"them are 1 whatever they mean; use more than {moments.scatter.shape[0] + 1} images "
            "(profile_images), or cka-linear-debiased"
        )
    return basis


def whitening(scatter: Tensor, sizes: Tensor, images: int) -> Tensor:
    """Map [C, rank] from channels to an orthonormal basis of their column space, cut at the numerical rank.

    Channels are brought to unit length before the cut, so that it judges directions and not scale; dead and
    repeated channels count for nothing.

    **Arguments:** ``scatter`` [C, C]; ``sizes`` [C], squared lengths of the channels before centring.
    """
    squares = scatter.diagonal()
    # A constant channel leaves rounding noise of its own size when it is centred, which must not pass for a
    # direction.
    alive = squares > sizes * (images * torch.finfo(scatter.dtype).eps) ** 2
    scale = squares[alive].rsqrt()
    values, vectors = torch.linalg.eigh(scatter[alive][:, alive] * scale[:, None] * scale)
    kept = values > values[-1:] * RANK_CUT**2
    basis = scatter.new_zeros(len(scatter), int(kept.sum()))
    basis[alive] = scale[:, None] * vectors[:, kept] / values[kept].sqrt()
    return basis


def _centred_basis(moments: Moments) -> Tensor:
    basis = whitening(moments.scatter, moments.raw_scatter.diagonal(), moments.images)
    return _checked_rank(moments, basis, moments.images - 1)


def _raw_basis(moments: Moments) -> tuple[Tensor, Tensor]:
    """Basis of the features as they are, and √N · mean in it, which the centred cross product lacks."""
    scatter = moments.raw_scatter
    basis = _checked_rank(moments, whitening(scatter, scatter.diagonal(), moments.images), moments.images)
    return basis, moments.images**0.5 * moments.mean @ basis


def _principal_basis(moments: Moments) -> Tensor:
    """Map [C, rank] to the leading principal directions, of unit length, that hold ``SVCCA_VARIANCE`` of the
    variance.
    """
    values, vectors = torch.linalg.eigh(moments.scatter)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    shares = values.cumsum(0) / values.sum()
    # Rounding must not ask for a direction without variance.
    kept = min(int((shares < SVCCA_VARIANCE).sum()) + 1, int((values > values[0] * RANK_CUT**2).sum()))
    return _checked_rank(moments, vectors[:, :kept] / values[:kept].sqrt(), moments.images - 1)


def _mean_square(correlations: Tensor) -> Tensor:
    """‖·‖²_F over the smaller side: the mean squared canonical correlation."""
    # Above 1 is rounding, here and below; in nearly dependent channels it can be seen.
    return (correlations.square().sum() / min(correlations.shape)).clamp_max(1)


def _r2(x: Tensor, y: Tensor, cross: Tensor) -> Tensor:
    return _mean_square(x.T @ cross @ y)


def _r2_raw(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], cross: Tensor) -> Tensor:
    return _mean_square(x[0].T @ cross @ y[0] + torch.outer(x[1], y[1]))


def _svcca(x: Tensor, y: Tensor, cross: Tensor) -> Tensor:
    """Mean canonical correlation of the leading principal directions that hold 99 % of each side's variance.

    Invariant to orthogonal maps, isotropic scaling and translation.
    """
    return torch.linalg.svdvals(x.T @ cross @ y).mean().clamp_max(1)


def _projections(moments: Moments) -> tuple[Tensor, Tensor]:
    """Basis [C, rank] and the channels in it [rank, C]."""
    basis = _centred_basis(moments)
    return basis, basis.T @ moments.scatter


def _pwcca(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], cross: Tensor) -> Tensor:
    """Canonical correlations weighted by how much of a side's channels each canonical direction accounts for.

    The weights are those of the side with fewer directions, as in the authors' code; of two equal sides the
    mean of both is taken, which makes it symmetric. Invariant to isotropic scaling, translation and the order
    of channels, but not to rotations of the side that gives the weights. If several correlations are equal
    (1, where both sides together span more than the N − 1 directions there are) their directions are
    arbitrary, and the value is only defined to two or three decimals.
    """
    left, correlations, right = torch.linalg.svd(x[0].T @ cross @ y[0], full_matrices=False)
    weights = (left.T @ x[1]).abs().sum(1), (right @ y[1]).abs().sum(1)
    by_x, by_y = ((w * correlations.clamp_max(1)).sum() / w.sum() for w in weights)
    ranks = x[0].shape[1], y[0].shape[1]
    return (by_x + by_y) / 2 if ranks[0] == ranks[1] else by_x if ranks[0] < ranks[1] else by_y


def _unit(moments: Moments) -> Tensor:
    """Square root of the total variance."""
    return moments.scatter.diagonal().sum().sqrt()


def _procrustes(x: Tensor, y: Tensor, cross: Tensor) -> Tensor:
    """1 − d²/2 with d the orthogonal Procrustes distance of centred features of unit norm: ‖X̃ᵀ Ỹ‖_* /
    (‖X̃‖_F ‖Ỹ‖_F).

    Invariant to orthogonal maps, isotropic scaling and translation.
    """
    return torch.linalg.svdvals(cross).sum() / (x * y)


def _self_product(moments: Moments) -> Tensor:
    """‖X̃ᵀ X̃‖_F."""
    return moments.scatter.norm()


def _linear_cka(x: Tensor, y: Tensor, cross: Tensor) -> Tensor:
    return cross.square().sum() / (x * y)


def _debiased_product(squares: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """U-statistic of ‖X̃ᵀ Ỹ‖²_F from the biased value and the squared row lengths (Kornblith's code, Song et
    al.).
    """
    n = len(x)
    return squares - n / (n - 2) * x @ y + x.sum() * y.sum() / ((n - 1) * (n - 2))


def _debiased_parts(moments: Moments) -> tuple[Tensor, Tensor]:
    """Squared row lengths [N] and the square root of the layer's own U-statistic."""
    if moments.images < 4:
        raise ValueError(f"debiased CKA needs at least 4 images, not {moments.images}")
    biased = moments.scatter.square().sum()
    own = _debiased_product(biased, moments.lengths, moments.lengths)
    if not own > 1e-10 * biased:
        raise ValueError(
            f"features of {moments.label} have nothing left once the bias of {moments.images} images is "
            "taken off; use more images, or cka-linear"
        )
    return moments.lengths, own.sqrt()


def _linear_cka_debiased(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], cross: Tensor) -> Tensor:
    return _debiased_product(cross.square().sum(), x[0], y[0]) / (x[1] * y[1])


MOMENT_METRICS = {
    "r2": (_centred_basis, _r2),
    "r2-raw": (_raw_basis, _r2_raw),
    "svcca": (_principal_basis, _svcca),
    "pwcca": (_projections, _pwcca),
    "procrustes": (_unit, _procrustes),
    "cka-linear": (_self_product, _linear_cka),
    "cka-linear-debiased": (_debiased_parts, _linear_cka_debiased),
}
