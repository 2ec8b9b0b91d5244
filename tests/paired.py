"""An effect made from paired differences, for tests of what follows from one."""

from collections.abc import Sequence

import numpy as np

from pursuhint_lib.statistics import Effect


def paired_effect(differences: Sequence[float]) -> Effect:
    """Mean of two differences or more, with the standard error that they themselves tell."""
    n = len(differences)
    return Effect(float(np.mean(differences)), float(np.std(differences, ddof=1) / np.sqrt(n)), n - 1, n)
