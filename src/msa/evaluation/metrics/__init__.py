"""Scores of answers and of retrieved documents: pure functions on strings and lists, all from 0 to 1."""

from msa.evaluation.metrics.answers import (
    AbstentionRates,
    abstains,
    abstention_rates,
    contains_answer,
    exact_match,
    normalise_answer,
    token_f1,
)
from msa.evaluation.metrics.retrieval import (
    all_hops_found,
    ndcg_at,
    precision_at,
    recall_at,
    reciprocal_rank,
    retrieval_f1,
)

__all__ = [
    "AbstentionRates",
    "abstains",
    "abstention_rates",
    "all_hops_found",
    "contains_answer",
    "exact_match",
    "ndcg_at",
    "normalise_answer",
    "precision_at",
    "recall_at",
    "reciprocal_rank",
    "retrieval_f1",
    "token_f1",
]
