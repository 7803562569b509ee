"""What chance alone could do to a mean over users: bootstrap intervals, paired tests, correction for many comparisons.

Users are the units: runs of several seeds are averaged a user before they come here. Users without a difference are
most of them and change no sum, so only the others are drawn.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

DRAWS = 10_000
ENOUGH = 1000  # draws as large as what was seen: p is known to 3 %
FEW = 100  # distinct values
SIGNS_AT_ONCE = 2**23  # held in memory: 64 MiB
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
    rng = np.random.default_rng(seed)
    if len(distinct) <= FEW:  # a resample is how often each of them occurs
        sums = rng.multinomial(len(values), counts / counts.sum(), size=draws) @ distinct
    else:
        nonzero = values[values != 0]
        sizes = rng.binomial(len(values), len(nonzero) / len(values), size=draws)
        sums = np.array([nonzero[rng.integers(0, len(nonzero), size, dtype=np.int32)].sum() for size in sizes])
    low, high = np.quantile(sums / len(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p_value(a: Values, b: Values, *, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p of the paired permutation test (Fisher's randomisation): a and b change places user by user.

    Drawing ends early where p is large (Besag and Clifford, 1991): at the ``ENOUGH``-th draw as large as what was seen.

    Args:
        a: [U] a metric's values of one system.
        b: [U] of another, for the same users in the same order.
        draws: permutations at most; p is at least 1 / (draws + 1).
        seed: of the draws.
    """
    difference = (a - b)[a != b]
    seen = abs(difference.sum()) * (1 - 1e-9)  # sums of the same numbers in another order are equal
    rng = np.random.default_rng(seed)
    as_large = drawn = 0
    while drawn < draws:
        rows = min(draws - drawn, max(1, SIGNS_AT_ONCE // max(1, len(difference))))
        bits = rng.integers(0, 256, size=(rows, -(-len(difference) // 8)), dtype=np.uint8)
        kept = np.unpackbits(bits, axis=1, count=len(difference))  # one bit a user: 0 turns the sign
        sums = 2 * (kept.astype(np.float64) @ difference) - difference.sum()
        found = np.flatnonzero(np.abs(sums) >= seen)
        if as_large + len(found) >= ENOUGH:
            return float(ENOUGH / (drawn + found[ENOUGH - as_large - 1] + 1))
        as_large += len(found)
        drawn += rows
    return float((1 + as_large) / (draws + 1))


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
