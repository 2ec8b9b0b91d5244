"""Distillation losses: one short pure function per published loss.

``B`` batch, ``C`` channels, ``H``×``W`` space, ``K`` hint layers, ``D`` length of an embedding; ``s`` and
``t`` in formulas are the student's and the teacher's. Teacher tensors come detached. Losses that work on maps
of unequal size share one rule: the larger map is average-pooled to the smaller (``match_size``). Losses by
what they compare: ``logits``, ``maps``, ``relations`` between images.
"""

from .logits import decoupled_kd, dist, kd, standardised_kd, weighted_soft_labels
from .maps import (
    activation_boundary,
    attention_map,
    attention_transfer,
    factor_transfer,
    flow_of_solution,
    hierarchical_context,
    hint,
    match_size,
    neuron_selectivity,
    variational_information,
)
from .relations import (
    contrastive_in_batch,
    contrastive_memory,
    correlation_congruence,
    probabilistic_transfer,
    relational,
    similarity_preserving,
)
