"""How alike are two layers? Pure functions on features, and one L×L matrix for all pairs at once.

Features of a layer are a matrix [N, C]: one row an image, one column a channel (the map averaged over
space). Row i must be the same image in every layer. Everything is computed in float64.

Sources: R²-CCA and CKA as in Kornblith et al., "Similarity of Neural Network Representations
Revisited" (2019), sections 3 and 4; debiased HSIC from Song et al. (2012); SVCCA from Raghu et al. (2017);
PWCCA from Morcos et al. (2018); the Procrustes distance as in Ding et al. (2021). PURSUhInT (Keser et
al., 2021) uses R²-CCA, linear CKA and RBF CKA.
"""

from .metrics import (
    CANONICAL,
    KERNEL_METRICS,
    METRICS,
    check_metric,
    linear_cka,
    paper_metrics,
    r2_cca,
    rank,
    rbf_cka,
    similarity_matrices,
    similarity_matrix,
)
