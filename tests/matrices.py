"""Similarity matrices, and the algorithms by what they promise, for the tests of the clustering."""

import numpy as np

KMEANS = ("kmeans-index", "kmeans-settled")
NEAREST = (*KMEANS, "kmedoids")  # every sub-block belongs to its most similar centre
PARTITIONS = ("segments", "agglomerative", "spectral")  # every centre is the medoid of its sub-blocks


def cost(matrix, centres):
    """Sum over sub-blocks of one minus the similarity to the nearest centre."""
    return sum(1 - max(row[centre] for centre in centres) for row in matrix)


def random_similarity(rng, layers, kind="uniform"):
    """Symmetric [L, L], unit diagonal, other entries below 1."""
    half = rng.random((layers, layers))
    matrix = (half + half.T) / 2
    if kind == "banded":
        depth = np.arange(layers)
        matrix = 0.2 * matrix + 0.8 * np.exp(-np.abs(depth[:, None] - depth[None, :]) / 3)
    if kind == "tied":
        matrix = np.minimum(np.round(matrix, 1), 0.9)
    if kind == "partly negative":
        matrix = 1.2 * matrix - 0.3
    np.fill_diagonal(matrix, 1.0)
    return matrix


def planted(sizes, inside=0.9, between=0.2):
    """Blocks of layers that fade a little with depth, so that the middle of an odd block is its medoid."""
    block, depth = np.repeat(np.arange(len(sizes)), sizes), np.arange(sum(sizes))
    lag = np.abs(depth[:, None] - depth[None, :])
    return np.where(lag == 0, 1.0, np.where(block[:, None] == block[None, :], inside - 0.01 * lag, between))
