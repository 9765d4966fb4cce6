"""How far a judge and exact match say the same of the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msa.evaluation.statistics import cohen_kappa, correlation


@dataclass(frozen=True)
class Agreement:
    """How far a judge and exact match say the same.

    Attributes:
        count: answers compared.
        share: of them on which "the judge gives at least the threshold" equals "exact match".
        kappa: Cohen's, of the same; None where both always say the same thing.
        correlation: Pearson's, of score and exact match; None where one never changes.
    """

    count: int
    share: float
    kappa: float | None
    correlation: float | None


def agreement(scores: Sequence[int], exact_matches: Sequence[float], threshold: int = 4) -> Agreement:
    """Compare a judge's scores with exact match on the same answers.

    Args:
        scores: of the judge, 0 to 5.
        exact_matches: 1 or 0 for each.
        threshold: the least score that counts as right.

    Raises:
        ValueError: nothing to compare, or unequal numbers.

    >>> agreement([5, 4, 0, 5], [1, 1, 0, 0])
    Agreement(count=4, share=0.75, kappa=0.5, correlation=0.48507125007266594)
    """
    right = [score >= threshold for score in scores]
    exact = [bool(value) for value in exact_matches]
    kappa = cohen_kappa(right, exact)
    share = sum(a == b for a, b in zip(right, exact, strict=True)) / len(right)
    return Agreement(len(right), share, kappa, correlation(scores, exact_matches))
