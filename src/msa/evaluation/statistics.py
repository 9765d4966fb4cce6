"""What a difference between two systems, asked the same questions, is worth; and how sure a rate or a mean is.

All functions are pure: the same values and seed give the same result. Resampling moves whole questions, so the values
must be one a question, in the same order for both systems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_BLOCK_VALUES = 4_000_000  # of resampled values held at once: 32 MB
_TOLERANCE = 1e-12  # two means of the same values in another order may differ by rounding


@dataclass(frozen=True)
class Interval:
    """A mean or rate with its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Second system minus first, with its confidence interval and the probability of one as large by chance."""

    mean: float
    low: float
    high: float
    p_value: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p-value that two systems are right equally often (McNemar's test by the binomial distribution).

    Only questions that exactly one of them gets right count; without any, the p-value is 1.

    Args:
        first: whether the first system was right, a question each; True, False, 1 or 0.
        second: the same of the second.

    Raises:
        ValueError: no questions, unequal numbers, or a value that is neither right nor wrong.

    >>> mcnemar([1, 1, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 1, 1])
    0.125
    """
    _check_pairs(first, second)
    for value in (*first, *second):
        if value not in (0, 1):
            raise ValueError(f"expected right or wrong (True, False, 1, 0), found {value!r}. Use paired_permutation")
    only_first = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    only_second = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    total = only_first + only_second
    term, tail = 1, 0
    for wins in range(min(only_first, only_second) + 1):
        tail += term
        term = term * (total - wins) // (wins + 1)
    return min(1.0, 2 * tail / 2**total)


