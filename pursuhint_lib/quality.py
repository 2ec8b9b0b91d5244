"""How good is a layer's class geometry? The layer-quality score of Cooper et al. (arXiv 2511.14981).

Q = S + √(I · E), of features [N, C] and class labels [N]:

- separation S: mean |cosine| within classes minus mean |cosine| between classes;
- information I: (1 − mean over classes of the smallest |cosine| within) × spectral entropy of the classes /
  ln 5;
- efficiency E: 2 · (mean over classes of the smallest distance to another class) / (mean length) ·
  (N/π)^(1/D), with D the number of directions that the features span.

The authors take whole maps; here, as everywhere in the profile, a map is averaged over space.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Share of a class's variance whose principal directions count for the entropy, and the entropy's unit (both
# from the authors' code).
ENERGY = 0.95
ENTROPY_UNIT = math.log(5)
# All pairs of images are compared: 5 000² × 8 bytes = 200 MB.
MAX_IMAGES = 5_000
# Share of the largest variance below which a direction is rounding of float32 features.
RANK_CUT = 1e-12


@dataclass(frozen=True)
class Quality:
    """The score of one layer and its parts, as in the module's text."""

    score: float
    separation: float
    information: float
    efficiency: float


def layer_quality(features: Tensor, labels: Tensor) -> Quality:
    """Class-geometry quality of a layer, on ``MAX_IMAGES`` images at most.

    **Arguments:** ``features`` [N, C]; ``labels`` int [N].

    **Raises:** ``ValueError`` if there are not two classes with at least two images each, or no image has any
    activation.
    """
    # Evenly spaced, since images may be stored class by class.
    count = min(len(features), MAX_IMAGES)
    rows = torch.arange(count) * len(features) // count
    x, labels = features[rows].double(), labels[rows].to(features.device)
    classes = [members for c in labels.unique() if len(members := (labels == c).nonzero()[:, 0]) > 1]
    lengths = x.norm(dim=1)
    if len(classes) < 2 or not lengths.max() > 0:
        raise ValueError(
            "layer quality needs features that are not all zero, and two classes with at least two images "
            "each"
        )
    # A silent image has no direction; it is like nothing.
    unit = x / lengths.clamp_min(torch.finfo(x.dtype).tiny)[:, None]
    cosines, distances = (unit @ unit.T).abs(), torch.cdist(x, x)
    alike = labels[:, None] == labels
    within = [_off_diagonal(cosines[members][:, members]) for members in classes]
    separation = float(torch.stack([w.mean() for w in within]).mean() - cosines[~alike].mean())
    # Below 0 is rounding.
    spread = 1 - min(1.0, float(torch.stack([w.min() for w in within]).mean()))
    information = (
        spread * sum(_spectral_entropy(x[members]) for members in classes) / len(classes) / ENTROPY_UNIT
    )
    gaps = distances.masked_fill(alike, torch.inf)
    gap = float(torch.stack([gaps[members].min() for members in classes]).mean())
    efficiency = 2 * gap / float(lengths.mean()) * (len(x) / math.pi) ** (1 / len(_variances(x)))
    return Quality(separation + math.sqrt(information * efficiency), separation, information, efficiency)


def _off_diagonal(square: Tensor) -> Tensor:
    return square[~torch.eye(len(square), dtype=torch.bool, device=square.device)]


def _variances(x: Tensor) -> Tensor:
    """Principal variances above rounding, largest first, [rank]; one zero if there are none."""
    values = torch.linalg.svdvals(x - x.mean(0)).square()
    kept = values[values > values[0] * RANK_CUT]
    return kept if len(kept) else values[:1]


def _spectral_entropy(x: Tensor) -> float:
    """Entropy in nats of a class's principal variances, of the leading ones that hold ``ENERGY`` of it."""
    variances = _variances(x)
    total = variances.sum()
    if not total > 0:
        return 0.0
    shares = variances / total
    count = int((shares.cumsum(0) < ENERGY).sum()) + 1
    shares = shares[:count] / shares[:count].sum()
    return float(-(shares * shares.log()).sum())
