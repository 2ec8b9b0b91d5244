"""Naive ways to compare two layers, as the paper's public capsule does."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np


def naive_r2(x: np.ndarray, y: np.ndarray) -> float:
    """R² of uncentred features [N, C] by a QR factorisation of each."""
    bases = [np.linalg.qr(layer)[0] for layer in (x, y)]
    return np.linalg.norm(bases[0].T @ bases[1]) ** 2 / min(x.shape[1], y.shape[1])


def centre_gram(gram: np.ndarray) -> np.ndarray:
    """Double-centre a Gram matrix [N, N] in place."""
    means = gram.mean(axis=0)
    means -= means.mean() / 2
    gram -= means[:, None]
    gram -= means
    return gram


def published_centre_gram(gram: np.ndarray) -> np.ndarray:
    """Double-centre a copy of a Gram matrix [N, N] that has been checked to be symmetric."""
    if not np.allclose(gram, gram.T):
        raise ValueError("a Gram matrix must be symmetric")
    return centre_gram(gram.copy())


def gram_linear_cka(x: np.ndarray, y: np.ndarray, centre: Callable[[np.ndarray], np.ndarray]) -> float:
    """Linear CKA of features [N, C] by the double-centred Gram matrix [N, N] of each."""
    grams = [layer @ layer.T for layer in (x, y)]
    grams = [centre(gram) for gram in grams]
    sizes = [np.linalg.norm(gram) for gram in grams]
    return grams[0].ravel() @ grams[1].ravel() / (sizes[0] * sizes[1])


naive_linear_cka = partial(gram_linear_cka, centre=centre_gram)
published_linear_cka = partial(gram_linear_cka, centre=published_centre_gram)


@dataclass(frozen=True)
class Rival:
    """A naive way to compare two layers.

    **Arguments:** ``metric`` that gives the same value here; ``name`` for people; ``compare`` two layers;
    ``pairing`` picks the pairs of stages it is timed on; ``repeats`` of each; ``target`` how many times
    faster a whole k-means shall be here; ``reason`` why values may differ.
    """

    metric: str
    name: str
    compare: Callable[[np.ndarray, np.ndarray], float]
    pairing: Callable[[range, int], Iterator[tuple[int, int]]]
    repeats: int
    target: float
    reason: str = ""


RIVALS = (
    Rival(
        "r2-raw",
        "naive R²",
        naive_r2,
        itertools.combinations_with_replacement,
        5,
        200,
        " (QR takes channels that are always 0 for directions)",
    ),
    Rival("cka-linear", "naive linear CKA", naive_linear_cka, itertools.combinations, 1, 3000),
    Rival("cka-linear", "published linear CKA", published_linear_cka, itertools.combinations, 1, 3000),
)
