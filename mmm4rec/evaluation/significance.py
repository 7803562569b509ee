"""What chance alone could do to a mean over users: bootstrap intervals, paired tests, correction for many comparisons.

Users are the units: runs of several seeds are averaged a user before they come here. A metric takes few distinct
values, so a resample is drawn as how often each of them occurs: the same distribution as drawing users one by one.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

DRAWS = 10_000
Values = npt.NDArray[np.float64]


def bootstrap_interval(
    values: Values, level: float = 0.95, *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean when users are drawn anew with replacement (Efron, 1979).

    Args:
        values: [U] a metric's value for every user, or the difference of two systems'.
        level: coverage.
        draws: resamples.
        seed: of the draws.
    """
    distinct, counts = np.unique(values, return_counts=True)
    shares = counts / counts.sum()
    rng = np.random.default_rng(seed)
    means = rng.multinomial(len(values), shares, size=draws) @ distinct / len(values)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p_value(a: Values, b: Values, *, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p of the paired permutation test (Fisher's randomisation): a and b change places user by user.

    Args:
        a: [U] a metric's values of one system.
        b: [U] of another, for the same users in the same order.
        draws: permutations; p is at least 1 / (draws + 1).
        seed: of the draws.
    """
    difference = a - b
    sizes, users = np.unique(np.abs(difference[difference != 0]), return_counts=True)
    rng = np.random.default_rng(seed)
    # of the users whose values differ by `size`, how many keep their sign
    sums = (2 * rng.binomial(users, 0.5, size=(draws, len(users))) - users) @ sizes
    seen = abs(difference.sum())
    return float((1 + (np.abs(sums) >= seen * (1 - 1e-9)).sum()) / (draws + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, so that the chance of any false finding keeps its level (Holm, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for done, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - done) * p_values[i]))
        corrected[i] = largest
    return corrected
