"""Two students on the same test images: on how many only one of them is right, and what that says of their
difference.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from .effects import LEVEL


@dataclass(frozen=True)
class PairedAnswers:
    """Two networks on the same N ``images``.

    **Arguments:** ``only_first``, ``only_second``: on how many the one is right and the other wrong.
    """

    images: int
    only_first: int
    only_second: int

    @property
    def difference(self) -> float:
        """Accuracy of the first minus that of the second, in percentage points."""
        return 100 * (self.only_first - self.only_second) / self.images

    @property
    def p(self) -> float:
        """Two-sided p-value of no difference: McNemar's test (1947), exact by the binomial distribution."""
        apart = self.only_first + self.only_second
        return float(stats.binomtest(self.only_first, apart).pvalue) if apart else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference in percentage points, over images: Agresti and Min (2005).

        It is Wald's with half an image more in each of the four cells (both right, only one, neither).
        """
        n, apart, gap = (
            self.images + 2,
            self.only_first + self.only_second + 1,
            self.only_first - self.only_second,
        )
        half = stats.norm.ppf(1 - LEVEL / 2) * np.sqrt(apart - gap**2 / n) / n
        return float(100 * (gap / n - half)), float(100 * (gap / n + half))


def mcnemar(first: np.ndarray, second: np.ndarray) -> PairedAnswers:
    """Compare two networks image by image.

    **Arguments:** ``first``, ``second`` bool [N]: which images each answers rightly (``records.answered``).

    **Raises:** ``ValueError`` if they are not of the same images, or of none.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"answers have shapes {first.shape} and {second.shape}; give those to the same images, [N] each"
        )
    return PairedAnswers(len(first), int((first & ~second).sum()), int((second & ~first).sum()))
