"""Which metrics an answer gets: those of its task."""

from __future__ import annotations

from collections.abc import Iterable

from msa.evaluation.metrics import (
    abstains,
    all_hops_found,
    contains_answer,
    exact_match,
    ndcg_at,
    precision_at,
    recall_at,
    reciprocal_rank,
    retrieval_f1,
    token_f1,
)
from msa.evaluation.metrics.longbench import TASKS, chosen_letter, longbench_score
from msa.evaluation.ruler import string_match_all
from msa.evaluation.sets import ANSWERABLE
from msa.evaluation.types import Prediction, Question

RECALLS = (1, 5, 10, 16)


def score_ruler(question: Question, prediction: Prediction) -> dict[str, float]:
    """RULER's ``match`` (share of references), retrieval, and ``read`` for ways that choose what to read."""
    scores = {"match": string_match_all(prediction.text, question.answers)}
    if question.positives and prediction.read is not None:
        scores["read"] = float(set(question.positives) <= set(prediction.read))
    return scores | _retrieval(question, prediction)


def score_answer(question: Question, prediction: Prediction) -> dict[str, float]:
    """Metrics of a question set: exact match, F1 and containment, or the task's own, or whether it declined."""
    if question.metadata.get(ANSWERABLE) is False:
        return {"abstained": float(abstains(prediction.text))}
    scores = _retrieval(question, prediction)
    if not question.answers:
        return scores
    if question.task in TASKS:
        classes = question.metadata.get("all_classes")
        scores["longbench"] = longbench_score(question.task, prediction.text, question.answers, classes)
    elif question.task == "longbench-v2":
        scores["exact_match"] = float(chosen_letter(prediction.text) in question.answers)
    else:
        scores["exact_match"] = exact_match(prediction.text, question.answers)
        scores["f1"] = token_f1(prediction.text, question.answers)
        scores["contains"] = contains_answer(prediction.text, question.answers)
    return scores


def metric_names(questions: Iterable[Question]) -> list[str]:
    """Names of the scores that :func:`score_answer` gives to answers of these questions, sorted."""
    nothing = Prediction(text="")
    return sorted({name for question in questions for name in score_answer(question, nothing)})


def _retrieval(question: Question, prediction: Prediction) -> dict[str, float]:
    if not question.positives:
        return {}
    retrieved, positives = prediction.retrieved, question.positives
    scores = {f"recall@{k}": recall_at(retrieved, positives, k) for k in RECALLS}
    # of all that a way chose to retrieve, however many
    scores["precision"] = precision_at(retrieved, positives)
    scores["retrieval_f1"] = retrieval_f1(retrieved, positives)
    scores["mrr"] = reciprocal_rank(retrieved, positives)
    scores["ndcg@10"] = ndcg_at(retrieved, question.metadata.get("relevance") or positives)
    if len(question.hops) > 1:
        scores["all_hops"] = all_hops_found(retrieved, question.hops)
    return scores
