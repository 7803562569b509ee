"""What chance alone could do to a mean over users: bootstrap intervals, paired tests, correction for many comparisons.

Chance has two parts. Other users would have other values: that is drawn from the users, runs of several seeds being
averaged a user before. Other seeds would train other weights, which shifts all users at once: ``SeedNoise``. Users
without a difference are most of them and change no sum, so only the others are drawn.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

DRAWS = 10_000
ENOUGH = 1000  # draws as large as what was seen: p is known to 3 %
FEW = 100  # distinct values
SIGNS_AT_ONCE = 2**23  # held in memory: 64 MiB
Values = npt.NDArray[np.float64]


class SeedNoise(NamedTuple):
    """What other seeds do to the difference of two systems' means: a t distribution around 0.

    Attributes:
        scale: its standard deviation as estimated.
        degrees: of freedom of that estimate; 0 where nothing is known, and then nothing is drawn.
    """

    scale: float = 0.0
    degrees: int = 0

    def draw(self, rng: np.random.Generator, size: int) -> Values:
        """[size] shifts of the difference."""
        return self.scale * rng.standard_t(self.degrees, size) if self.degrees else np.zeros(size)


def seed_noise(means: Iterable[Sequence[float]], one: int, other: int) -> SeedNoise:
    """The noise of a difference of two means over ``one`` and ``other`` seeds.

    A system has too few seeds to tell its own spread, so it is pooled over all systems, as an analysis of variance
    pools what varies within its groups, and taken to be the same for all.

    Args:
        means: a metric's mean over the users, an entry a seed, a sequence a system.
        one: seeds of the first of the two systems.
        other: of the second.

    >>> noise = seed_noise([[0.1, 0.3], [0.2]], 1, 1)
    >>> round(noise.scale, 6), noise.degrees  # variance 0.02 of one seed, twice that of a difference
    (0.2, 1)
    """
    several = [np.asarray(values) for values in means if len(values) > 1]
    degrees = sum(len(values) - 1 for values in several)
    if not degrees:
        return SeedNoise()
    variance = sum(float(((values - values.mean()) ** 2).sum()) for values in several) / degrees
    return SeedNoise((variance * (1 / one + 1 / other)) ** 0.5, degrees)


NO_NOISE = SeedNoise()


def bootstrap_interval(
    values: Values, level: float = 0.95, *, noise: SeedNoise = NO_NOISE, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean when users are drawn anew with replacement (Efron, 1979).

    Args:
        values: [U] a metric's value for every user, or the difference of two systems'.
        level: coverage.
        noise: of the seeds, drawn anew with every resample.
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
    means = sums / len(values) + noise.draw(rng, draws)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p_value(a: Values, b: Values, *, noise: SeedNoise = NO_NOISE, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p of the paired permutation test (Fisher's randomisation): a and b change places user by user.

    Every exchange is shifted by what other seeds could do. Drawing ends early where p is large (Besag and Clifford,
    1991): at the ``ENOUGH``-th draw as large as what was seen.

    Args:
        a: [U] a metric's values of one system.
        b: [U] of another, for the same users in the same order.
        noise: of the seeds.
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
        sums += len(a) * noise.draw(rng, rows)
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
