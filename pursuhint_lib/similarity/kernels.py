"""RBF CKA: all pairs of layers, tile by tile over the upper triangle; no N×N matrix is ever held."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .moments import Layers, blocks

# Side of the tiles in which kernels are made: 54 layers × 256² × 8 bytes = 28 MB at once.
TILE = 256
# Side of a tile of distances of one layer: 1024² × 8 bytes = 8 MB. In smaller ones threads would wait for
# each other more often.
SIDE = 1024
# Pairs of images drawn to find out where the median distance lies.
SAMPLE = 200_000
# A bracket that holds every distance, and leaves out the infinite ones that stand for no pair.
ALL = (-torch.inf, torch.finfo(torch.float64).max)


def rbf_matrix(layers: Layers, bandwidth: float = 1.0) -> Tensor:
    """CKA with the kernel exp(−d² / (2 · bandwidth² · median d²)), float64 [L, L].

    **Raises:** ``ValueError`` for a bandwidth that is not above 0.

    ⟨HKH, HMH⟩ = ΣKM − (2/N) Σ k m + (ΣK)(ΣM)/N² with k, m the row sums, so raw kernels can be accumulated.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth is {bandwidth}; give a number above 0")
    n, count = layers.images, len(layers.features)
    scales = [2 * bandwidth**2 * _median_squared_distance(layers, i) for i in range(count)]
    products = torch.zeros(count, count, dtype=torch.float64, device=layers.device)
    sums = torch.zeros(count, n, dtype=torch.float64, device=layers.device)
    tiles = blocks(n, TILE)
    # One buffer for all tiles: fresh memory would cost as much as the arithmetic.
    buffer = torch.empty(count * min(TILE, n) ** 2, dtype=torch.float64, device=layers.device)
    for number, rows in enumerate(tiles):
        lefts = [_factor(layers.rows(i, rows), -1 / scale) for i, scale in enumerate(scales)]
        for columns in tiles[number:]:
            height, width = rows.stop - rows.start, columns.stop - columns.start
            kernels = buffer[: count * height * width].view(count, height, width)
            for i, left in enumerate(lefts):
                torch.mm(left, _counterpart(layers.rows(i, columns)).T, out=kernels[i])
            # An exponent above 0 is rounding.
            kernels.clamp_max_(0).exp_()
            flat = kernels.flatten(1)
            # A tile off the diagonal stands for its mirror image too.
            products += (1 if rows is columns else 2) * (flat @ flat.T)
            sums[:, rows] += kernels.sum(2)
            if rows is not columns:
                sums[:, columns] += kernels.sum(1)
    totals = sums.sum(1)
    centred = products - 2 / n * sums @ sums.T + torch.outer(totals, totals) / n**2
    own = centred.diagonal().sqrt()
    return (centred / torch.outer(own, own)).cpu()


def _factor(x: Tensor, scale: float = 1.0) -> Tensor:
    """scale · [−2x, |x|², 1], [N, C + 2]: its product with a ``_counterpart`` is scale · d² of all pairs of
    rows.
    """
    return scale * torch.cat([-2 * x, x.square().sum(1, keepdim=True), x.new_ones(len(x), 1)], dim=1)


def _counterpart(y: Tensor) -> Tensor:
    """[y, 1, |y|²], [N, C + 2]."""
    return torch.cat([y, y.new_ones(len(y), 1), y.square().sum(1, keepdim=True)], dim=1)


def _median_squared_distance(layers: Layers, layer: int) -> float:
    """Median over the full N×N matrix, zero diagonal included; over its positive entries if most images
    coincide.

    That matrix holds N zeros and each of the N(N−1)/2 pairs twice, so order statistics of the pairs are
    enough.
    """
    n = layers.images
    middle = ((n**2 - 1) // 2, n**2 // 2)
    # With two images one of the two middle values lies on the diagonal.
    ranks = [(rank - n) // 2 for rank in middle if rank >= n]
    noise = _rounding(layers, layer)
    median = _order_statistics(layers, layer, ranks, noise) * len(ranks) / 2
    if median > noise:
        return median
    apart = sum(
        int((tile > noise).logical_and_(tile.isfinite()).count_nonzero())
        for tile in _distance_tiles(layers, layer)
    )
    pairs = n * (n - 1) // 2
    ranks = [pairs - apart + rank for rank in ((apart - 1) // 2, apart // 2)]
    return _order_statistics(layers, layer, ranks, noise)


def _rounding(layers: Layers, layer: int) -> float:
    """What the squared distance of equal rows can come out as."""
    longest = max(
        float(layers.rows(layer, rows).square().sum(1).max()) for rows in blocks(layers.images, SIDE)
    )
    return 4 * sum(layers.features[layer].shape) * torch.finfo(torch.float64).eps * longest


def _distance_tiles(layers: Layers, layer: int) -> Iterator[Tensor]:
    """Squared distances of all pairs i < j in tiles; entries that are no pair are infinite."""
    tiles = blocks(layers.images, SIDE)
    for number, rows in enumerate(tiles):
        left = _factor(layers.rows(layer, rows))
        for columns in tiles[number:]:
            tile = left @ _counterpart(layers.rows(layer, columns)).T
            if rows is columns:
                tile += torch.full_like(tile, torch.inf).tril()
            yield tile


def _order_statistics(layers: Layers, layer: int, ranks: Sequence[int], noise: float) -> float:
    """Mean of the pair distances at one or two neighbouring 0-based ranks, exactly, without sorting all
    pairs.

    A sample says where they lie; one pass counts what is below and keeps what is there. A misleading
    sample costs a second pass, never exactness.
    """
    low, high = _bracket(layers, layer, ranks, noise)
    while True:
        below, inside = 0, []
        for tile in _distance_tiles(layers, layer):
            under, upto = tile < low, tile <= high
            below += int(under.count_nonzero())
            inside.append(tile[upto.logical_xor_(under)])
        found = torch.cat(inside)
        if below <= ranks[0] and ranks[-1] < below + len(found):
            return sum(float(found.kthvalue(rank - below + 1).values) for rank in ranks) / len(ranks)
        low, high = ALL


def _bracket(layers: Layers, layer: int, ranks: Sequence[int], noise: float) -> tuple[float, float]:
    """Two distances that very likely enclose those at the given ranks, from a sample of pairs."""
    n, x = layers.images, layers.features[layer]
    pairs = n * (n - 1) // 2
    if pairs <= 10 * SAMPLE:
        # Few enough to keep them all.
        return ALL
    generator = torch.Generator().manual_seed(0)
    i = torch.randint(n, (SAMPLE,), generator=generator).to(layers.device)
    j = (i + torch.randint(1, n, (SAMPLE,), generator=generator).to(layers.device)) % n
    # In parts: rows of a wide layer would fill the memory.
    parts = zip(i.split(4096), j.split(4096), strict=True)
    sample = torch.cat([(x[a].double() - x[b].double()).square().sum(1) for a, b in parts])
    # Five standard errors of a sample quantile on either side.
    slack = 2.5 / len(sample) ** 0.5
    places = ((ranks[0] / pairs - slack), (ranks[-1] / pairs + slack))
    low, high = (
        float(sample.kthvalue(int(min(max(place, 0), 1) * (len(sample) - 1)) + 1).values) for place in places
    )
    return low - noise, high + noise
