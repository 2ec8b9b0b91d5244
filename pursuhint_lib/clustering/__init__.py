"""From a similarity matrix to hint layers, and the controls that a clever choice has to beat.

A similarity matrix is float [L, L], symmetric, with 1 on its diagonal; hint layers are 0-based sub-block
indices in depth order. The distance of two sub-blocks is 1 − their similarity.
"""

from .algorithms import ALGORITHMS, HintPoints, kmeans_rounds
from .choice import CRITERIA, KCurve, choose_hint_points, k_curve
from .sets import random_points, segment_middles
