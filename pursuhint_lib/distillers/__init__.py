"""Distillation methods: what each trains beside the student, and the loss that it returns.

``DISTILLERS`` is the only list of methods; a new one is a class (if it has parts to train) and an entry. A
method with hint layers sees the K student maps and the K teacher maps, matched in the order of the points; a
method on the answers sees logits and labels, and takes the place of KD. Any sum of entries is a method, too:
``at+rkd``. So is an entry in a module of the user's own, named by its import path: ``my_methods:my_method``.
"""

from .embeddings import ContrastiveMemory
from .maps import PerPoint
from .registry import DISTILLERS, Distiller, distiller
from .signals import Signals, Task, in_first_stage, warmth
from .simkd import ReusedClassifier, linear_classifier