def paired_permutation(
    first: Sequence[float], second: Sequence[float], *, num_resamples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value that two systems have the same mean score: how often swapped labels differ as much.

    With at most ``num_resamples`` ways to swap, all are counted and the value is exact; else as many are drawn, and the
    value is (1 + as extreme) / (1 + drawn), never 0.

    Args:
        first: scores of the first system, one a question.
        second: scores of the second.
        num_resamples: how many swaps to draw.
        seed: of the draw.

    Raises:
        ValueError: no questions, unequal numbers, a score that is not finite, or ``num_resamples < 1``.

    >>> paired_permutation([0.1, 0.2, 0.3, 0.4], [0.3, 0.5, 0.4, 0.9])
    0.125
    """
    _check_pairs(first, second)
    _check_resamples(num_resamples)
    differences = _finite(second) - _finite(first)
    observed = abs(differences.mean()) - _TOLERANCE
    count = len(differences)
    if 2**count <= num_resamples:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs((signs * differences).mean(1)) >= observed).mean())
    random = np.random.default_rng(seed)
    extreme = 0
    for rows in _blocks(num_resamples, count):
        signs = 1 - 2 * random.integers(0, 2, (rows, count), dtype=np.int8)
        extreme += int((np.abs((signs * differences).mean(1)) >= observed).sum())
    return (1 + extreme) / (1 + num_resamples)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Mean of second minus first over questions, its bootstrap interval and :func:`paired_permutation`'s p-value.

    Raises:
        ValueError: no questions, unequal numbers, a score that is not finite, ``num_resamples < 1``, or a confidence
            that is not between 0 and 1.

    >>> paired_difference([0.0, 0.5, 0.25], [0.5, 1.0, 0.75])
    Difference(mean=0.5, low=0.5, high=0.5, p_value=0.25)
    """
    _check_pairs(first, second)
    differences = _finite(second) - _finite(first)
    interval = bootstrap_mean(differences.tolist(), confidence=confidence, num_resamples=num_resamples, seed=seed)
    p_value = paired_permutation(first, second, num_resamples=num_resamples, seed=seed)
    return Difference(interval.mean, interval.low, interval.high, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, each adjusted for all of them (Holm 1979): the smallest counts as often as there are.

    Rejecting what is below a level then makes any false rejection no likelier than that level, however the tests depend
    on each other.

    Raises:
        ValueError: a value that is not between 0 and 1.

    >>> holm([0.25, 0.01, 0.02])
    [0.25, 0.03, 0.04]
    """
    for value in p_values:
        if not 0 <= value <= 1:
            raise ValueError(f"expected p-values between 0 and 1, found {value}")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def bootstrap_mean(
    values: Sequence[float], *, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean with the percentile bootstrap's interval; with few questions it is narrower than it should be.

    Raises:
        ValueError: no values, one that is not finite, ``num_resamples < 1``, or a confidence that is not between 0
            and 1.

    >>> bootstrap_mean([1.0, 1.0, 1.0])
    Interval(mean=1.0, low=1.0, high=1.0)
    """
    _check_confidence(confidence)
    _check_resamples(num_resamples)
    sample = _finite(values)
    random = np.random.default_rng(seed)
    means = np.concatenate(
        [
            sample[random.integers(0, len(sample), (rows, len(sample)))].mean(1)
            for rows in _blocks(num_resamples, len(sample))
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(sample.mean()), float(low), float(high))


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """A rate with Wilson's score interval, which stays sensible near 0 and 1 and with few trials.

    Raises:
        ValueError: no trials, successes below 0 or above them, or a confidence that is not between 0 and 1.

    >>> interval = wilson_interval(81, 263)
    >>> round(interval.low, 4), round(interval.high, 4)
    (0.2553, 0.3662)
    """
    _check_confidence(confidence)
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"expected at least one trial and 0 to that many successes, found {successes} of {trials}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    # at the ends the formula gives 0 and 1 only up to rounding
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(rate, low, high)


def mean_interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean of scores with its 95 % interval: Wilson's where each is 0 or 1, else the bootstrap's.

    Args:
        values: scores, one a question.
        seed: of the bootstrap.

    Raises:
        ValueError: no values, or one that is not finite.

    >>> mean_interval([1.0, 1.0, 1.0]).low < 1
    True
    """
    if values and all(value in (0, 1) for value in values):
        return wilson_interval(int(sum(values)), len(values))
    return bootstrap_mean(values, seed=seed)


def cohen_kappa(first: Sequence[bool], second: Sequence[bool]) -> float | None:
    """Agreement of two raters beyond chance: 1 always, 0 as often as by chance; None where neither ever changes.

    Raises:
        ValueError: no ratings or unequal numbers.

    >>> cohen_kappa([True, True, False, False], [True, False, False, False])
    0.5
    """
    _check_pairs(first, second)
    total = len(first)
    agreed = sum(bool(a) == bool(b) for a, b in zip(first, second, strict=True)) / total
    yes_first, yes_second = sum(map(bool, first)) / total, sum(map(bool, second)) / total
    chance = yes_first * yes_second + (1 - yes_first) * (1 - yes_second)
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's correlation of paired values; None where one of them never changes.

    Raises:
        ValueError: no values, unequal numbers, or a value that is not finite.

    >>> correlation([1, 2, 3, 4], [8, 6, 4, 2])
    -1.0
    """
    _check_pairs(first, second)
    x, y = _finite(first), _finite(second)
    if (x == x[0]).all() or (y == y[0]).all():
        return None
    x, y = x - x.mean(), y - y.mean()
    value = float((x @ y) / math.sqrt((x @ x) * (y @ y)))
    return max(-1.0, min(1.0, value))


def _blocks(rows: int, columns: int) -> list[int]:
    """``rows`` in parts small enough for memory."""
    size = max(1, _BLOCK_VALUES // columns)
    return [min(size, rows - start) for start in range(0, rows, size)]


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        raise ValueError("expected at least one value, found none")
    if not np.isfinite(array).all():
        raise ValueError(f"expected finite values, found {array[~np.isfinite(array)][0]}. Leave these questions out")
    return array


def _check_pairs(first: Sequence[float], second: Sequence[float]) -> None:
    if not len(first) or len(first) != len(second):
        raise ValueError(
            f"expected two values for each of at least one question, found {len(first)} and {len(second)}. Compare "
            "the questions that both systems answered"
        )


def _check_resamples(num_resamples: int) -> None:
    if num_resamples < 1:
        raise ValueError(f"expected num_resamples of at least 1, found {num_resamples}")


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, found {confidence}")
