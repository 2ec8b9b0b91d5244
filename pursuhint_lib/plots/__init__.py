"""Figures of the study: arrays or data frames in, a matplotlib figure out. Nothing is read or saved here."""

from .clusters import (
    ablation_grid,
    agreement_heatmaps,
    cluster_margins,
    clusters_by_k,
    k_curves,
    kmeans_rounds,
    stability,
)
from .compression import compression_costs
from .layers import depth_strip, layer_quality, neighbour_similarity, similarity_heatmaps
from .outcomes import (
    accuracy_by_arm,
    effect_grid,
    forest,
    place_effects,
    ranked_sets,
    training_curves,
    tuning_curve,
    weight_sweep,
)
from .style import arm_colour, arm_title, style
