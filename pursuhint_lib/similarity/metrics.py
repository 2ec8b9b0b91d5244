"""How alike are two layers? Pure functions on features, and one L×L matrix for all pairs at once.

Features of a layer are a matrix [N, C]: one row an image, one column a channel (the map averaged over
space). Row i must be the same image in every layer. Everything is computed in float64.

Sources: R²-CCA and CKA as in Kornblith et al., "Similarity of Neural Network Representations
Revisited" (2019), sections 3 and 4; debiased HSIC from Song et al. (2012); SVCCA from Raghu et al. (2017);
PWCCA from Morcos et al. (2018); the Procrustes distance as in Ding et al. (2021). PURSUhInT (Keser et
al., 2021) uses R²-CCA, linear CKA and RBF CKA.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..settings import choose
from ..settings.user_code import FORM, is_import_path
from .kernels import rbf_matrix
from .moments import MOMENT_METRICS, Layers, moment_matrices, whitening
from .user_metrics import own_function, own_matrix

# Metrics that need more than second moments: function of ``Layers`` → [L, L].
KERNEL_METRICS = {"cka-rbf": rbf_matrix}
# Every metric of this package.
METRICS = (*MOMENT_METRICS, *KERNEL_METRICS)
# As a reader knows them.
TITLES = {
    "r2": "R²-CCA",
    "r2-raw": "R²-CCA, not centred",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
    "procrustes": "Procrustes",
    "cka-linear": "linear CKA",
    "cka-linear-debiased": "debiased linear CKA",
    "cka-rbf": "RBF CKA",
}
# Those that refuse layers with as many directions as there are images.
CANONICAL = ("r2", "r2-raw", "pwcca")


def check_metric(metric: str) -> None:
    """Refuse a metric that is neither in ``METRICS`` nor a function at an import path.

    **Raises:** ``SettingsError`` that names those that exist, or says what is wrong with the import path.
    """
    if is_import_path(metric):
        own_function(metric)
    else:
        choose("metric", metric, [*METRICS, FORM])


def paper_metrics(metrics: Sequence[str]) -> list[str]:
    """Those of the given metrics that the paper uses, and the user's own; all of them if there are none of
    these.
    """
    return [
        metric for metric in metrics if metric in ("r2", "cka-linear", "cka-rbf") or is_import_path(metric)
    ] or list(metrics)


def similarity_matrices(features: Mapping[str, Tensor], metrics: Sequence[str]) -> dict[str, Tensor]:
    """Similarity of every layer with every layer under several metrics, sharing the products between layers.

    **Arguments:** ``features`` layer name → [N, C_l], of any float type, rows in the same image order, in
    memory, on a GPU or memory-mapped; ``metrics`` names in ``METRICS``, or import paths.

    **Returns:** metric → float64 [L, L] on the CPU, symmetric, diagonal 1.

    **Raises:** ``SettingsError`` for an unknown metric, or a function of the user's own that is no
    similarity; ``ValueError`` naming the layer (1-based) whose features are constant, not finite, of another
    length, or too wide for so few images (canonical correlations only).
    """
    return _matrices(Layers(list(features.values()), list(features)), metrics)


def similarity_matrix(features: Sequence[Tensor], metric: str) -> Tensor:
    """Similarity of every layer with every layer, as ``similarity_matrices`` for one metric and a plain
    sequence of layers.
    """
    return _matrices(Layers(features), [metric])[metric]


def _matrices(layers: Layers, metrics: Sequence[str]) -> dict[str, Tensor]:
    own = [metric for metric in metrics if is_import_path(metric)]
    for metric in metrics:
        choose("metric", metric, [*METRICS, *own])
    found = moment_matrices(
        layers, {metric: MOMENT_METRICS[metric] for metric in metrics if metric in MOMENT_METRICS}
    )
    found |= {
        metric: _symmetric(KERNEL_METRICS[metric](layers)) for metric in metrics if metric in KERNEL_METRICS
    }
    found |= {metric: _symmetric(own_matrix(metric, layers)) for metric in own}
    return {metric: found[metric] for metric in metrics}


def _symmetric(matrix: Tensor) -> Tensor:
    return ((matrix + matrix.T) / 2).fill_diagonal_(1.0)


def r2_cca(x: Tensor, y: Tensor, *, center: bool = True) -> Tensor:
    """Mean squared canonical correlation, ‖Qxᵀ Qy‖²_F / min(rank x, rank y).

    Q is an orthonormal basis of the column space, cut at the numerical rank so that dead or repeated
    channels count for nothing. Invariant to any invertible linear map of either side.

    **Arguments:** ``x`` [N, Cx], ``y`` [N, Cy]; ``center`` subtracts each column's mean (the public
    capsule of the paper does not, which lets the common mean count as shared structure).

    **Returns:** scalar in [0, 1].
    """
    return similarity_matrix([x, y], "r2" if center else "r2-raw")[0, 1]


def linear_cka(x: Tensor, y: Tensor, *, debiased: bool = False) -> Tensor:
    """Linear centred kernel alignment, ‖Ỹᵀ X̃‖²_F / (‖X̃ᵀ X̃‖_F ‖Ỹᵀ Ỹ‖_F).

    Invariant to orthogonal maps, isotropic scaling and translation.

    **Arguments:** ``x`` [N, Cx], ``y`` [N, Cy]; ``debiased`` uses the U-statistic of HSIC, whose
    expectation is 0 for independent features (it needs N ≥ 4 and can be slightly negative).

    **Returns:** scalar.
    """
    return similarity_matrix([x, y], "cka-linear-debiased" if debiased else "cka-linear")[0, 1]


def rbf_cka(x: Tensor, y: Tensor, *, bandwidth: float = 1.0) -> Tensor:
    """CKA with the kernel exp(−d² / (2 · bandwidth² · median d²)).

    The median is over the full N×N matrix of squared distances, zero diagonal included, as in the
    paper's capsule. Invariant to orthogonal maps, isotropic scaling and translation.

    **Arguments:** ``x`` [N, Cx], ``y`` [N, Cy].

    **Returns:** scalar in [0, 1].
    """
    return rbf_matrix(Layers([x, y]), bandwidth)[0, 1]


def rank(features: Tensor) -> int:
    """Number of directions [N, C] features span once they are centred, cut as R² cuts it: its chance level is
    rank / (N − 1).
    """
    layers = Layers([features])
    moments = layers.moments(0, layers.products([0], [0])[0, 0])
    return whitening(moments.scatter, moments.raw_scatter.diagonal(), layers.images).shape[1]
