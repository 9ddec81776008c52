"""How sure a number is: intervals of shares and of differences between means, with nothing assumed that is not said."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
RUNS = 3  # a side: the study compares from three seeds on, as two differ by luck too often
FEWER = "fewer than three runs"  # than RUNS, in words


@dataclass(frozen=True)
class Estimate:
    """A sum of means with signs, and the ends of its t-interval; both None where a mean is of fewer than `RUNS`.

    runs: how many the mean with the fewest has.
    """

    value: float
    low: float | None = None
    high: float | None = None
    runs: int = 1

    @property
    def sign(self) -> int:
        """1 or -1 where the whole interval lies on that side of 0; else 0: not to be told apart."""
        if self.low is None:
            return 0
        return (self.low > 0) - (self.high < 0)

    @property
    def lack(self) -> str:
        """`one run`, `fewer than three runs`: why there is no interval; empty where there is one."""
        if self.low is not None:
            return ""
        return "one run" if self.runs == 1 else FEWER

    def words(self) -> str:
        """`+1.20 (+0.31 to +2.09)`, `-0.40, one run`, `-0.40, fewer than three runs`."""
        if self.low is None:
            return f"{self.value:+.2f}, {self.lack}"
        return f"{self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def contrast(*parts: tuple[int, Sequence[float]]) -> Estimate | None:
    """Sum of sign x mean with its t-interval (Welch, Satterthwaite: spreads need not be equal); None if one is empty.

    The interval holds what another draw of seeds would change, if runs are normally distributed; the test images are
    the same in all of them. It takes `RUNS` values in every mean.
    """
    if not all(values for _, values in parts):
        return None
    value = math.fsum(sign * statistics.fmean(values) for sign, values in parts)
    runs = min(len(values) for _, values in parts)
    if runs < RUNS:
        return Estimate(value, runs=runs)
    variances = [(statistics.variance(values) / len(values), len(values) - 1) for _, values in parts]
    total = math.fsum(variance for variance, _ in variances)
    if total == 0:
        return Estimate(value, value, value, runs)
    from scipy.special import stdtrit

    freedom = total**2 / math.fsum(variance**2 / n for variance, n in variances)
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(total)
    return Estimate(value, value - half, value + half, runs)


def pair_range(more: Sequence[float], less: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest difference between a run of the one and a run of the other."""
    gaps = [a - b for a, b in itertools.product(more, less)]
    return min(gaps), max(gaps)


def count_interval(count: int, images: int) -> tuple[float, float]:
    """Ends of the exact interval (Clopper and Pearson) of a share of the test images, per cent.

    What other test images of the same kind would change; what another seed would is not in it.
    """
    from scipy.special import betaincinv

    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(count, images - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, images - count, 1 - tail)) if count < images else 1.0
    return 100 * low, 100 * high
