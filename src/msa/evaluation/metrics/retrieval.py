"""Scores of retrieved document ids, best first, against the ids of the documents that hold the answer.

An id that is retrieved twice counts at its first rank, and the ranks after it move up. A question without positives has
no such score: every function here raises, and the caller leaves the question out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence


def recall_at(retrieved: Sequence[str], positives: Collection[str], k: int | None = None) -> float:
    """Share of the positives among the first ``k`` retrieved documents (None: all of them).

    The divisor is the number of positives, whatever ``k``: three positives cannot all be among the first two.

    Raises:
        ValueError: no positives, or ``k < 1``.

    >>> recall_at(["a", "x", "b"], {"a", "b"}, k=2)
    0.5
    """
    wanted = _wanted(positives)
    return len(wanted.intersection(_first(retrieved, k))) / len(wanted)


def precision_at(retrieved: Sequence[str], positives: Collection[str], k: int | None = None) -> float:
    """Share of positives among the first ``k`` retrieved documents; fewer than ``k`` are filled up with wrong ones.

    Without ``k``, the share among all that were retrieved; 0.0 if there is none.

    Raises:
        ValueError: no positives, or ``k < 1``.

    >>> precision_at(["a", "x", "b"], {"a", "b"}), precision_at(["a"], {"a", "b"}, k=4)
    (0.6666666666666666, 0.25)
    """
    wanted, found = _wanted(positives), _first(retrieved, k)
    divisor = len(found) if k is None else k
    return len(wanted.intersection(found)) / divisor if divisor else 0.0


def retrieval_f1(retrieved: Sequence[str], positives: Collection[str], k: int | None = None) -> float:
    """Harmonic mean of :func:`precision_at` and :func:`recall_at`; 0.0 if both are.

    Raises:
        ValueError: no positives, or ``k < 1``.

    >>> retrieval_f1(["a", "x", "b"], {"a", "b"})
    0.8
    """
    precision, recall = precision_at(retrieved, positives, k), recall_at(retrieved, positives, k)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def reciprocal_rank(retrieved: Sequence[str], positives: Collection[str], k: int | None = None) -> float:
    """One over the rank of the first positive; 0.0 if none is among the first ``k``. Its mean is the MRR.

    Raises:
        ValueError: no positives, or ``k < 1``.

    >>> reciprocal_rank(["x", "a", "b"], {"a", "b"}), reciprocal_rank(["x", "a"], {"a"}, k=1)
    (0.5, 0.0)
    """
    wanted = _wanted(positives)
    ranks = (rank for rank, name in enumerate(_first(retrieved, k), start=1) if name in wanted)
    return 1 / next(ranks, math.inf)


def ndcg_at(retrieved: Sequence[str], positives: Collection[str] | Mapping[str, float], k: int | None = 10) -> float:
    """Normalised discounted cumulative gain of the first ``k``, with linear gains as in trec_eval and BEIR.

    Args:
        retrieved: ids, best first.
        positives: ids, each with a gain of 1, or id → gain; gains of 0 and below count as 0.
        k: how many count; BEIR reports 10.

    Raises:
        ValueError: no document with a gain above 0, one that is not finite, or ``k < 1``.

    >>> ndcg_at(["x", "a"], {"a"}), ndcg_at(["b", "a"], {"a": 2, "b": 1})
    (0.6309297535714575, 0.8597186998521972)
    """
    gains = dict(positives) if isinstance(positives, Mapping) else dict.fromkeys(_wanted(positives), 1.0)
    if not all(math.isfinite(gain) for gain in gains.values()):
        raise ValueError("expected finite gains, found one that is not. Correct the judgements")
    ideal = sorted((gain for gain in gains.values() if gain > 0), reverse=True)
    if not ideal:
        raise ValueError(_NO_POSITIVES)
    found = [max(gains.get(name, 0.0), 0.0) for name in _first(retrieved, k)]
    return _discounted(found) / _discounted(ideal[:k])


def all_hops_found(retrieved: Sequence[str], hops: Sequence[Collection[str]], k: int | None = None) -> float:
    """1.0 if every document of every hop is among the first ``k`` retrieved ones.

    Raises:
        ValueError: no hops, a hop without documents, or ``k < 1``.

    >>> all_hops_found(["a", "x", "b"], [["a"], ["b"]]), all_hops_found(["a", "x", "b"], [["a"], ["b"]], k=2)
    (1.0, 0.0)
    """
    if not hops:
        raise ValueError(_NO_POSITIVES)
    found = set(_first(retrieved, k))
    return float(all(_wanted(hop) <= found for hop in hops))


_NO_POSITIVES = "no document is known to hold the answer, so there is nothing to score. Leave the question out"


def _wanted(positives: Collection[str]) -> set[str]:
    if isinstance(positives, str):
        raise TypeError(f"expected a list of ids, found the one string {positives!r}; put it into a list")
    if not positives:
        raise ValueError(_NO_POSITIVES)
    return set(positives)


def _first(retrieved: Sequence[str], k: int | None) -> list[str]:
    if k is not None and k < 1:
        raise ValueError(f"expected k of at least 1, found {k}")
    return list(dict.fromkeys(retrieved))[:k]


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))
