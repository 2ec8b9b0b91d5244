"""Numbers without their last bits, which differ between kinds of processors."""

from collections.abc import Mapping

import numpy as np
import pandas as pd


def settled(value):
    """Numbers with ten digits, also within tables, arrays and containers; all else as it is.

    Otherwise last bits decide how 0.125 is written with two decimals, or on which side of a border it lies.
    Below 1e-13 is what two equal numbers differ by, and counts as 0.
    """
    if isinstance(value, float):
        return 0.0 if abs(value) < 1e-13 else float(f"{value:.10g}")
    if isinstance(value, pd.DataFrame | pd.Series):
        return value.map(settled)
    if isinstance(value, np.ndarray):
        return np.vectorize(settled, otypes="d")(value) if value.dtype.kind == "f" else value
    if isinstance(value, Mapping):
        return {key: settled(entry) for key, entry in value.items()}
    return type(value)(map(settled, value)) if type(value) in (list, tuple) else value
